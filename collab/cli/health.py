"""Owns `trio-collab health`: an exit code for scripts and container checks."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from collab.cli.far import Unreachable, far_flags, run
from collab.cli.screen import count, duration, is_number, say, say_json
from collab.errors import CollabError

if TYPE_CHECKING:
    from collab.cli.far import Far

_COUNTERS = ("uptime", "active_users", "total_connections", "total_events_routed")


@click.command()
@far_flags
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="Seconds to wait at most.",
)
@click.option("--ready", is_flag=True, help="Exit code 1 also while it goes down and takes nobody new.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Take any certificate: for a check on the machine itself, whose certificate is for its outer name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, also where it is not healthy.")
def health(far: Far, timeout: float, ready: bool, insecure: bool, as_json: bool) -> int:
    """Say whether the service is alive. No token is needed, and none is sent.

    Exit code 0 if it is healthy, 1 if it is not or cannot be reached, 2 for wrong usage.
    """
    if insecure and far.ssl_context is not None:
        import ssl

        far.ssl_context.check_hostname = False
        far.ssl_context.verify_mode = ssl.CERT_NONE
    try:
        found = run(partial(look, far.without_token(), timeout))
    except CollabError as error:
        if not as_json:
            raise
        found = {"healthy": False, "error": str(error)}
    is_fine = bool(found["healthy"]) and not (ready and found["draining"])
    with suppress(BrokenPipeError):
        if as_json:
            say_json(found)
        else:
            say(_sentence(found))
    return 0 if is_fine else 1


async def look(far: Far, seconds: float) -> dict[str, Any]:
    """What the service says of itself.

    Raises:
        Unreachable: there is no answer, or it is none of the service.
        Declined: the service, or what stands before it, says no.
    """
    import trio

    from collab.cli.asking import ask, ask_json, strange

    began = trio.current_time()
    counters = await ask_json(far, "GET", "/health", seconds=seconds)
    if not all(is_number(counters.get(name)) for name in _COUNTERS):
        raise strange(far)
    # What is left of the time: both together are one look.
    left = max(0.1, began + seconds - trio.current_time())
    try:
        ready = await ask(far, "GET", "/ready", seconds=left)
        draining = ready.status == 503 and (ready.object() or {}).get("status") == "draining"
    except Unreachable:
        # Between the two it went away.
        draining = True
    healthy = counters.get("status") == "healthy"
    return {"healthy": healthy, "draining": draining, **{name: counters[name] for name in _COUNTERS}}


def _sentence(found: dict[str, Any]) -> str:
    state = "healthy" if found["healthy"] else "not healthy"
    if found["draining"]:
        state += ", but going down, so nobody new is let in"
    return (
        f"{state}: up {duration(found['uptime'])}, {count(found['active_users'], 'user')} online, "
        f"{count(found['total_events_routed'], 'event')} routed"
    )
