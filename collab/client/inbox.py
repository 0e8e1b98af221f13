"""Owns the received events that handlers and iterators have still to take.

One queue for all: each taker has its place in it, and an event is dropped from it once the slowest has
it. A full queue pauses reading, so that the service feels it. Acks come behind events on the same
connection; so while somebody waits for an ack, for example a handler for that of its own answer, reading
goes on up to twice the bound. Beyond that such a wait ends with AckTimeout.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio
from anyio.lowlevel import checkpoint

from collab.client.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.client.errors import Stopped
    from collab.client.events import Event
    from collab.client.limits import Limits

_log = logging.getLogger("collab.client")

# A taker that is gone is noticed by this at the latest: garbage may be collected in any thread, which
# cannot ring.
_LOOK_SECONDS = 0.5


class Inbox:
    """A bounded queue with several takers. While there are none, the newest events are kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[tuple[Event, int]] = deque()
        self._first = 0
        self._bytes = 0
        self._takers: WeakSet[Taker] = WeakSet()
        self._room = Bell()
        self._dropped = 0
        self._is_over = False
        self._stopped: Stopped | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, event: Event, size: int) -> None:
        """Add one. Whoever puts waits for room before the next read, so one read may overshoot."""
        self._queue.append((event, size))
        self._bytes += size
        if self._takers:
            for taker in self._takers:
                taker.bell.ring()
            return
        while self._is_full(1):
            self._drop_first()
            self._dropped += 1
            if self._dropped == 1:
                _log.warning("Nobody takes events: from now on the oldest are dropped")

    async def wait_for_room(self, hurry: Callable[[], bool], on_pause: Callable[[bool], None]) -> None:
        """Until reading may go on. `hurry` says whether somebody waits for what comes behind the events."""
        if not self._must_wait(hurry):
            return
        on_pause(True)
        try:
            while self._must_wait(hurry):
                with anyio.move_on_after(_LOOK_SECONDS):
                    await self._room.wait()
        finally:
            on_pause(False)

    def look_again(self) -> None:
        """Let whoever waits for room ask `hurry` again."""
        self._room.ring()

    def taker(self) -> Taker:
        """One more taker. It begins with the oldest event that is still there."""
        taker = Taker(self, self._first)
        self._takers.add(taker)
        return taker

    def leave(self, taker: Taker) -> None:
        """Wait for this one no longer."""
        self._takers.discard(taker)
        taker.has_left = True
        taker.bell.ring()
        self._trim()

    def end(self, stopped: Stopped | None) -> None:
        """Nothing more comes: takers end behind what is there, with this error if there is one."""
        self._is_over = True
        self._stopped = stopped
        for taker in self._takers:
            taker.bell.ring()

    def next_for(self, position: int) -> Event | None:
        """The event at this place; None where there is none yet.

        Raises:
            StopAsyncIteration, Stopped: and there will be none.
        """
        index = position - self._first
        if index < len(self._queue):
            return self._queue[index][0]
        if self._is_over:
            if self._stopped is not None:
                raise self._stopped.again()
            raise StopAsyncIteration
        return None

    def taken(self) -> None:
        """A taker has gone on."""
        self._trim()

    def _trim(self) -> None:
        slowest = min((taker.position for taker in self._takers), default=None)
        if slowest is None:
            return
        if slowest > self._first:
            while self._first < slowest:
                self._drop_first()
            self._room.ring()

    def _drop_first(self) -> None:
        _, size = self._queue.popleft()
        self._bytes -= size
        self._first += 1

    def _must_wait(self, hurry: Callable[[], bool]) -> bool:
        if not self._is_full(1):
            return False
        self._trim()
        return bool(self._takers) and self._is_full(2 if hurry() else 1)

    def _is_full(self, times: int) -> bool:
        # One event of any size is always taken.
        return len(self._queue) > 1 and (
            len(self._queue) > times * self._limits.queued_events
            or self._bytes > times * self._limits.queued_bytes
        )


class Taker:
    """Iterates over the events. Dropped, it holds up nobody any more."""

    def __init__(self, inbox: Inbox, position: int) -> None:
        self.bell = Bell()
        self.position = position
        self.has_left = False
        self._inbox = inbox

    def __aiter__(self) -> Taker:
        return self

    async def __anext__(self) -> Event:
        if self._next() is not None:
            # A busy iteration gives others their turn, and can be cancelled.
            await checkpoint()
        # Asked again: another task that iterates over the same may have had its turn.
        while (event := self._next()) is None:
            await self.bell.wait()
        self.position += 1
        self._inbox.taken()
        return event

    def _next(self) -> Event | None:
        if self.has_left:
            raise StopAsyncIteration
        return self._inbox.next_for(self.position)
