"""Owns the rate check: GCRA, the leaky bucket as a meter (ITU-T I.371 annex A), no queue, no timer."""

from __future__ import annotations

from typing import Final

import attrs

_MOST_RECENT_KEYS: Final = 32_768
# The tolerance is that of the sums, not of the rate.
_ROUNDING_SECONDS: Final = 1e-9


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
        if too_early > _ROUNDING_SECONDS:
            return too_early
        self._empty_at = empty_at
        return 0.0


class Meters:
    """A meter for each key, in bounded memory.

    A meter that nobody used for as long as a burst lasts is empty, and forgotten soon after that. Where
    more than 65,536 are in use, those that were not used of late are forgotten: who brings that many keys
    has no use of it, as each new key starts with no more than its burst.
    """

    def __init__(self, rate: Rate) -> None:
        self._burst = rate.burst
        self._unit_seconds = 1 / rate.per_second if rate.per_second else 0.0
        self._burst_seconds = rate.burst * self._unit_seconds
        # Two generations: a key moves into the newer one with its use, and what is left in the older one goes
        # all together. To keep them in the order of their last use would cost each use more than its meter.
        self._recent: dict[str, float] = {}
        self._former: dict[str, float] = {}
        self._ages_at = 0.0

    def __len__(self) -> int:
        return len(self._recent) + len(self._former)

    @property
    def is_on(self) -> bool:
        """Whether there is a limit."""
        return self._unit_seconds > 0

    def spend(self, key: str, units: int, now: float) -> float:
        """Use units of this key's meter, as `Meter.spend` does; more than the burst counts as the burst."""
        if not self._unit_seconds:
            return 0.0
        if now > self._ages_at:
            self._age(now)
        recent = self._recent
        empty_at = recent.get(key)
        if empty_at is None:
            empty_at = self._former.pop(key, now)
            if len(recent) >= _MOST_RECENT_KEYS:
                self._age(now)
                recent = self._recent
        if empty_at < now:
            empty_at = now
        full_at = empty_at + (units if units < self._burst else self._burst) * self._unit_seconds
        too_early = full_at - now - self._burst_seconds
        if too_early > _ROUNDING_SECONDS:
            recent[key] = empty_at
            return too_early
        recent[key] = full_at
        return 0.0

    def wait_seconds(self, key: str, now: float) -> float:
        """What `spend` would say to one unit; nothing is used."""
        empty_at = max(self._recent.get(key) or self._former.get(key, now), now)
        too_early = empty_at + self._unit_seconds - now - self._burst_seconds
        return too_early if too_early > _ROUNDING_SECONDS else 0.0

    def _age(self, now: float) -> None:
        """Forget the older generation. What was used in neither for as long as a burst lasts is empty."""
        self._former, self._recent = self._recent, {}
        self._ages_at = now + self._burst_seconds
