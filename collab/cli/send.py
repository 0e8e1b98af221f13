"""Owns `trio-collab send`: one event, and what became of it."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collab.cli.far import far_flags, run
from collab.cli.screen import count, is_number, listed, say, say_json
from collab.settings.loading import printable

if TYPE_CHECKING:
    from collab.cli.far import Far

# Longer than the service itself waits for the ack.
_SECONDS = 15.0


@click.command()
@far_flags
@click.option(
    "--from", "from_user", default="", metavar="USER", help="Who sends. Not needed where a token says so."
)
@click.option(
    "--to", "to", multiple=True, required=True, metavar="USER,…", help="Who is to get it; may be repeated."
)
@click.option("--type", "kind", required=True, metavar="TYPE", help="Such as position_shared.")
@click.option(
    "--data",
    default="{}",
    show_default=True,
    metavar="JSON|@FILE|-",
    help="What belongs to the event: JSON, a file with it, or - for standard input.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ack as one line of JSON.")
def send(far: Far, from_user: str, to: tuple[str, ...], kind: str, data: str, as_json: bool) -> int:
    """Send one event, without a connection that others would see come and go.

    Exit code 0 if everybody got it, 1 if somebody did not or the service refused it, 2 for wrong usage.
    """
    import msgspec

    to_users = [user for users in to for user in users.split(",") if user]
    if not to_users:
        raise click.UsageError("--to: expected the id of a user")
    if not from_user and not far.has_token:
        raise click.UsageError("--from: needed where no token says who sends")
    event: dict[str, object] = {"type": kind, "to_users": to_users, "data": _json(data)}
    if from_user:
        event["from_user"] = from_user
    try:
        body = msgspec.json.encode(event)
    except UnicodeEncodeError:
        raise click.UsageError("an argument holds what is not UTF-8") from None
    ack = run(partial(_post, far, body))
    undelivered: list[str] = ack.setdefault("undelivered", [])
    with suppress(BrokenPipeError):
        _show(ack, as_json)
    return 1 if undelivered else 0


async def _post(far: Far, body: bytes) -> dict[str, Any]:
    from collab.cli.asking import ask_json, strange

    ack = await ask_json(far, "POST", "/api/events", body=body, seconds=_SECONDS)
    numbers = [ack.get(name) for name in ("delivered_to", "total_recipients")]
    if not all(map(is_number, numbers)) or not isinstance(ack.get("undelivered", []), list):
        raise strange(far)
    return ack


def _show(ack: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(ack)
        return
    say(
        f"{printable(ack.get('event_type', ''))} reached {ack['delivered_to']:,} of "
        f"{count(ack['total_recipients'], 'user')}"
    )
    if ack["undelivered"]:
        names = [printable(name) for name in ack["undelivered"]]
        say(f"not reached: {listed(names)}; offline, too slow, spelt otherwise, or not allowed")


def _json(data: str) -> object:
    """The data as it was written: the service hands it on byte for byte."""
    import msgspec

    try:
        if data == "-":
            raw = sys.stdin.buffer.read()
        elif data.startswith("@"):
            raw = Path(data[1:]).read_bytes()
        else:
            raw = data.encode()
        raw.decode()
        msgspec.json.decode(raw)
    except OSError as error:
        raise click.UsageError(f"--data: cannot read {data[1:]}: {error.strerror}") from None
    except (UnicodeError, RecursionError):
        raise click.UsageError("--data: expected JSON in UTF-8") from None
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--data: expected JSON: {error}") from None
    return msgspec.Raw(raw.strip())
