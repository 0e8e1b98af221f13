"""Owns latencies: many of them in little memory, and their percentiles."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

import attrs

_FRESH = 65536
_KEPT_BITS = 8


@attrs.frozen
class Percentiles:
    """Microseconds, each at most 0.8 % below the true value."""

    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Latencies:
    """Latencies in nanoseconds: 8 significant bits of each, so that many take no more room than few."""

    def __init__(self) -> None:
        self._fresh = array("q")
        self._buckets: Counter[int] = Counter()
        self._max_ns = 0

    def add(self, latencies_ns: list[int]) -> None:
        """Take some more."""
        self._fresh.extend(latencies_ns)
        if len(self._fresh) >= _FRESH:
            self._fold()

    def percentiles(self) -> Percentiles | None:
        """The percentiles of all so far; None where there is none."""
        self._fold()
        total = self._buckets.total()
        if not total:
            return None
        floors_ns = sorted(self._buckets)
        seen = list(accumulate(self._buckets[floor_ns] for floor_ns in floors_ns))

        def at(part: float) -> float:
            return floors_ns[bisect_right(seen, min(int(total * part), total - 1))] / 1000

        return Percentiles(p50_us=at(0.5), p99_us=at(0.99), p999_us=at(0.999), max_us=self._max_ns / 1000)

    def _fold(self) -> None:
        if self._fresh:
            self._max_ns = max(self._max_ns, *self._fresh)
            self._buckets.update(map(_floor, self._fresh))
            self._fresh = array("q")


def _floor(latency_ns: int) -> int:
    shift = max(latency_ns.bit_length() - _KEPT_BITS, 0)
    return latency_ns >> shift << shift
