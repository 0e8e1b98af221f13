"""Owns the rate check: GCRA, the leaky bucket as a meter (ITU-T I.371 annex A), no queue, no timer."""

from __future__ import annotations

import attrs


@attrs.frozen
class Rate:
    """So many units a second in the long run, and `burst` of them at once; 0 a second: no limit.

    Shared by all its meters.
    """

    per_second: float
    burst: int

    @classmethod
    def with_seconds_at_once(cls, per_second: float, seconds: float) -> Rate:
        """A rate whose burst is what it allows in this time."""
        return cls(per_second, int(per_second * seconds))


class Meter:
    """How much of a rate one party has used. Its state is one number: the time at which it is empty again."""

    __slots__ = ("_empty_at", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._empty_at = 0.0

    def spend(self, units: int, now: float) -> float:
        """Use units at `now` (seconds of a monotonic clock): 0, or the seconds to wait for them.

        Nothing is used where it is not 0. More than the burst never fits.
        """
        rate = self._rate
        if not rate.per_second:
            return 0.0
        empty_at = max(self._empty_at, now) + units / rate.per_second
        too_early = empty_at - now - rate.burst / rate.per_second
        # The tolerance is that of the sums, not of the rate.
        if too_early > 1e-9:
            return too_early
        self._empty_at = empty_at
        return 0.0
