"""Owns `trio-collab doctor`: its flags, and its findings as a person or a program reads them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import click

from collab.cli.far import far_flags, run
from collab.cli.screen import plain, say_json, screen

if TYPE_CHECKING:
    from collab.cli.far import Far
    from collab.cli.findings import Step

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@click.command()
@click.argument("url_argument", metavar="[URL]", default="")
@far_flags
@click.option(
    "--user",
    "user_id",
    default="",
    metavar="USER",
    help="As whom to connect. [default: whom the token is for, else a new user doctor-…]",
)
@click.option("--peer", "peers", multiple=True, metavar="USER", help="Is this user online? May be repeated.")
@click.option("--origin", default="", metavar="URL", help="The Origin to send, as a browser does.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Seconds to wait for each answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def doctor(
    far: Far,
    user_id: str,
    peers: tuple[str, ...],
    origin: str,
    timeout: float,
    as_json: bool,
) -> int:
    """Find out why a backend cannot connect to the service at URL, step by step.

    \b
    name     the name of the host has addresses
    tcp      the port takes connections
    tls      the certificate is good, and for how long
    http     it is trio-collab, and does not go down
    upgrade  WebSockets come through
    auth     the token is taken
    ping     how long an answer takes, and whether the clocks agree
    send     an event to oneself is acknowledged and comes back
    peers    those named with --peer are online

    It stops at the first step that fails, and says what to do. Others see a user come and go.

    Exit code 0 if no step failed, 1 if one did, 2 for wrong usage.
    """
    from collab.cli.examination import Examination
    from collab.cli.findings import NOT_TRIED

    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        # What was not tried is for programs, which want the same steps each time.
        if not as_json and step.status != NOT_TRIED:
            _show(step)

    examination = Examination(far, report, user_id=user_id, origin=origin, peers=peers, seconds=timeout)
    is_well = run(examination.run)
    with suppress(BrokenPipeError):
        if as_json:
            say_json(
                {"url": far.websocket_url, "ok": is_well, "steps": [attrs.asdict(step) for step in steps]}
            )
    return 0 if is_well else 1


def _show(step: Step) -> None:
    with suppress(BrokenPipeError):
        line = plain(f"{step.status:8} ", _STYLES[step.status])
        line.append_text(plain(f"{step.name:8} "))
        line.append_text(plain(step.finding, "dim" if step.status == "skipped" else ""))
        screen().print(line, soft_wrap=True)
        if step.advice:
            screen().print(plain(f"{'':18}{step.advice}", "italic"), soft_wrap=True)
