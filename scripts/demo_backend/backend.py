"""Owns what a backend does with the service: it sends its outbox, takes events, and catches up."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import httpx

from collab.client import (
    Collab,
    CommentAdded,
    Limits,
    MaybeDelivered,
    NotConnected,
    NotSent,
    PositionShared,
    PositionUpdated,
    RateLimited,
    ShareRevoked,
    State,
    Stopped,
    connect,
)
from demo_backend import store
from demo_backend.database import Database
from demo_backend.shapes import Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from sqlite3 import Connection

    from collab.client import Event
    from demo_backend.settings import Settings

    P = ParamSpec("P")
    T = TypeVar("T")

log = logging.getLogger("demo_backend")

_PAUSE_SECONDS = 0.3
_LONGEST_PAUSE_SECONDS = 10.0
_FETCH_SECONDS = 5.0
_LARGEST_POSITION_BYTES = 4 * 1024 * 1024
# People wait for this demo. The defaults are kinder to a service that comes back.
_LIMITS = Limits(first_delay_seconds=0.2, longest_delay_seconds=1.0)


class Backend:
    """One user's backend. `changed` counts what its page may want to show."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        # Another one after each start, so that a page sees that it has to ask.
        self.changed = time.time_ns() // 1_000_000
        self.collab: Collab
        self._database = database
        self._connected = asyncio.Event()
        self._to_send = asyncio.Event()
        self._to_fetch = asyncio.Event()

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """What this function of `store` finds."""
        return await self._database.run(function, *arguments, **named)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Have this function of `store` change something, and see to what comes of it."""
        result = await self._database.run(function, *arguments, **named)
        self.changed += 1
        self._to_send.set()
        self._to_fetch.set()
        return result

    def on_state(self, state: State, reason: str) -> None:
        """The client's callback."""
        if state is not State.CONNECTING:  # the client itself logs that, with what it does about it
            log.info("%s%s", state.value, f": {reason}" if reason else "")
        self.changed += 1
        if state is State.CONNECTED:
            self._connected.set()

    # Receiving. A handler that takes long would hold up the next event: what is shared is fetched elsewhere.

    async def on_event(self, event: Event) -> None:
        """Store what an event of another user says. The same one may come again."""
        me = self.settings.user_id
        match event:
            case PositionShared(from_user=sender, position_id=id, share_url=str(url)):
                log.info("← position_shared from %s", sender)
                await self.write(store.take_shared, me, sender, id, url)
            case CommentAdded(from_user=sender, position_id=id, comment=comment):
                values = {
                    "id": comment.id,
                    "user_id": comment.user_id,
                    "display_name": comment.display_name or comment.user_id,
                    "text": comment.text,
                    "created_at": comment.created_at or "",
                }
                is_new = await self.write(store.take_comment, me, sender, id, values)
                log.info("← comment_added from %s: %s%s", sender, comment.text, "" if is_new else " (known)")
            case PositionUpdated(from_user=sender, position_id=id, updates=updates):
                log.info("← position_updated from %s: %s", sender, ", ".join(updates))
                await self.write(store.take_update, me, sender, id, dict(updates))
            case ShareRevoked(from_user=sender, position_id=id):
                log.info("← share_revoked from %s", sender)
                await self.write(store.take_revoked, me, sender, id)

    # Sending

    async def send_outbox(self) -> None:
        """Send the outbox to those who are online, in order, until the service says no for good."""
        while True:
            self._to_send.clear()
            outgoing = await self.read(store.next_to_send, self.collab.online)
            if outgoing is None:
                await self._to_send.wait()
                continue
            try:
                await self._send(outgoing)
            except Stopped as stopped:
                log.error("nothing is sent any more: %s", stopped)
                return

    async def _send(self, outgoing: store.Outgoing) -> None:
        try:
            ack = await self.collab.send(outgoing.type, [outgoing.to_user], outgoing.data)
        except RateLimited as error:
            await asyncio.sleep(error.retry_after)
        except Stopped:
            raise
        except NotConnected:
            await self.collab.wait_connected()
        except NotSent as error:
            log.error("%s to %s is refused: %s", outgoing.type, outgoing.to_user, error)
            await self.write(store.refused, outgoing.number, str(error))
        except MaybeDelivered as error:
            # Whoever gets it twice will know it by the ids in it.
            log.info("? %s to %s: %s", outgoing.type, outgoing.to_user, error)
        else:
            if ack.undelivered:
                # Gone this moment; the notice of that is on its way.
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                log.info("→ %s to %s", outgoing.type, outgoing.to_user)
                await self.write(store.sent, outgoing.number)

    # Catching up

    async def follow_connections(self) -> None:
        """After each connect: what was on its way through the last connection may be lost."""
        while True:
            await self._connected.wait()
            self._connected.clear()
            await self.write(store.mark_stale, self.settings.user_id)
            await self.write(store.share_again)

    async def follow_presence(self) -> None:
        """Somebody came: they may have missed something, and so may have we."""
        try:
            async for change in self.collab.presence():
                self.changed += 1
                if change.user_id == self.settings.user_id:
                    continue
                log.info("%s is %s", change.user_id, "online" if change.online else "offline")
                if change.online:
                    await self.write(store.mark_stale, self.settings.user_id, change.user_id)
                    await self.write(store.share_again, change.user_id)
        except Stopped:
            return

    async def fetch(self, peers: httpx.AsyncClient) -> None:
        """Fetch what is stale from the backends that share it, until they answer, less and less often."""
        now = asyncio.get_running_loop().time
        # When to try again, and the delay after that, by the reason's number: a new reason does not wait.
        later: dict[int, tuple[float, float]] = {}
        while True:
            self._to_fetch.clear()
            found = await self.read(store.stale)
            later = {stale.stale: later[stale.stale] for stale in found if stale.stale in later}
            for stale in found:
                when, delay = later.pop(stale.stale, (0.0, _PAUSE_SECONDS))
                if when > now():
                    later[stale.stale] = (when, delay)
                    continue
                try:
                    async with asyncio.timeout(_FETCH_SECONDS):
                        await self._fetch(peers, stale)
                except Exception as error:
                    # Address and answer are somebody else's: whatever is wrong with them stops nothing.
                    log.info("cannot fetch %s: %s", stale.share_url, str(error) or type(error).__name__)
                    later[stale.stale] = (now() + delay, min(2 * delay, _LONGEST_PAUSE_SECONDS))
            next_time = min((when for when, _ in later.values()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_time):
                    await self._to_fetch.wait()

    async def _fetch(self, peers: httpx.AsyncClient, stale: store.Stale) -> None:
        me = self.settings.user_id
        body = b""
        async with peers.stream("GET", stale.share_url, headers={"X-User-Id": quote(me)}) as answer:
            if answer.status_code in (403, 404, 410):
                await self.write(store.take_refused, stale)
                return
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _LARGEST_POSITION_BYTES:
                    raise httpx.DecodingError("the answer is too large")
        state: dict[str, Any] = Position.model_validate_json(body).model_dump()
        missing = await self.write(store.take_fetched, me, stale, state)
        log.info("fetched “%s” from %s%s", state["title"], stale.owner, f": {missing} new" if missing else "")


@asynccontextmanager
async def open_backend(settings: Settings) -> AsyncIterator[Backend]:
    """A backend that is at work for the length of the block, whether the service is there or not."""
    with Database(settings.database) as database:
        backend = Backend(settings, database)
        async with (
            httpx.AsyncClient(trust_env=False) as peers,
            connect(
                settings.collab_url,
                user_id=settings.user_id,
                backend_url=settings.backend_url,
                display_name=settings.display_name,
                on_state=backend.on_state,
                start_seconds=0,
                limits=_LIMITS,
            ) as collab,
        ):
            backend.collab = collab
            collab.on("*", backend.on_event)
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(run)
                    for run in (
                        backend.send_outbox(),
                        backend.follow_connections(),
                        backend.follow_presence(),
                        backend.fetch(peers),
                    )
                ]
                try:
                    yield backend
                finally:
                    for task in work:
                        task.cancel()
