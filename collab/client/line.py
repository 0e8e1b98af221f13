"""Owns one connection, from its `connected` to its end: a reader, a writer, keepalive."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from collab.client.errors import CollabClientError
from collab.client.events import event_from
from collab.client.redial import NO_CLOSE_FRAME, End, Ended
from collab.wire.as_client import ReceivedEvent, Unreadable, decode
from collab.wire.messages import (
    Connected,
    ErrorReply,
    EventAck,
    Notice,
    ServiceShutdown,
    UserOffline,
    UserOnline,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.client.inbox import Inbox
    from collab.client.limits import Limits
    from collab.client.presence import Presence
    from collab.client.sends import Sends
    from collab.client.session import Session

_log = logging.getLogger("collab.client")


class NotACollabService(CollabClientError):
    """What answered speaks WebSocket, and something else than this protocol over it."""


class Line:
    """One live connection. The session is its opener's to close."""

    def __init__(
        self,
        session: Session,
        *,
        sends: Sends,
        inbox: Inbox,
        presence: Presence,
        limits: Limits,
        fill_presence: Callable[[], Awaitable[bool]],
    ) -> None:
        self._session = session
        self._sends = sends
        self._inbox = inbox
        self._presence = presence
        self._limits = limits
        self._fill_presence = fill_presence
        self._come_back_in: float | None = None
        self._waiting_texts: list[str] = []
        self._end: End | None = None
        self._heard_at = 0.0
        self._heard = anyio.Event()
        self._is_paused = False
        self._ping = b""

    async def greeting(self) -> Connected:
        """The first message.

        Raises:
            Ended: the service closed instead.
            NotACollabService: it is none.
        """
        while not self._waiting_texts:
            self._waiting_texts = await self._session.receive_texts()
        try:
            message, _ = decode(self._waiting_texts.pop(0))
        except Unreadable as error:
            raise NotACollabService(f"the first message is not one of the service: {error}") from None
        if not isinstance(message, Connected):
            raise NotACollabService("the first message is not that of the service")
        return message

    async def run(self) -> End:
        """Until the connection ends. Cancelled, it ends as well; nothing is written in half."""
        began = self._heard_at = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._contained, self._write, tasks.cancel_scope)
            tasks.start_soon(self._contained, self._keep_alive, tasks.cancel_scope)
            tasks.start_soon(self._keep_filling)
            try:
                await self._contained(self._read, tasks.cancel_scope)
            finally:
                self._session.hurry()
        end = self._end or End(reason="the connection ended")
        return End(
            reason=end.reason,
            code=end.code,
            come_back_in=self._come_back_in,
            lived=anyio.current_time() - began,
        )

    async def _contained(self, part: Callable[[], Awaitable[None]], all_parts: anyio.CancelScope) -> None:
        """Run one part; its end is that of the connection."""
        try:
            await part()
        except Ended as ended:
            if self._end is None:
                self._end = End(reason=ended.reason, code=ended.code)
            all_parts.cancel()

    async def _read(self) -> None:
        while True:
            for text in self._waiting_texts:
                self._take(text)
            await self._inbox.wait_for_room(self._is_awaited, self._pause)
            self._waiting_texts = await self._session.receive_texts()
            self._heard_at = anyio.current_time()
            self._heard.set()
            if self._session.owes_a_pong:
                self._sends.bell.ring()

    def _is_awaited(self) -> bool:
        return self._sends.is_waiting

    def _pause(self, is_paused: bool) -> None:
        self._is_paused = is_paused
        # What happened meanwhile was not looked at: the silence begins anew.
        self._heard_at = anyio.current_time()
        self._heard.set()

    def _take(self, text: str) -> None:
        try:
            message, id = decode(text)
        except Unreadable as error:
            _log.warning("Left out a message of the service that cannot be read: %s", error)
            return
        if isinstance(message, ReceivedEvent):
            self._inbox.put(event_from(message), len(text))
        elif isinstance(message, EventAck):
            self._sends.acknowledged(message, id)
        elif isinstance(message, UserOnline):
            self._presence.came(message.user_id, message.display_name)
        elif isinstance(message, UserOffline):
            self._presence.went(message.user_id)
        elif isinstance(message, ErrorReply):
            if not self._sends.refused(message, id):
                _log.warning("The service reports an error: %s (%s)", message.error, message.code)
        elif isinstance(message, ServiceShutdown):
            self._come_back_in = message.reconnect_in_ms / 1000
        elif isinstance(message, Notice):
            _log.info("Notice of the service: %s", message.message)

    async def _write(self) -> None:
        while True:
            await self._sends.bell.wait()
            while data := self._next_bytes():
                await self._session.write(data)
                # Writing is shielded.
                await checkpoint_if_cancelled()

    def _next_bytes(self) -> bytes:
        ping, self._ping = self._ping, b""
        return ping + self._session.frames_of(self._sends.take())

    async def _keep_alive(self) -> None:
        limits = self._limits
        while True:
            silent_until = self._heard_at + limits.ping_seconds
            if not self._is_paused and silent_until > anyio.current_time():
                await anyio.sleep_until(silent_until)
                continue
            if self._is_paused:
                # We do not read, so its pings wait: let the service know that we live.
                self._send_ping()
                await anyio.sleep(limits.ping_seconds)
                continue
            self._heard = anyio.Event()
            self._send_ping()
            with anyio.move_on_after(limits.pong_seconds) as scope:
                await self._heard.wait()
            if scope.cancelled_caught:
                raise Ended(NO_CLOSE_FRAME, "the service does not answer")

    def _send_ping(self) -> None:
        self._ping = self._session.ping_frame()
        self._sends.bell.ring()

    async def _keep_filling(self) -> None:
        """Ask who is online until there is an answer."""
        delay = self._limits.first_delay_seconds
        while not await self._fill_presence():
            await anyio.sleep(random.uniform(delay / 2, delay))
            delay = min(2 * delay, self._limits.longest_delay_seconds)
