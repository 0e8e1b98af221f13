"""Owns the life of one WebSocket connection after its handshake: readers, writer, end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from collab.core.router import Batch, Router
from collab.edge.goodbye import Goodbye
from collab.edge.pump import Pumped
from collab.wire.close import Close, CloseCode

if TYPE_CHECKING:
    from collab.core.outbox import Outbox
    from collab.edge.engine import Inherited
    from collab.edge.intake import Intake
    from collab.edge.pump import Pump
    from collab.edge.tap import Tap
    from collab.observe.audit import Audit
    from collab.settings import TimeoutSettings

_TOOK_NOTHING = Close(CloseCode.SLOW_CONSUMER, "Slow consumer: nothing was read for the write timeout")


class Life:
    """One connection from `connected` to its close frame.

    At most three tasks: `run` itself, which waits for the end; trio-websocket's reader, whose bytes
    come through the tap; and the writer, from the first time that something could not be written at
    once.
    """

    __slots__ = (
        "_audit",
        "_goodbye",
        "_intake",
        "_live",
        "_outbox",
        "_pump",
        "_router",
        "_tap",
        "_timeouts",
        "_websocket",
        "_written",
        "connection",
    )

    def __init__(
        self,
        intake: Intake,
        tap: Tap,
        websocket: WebSocketConnection,
        *,
        router: Router,
        outbox: Outbox,
        pump: Pump | None,
        audit: Audit,
        timeouts: TimeoutSettings,
    ) -> None:
        self.connection = connection = intake.connection
        self._intake = intake
        self._tap = tap
        self._websocket = websocket
        self._router = router
        self._outbox = outbox
        self._pump = pump
        self._audit = audit
        self._timeouts = timeouts
        self._live = trio.CancelScope()
        self._written: trio.Event | None = None
        self._goodbye = Goodbye(connection, tap, intake.last_words, close_seconds=timeouts.close)

    async def run(self, nursery: trio.Nursery, inherited: Inherited | None = None) -> None:
        """Live until the peer leaves or the connection is ended, then say goodbye.

        `nursery` is the connection's own: the writer runs in it, beside trio-websocket's reader.
        `inherited` is what another transport of this connection has left.
        On cancellation the registry is left at once and nothing is said. Raises nothing that a
        peer can cause.
        """
        connection, tap = self.connection, self._tap
        connection.on_end = self._begin_end
        connection.mailbox.on_queued = self._start_writer
        # Kept to spawn from, because the writer starts when some other task's put finds the socket full;
        # set while this is inside the nursery and never after.
        self._intake.nursery = nursery
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
                if inherited is not None:
                    self._take_over(inherited)
                if tap.descriptor >= 0 and (self._pump is not None or not tap.is_encrypted):
                    connection.mailbox.write_through(tap.write_now)
                self._intake.begin()
                if inherited is not None and connection.close is None:
                    await self._deliver(inherited.texts)
                    if inherited.violation is not None:
                        connection.end(inherited.violation)
                if self._pump is None or tap.descriptor < 0:
                    tap.read_alone()
                else:
                    pumped = Pumped(
                        self._pump, connection, tap, take=self._intake.take, on_violation=connection.end
                    )
                    await self._pump_from_now(pumped)
                with self._live:
                    await self._wait_closed()
            finally:
                self.stop_reading()
                self._intake.leave()
            await self._goodbye.say(self._wait_written)
        finally:
            # Whoever finds this connection from here on must not start anything in its nursery.
            self._intake.nursery = None
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
        """See to the keepalive and the token (`Intake.check_alive`)."""
        self._intake.check_alive(now, self._tap.last_received if self._tap.reading else None)

    def _begin_end(self, close: Close) -> None:
        """Synchronous: from here on nothing is delivered to or taken from this connection."""
        self._audit.evicted(self.connection, int(close.code), close.reason)
        self._stop(close)

    def _stop(self, close: Close) -> None:
        self.stop_reading()
        self._intake.leave()
        if close.code == CloseCode.POLICY:
            # What comes is a flood: nothing is looked at any more.
            self._tap.scanner.give_up()
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
            requests = self._intake.take(texts)
        if requests:
            await self._router.submit([Batch(self.connection, requests)])

    def _take_over(self, inherited: Inherited) -> None:
        """Go on with what another transport has left: its frames go first, whatever else is queued."""
        self._written = trio.Event()
        nursery = self._intake.nursery
        assert nursery is not None
        nursery.start_soon(self._write, self._written, inherited.frames)
        if self.connection.close is not None:
            # It ended between the two.
            self._stop(self.connection.close)

    def _start_writer(self) -> None:
        nursery = self._intake.nursery
        if self._written is None and nursery is not None:
            self._written = trio.Event()
            nursery.start_soon(self._write, self._written)

    async def _write(self, written: trio.Event, frames: bytes = b"") -> None:
        """Send these frames, which were taken of the mailbox before, and whatever it holds."""
        mailbox = self.connection.mailbox
        try:
            while True:
                await self._tap.send(frames or await mailbox.take())
                mailbox.sent()
                frames = b""
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
