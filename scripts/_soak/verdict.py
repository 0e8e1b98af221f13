"""Owns the question whether a figure that was read once a second stays flat."""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from statistics import median
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

PER_SECONDS = 600.0
"""Growth is told for ten minutes."""

_BINS = 48
_RESAMPLES = 200
_BLOCKS = 8
_SEED = 1
_TAIL = 0.025


@attrs.frozen
class Growth:
    """A straight line through the figures, for ten minutes, with its 95 % interval."""

    value: float
    low: float
    high: float
    start: float
    """Where the line begins, and where it ends."""
    end: float


def growth(times: Sequence[float], values: Sequence[float]) -> Growth:
    """How the floor of the figures grows.

    Peaks come and go with the load and are no leak, so each of 48 stretches of time counts with its
    lowest figure. The slope is that of Theil and Sen, the median of the slopes between all pairs, which
    a few odd figures do not move. Neighbours are alike, so the interval comes of resampling what is
    left beside the line in blocks.
    """
    times, values = _floors(times, values)
    slope = _slope(times, values)
    middle = median(value - slope * at for at, value in zip(times, values, strict=True))
    line = [middle + slope * at for at in times]
    beside = [value - on_line for value, on_line in zip(values, line, strict=True)]
    draw = random.Random(_SEED)
    block = max(len(beside) // _BLOCKS, 1)
    slopes = []
    for _ in range(_RESAMPLES):
        noise: list[float] = []
        while len(noise) < len(beside):
            begin = draw.randrange(len(beside) - block + 1)
            noise += beside[begin : begin + block]
        slopes.append(_slope(times, [on_line + one for on_line, one in zip(line, noise, strict=False)]))
    slopes.sort()
    low, high = slopes[int(_RESAMPLES * _TAIL)], slopes[int(_RESAMPLES * (1 - _TAIL)) - 1]
    return Growth(slope * PER_SECONDS, low * PER_SECONDS, high * PER_SECONDS, line[0], line[-1])


def _floors(times: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    bins = min(_BINS, len(values) // 2)
    edges = [len(values) * i // bins for i in range(bins + 1)]
    lowest = [min(range(begin, end), key=values.__getitem__) for begin, end in pairwise(edges)]
    return [times[i] for i in lowest], [values[i] for i in lowest]


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    points = zip(times, values, strict=True)
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))
