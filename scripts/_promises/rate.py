"""Owns the cost of a rate check."""

from __future__ import annotations

import timeit
from typing import TYPE_CHECKING

from _promises.figure import Figure
from collab.policy.rate import Meter, Meters, Rate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_MICROSECONDS = 1.0
_CALLS = 200_000
_ROUNDS = 7


def rate(directory: Path) -> Iterator[Figure]:
    """A rate check takes less than a microsecond, allowed or refused."""
    generous, strict = Rate(per_second=1e9, burst=10**9), Rate(per_second=1, burst=1)
    for what, meter, seconds in (
        ("a check that passes", Meter(generous), 1e-6),
        ("a check that refuses", Meter(strict), 0.0),
    ):
        yield _figure(what, "spend(1, at)", {"spend": meter.spend}, seconds)
    for what, meters, seconds in (
        ("a check by key that passes", Meters(generous), 1e-6),
        ("a check by key that refuses", Meters(strict), 0.0),
    ):
        yield _figure(what, "spend('ada', 1, at)", {"spend": meters.spend}, seconds)


def _figure(what: str, call: str, names: dict[str, object], step_seconds: float) -> Figure:
    """The quickest of several rounds: what else the machine does only ever adds to it."""
    timer = timeit.Timer(f"{call}; at += step", "at = 1000.0", globals={**names, "step": step_seconds})
    empty = timeit.Timer("at += step", "at = 1000.0", globals={"step": step_seconds})
    # Each round begins at the same time: the meter that passes gets its burst back with the first call.
    found, loop = (min(one.repeat(_ROUNDS, _CALLS)) / _CALLS * 1e6 for one in (timer, empty))
    return Figure(what, found - loop, MOST_MICROSECONDS, "µs")
