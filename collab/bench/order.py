"""Owns what has to hold of the events from one sender to one recipient: all, once each, in order."""

from __future__ import annotations


class Sequence:
    """The numbers that arrived from one sender, counted from 0."""

    __slots__ = ("_missing", "duplicates", "next", "reorders")

    def __init__(self) -> None:
        self.next = 0
        """The number that has to come next. A caller that sees it may count it up by itself."""
        self.duplicates = 0
        self.reorders = 0
        self._missing: set[int] = set()

    def take(self, number: int) -> None:
        """Note that this number arrived."""
        if number >= self.next:
            self._missing.update(range(self.next, number))
            self.next = number + 1
        elif number in self._missing:
            self._missing.remove(number)
            self.reorders += 1
        else:
            self.duplicates += 1

    def losses(self, sent: int) -> int:
        """How many of the first `sent` did not arrive."""
        return len(self._missing) + max(sent - self.next, 0)
