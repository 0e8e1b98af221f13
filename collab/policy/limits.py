"""Owns the limits on how many connections there may be, and what counts as one address."""

from __future__ import annotations

import resource
from collections import Counter
from ipaddress import IPv6Address
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
        self._by_network: Counter[str] = Counter()
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
        network = network_of(address)
        if self._per_address and self._by_network[network] >= self._per_address:
            raise Refused(
                429,
                "too_many_connections",
                "too many connections from this address",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._count += 1
        self._by_network[network] += 1
        return Place(self, network)

    def give_back(self, network: str) -> None:
        """One place that `admit` gave is free again."""
        self._count -= 1
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]


@attrs.frozen
class Place:
    """One connection's place among those allowed, held until it is given back: once, or by a block's end."""

    _admission: Admission
    _network: str

    def give_back(self) -> None:
        """The place is free again."""
        self._admission.give_back(self._network)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.give_back()


def network_of(address: str) -> str:
    """What a limit by address counts: an IPv4 address, also one mapped into IPv6; of IPv6 the /64.

    Whoever has one IPv6 address has as a rule its whole /64 (RFC 6177, RFC 7421), and with it more
    addresses than any limit could count.
    """
    if ":" not in address:
        return address
    parsed = IPv6Address(address)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


def _descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _DESCRIPTORS_KEPT_FREE, 1) if soft != resource.RLIM_INFINITY else 2**31
