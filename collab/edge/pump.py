"""Owns the pump: one task that reads every established plain-TCP connection."""

from __future__ import annotations

import os
import select
from collections import deque
from typing import TYPE_CHECKING

import trio

from collab.core.router import Batch
from collab.edge.tap import RECEIVE_BYTES
from collab.observe.log import get_logger
from collab.wire.close import Close, CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.core.connection import Connection
    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.edge.tap import Tap
    from collab.wire.messages import RouteRequest

_log = get_logger()
_ROUNDS_A_TURN = 8
_READS_A_TURN = 256
_FRAMES_A_TURN = 512
_FEW_FRAMES = 64
_MANY_FRAMES = 128
_SMALLEST_READ_BYTES = 4096
_INTERNAL = Close(CloseCode.INTERNAL_ERROR, "Internal error")


class Pumped:
    """One connection as the pump sees it. Whoever made it removes it before its socket is closed."""

    __slots__ = ("_pump", "connection", "descriptor", "on_violation", "read_bytes", "removed", "take", "tap")

    def __init__(
        self,
        pump: Pump,
        connection: Connection,
        tap: Tap,
        *,
        take: Callable[[list[bytes]], list[RouteRequest]],
        on_violation: Callable[[Close], None],
    ) -> None:
        self._pump = pump
        self.connection = connection
        self.tap = tap
        self.take = take
        self.on_violation = on_violation
        self.descriptor = -1
        """Its number in the epoll; -1 while it is not in."""
        self.removed = False
        self.read_bytes = _SMALLEST_READ_BYTES
        """How much its next read may bring."""

    def update(self) -> None:
        """Into the epoll, or out of it, as its state asks for now."""
        self._pump.update(self)

    def wants_bytes(self) -> bool:
        """Whether to read: alive, no flood, and its window is open."""
        tap = self.tap
        return not (self.removed or tap.ended or tap.has_enough) and self.connection.may_read()


class _Turn:
    """How much was done since the pump's last task switch."""

    __slots__ = ("frames", "reads")

    def __init__(self) -> None:
        self.reads = 0
        self.frames = 0

    @property
    def is_over(self) -> bool:
        """Whether the other tasks must run first."""
        return self.reads >= _READS_A_TURN or self.frames >= _FRAMES_A_TURN


class Pump:
    """Reads all its connections, a round at a time, and hands each round's events on together.

    In a round each readable socket is read once, at most 64 KiB of it, so that no peer can starve the
    other peers. A task switch costs as much as a small round: as long as more comes, and it is little, up
    to eight rounds follow each other in one turn. A turn ends after 256 reads or 512 frames in any case,
    so that peers cannot starve the other tasks. A connection that must not be read, because its window
    is full, is taken out of the epoll: that is its backpressure.
    """

    def __init__(self, router: Router, outbox: Outbox) -> None:
        self._router = router
        self._outbox = outbox
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Pumped] = {}
        self._readable: deque[Pumped] = deque()

    def close(self) -> None:
        """Give the epoll back. No connection may be added any more."""
        self._epoll.close()

    def add(self, pumped: Pumped) -> None:
        """Read this connection from now on."""
        pumped.tap.last_received = trio.current_time()
        pumped.connection.on_change = pumped.update
        self.update(pumped)

    def remove(self, pumped: Pumped) -> None:
        """Read it no more. Idempotent; must come before the socket is closed."""
        pumped.removed = True
        pumped.connection.on_change = None
        self.update(pumped)

    def update(self, pumped: Pumped) -> None:
        """Into the epoll, or out of it, as the connection's state asks for now."""
        wanted = pumped.wants_bytes()
        if self._epoll.closed or wanted == (pumped.descriptor >= 0):
            return
        if wanted:
            descriptor = pumped.tap.descriptor
            if descriptor < 0:
                return
            self._epoll.register(descriptor, select.EPOLLIN)
            self._by_descriptor[descriptor] = pumped
            pumped.descriptor = descriptor
            # The time in which we did not read is not the peer's silence.
            pumped.tap.last_received = trio.current_time()
        else:
            self._epoll.unregister(pumped.descriptor)
            del self._by_descriptor[pumped.descriptor]
            pumped.descriptor = -1
        pumped.tap.reading = wanted

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump until cancelled. Raises nothing that a peer can cause."""
        task_status.started()
        while True:
            if self._readable:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            batches = self._turn()
            if batches:
                await self._router.submit(batches)

    def _turn(self) -> list[Batch]:
        """Small rounds without a task switch between them, until nothing is readable or the turn is over.

        Gives back what the router must be handed through its channel; usually it has nothing
        queued and routes at once, and the list is empty.
        """
        turn = _Turn()
        for _ in range(_ROUNDS_A_TURN):
            if not self._readable and not self._find_readable():
                break
            batches = self._round(turn)
            if batches:
                return batches
            if turn.frames >= _FEW_FRAMES or turn.is_over:
                break
        return []

    def _find_readable(self) -> bool:
        by_descriptor = self._by_descriptor
        for descriptor, _ in self._epoll.poll(0, _READS_A_TURN):
            self._readable.append(by_descriptor[descriptor])
        return bool(self._readable)

    def _round(self, turn: _Turn) -> list[Batch]:
        """Read each readable socket once, as far as the turn goes, and route what came.

        Gives back what is not routed yet.
        """
        now = trio.current_time()
        batches: list[Batch] = []
        readable = self._readable
        with self._outbox:
            while readable and not turn.is_over:
                pumped = readable.popleft()
                # It may have left the epoll since it was found readable.
                if pumped.descriptor < 0:
                    continue
                turn.reads += 1
                try:
                    turn.frames += self._read(pumped, now, batches)
                except Exception:
                    # The boundary of this connection: a fault of ours in reading one peer ends that peer.
                    _log.exception("Connection failed", user_id=pumped.connection.user_id)
                    pumped.connection.end(_INTERNAL)
            if batches and self._router.is_idle:
                self._router.route(batches)
                batches = []
        return batches

    def _read(self, pumped: Pumped, now: float, batches: list[Batch]) -> int:
        """Read one socket once: the number of frames that came."""
        tap = pumped.tap
        try:
            data = os.read(pumped.descriptor, pumped.read_bytes)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            tap.end()
            self.update(pumped)
            return 0
        tap.last_received = now
        texts, violation = tap.feed(data)
        if texts:
            requests = pumped.take(texts)
            if requests:
                batches.append(Batch(pumped.connection, requests))
        # Small frames cost as much as large ones: who sends many is read in small pieces.
        frames = tap.frames
        if frames > _MANY_FRAMES:
            pumped.read_bytes = _SMALLEST_READ_BYTES
        elif len(data) == pumped.read_bytes and len(data) < RECEIVE_BYTES:
            pumped.read_bytes *= 4
        if violation is not None:
            pumped.on_violation(violation)
        if not pumped.wants_bytes():
            self.update(pumped)
        return frames
