"""Owns the mailbox: the bounded queue between the router and the one writer of a connection."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collab.core.outbox import Outbox
    from collab.settings import LimitSettings

_WAITING_BOUND = 4
"""What may wait for room, in times of the bytes that the mailbox may hold."""

_LEAST_WAITING_BYTES = 1 << 20
_WAITING_COST_BYTES = 256
"""What it costs to keep a frame waiting, beside its own bytes; an estimate."""

Settled = Callable[[bool], None]
"""Told once whether a frame that had to wait entered the mailbox (True) or never will (False)."""

WriteNow = Callable[[bytes], int]
"""Writes what goes out without waiting: the number of bytes taken, 0 where others are being sent."""


@attrs.frozen
class _Waiting:
    frame: bytes
    settled: Settled | None
    since: float


class Mailbox:
    """Frames on their way to one connection's writer.

    At most `max_messages` frames and `max_bytes` bytes are held, counting what the writer has
    taken and not yet sent; an empty mailbox takes one frame of any size. What finds it full can
    wait behind it in order (`put_later`), up to four times `max_bytes` and never less than 1 MiB, where
    each frame counts 256 bytes beside its own; more than that closes it, but for the first. One
    reader (`take`, `sent`), any number of synchronous writers.

    Without `write_through` everything is queued for the writer. With it, the mailbox is either
    *idle* (nothing held, or only the frames of this round, `_first` and `_fresh`, which the
    `Outbox` has written at once) or *busy* (something did not go out at once: everything is queued
    behind it until the writer has sent all).
    """

    __slots__ = (
        "_busy",
        "_first",
        "_fresh",
        "_inlet",
        "_max_bytes",
        "_max_messages",
        "_outbox",
        "_outlet",
        "_taken_bytes",
        "_taken_messages",
        "_waiting",
        "_waiting_bytes",
        "_write_now",
        "bytes",
        "closed",
        "messages",
        "on_queued",
        "on_room",
        "on_waiting",
        "overrun",
    )

    def __init__(self, outbox: Outbox, *, max_messages: int, max_bytes: int) -> None:
        self._outbox = outbox
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # The counters are the bound, as they include what the writer holds; the channel carries the
        # frames and wakes the writer. Most mailboxes never need it: it is made with the first item.
        self._inlet: trio.MemorySendChannel[bytes] | None = None
        self._outlet: trio.MemoryReceiveChannel[bytes] | None = None
        self._waiting: deque[_Waiting] | None = None
        self._waiting_bytes = 0
        self._write_now: WriteNow | None = None
        self._busy = True
        # The frames of the round; nearly always there is one, and it needs no list.
        self._first = b""
        self._fresh: list[bytes] = []
        self._taken_messages = 0
        self._taken_bytes = 0
        self.messages = 0
        self.bytes = 0
        self.closed = False
        self.overrun = False
        """Whether it was closed because too much waited for room: its connection is to be evicted."""
        self.on_queued: Callable[[], None] = _nothing
        """Called when something was queued for a writer that had nothing left: it must run."""
        self.on_waiting: Callable[[], None] = _nothing
        """Called when a frame has to wait and none did before."""
        self.on_room: Callable[[], None] = _nothing
        """Called when the last waiting frame got in."""

    @classmethod
    def from_limits(cls, outbox: Outbox, limits: LimitSettings) -> Mailbox:
        """A mailbox with the bounds of the settings."""
        return cls(outbox, max_messages=limits.mailbox_messages, max_bytes=int(limits.mailbox_bytes))

    def write_through(self, write_now: WriteNow) -> None:
        """From now on, write what finds the writer idle at once with `write_now`."""
        self._write_now = write_now
        self._busy = self.messages > 0

    @property
    def has_waiting(self) -> bool:
        """Whether anything waits for room."""
        return bool(self._waiting)

    @property
    def waiting_since(self) -> float:
        """When, on Trio's clock, the oldest frame that still waits began to; `inf` where none does."""
        return self._waiting[0].since if self._waiting else math.inf

    def put(self, frame: bytes) -> bool:
        """Put a frame in if there is room and nothing waits: whether it went in."""
        if self.closed or self._waiting:
            return False
        # `_fits` and `_enter`, written out: this runs once for every recipient of every event.
        messages, size = self.messages, self.bytes + len(frame)
        if messages and (messages >= self._max_messages or size > self._max_bytes):
            if self._first:
                # Full of this round alone: no reason to make anybody wait.
                self.write_fresh()
                return self.put(frame)
            return False
        self.messages = messages + 1
        self.bytes = size
        if self._busy:
            self._queue(frame)
            return True
        if messages:
            self._fresh.append(frame)
        else:
            self._first = frame
            self._outbox.add(self)
        return True

    def put_later(self, frame: bytes, settled: Settled | None = None) -> None:
        """Let a frame wait behind what waits already. `settled` is told at once if the mailbox is closed."""
        if self.closed:
            if settled is not None:
                settled(False)
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(_Waiting(frame, settled, trio.current_time()))
        self._waiting_bytes += len(frame) + _WAITING_COST_BYTES
        if len(self._waiting) == 1:
            self.on_waiting()
        elif self._waiting_bytes > max(_WAITING_BOUND * self._max_bytes, _LEAST_WAITING_BYTES):
            self.overrun = True
            self.close(discard=True)

    def put_or_wait(self, frame: bytes) -> None:
        """Put a frame in, now or as soon as there is room; a closed mailbox drops it."""
        if not self.put(frame):
            self.put_later(frame)

    def discount(self, seconds: float) -> None:
        """Do not count this much of the time for which frames have waited until now."""
        if self._waiting:
            now = trio.current_time()
            self._waiting = deque(
                attrs.evolve(waiting, since=min(waiting.since + seconds, now)) for waiting in self._waiting
            )

    async def take(self, most: int | None = None) -> bytes:
        """Everything queued as one piece of bytes, waiting until there is something.

        At most so many frames of it, where they were put in without writing through: for a reader that
        cannot bring all at once, so that what it has brought makes room.

        Raises:
            trio.EndOfChannel: the mailbox was closed and is empty.
            trio.ClosedResourceError: it was closed and what it held dropped.
        """
        outlet = self._channel()
        frames = [await outlet.receive()]
        try:
            while most is None or len(frames) < most:
                frames.append(outlet.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        self._taken_messages = self.messages if most is None else len(frames)
        self._taken_bytes = self.bytes if most is None else sum(map(len, frames))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def sent(self) -> None:
        """What `take` gave last is on its way: its room is free, what waited moves up."""
        self.messages -= self._taken_messages
        self.bytes -= self._taken_bytes
        self._taken_messages = self._taken_bytes = 0
        if not self.messages and self._write_now is not None:
            self._busy = False
        if self._waiting:
            self._admit_waiting()

    def write_fresh(self) -> None:
        """Write the frames that were gathered for this round; called by the `Outbox`."""
        data, self._first = self._first, b""
        if not data or self._write_now is None:
            return
        if self._fresh:
            data += b"".join(self._fresh)
            self._fresh.clear()
        written = self._write_now(data)
        if written == len(data):
            self.messages = 0
            self.bytes = 0
            if self._waiting:
                self._admit_waiting()
            return
        self._busy = True
        if written:
            # The socket keeps the remainder of a write that was begun, and sends it before all else:
            # the empty item only wakes the writer, and the counters stand for the remainder.
            self.messages = 1
            self.bytes = len(data) - written
            data = b""
        self._queue(data)

    def close(self, *, discard: bool) -> None:
        """Let nothing more in; with `discard`, drop what is queued too. Whatever waits is settled as lost."""
        if not discard:
            self.write_fresh()
        self.closed = True
        if discard:
            self._first = b""
            self._fresh.clear()
        if self._inlet is not None:
            self._inlet.close()
            if discard and self._outlet is not None:
                self._outlet.close()
        if self._waiting:
            lost, self._waiting = self._waiting, None
            self._waiting_bytes = 0
            self._outbox.settle(partial(self._settle_lost, lost))

    def release(self) -> None:
        """It is over: drop everything and forget whom to call."""
        self.close(discard=True)
        self._write_now = None
        self.on_queued = self.on_waiting = self.on_room = _nothing

    def _settle_lost(self, lost: deque[_Waiting]) -> None:
        for waiting in lost:
            if waiting.settled is not None:
                waiting.settled(False)
        self.on_room()

    def _fits(self, frame: bytes) -> bool:
        if not self.messages:
            return True
        return self.messages < self._max_messages and self.bytes + len(frame) <= self._max_bytes

    def _enter(self, frame: bytes) -> None:
        self.messages += 1
        self.bytes += len(frame)
        if self._busy:
            self._queue(frame)
            return
        if self.messages > 1:
            self._fresh.append(frame)
        else:
            self._first = frame
            self._outbox.add(self)

    def _queue(self, item: bytes) -> None:
        self._channel()
        assert self._inlet is not None
        self._inlet.send_nowait(item)
        self.on_queued()

    def _channel(self) -> trio.MemoryReceiveChannel[bytes]:
        if self._outlet is None:
            self._inlet, self._outlet = trio.open_memory_channel[bytes](self._max_messages)
            if self.closed:
                self._inlet.close()
        return self._outlet

    def _admit_waiting(self) -> None:
        with self._outbox:
            while self._waiting and self._fits(self._waiting[0].frame):
                waiting = self._waiting.popleft()
                self._waiting_bytes -= len(waiting.frame) + _WAITING_COST_BYTES
                self._enter(waiting.frame)
                if waiting.settled is not None:
                    waiting.settled(True)
            if not self._waiting:
                self.on_room()


def _nothing() -> None:
    pass
