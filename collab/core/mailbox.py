"""Owns the mailbox: the bounded queue between the router and the one writer of a connection."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collab.settings import LimitSettings

Settled = Callable[[bool], None]
"""Told once whether a frame that had to wait entered the mailbox (True) or never will (False)."""


@attrs.frozen
class _Waiting:
    frame: bytes
    settled: Settled | None
    since: float


class Mailbox:
    """Frames on their way to one connection's writer.

    At most `max_messages` frames and `max_bytes` bytes are held, counting what the writer has
    taken and not yet sent; an empty mailbox takes one frame of any size. What finds it full can
    wait behind it in order (`put_later`). One reader (`take`, `sent`), any number of
    synchronous writers.
    """

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # The counters are the bound, as they include what the writer holds; the channel carries the
        # frames and wakes the writer.
        self._inlet, self._outlet = trio.open_memory_channel[bytes](max_messages)
        self._waiting: deque[_Waiting] = deque()
        self._taken: list[int] = []
        self.messages = 0
        self.bytes = 0
        self.closed = False
        self.on_waiting: Callable[[], None] = _nothing
        """Called when a frame has to wait and none did before."""
        self.on_room: Callable[[], None] = _nothing
        """Called when the last waiting frame got in."""

    @classmethod
    def from_limits(cls, limits: LimitSettings) -> Mailbox:
        """A mailbox with the bounds of the settings."""
        return cls(max_messages=limits.mailbox_messages, max_bytes=int(limits.mailbox_bytes))

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
        if self.closed or self._waiting or not self._fits(frame):
            return False
        self._enter(frame)
        return True

    def put_later(self, frame: bytes, settled: Settled | None = None) -> None:
        """Let a frame wait behind what waits already. `settled` is told at once if the mailbox is closed."""
        if self.closed:
            if settled is not None:
                settled(False)
            return
        self._waiting.append(_Waiting(frame, settled, trio.current_time()))
        if len(self._waiting) == 1:
            self.on_waiting()

    def put_or_wait(self, frame: bytes) -> None:
        """Put a frame in, now or as soon as there is room; a closed mailbox drops it."""
        if not self.put(frame):
            self.put_later(frame)

    async def take(self) -> bytes:
        """Everything queued as one piece of bytes, waiting until there is something.

        Raises:
            trio.EndOfChannel: the mailbox was closed and is empty.
        trio.ClosedResourceError: it was closed and what it held dropped.
        """
        frames = [await self._outlet.receive()]
        try:
            while True:
                frames.append(self._outlet.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        self._taken = [len(frame) for frame in frames]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def sent(self) -> None:
        """What `take` gave last is on its way: its room is free, what waited moves up."""
        self.messages -= len(self._taken)
        self.bytes -= sum(self._taken)
        self._taken = []
        self._admit_waiting()

    def close(self, *, discard: bool) -> None:
        """Let nothing more in; with `discard`, drop what is queued too. Whatever waits is settled as lost."""
        self.closed = True
        self._inlet.close()
        if discard:
            self._outlet.close()
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.settled is not None:
                waiting.settled(False)

    def _fits(self, frame: bytes) -> bool:
        if not self.messages:
            return True
        return self.messages < self._max_messages and self.bytes + len(frame) <= self._max_bytes

    def _enter(self, frame: bytes) -> None:
        self.messages += 1
        self.bytes += len(frame)
        self._inlet.send_nowait(frame)

    def _admit_waiting(self) -> None:
        if not self._waiting:
            return
        while self._waiting and self._fits(self._waiting[0].frame):
            waiting = self._waiting.popleft()
            self._enter(waiting.frame)
            if waiting.settled is not None:
                waiting.settled(True)
        if not self._waiting:
            self.on_room()


def _nothing() -> None:
    pass
