"""Owns the addresses of a stream's two ends, read once while the socket surely lives."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import trio

SocketAddress = tuple[str, int]


class AddressedSocket(Protocol):
    """The part of a socket that knows its addresses."""

    @property
    def family(self) -> int: ...

    def getpeername(self) -> tuple[str, int]: ...

    def getsockname(self) -> tuple[str, int]: ...


class _SocketStream(Protocol):
    socket: AddressedSocket


@attrs.frozen
class Ends:
    """Both addresses of a connection. It answers as a socket would, also after the socket died."""

    peer: SocketAddress
    local: SocketAddress
    family: int = socket.AF_INET

    @property
    def address(self) -> str:
        """The peer's IP address, without the zone or the IPv4-in-IPv6 prefix."""
        return self.peer[0].partition("%")[0].removeprefix("::ffff:")

    def getpeername(self) -> SocketAddress:
        """As `socket.getpeername`, but for what `address` leaves out: logs name each peer in one way."""
        return self.address, self.peer[1]

    def getsockname(self) -> SocketAddress:
        """What `socket.getsockname` gives for this connection."""
        return self.local


def ends_of(stream: trio.abc.Stream) -> Ends | None:
    """The addresses of a stream over a socket; None where the peer is gone already."""
    opened = socket_of(stream)
    try:
        peer, local = opened.getpeername(), opened.getsockname()
    except OSError:
        return None
    return Ends((peer[0], peer[1]), (local[0], local[1]), opened.family)


def socket_of(stream: trio.abc.Stream) -> AddressedSocket:
    """What knows both addresses of a stream."""
    return _as_socket_stream(stream).socket


def _as_socket_stream(stream: object) -> _SocketStream:
    return stream  # type: ignore[return-value]  # streams in memory carry a stand-in `socket` too
