"""Owns a session of Engine.IO while its transport is polling: requests that come one by one, and go."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from collab.core.router import Batch
from collab.errors import InvalidPacket
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import (
    MAX_PACKETS_OF_A_POLL,
    NOOP_PAYLOAD,
    bad_request,
    parse_payload,
    payload_of,
    unknown_sid,
)
from collab.wire.upgrade import UpgradeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.edge.socketio import SocketIoIntake
    from collab.observe.audit import Audit
    from collab.policy.limits import Place
    from collab.settings import TimeoutSettings

_GRACE_SECONDS = 5.0
_OVERLAP = Close(CloseCode.PROTOCOL_ERROR, "Two requests of one kind came at once")
_NO_POLL = Close(CloseCode.NO_PONG, "No poll came in time")
_NOT_TAKEN = Close(CloseCode.NO_PONG, "The answer of a poll was not read")


class PollingSession:
    """One session from its handshake to its end, or until a WebSocket takes its connection over.

    GETs bring what its mailbox holds, one at a time; POSTs take messages in, one at a time. No request
    outlives its own exchange, and the session is a task of its own between them.
    """

    def __init__(
        self,
        sid: str,
        intake: SocketIoIntake,
        place: Place,
        *,
        router: Router,
        outbox: Outbox,
        audit: Audit,
        timeouts: TimeoutSettings,
    ) -> None:
        self.sid = sid
        self.intake = intake
        self.connection = intake.connection
        self.place = place
        """Its place among the connections that may be."""
        self.upgrade = UpgradeMachine()
        self.moved = trio.Event()
        """Set when its connection is for a WebSocket to go on with."""
        self.has_taker = False
        """Whether there is such a WebSocket."""
        self._router = router
        self._outbox = outbox
        self._audit = audit
        self._timeouts = timeouts
        self._over = trio.Event()
        self._fetched = trio.Event()
        self._requests = 0
        self._no_request: trio.Event | None = None
        self._hanging: trio.CancelScope | None = None
        self._poll_begun_at: float | None = None
        self._is_posting = False
        self._heard_at = trio.current_time()
        self._gone_by: float | None = None
        self._stopped = False
        # What a poll took of the mailbox and could not bring yet, and where the rest of it begins.
        self._frames = b""
        self._start = self._next_start = 0

    async def run(self) -> None:
        """Live until the session has ended or a WebSocket may have it: then `moved` is set.

        Raises nothing that a peer can cause.
        """
        self.connection.on_end = self._begin_end
        try:
            async with trio.open_nursery() as nursery:
                self.intake.nursery = nursery
                try:
                    self.intake.begin()
                    await self._over.wait()
                finally:
                    self.intake.nursery = None
                if not self.upgrade.is_done:
                    nursery.cancel_scope.cancel()
            if self.upgrade.is_done:
                await self._wait_no_request()
                self.moved.set()
            else:
                await self._say_goodbye()
        finally:
            if not self.moved.is_set():
                self._release()

    def rest(self) -> bytes:
        """What a poll took of the mailbox and could not bring, for the WebSocket to send first."""
        rest, self._frames = self._frames[self._start :], b""
        return rest

    def abandon(self) -> None:
        """It has moved, and nobody took it over."""
        self._release()
        self.place.give_back()

    async def poll(self) -> bytes:
        """The answer of a GET: some packets, at the latest with the next ping of the keepalive.

        Hold `polling` around it and around the sending of the answer; then call `delivered`.

        Raises:
            EngineRefused: the session has ended, and everything was fetched.
        """
        mailbox = self.connection.mailbox
        if not self._frames:
            with trio.CancelScope() as self._hanging:
                if not self.upgrade.polls_may_hang and not mailbox.messages:
                    self._hanging.cancel()
                try:
                    self._frames = await mailbox.take()
                except (trio.EndOfChannel, trio.ClosedResourceError):
                    self._fetched.set()
                    raise unknown_sid() from None
                finally:
                    self._hanging = None
        payload, self._next_start = payload_of(self._frames, self._start, max_packets=MAX_PACKETS_OF_A_POLL)
        return payload or NOOP_PAYLOAD

    def delivered(self) -> None:
        """The answer of the last poll is on its way."""
        self._start = self._next_start
        if self._frames and self._start >= len(self._frames):
            self._frames = b""
            self._start = self._next_start = 0
            self.connection.mailbox.sent()
        mailbox = self.connection.mailbox
        if self.connection.close is not None and mailbox.closed and not mailbox.messages:
            self._fetched.set()

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Around one GET, to the end of its answer.

        Raises:
            EngineRefused: another hangs, which ends the session, or there are no polls any more.
        """
        self.upgrade.check_polling()
        if self._poll_begun_at is not None:
            self.connection.end(_OVERLAP)
            raise bad_request()
        self._poll_begun_at = self._heard_at = trio.current_time()
        try:
            with self._request():
                yield
        finally:
            self._poll_begun_at = None
            self._heard_at = trio.current_time()

    def answer_lost(self) -> None:
        """The answer of a poll did not reach the client: what was in it is lost, and so is the session."""
        self.connection.end(_NOT_TAKEN)
        self._fetched.set()

    async def post(self, body: bytes) -> None:
        """Take the packets of a POST.

        Raises:
            EngineRefused: another is under way, or the packets are none.
        """
        self.upgrade.check_polling()
        connection = self.connection
        if self._is_posting:
            connection.end(_OVERLAP)
            raise bad_request()
        if self._stopped or connection.close is not None:
            # What crosses our goodbye is no fault of the client's, and maybe its own.
            return
        try:
            packets = parse_payload(body)
        except InvalidPacket as error:
            connection.end(Close(CloseCode.PROTOCOL_ERROR, str(error)))
            raise bad_request() from None
        self._is_posting = True
        self._heard_at = trio.current_time()
        try:
            with self._request():
                await connection.wait_may_read()
                with self._outbox:
                    requests = self.intake.take(packets)
                if requests:
                    await self._router.submit([Batch(connection, requests)])
        finally:
            self._is_posting = False

    def receive_upgrade(self, text: bytes) -> bytes:
        """A text on the WebSocket that wants to take over: what to send on it; raises `InvalidPacket`."""
        if self.connection.close is not None:
            raise InvalidPacket("The session is ending")
        answer = self.upgrade.receive(text)
        if self._hanging is not None:
            self._hanging.cancel()
        if self.upgrade.is_done:
            self._over.set()
        return answer

    def stop_reading(self) -> None:
        """Take no further messages from the peer; those taken already are answered."""
        self._stopped = True

    def be_gone_by(self, deadline: float) -> None:
        """Have the goodbye said by this time on Trio's clock (drain)."""
        self._gone_by = deadline

    def check_alive(self, now: float) -> None:
        """See to the keepalive and the token, and end a session that nobody polls."""
        polled_at = self._poll_begun_at
        if polled_at is None:
            if now - self._heard_at >= self._timeouts.ping_timeout:
                self.connection.end(_NO_POLL)
        elif now - polled_at >= self._timeouts.ping_interval + self._timeouts.write + _GRACE_SECONDS:
            # Its end was never told of.
            self.connection.end(_NO_POLL)
        self.intake.check_alive(now, self._heard_at)

    def _begin_end(self, close: Close) -> None:
        """Synchronous: from here on nothing is delivered to or taken from this session."""
        self._audit.evicted(self.connection, int(close.code), close.reason)
        self.stop_reading()
        self.intake.leave()
        if close.code == CloseCode.SLOW_CONSUMER:
            self.connection.mailbox.close(discard=True)
        self._over.set()

    async def _say_goodbye(self) -> None:
        """Give the client the time of a close to fetch what is owed, and the end behind it."""
        connection = self.connection
        deadline = trio.current_time() + self._timeouts.close
        if self._gone_by is not None:
            deadline = min(deadline, self._gone_by)
        with trio.CancelScope(deadline=deadline, shield=True):
            if not connection.mailbox.closed:
                await connection.wait_acknowledged()
                assert connection.close is not None, "a session ends by our own doing, or moves"
                connection.mailbox.put_or_wait(self.intake.last_words(connection.close))
                await connection.wait_all_entered()
                connection.mailbox.close(discard=False)
            await self._fetched.wait()
            await self._wait_no_request()

    def _release(self) -> None:
        self.intake.leave()
        self.connection.release()

    async def _wait_no_request(self) -> None:
        while self._requests:
            if self._no_request is None:
                self._no_request = trio.Event()
            await self._no_request.wait()

    @contextmanager
    def _request(self) -> Iterator[None]:
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests and self._no_request is not None:
                self._no_request.set()
                self._no_request = None
