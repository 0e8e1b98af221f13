"""Owns `trio-collab listen`: what a user gets, as it comes."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs
import click

from collab.cli.far import NeedsTheClient, far_flags, run_until_interrupted
from collab.cli.screen import note, plain, say_json, screen
from collab.errors import CollabError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from collab.cli.far import Far
    from collab.client import Event, PresenceChange, State

_DEFAULT_BACKEND = "http://localhost"
_PACKAGES = ("anyio", "httpx", "httpx_ws")


@attrs.frozen(kw_only=True)
class Wanted:
    """What is to be shown of all that comes."""

    user_id: str
    backend_url: str
    types: frozenset[str]
    count: int
    presence: bool
    as_json: bool
    seconds: float


@click.command()
@far_flags
@click.option("--user", "user_id", required=True, metavar="USER", help="Whose events.")
@click.option(
    "--backend-url",
    default="",
    metavar="URL",
    help=f"What others see as the user's backend. [default: what they see now, else {_DEFAULT_BACKEND}]",
)
@click.option("--types", default="", metavar="TYPE,…", help="Show events of these types alone.")
@click.option("--count", type=click.IntRange(min=1), default=None, help="End after so many.")
@click.option("--presence", is_flag=True, help="Show who comes and goes, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds in which the first connection must come up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each event.")
def listen(
    far: Far,
    user_id: str,
    backend_url: str,
    types: str,
    count: int | None,
    presence: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Show the events for a user, until Ctrl-C.

    It is one more connection of that user, who counts as online for as long as it is there. It connects again
    by itself. Needs the extra [client].

    Exit code 0, 1 if the service does not let it in or sends it away, 2 for wrong usage.
    """
    try:
        import collab.client  # noqa: F401 # only to learn whether it is there
    except ImportError as error:
        if error.name not in _PACKAGES:
            raise
        raise NeedsTheClient("listen") from None
    wanted = Wanted(
        user_id=user_id,
        backend_url=backend_url,
        types=frozenset(filter(None, types.split(","))),
        count=count or 0,
        presence=presence,
        as_json=as_json,
        seconds=timeout,
    )
    with _SaysOnStandardError(far):
        return run_until_interrupted(partial(_listen, far, wanted))


async def _listen(far: Far, wanted: Wanted) -> int:
    import trio

    from collab.client import NotConnected, State, connect

    far.token()  # Where it cannot be read, that is said before anything else.
    backend_url, display_name = await _as_others_see(far, wanted)

    def token() -> str:
        try:
            return far.token()
        except CollabError as error:
            raise NotConnected(str(error)) from None

    has_begun = False

    def on_state(state: State, reason: str) -> None:
        if state is State.CONNECTED and has_begun:
            note("connected again")

    connecting = connect(
        far.websocket_url,
        user_id=wanted.user_id,
        backend_url=backend_url,
        display_name=display_name,
        # A token that never changes is not tried twice.
        token=token if far.token_may_change else far.token() or None,
        presence=wanted.presence,
        on_state=on_state,
        ssl_context=far.ssl_context,
        start_seconds=wanted.seconds,
    )
    try:
        async with connecting as collab, trio.open_nursery() as nursery:
            if wanted.presence:
                nursery.start_soon(_show_presence, collab.presence(), wanted.as_json)
            note(f"listening as {wanted.user_id} at {far.websocket_url}; Ctrl-C ends it")
            has_begun = True
            await _show_events(collab.events(), wanted)
            nursery.cancel_scope.cancel()
    except* NotConnected as group:
        # Each task that waits for something learns of it.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise CollabError(far.hide(str(error))) from None
    return 0


async def _show_events(events: AsyncIterator[Event], wanted: Wanted) -> None:
    shown = 0
    async for event in events:
        if wanted.types and event.type not in wanted.types:
            continue
        _show_event(event, wanted.as_json)
        shown += 1
        if shown == wanted.count:
            return


async def _as_others_see(far: Far, wanted: Wanted) -> tuple[str, str]:
    """Backend and name of the user: those of the newest connection are what others are told."""
    from collab.cli.asking import ask, path_of_user

    backend_url, display_name = wanted.backend_url, ""
    try:
        row = (await ask(far, "GET", path_of_user(wanted.user_id), seconds=wanted.seconds)).object() or {}
    except CollabError:
        # The client will say more.
        row = {}
    if row.get("status") == "online":
        backend_url = backend_url or str(row.get("backend_url", ""))
        display_name = str(row.get("display_name", ""))
    return backend_url or _DEFAULT_BACKEND, display_name


async def _show_presence(changes: AsyncIterator[PresenceChange], as_json: bool) -> None:
    async for change in changes:
        _show_change(change, as_json)


def _show_change(change: PresenceChange, as_json: bool) -> None:
    event = "user_online" if change.online else "user_offline"
    if as_json:
        say_json({"event": event, "user_id": change.user_id, "display_name": change.display_name})
        return
    line = plain(_now() + "  ", "dim")
    line.append_text(plain(event, "green" if change.online else "yellow"))
    line.append_text(plain(f"  {change.user_id} ({change.display_name})"))
    screen().print(line, soft_wrap=True)


def _show_event(event: Event, as_json: bool) -> None:
    if as_json:
        said = {"type": event.type, "from_user": event.from_user, "to_users": list(event.to_users)}
        say_json({"event": "collab_event", **said, "data": event.data})
        return
    line = plain(_now() + "  ", "dim")
    line.append_text(plain(event.type, "bold cyan"))
    line.append_text(plain(f"  from {event.from_user}"))
    others = len(set(event.to_users)) - 1
    if others > 0:
        line.append_text(plain(f", to {others:,} more", "dim"))
    console = screen()
    console.print(line, soft_wrap=True)
    for text in _indented(event.data).splitlines():
        console.print(plain("          " + text), soft_wrap=True)


def _indented(data: object) -> str:
    try:
        return json.dumps(data, ensure_ascii=False, indent=2)
    except RecursionError:
        return "nested too deeply to be shown; --json does"


def _now() -> str:
    from datetime import datetime

    return datetime.now().strftime("%H:%M:%S")


class _SaysOnStandardError(logging.Handler):
    """What the client has to say, as lines on standard error, for the length of a block."""

    def __init__(self, far: Far) -> None:
        super().__init__(logging.INFO)
        self._far = far
        self._log = logging.getLogger("collab.client")

    def __enter__(self) -> None:
        self._before = (self._log.level, self._log.propagate)
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._log.addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._before[0])
        self._log.propagate = self._before[1]

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`. What ends the command is said by its last line."""
        if record.levelno < logging.ERROR or record.exc_info:
            note(self._far.hide(record.getMessage()))
