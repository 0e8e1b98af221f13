"""Owns what is found and what it must not pass."""

from __future__ import annotations

import attrs


@attrs.frozen
class Figure:
    """One figure, and the most that is promised."""

    what: str
    found: float
    most: float
    unit: str = "s"

    @property
    def is_kept(self) -> bool:
        """Whether the promise was kept."""
        return self.found <= self.most

    def __str__(self) -> str:
        verdict = "kept" if self.is_kept else "FALLS SHORT"
        return f"{self.what}: {self.found:.3g} {self.unit}, {self.most:g} {self.unit} at most: {verdict}"
