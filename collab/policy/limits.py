"""Owns the limits on how many connections there may be."""

from __future__ import annotations

import resource
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from collab.errors import Refused

if TYPE_CHECKING:
    from collab.settings import LimitSettings

_DESCRIPTORS_KEPT_FREE = 64
_RETRY_AFTER_SECONDS = 5


class Admission:
    """Counts connections in total and by address, from before the handshake to the end of the socket."""

    def __init__(self, limits: LimitSettings) -> None:
        self._per_address = limits.connections_per_address
        self._total = limits.connections
        self._by_address: Counter[str] = Counter()
        self._count = 0

    def admit(self, address: str) -> Place:
        """Take a place for one connection; it is given back at the end of a `with` block.

        Raises:
            Refused: 429 `too_many_connections` or 503 `overloaded`, both with Retry-After.
        """
        if self._count >= (self._total or _descriptor_limit()):
            raise Refused(
                503, "overloaded", "too many connections in total", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        if self._per_address and self._by_address[address] >= self._per_address:
            raise Refused(
                429,
                "too_many_connections",
                "too many connections from this address",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._count += 1
        self._by_address[address] += 1
        return Place(self, address)

    def give_back(self, address: str) -> None:
        """One place that `admit` gave is free again."""
        self._count -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


@attrs.frozen
class Place:
    """One connection's place among those allowed, held until it is given back: once, or by a block's end."""

    _admission: Admission
    _address: str

    def give_back(self) -> None:
        """The place is free again."""
        self._admission.give_back(self._address)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.give_back()


def _descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _DESCRIPTORS_KEPT_FREE, 1) if soft != resource.RLIM_INFINITY else 2**31
