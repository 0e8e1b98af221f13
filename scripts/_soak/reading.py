"""Owns what one run found: a reading each second, and what is only known at its end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from _soak.book import Book
from _soak.server import Holdings

if TYPE_CHECKING:
    from collections.abc import Sequence


MIB = 1024 * 1024


@attrs.frozen(kw_only=True)
class Reading:
    """One second of the soak."""

    at: float
    """Seconds since the load began."""
    holdings: Holdings
    connections: int
    p99_ms: float
    """From when an event was due until a client that stays had it, in this second."""
    routed: int
    """Events that the service has acknowledged since its start."""

    def line(self) -> str:
        """In a few words."""
        held = self.holdings
        return (
            f"{self.at:5.0f} s  {held.rss_bytes / MIB:.1f} MiB  {held.tasks} tasks  "
            f"{held.descriptors} descriptors  {self.connections} connections  p99 {self.p99_ms:.1f} ms"
        )


@attrs.define(kw_only=True)
class Run:
    """Everything that the verdicts are made of."""

    book: Book
    ways: Counter[str]
    before: Holdings
    """With nobody there, after everything was touched once."""
    warm_up_seconds: float
    rate: float
    readings: list[Reading] = attrs.field(factory=list)
    after: Holdings | None = None
    """With nobody there any more."""
    skipped: float = 0.0
    """The part of the events that was left out because the load got no CPU time."""
    cpu: tuple[float, float] = (0.0, 0.0)
    """CPU time of the service and of the load, a second."""
    exit_code: int | None = None
    complaints: list[str] = attrs.field(factory=list)
    """Errors in the service's log."""

    @property
    def settled(self) -> list[Reading]:
        """The readings after the warm-up."""
        return [reading for reading in self.readings if reading.at >= self.warm_up_seconds]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part lies; 0 where there is none."""
    return sorted(values)[int(len(values) * part)] if values else 0.0
