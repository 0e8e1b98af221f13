"""Owns a session of Engine.IO while its transport is polling: requests that come one by one, and go."""

from __future__ import annotations

from math import inf
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
    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.edge.socketio import SocketIoIntake
    from collab.edge.stops import Stops
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
        stops: Stops,
        timeouts: TimeoutSettings,
    ) -> None:
        self.sid = sid
        self.intake = intake
        self.connection = intake.connection
        self.place = place
        """Its place among the connections that may be."""
        self.upgrade = UpgradeMachine()
        self.left = trio.Event()
        """Set when its task has ended."""
        self.has_moved = False
        """Whether its connection is for a WebSocket to go on with."""
        self.has_taker = False
        """Whether there is such a WebSocket."""
        self.probing: trio.CancelScope | None = None
        """Around the upgrade, as far as it can still fail."""
        self._router = router
        self._outbox = outbox
        self._audit = audit
        # What a client may have asked for while we did not run is not held against it.
        self._stops = stops
        self._timeouts = timeouts
        self._over = trio.Event()
        self._fetched = trio.Event()
        self._requests = 0
        self._no_request: trio.Event | None = None
        self._hanging: trio.CancelScope | None = None
        self._poll_begun_at: float | None = None
        self._is_posting = False
        self._heard_at = trio.current_time()
        self._polled_at = stops.running_time()
        self._gone_by = inf
        self._leaving: trio.CancelScope | None = None
        self._stopped = False
        # What a poll took of the mailbox and could not bring yet, and where the rest of it begins.
        self._frames = b""
        self._start = self._next_start = 0
        self.connection.on_end = self._begin_end

    async def run(self) -> None:
        """Live until the session has ended or a WebSocket may have it: then `has_moved` holds.

        Raises nothing that a peer can cause.
        """
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
            if not self.upgrade.is_done:
                await self._say_goodbye()
            if self.upgrade.is_done:
                with trio.move_on_after(self._timeouts.write + _GRACE_SECONDS) as patience:
                    await self._wait_no_request()
                if patience.cancelled_caught:
                    self.answer_lost()
                self.has_moved = True
        finally:
            if not self.has_moved:
                self._release()

    def hand_over(self) -> bytes:
        """It has moved: what a poll took and could not bring, for the WebSocket to send first."""
        self.intake.is_polling = False
        rest, self._frames = self._frames[self._start :], b""
        return rest

    def abandon(self) -> None:
        """It has moved, and nobody took it over."""
        self._release()
        self.place.give_back()

    async def poll(self) -> bytes:
        """The answer of a GET: some packets, at the latest with the next ping of the keepalive.

        Call `begin_poll` before it, then `delivered` or `answer_lost`, and `end_poll` in any case.

        Raises:
            EngineRefused: the session has ended, and everything was fetched.
        """
        mailbox = self.connection.mailbox
        if not self._frames:
            with trio.CancelScope() as self._hanging:
                if not self.upgrade.polls_may_hang and not mailbox.messages:
                    self._hanging.cancel()
                try:
                    self._frames = await mailbox.take(MAX_PACKETS_OF_A_POLL)
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

    def answer_lost(self) -> None:
        """The answer of a poll did not reach the client: what was in it is lost, and so is the session."""
        self.connection.end(_NOT_TAKEN)
        self.connection.mailbox.close(discard=True)
        self._frames = b""
        self._start = self._next_start = 0
        self._fetched.set()

    def begin_poll(self) -> None:
        """A GET has come.

        Raises:
            EngineRefused: another hangs, which ends the session, or there are no polls any more.
        """
        self.upgrade.check_polling()
        if self._poll_begun_at is not None:
            self.connection.end(_OVERLAP)
            raise bad_request()
        self._heard_at = trio.current_time()
        self._poll_begun_at = self._stops.running_time()
        self._requests += 1

    def end_poll(self) -> None:
        """The GET that began last has its answer, or will have none."""
        self._poll_begun_at = None
        self._heard_at = trio.current_time()
        self._polled_at = self._stops.running_time()
        self._end_request()

    async def post(self, body: bytes) -> None:
        """Take the packets of a POST, unless nothing is read from this session any more.

        Raises:
            EngineRefused: another is under way, or the packets are none.
        """
        self.upgrade.check_polling()
        connection = self.connection
        if self._is_posting:
            connection.end(_OVERLAP)
            raise bad_request()
        if self._has_stopped():
            # What crosses our goodbye is no fault of the client's, and maybe its own.
            return
        try:
            packets = parse_payload(body)
        except InvalidPacket as error:
            connection.end(Close(CloseCode.PROTOCOL_ERROR, str(error)))
            raise bad_request() from None
        self._is_posting = True
        self._requests += 1
        self._heard_at = trio.current_time()
        try:
            await connection.wait_may_read()
            if self._has_stopped():
                # As what lies unread in the socket of another.
                return
            with self._outbox:
                requests = self.intake.take(packets)
            if requests:
                await self._router.submit([Batch(connection, requests)])
        finally:
            self._is_posting = False
            self._end_request()

    def receive_upgrade(self, text: bytes) -> bytes:
        """A text on the WebSocket that wants to take over: what to send on it; raises `InvalidPacket`."""
        if self.connection.close is not None and self.upgrade.polls_may_hang:
            raise InvalidPacket("The session is ending")
        answer = self.upgrade.receive(text)
        if self._hanging is not None:
            self._hanging.cancel()
        if self.upgrade.is_done:
            # Also of a session that is ending: its client polls no more, and hears the end by WebSocket.
            self._over.set()
            self._fetched.set()
        return answer

    def stop_reading(self) -> None:
        """Take no further messages from the peer; those taken already are answered."""
        self._stopped = True

    def be_gone_by(self, deadline: float) -> None:
        """Have the goodbye said by this time on Trio's clock (drain), whether it was begun or not."""
        self._gone_by = deadline
        if self._leaving is not None:
            self._leaving.deadline = min(self._leaving.deadline, deadline)
        if self.connection.close is not None:
            self._hurry_probe()

    def check_alive(self, now: float) -> None:
        """See to the keepalive and the token, and end a session that nobody polls."""
        begun_at, running_time = self._poll_begun_at, self._stops.running_time()
        if begun_at is None:
            if running_time - self._polled_at >= self._timeouts.ping_timeout:
                self.connection.end(_NO_POLL)
        elif running_time - begun_at >= self._timeouts.ping_interval + self._timeouts.write + _GRACE_SECONDS:
            # Its end was never told of.
            self.connection.end(_NO_POLL)
        self.intake.check_alive(now, self._heard_at)

    def _has_stopped(self) -> bool:
        return self._stopped or self.connection.close is not None

    def _begin_end(self, close: Close) -> None:
        """Synchronous: from here on nothing is delivered to or taken from this session."""
        self._audit.evicted(self.connection, int(close.code), close.reason)
        self.stop_reading()
        self.intake.leave()
        if close.code == CloseCode.SLOW_CONSUMER:
            self.connection.mailbox.close(discard=True)
        if self.probing is not None:
            if self.upgrade.polls_may_hang:
                self.probing.cancel()
            self._hurry_probe()
        self._over.set()

    async def _say_goodbye(self) -> None:
        """Give the client the time of a close to fetch what is owed, and the end behind it."""
        connection = self.connection
        deadline = min(trio.current_time() + self._timeouts.close, self._gone_by)
        with trio.CancelScope(deadline=deadline, shield=True) as self._leaving:
            if not connection.mailbox.closed:
                await connection.wait_acknowledged()
                assert connection.close is not None, "a session ends by our own doing, or moves"
                connection.mailbox.put_or_wait(self.intake.last_words(connection.close))
                await connection.wait_all_entered()
                connection.mailbox.close(discard=False)
            await self._fetched.wait()
            await self._wait_no_request()

    def _hurry_probe(self) -> None:
        """An upgrade whose probe was answered has half the time of the goodbye: its client may poll again."""
        if self.probing is not None:
            end = min(trio.current_time() + self._timeouts.close / 2, self._gone_by)
            self.probing.deadline = min(self.probing.deadline, end)

    def _release(self) -> None:
        self.intake.leave()
        self.connection.release()

    async def _wait_no_request(self) -> None:
        while self._requests:
            if self._no_request is None:
                self._no_request = trio.Event()
            await self._no_request.wait()

    def _end_request(self) -> None:
        self._requests -= 1
        if not self._requests and self._no_request is not None:
            self._no_request.set()
            self._no_request = None
