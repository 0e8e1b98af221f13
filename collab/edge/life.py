"""Owns the life of one WebSocket connection after its handshake: readers, writer, end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from collab.core.router import Batch, Router
from collab.edge.goodbye import Goodbye
from collab.edge.pump import Pumped
from collab.errors import InvalidToken, MessageError, RateLimited, RefreshRefused, Refused, UnknownEvent
from collab.observe.log import get_logger
from collab.policy.rate import Meter, Rate
from collab.wire.close import Close, CloseCode
from collab.wire.frames import PING_FRAME
from collab.wire.messages import Pong, Refreshed, RefreshRequest, RouteRequest

if TYPE_CHECKING:
    from collab.core.connection import Connection
    from collab.core.membership import Membership
    from collab.core.outbox import Outbox
    from collab.edge.pump import Pump
    from collab.edge.stops import FloodMeter
    from collab.edge.tap import Tap
    from collab.observe.audit import Audit
    from collab.policy.auth import Authenticator
    from collab.policy.validation import EventRules
    from collab.settings import TimeoutSettings

_log = get_logger()
_INTERNAL = Close(CloseCode.INTERNAL_ERROR, "Internal error")
_TOOK_NOTHING = Close(CloseCode.SLOW_CONSUMER, "Slow consumer: nothing was read for the write timeout")
_TOO_MANY_ERRORS = Close(CloseCode.POLICY, "Too many messages with errors")
_TOKEN_EXPIRED = Close(CloseCode.TOKEN_EXPIRED, "The token has expired")
_REFRESHES = Rate(per_second=1, burst=10)
_NO_PONG = Close(CloseCode.NO_PONG, "No answer to the keepalive ping")


class Life:
    """One connection from `connected` to its close frame.

    At most three tasks: `run` itself, which waits for the end; trio-websocket's reader, whose bytes
    come through the tap; and the writer, from the first time that something could not be written at
    once.
    """

    __slots__ = (
        "_audit",
        "_authenticator",
        "_errors",
        "_goodbye",
        "_is_refreshing",
        "_live",
        "_membership",
        "_nursery",
        "_outbox",
        "_pinged_at",
        "_pump",
        "_refreshes",
        "_router",
        "_rules",
        "_tap",
        "_timeouts",
        "_websocket",
        "_written",
        "connection",
    )

    def __init__(
        self,
        connection: Connection,
        tap: Tap,
        websocket: WebSocketConnection,
        *,
        membership: Membership,
        router: Router,
        outbox: Outbox,
        pump: Pump | None,
        rules: EventRules,
        authenticator: Authenticator,
        audit: Audit,
        errors: FloodMeter,
        timeouts: TimeoutSettings,
    ) -> None:
        self.connection = connection
        self._tap = tap
        self._websocket = websocket
        self._membership = membership
        self._router = router
        self._outbox = outbox
        self._pump = pump
        self._rules = rules
        self._authenticator = authenticator
        self._audit = audit
        self._is_refreshing = False
        self._refreshes: Meter | None = None
        self._errors = errors
        self._timeouts = timeouts
        self._live = trio.CancelScope()
        # Kept to spawn from, because the writer starts when some other task's put finds the socket full;
        # set while `run` is inside the nursery and never after.
        self._nursery: trio.Nursery | None = None
        self._written: trio.Event | None = None
        self._pinged_at: float | None = None
        self._goodbye = Goodbye(connection, tap, close_seconds=timeouts.close)

    async def run(self, nursery: trio.Nursery) -> None:
        """Live until the peer leaves or the connection is ended, then say goodbye.

        `nursery` is the connection's own: the writer runs in it, beside trio-websocket's reader.
        On cancellation the registry is left at once and nothing is said. Raises nothing that a
        peer can cause.
        """
        connection, tap = self.connection, self._tap
        connection.on_end = self._begin_end
        connection.mailbox.on_queued = self._start_writer
        self._nursery = nursery
        pumped = None
        try:
            try:
                tap.open(
                    deliver=self._deliver,
                    answer=connection.mailbox.put_or_wait,
                    before_read=connection.wait_may_read,
                    on_violation=connection.end,
                    on_lost=self._lose,
                )
                if tap.descriptor >= 0:
                    connection.mailbox.write_through(tap.write_now)
                self._membership.join(connection)
                if self._pump is not None and tap.descriptor >= 0:
                    pumped = Pumped(self._pump, connection, tap, take=self._take, on_violation=connection.end)
                    await self._pump_from_now(pumped)
                with self._live:
                    await self._wait_closed()
            finally:
                self.stop_reading()
                self._membership.leave(connection)
            await self._goodbye.say(self._wait_written)
        finally:
            # Whoever finds this connection from here on must not start anything in its nursery.
            self._nursery = None
            if self._pump is not None and pumped is not None:
                self._pump.remove(pumped)
            # What points back here goes, so that nothing waits for the garbage collector.
            tap.release()
            connection.release()

    def stop_reading(self) -> None:
        """Take no further messages from the peer; those taken already are answered."""
        self._tap.stop()
        self.connection.changed()

    def be_gone_by(self, deadline: float) -> None:
        """Have the goodbye said by this time on Trio's clock (drain)."""
        self._goodbye.be_gone_by(deadline)

    def check_alive(self, now: float) -> None:
        """End the connection where its token has expired, ping a peer that has been silent, end one that
        did not answer.

        Judged by the last byte received. The clock stands still while we do not read.
        """
        tap = self._tap
        if now >= self.connection.expires_at:
            self.connection.end(_TOKEN_EXPIRED)
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
        self._audit.evicted(self.connection, int(close.code), close.reason)
        self.stop_reading()
        self._membership.leave(self.connection)
        if close.code == CloseCode.SLOW_CONSUMER:
            self.connection.mailbox.close(discard=True)
        self._live.cancel()

    async def _wait_closed(self) -> None:
        """Wait for the end that trio-websocket sees. It gets no frame but the close frame, so no message."""
        try:
            await self._websocket.get_message()
        except ConnectionClosed as closed:
            if self._tap.scanner.peer_closed and closed.reason is not None:
                self.connection.peer_close_code = closed.reason.code
        if self._tap.is_broken:
            self._lose()

    async def _pump_from_now(self, pumped: Pumped) -> None:
        assert self._pump is not None
        if rest := self._tap.pump():
            texts, violation = self._tap.feed(rest)
            await self._deliver(texts)
            if violation is not None:
                self.connection.end(violation)
        self._pump.add(pumped)

    async def _deliver(self, texts: list[bytes]) -> None:
        """Answer or route the messages of one read, in order."""
        with self._outbox:
            requests = self._take(texts)
        if requests:
            await self._router.submit([Batch(self.connection, requests)])

    def _take(self, texts: list[bytes]) -> list[RouteRequest]:
        """Answer what is answered here; give back what is to be routed."""
        connection = self.connection
        requests: list[RouteRequest] = []
        try:
            for text in texts:
                try:
                    message = connection.dialect.decode(text)
                    if isinstance(message, RouteRequest):
                        self._rules.check(message, connection.user_id)
                        requests.append(message)
                    elif isinstance(message, RefreshRequest):
                        self._begin_refresh(message)
                    else:
                        connection.send(Pong(timestamp=_milliseconds_since_epoch()), message.reply_id)
                except MessageError as error:
                    self._answer_error(error)
                    if connection.close is not None:
                        break
        except Exception:
            # The boundary of this connection: a fault of ours in handling one peer ends that peer only.
            _log.exception("Connection failed", user_id=connection.user_id)
            connection.end(_INTERNAL)
        return requests

    def _answer_error(self, error: MessageError) -> None:
        connection = self.connection
        connection.mailbox.put_or_wait(connection.dialect.error_frame(error))
        if isinstance(error, RateLimited):
            self._audit.limited(connection, "limits.events_per_second", error.retry_after_ms)
        if self._errors.is_flood(1, trio.current_time()):
            self._tap.scanner.give_up()
            connection.end(_TOO_MANY_ERRORS)

    def _begin_refresh(self, request: RefreshRequest) -> None:
        """Verify a new token beside everything else: its key may have to be fetched."""
        if not self._authenticator.is_on:
            raise UnknownEvent(
                "event: refresh is for services with authentication", reply_id=request.reply_id
            )
        # Each costs the check of a signature, and a line of the audit.
        if self._refreshes is None:
            self._refreshes = Meter(_REFRESHES)
        if self._refreshes.spend(1, trio.current_time()):
            raise RefreshRefused("too many: one a second will do", reply_id=request.reply_id)
        if self._is_refreshing:
            raise RefreshRefused(
                "data.token: an earlier refresh is still under way", reply_id=request.reply_id
            )
        if self._nursery is not None:
            self._is_refreshing = True
            self._nursery.start_soon(self._refresh, request)

    async def _refresh(self, request: RefreshRequest) -> None:
        connection = self.connection
        try:
            claims = await self._authenticator.authenticate(request.token)
            if claims.user_id != connection.user_id:
                raise InvalidToken("the token is another user's")
        except (InvalidToken, Refused) as error:
            self._audit.refresh_refused(connection, str(error))
            self._answer_error(RefreshRefused(f"data.token: {error}", reply_id=request.reply_id))
        else:
            connection.expires_at = trio.current_time() + claims.seconds_left
            connection.peers = claims.peers
            self._audit.authenticated(
                claims,
                by="refresh",
                address=connection.address,
                connection_id=connection.connection_id,
            )
            connection.send(Refreshed(expires_at=claims.expires_at_text), request.reply_id)
        finally:
            self._is_refreshing = False

    def _start_writer(self) -> None:
        if self._written is None and self._nursery is not None:
            self._written = trio.Event()
            self._nursery.start_soon(self._write, self._written)

    async def _write(self, written: trio.Event) -> None:
        mailbox = self.connection.mailbox
        try:
            while True:
                await self._tap.send(await mailbox.take())
                mailbox.sent()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            pass
        except trio.BrokenResourceError:
            self._lose()
        finally:
            written.set()

    def _lose(self) -> None:
        """Nothing can be sent any more: whatever waits for it is lost."""
        if self._tap.timed_out:
            self.connection.end(_TOOK_NOTHING)
        self.connection.mailbox.close(discard=True)
        self.connection.changed()
        self._live.cancel()

    async def _wait_written(self) -> None:
        if self._written is not None:
            await self._written.wait()


def _milliseconds_since_epoch() -> int:
    return time.time_ns() // 1_000_000
