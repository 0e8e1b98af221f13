"""Owns the life of one WebSocket connection after its handshake: readers, writer, end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from collab.core.router import Batch, Router
from collab.errors import MessageError
from collab.observe.log import get_logger
from collab.wire.close import Close, CloseCode
from collab.wire.frames import PING_FRAME
from collab.wire.messages import Pong, RouteRequest

if TYPE_CHECKING:
    from collab.core.connection import Connection
    from collab.core.membership import Membership
    from collab.edge.tap import Tap
    from collab.policy.validation import EventRules
    from collab.settings import TimeoutSettings

_log = get_logger()
_BINARY = Close(CloseCode.BINARY_MESSAGE, "Messages are text frames")
_INTERNAL = Close(CloseCode.INTERNAL_ERROR, "Internal error")
_ANSWER = Close(CloseCode.NORMAL, "")
_NO_PONG = Close(CloseCode.NO_PONG, "No answer to the keepalive ping")


class Life:
    """One connection from `connected` to its close frame.

    Three tasks: `run` itself, which hands on the messages that went through trio-websocket;
    trio-websocket's reader, whose reads go through the tap; the writer.
    """

    def __init__(
        self,
        connection: Connection,
        tap: Tap,
        websocket: WebSocketConnection,
        *,
        membership: Membership,
        router: Router,
        rules: EventRules,
        timeouts: TimeoutSettings,
    ) -> None:
        self.connection = connection
        self._tap = tap
        self._websocket = websocket
        self._membership = membership
        self._router = router
        self._rules = rules
        self._timeouts = timeouts
        self._live = trio.CancelScope()
        self._written = trio.Event()
        self._pinged_at: float | None = None
        self._gone_by: float | None = None

    async def run(self, nursery: trio.Nursery) -> None:
        """Live until the peer leaves or the connection is ended, then say goodbye.

        `nursery` is the connection's own: the writer runs in it, beside trio-websocket's reader.
        On cancellation the registry is left at once and nothing is said. Raises nothing that a
        peer can cause.
        """
        connection = self.connection
        connection.on_end = self._begin_end
        self._membership.join(connection)
        try:
            self._tap.open(
                deliver=self._deliver,
                before_read=connection.wait_may_read,
                on_violation=connection.end,
            )
            nursery.start_soon(self._write)
            with self._live:
                await self._hand_on_odd_messages()
        finally:
            self._tap.stop()
            self._membership.leave(connection)
        await self._say_goodbye()

    def stop_reading(self) -> None:
        """Take no further messages from the peer; those taken already are answered (drain)."""
        self._tap.stop()

    def be_gone_by(self, deadline: float) -> None:
        """Let the goodbye, close frame included, take until this time on Trio's clock (drain)."""
        self._gone_by = deadline

    def check_alive(self, now: float) -> None:
        """Ping a peer that has been silent, end the connection of one that did not answer.

        Judged by the last byte received. The clock stands still while we do not read.
        """
        tap = self._tap
        if not tap.reading or self.connection.close is not None:
            self._pinged_at = None
            return
        if self._pinged_at is not None and tap.last_received < self._pinged_at:
            if now - self._pinged_at >= self._timeouts.ping_timeout:
                self.connection.end(_NO_PONG)
            return
        self._pinged_at = None
        if now - tap.last_received >= self._timeouts.ping_interval and self.connection.mailbox.put(
            PING_FRAME
        ):
            self._pinged_at = now

    def _begin_end(self, close: Close) -> None:
        """Synchronous: from here on nothing is delivered to or taken from this connection."""
        self._tap.stop()
        self._membership.leave(self.connection)
        if close.code == CloseCode.SLOW_CONSUMER:
            self.connection.mailbox.close(discard=True)
        self._live.cancel()

    async def _hand_on_odd_messages(self) -> None:
        while True:
            try:
                message = await self._websocket.get_message()
            except ConnectionClosed as closed:
                self._note_closed(closed)
                return
            if isinstance(message, bytes):
                self.connection.end(_BINARY)
                return
            await self._deliver([message.encode()])
            self._tap.scanner.odd_taken()

    def _note_closed(self, closed: ConnectionClosed) -> None:
        """Tell trio-websocket's own complaint, which it ends without a close frame, from the peer's end."""
        if self._tap.scanner.peer_closed and closed.reason is not None:
            self.connection.peer_close_code = closed.reason.code
        if self._tap.scanner.peer_closed or self._tap.ended:
            return
        if closed.reason is not None and closed.reason.code == CloseCode.INVALID_UTF8:
            self.connection.end(Close(CloseCode.INVALID_UTF8, "A text message is not UTF-8"))
        else:
            self.connection.end(Close(CloseCode.PROTOCOL_ERROR, "The WebSocket protocol was violated"))

    async def _deliver(self, texts: list[bytes]) -> None:
        """Answer or route the messages of one read, in order."""
        connection = self.connection
        requests: list[RouteRequest] = []
        try:
            for text in texts:
                try:
                    message = connection.dialect.decode(text)
                    if isinstance(message, RouteRequest):
                        self._rules.check(message, connection.user_id)
                        requests.append(message)
                    else:
                        connection.send(Pong(timestamp=_milliseconds_since_epoch()), message.reply_id)
                except MessageError as error:
                    connection.mailbox.put_or_wait(connection.dialect.error_frame(error))
            if requests:
                await self._router.submit(Batch(connection, requests))
        except Exception:
            # The boundary of this connection: a fault of ours in handling one peer ends that peer only.
            _log.exception("Connection failed", user_id=connection.user_id)
            connection.end(_INTERNAL)

    async def _write(self) -> None:
        mailbox = self.connection.mailbox
        try:
            while True:
                await self._tap.send_all(await mailbox.take())
                mailbox.sent()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            pass
        except trio.BrokenResourceError:
            mailbox.close(discard=True)
            self.connection.changed()
            self._live.cancel()
        self._written.set()

    async def _say_goodbye(self) -> None:
        """Send what is still owed and the close frame; wait for the peer's. Shielded, with deadlines."""
        connection, mailbox, tap = self.connection, self.connection.mailbox, self._tap
        close = connection.close
        flush_by, gone_by = self._goodbye_deadlines()
        with trio.move_on_at(gone_by, shield=True):
            if close is not None and not tap.ended:
                with trio.move_on_at(flush_by):
                    if not mailbox.closed:
                        await connection.wait_acknowledged()
                        await connection.wait_all_entered()
                        mailbox.close(discard=False)
                    await self._written.wait()
            elif tap.scanner.peer_closed:
                close = _ANSWER
            if close is not None:
                with trio.move_on_after(self._timeouts.close):
                    await tap.send_close(close)
                    await tap.wait_ended()
        mailbox.close(discard=True)

    def _goodbye_deadlines(self) -> tuple[float, float]:
        """Until when what is owed may go out, and until when the close frame and its answer may take.

        The close frame has time of its own, so that nobody else's slowness costs the peer its code.
        """
        now, close_seconds = trio.current_time(), self._timeouts.close
        if self._gone_by is None:
            return now + close_seconds, now + 2 * close_seconds
        return self._gone_by - min(close_seconds, (self._gone_by - now) / 4), self._gone_by


def _milliseconds_since_epoch() -> int:
    return time.time_ns() // 1_000_000
