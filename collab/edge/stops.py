"""Owns what is known of the time in which the process did not run, and the meters that forgive it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from collab.policy.rate import Meter

if TYPE_CHECKING:
    from collab.policy.rate import Rate

STOPPED_SECONDS = 1.0
"""Who wakes up later than this was stopped (SIGSTOP, a suspended machine), or as good as that."""


class Stops:
    """For how long, in all, the process did not run. One task is to sleep here most of the time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._due = math.inf

    async def sleep_until(self, due: float) -> float:
        """Sleep until this time on Trio's clock: how many seconds too late it was."""
        self._due = due
        await trio.sleep_until(due)
        late_seconds = trio.current_time() - due
        self._seconds += late_seconds if late_seconds > STOPPED_SECONDS else 0.0
        self._due = math.inf
        return late_seconds

    def seconds(self, now: float) -> float:
        """For how long until now; also where the sleeper did not come to notice yet."""
        late_seconds = now - self._due
        return self._seconds + (late_seconds if late_seconds > STOPPED_SECONDS else 0.0)

    def running_time(self) -> float:
        """The time of a clock that stands still while the process does not run."""
        now = trio.current_time()
        return now - self.seconds(now)


class FloodMeter:
    """Whether a client sends too much of what costs time and is no event.

    What gathers while the process is stopped comes at once after it. So each second of a stop allows
    what it would have allowed had we read it then.
    """

    __slots__ = ("_forgiven", "_meter", "_rate", "_stopped_seconds", "_stops")

    def __init__(self, rate: Rate, stops: Stops) -> None:
        self._rate = rate
        self._meter = Meter(rate)
        self._stops = stops
        self._stopped_seconds = stops.seconds(trio.current_time())
        self._forgiven = 0.0

    def is_flood(self, units: int, now: float) -> bool:
        """Count units at `now` (seconds on Trio's clock): whether they are too many."""
        if not self._meter.spend(units, now):
            return False
        stopped_seconds = self._stops.seconds(now)
        self._forgiven += (stopped_seconds - self._stopped_seconds) * self._rate.per_second
        self._stopped_seconds = stopped_seconds
        if units > self._forgiven:
            return True
        self._forgiven -= units
        return False
