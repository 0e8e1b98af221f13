"""Owns the pump: one task that reads every established connection over TCP."""

from __future__ import annotations

import select
import struct
import termios
from collections import deque
from fcntl import ioctl
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
_FIRST_READ_BYTES = 4096
_SMALLEST_READ_BYTES = 1024
_NEARLY = 0.75
"""How much of a read that brought all it could is left once it is decrypted; the last record may be cut."""
# Resets and broken connections are told of with any mask.
_READING, _UNTIL_THE_END, _UNTIL_A_RESET = select.EPOLLIN, select.EPOLLRDHUP, 0
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
        self.read_bytes = _FIRST_READ_BYTES
        """How much its next read may bring."""

    def update(self) -> None:
        """Read from now on, or no more, as its state asks for now."""
        self._pump.update(self)

    def wants_bytes(self) -> bool:
        """Whether to read: no flood, and its window is open."""
        return not self.tap.has_enough and self.connection.may_read()


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
    so that peers cannot starve the other tasks. A connection whose window is full is not read: that is its
    backpressure. The epoll tells of its end alone then. A reset ends it at once; what was sent before an end
    in good order is read first, once the window is open.
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
        """Read the connection from now on, or no more, as its state asks for now."""
        if self._epoll.closed:
            return
        tap = pumped.tap
        if pumped.removed or tap.ended:
            if pumped.descriptor >= 0:
                self._epoll.unregister(pumped.descriptor)
                del self._by_descriptor[pumped.descriptor]
                pumped.descriptor = -1
                tap.reading = False
            return
        wanted = pumped.wants_bytes()
        if wanted == tap.reading and pumped.descriptor >= 0:
            return
        if not self._watch(pumped, _READING if wanted else _UNTIL_THE_END):
            return
        if wanted:
            # The time in which we did not read is not the peer's silence.
            tap.last_received = trio.current_time()
        tap.reading = wanted

    def _watch(self, pumped: Pumped, mask: int) -> bool:
        """Have the epoll tell of this: False where it does not take it, and the connection ends."""
        try:
            if pumped.descriptor >= 0:
                self._epoll.modify(pumped.descriptor, mask)
            else:
                descriptor = pumped.tap.descriptor
                self._epoll.register(descriptor, mask)
                self._by_descriptor[descriptor] = pumped
                pumped.descriptor = descriptor
        except OSError:
            # The kernel has no room for it: that is the end of this connection, and of no other.
            _log.exception("Connection failed", user_id=pumped.connection.user_id)
            pumped.tap.end()
            pumped.connection.end(_INTERNAL)
            return False
        return True

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
        for descriptor, events in self._epoll.poll(0, _READS_A_TURN):
            pumped = by_descriptor[descriptor]
            if pumped.tap.reading:
                self._readable.append(pumped)
            else:
                self._note_end(pumped, events)
        return bool(self._readable)

    def _note_end(self, pumped: Pumped, events: int) -> None:
        """The peer of a connection that is not read has ended it, or its own side."""
        if events & (select.EPOLLERR | select.EPOLLHUP) or not _unread_bytes(pumped.descriptor):
            pumped.tap.end()
            self.update(pumped)
        else:
            self._watch(pumped, _UNTIL_A_RESET)

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
                # It may have ended, or filled its window, since it was found readable.
                if not pumped.tap.reading:
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
        """Read one socket once: the number of frames that came, or of their recipients if that is more."""
        tap = pumped.tap
        try:
            data = tap.read_now(pumped.read_bytes)
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
        frames = tap.frames
        if texts:
            requests = pumped.take(texts)
            if requests:
                batches.append(Batch(pumped.connection, requests))
                # Each recipient costs as much as a frame: an event for many counts as so many frames.
                recipients = 0
                for request in requests:
                    recipients += len(request.event.to_users)
                if recipients > frames:
                    frames = recipients
        # Small frames cost as much as large ones: who sends many is read in small pieces.
        if frames > _MANY_FRAMES:
            pumped.read_bytes = _SMALLEST_READ_BYTES
        elif pumped.read_bytes < RECEIVE_BYTES and len(data) >= pumped.read_bytes * _NEARLY:
            pumped.read_bytes *= 4
        if violation is not None:
            pumped.on_violation(violation)
        if not pumped.wants_bytes():
            self.update(pumped)
        return frames


def _unread_bytes(descriptor: int) -> int:
    unread: int = struct.unpack("i", ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return unread
