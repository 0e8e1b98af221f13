"""Owns the listening sockets: every address of a host, on one port number; and waiting for descriptors."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import trio

from collab.errors import CannotStart
from collab.observe.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_logger()
_BACKLOG = 4096
_ATTEMPTS_FOR_A_FREE_PORT = 16
_FAMILY_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
_NO_CAPACITY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_CAPACITY_PAUSE_SECONDS = 0.1
_CAPACITY_TOLD_SECONDS = 10.0

Address = tuple[str, int]
_Bindable = tuple[int, tuple[object, ...]]


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of `host`; port 0 takes one free number for all of them.

    An address family that this machine does not have is left out as long as one is there.
    The caller owns the listeners.

    Raises:
        CannotStart: the name is unknown, the port is in use or may not be bound.
    """
    addresses = await _resolve(host, port)
    for attempt in range(1, _ATTEMPTS_FOR_A_FREE_PORT + 1):
        try:
            return _listen(addresses, port)
        except OSError as error:
            # A number that is free for one family may be taken for the other: draw again.
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < _ATTEMPTS_FOR_A_FREE_PORT:
                continue
            raise CannotStart(_why(error, host, port)) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def local_addresses(listeners: Sequence[trio.SocketListener]) -> list[Address]:
    """The address and the port number of each listener."""
    return [listener.socket.getsockname()[:2] for listener in listeners]


class PatientListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts through another listener, which it owns, and waits where no descriptor is left.

    Trio would do so too, with a traceback in the log ten times a second, for as long as peers like.
    """

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._told_at = -_CAPACITY_TOLD_SECONDS

    async def accept(self) -> trio.SocketStream:
        """See `trio.abc.Listener`."""
        while True:
            try:
                return await self._listener.accept()
            except OSError as error:
                if error.errno not in _NO_CAPACITY:
                    raise
                self._tell(error)
            await trio.sleep(_CAPACITY_PAUSE_SECONDS)

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._listener.aclose()

    def _tell(self, error: OSError) -> None:
        now = trio.current_time()
        if now - self._told_at >= _CAPACITY_TOLD_SECONDS:
            self._told_at = now
            _log.warning("Connections have to wait", error=error.strerror)


async def _resolve(host: str, port: int) -> list[_Bindable]:
    if host == "localhost":
        # Also where the machine's own table of names lists only one family for it.
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    try:
        found = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise CannotStart(f"cannot listen on {host}: {error}") from error
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _listen(addresses: Sequence[_Bindable], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    try:
        for family, sockaddr in addresses:
            host, _, *rest = sockaddr
            try:
                opened = _bound_socket(family, (host, port, *rest), alone=len(addresses) == 1)
            except OSError as error:
                if error.errno not in _FAMILY_NOT_HERE:
                    raise
                missing = error
                continue
            listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(opened)))
            port = opened.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    if not listeners and missing is not None:
        raise missing
    return listeners


def _bound_socket(family: int, sockaddr: tuple[object, ...], *, alone: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # "::" alone takes IPv4 too, as people expect of it; beside an IPv4 address it must not.
        if family == socket.AF_INET6 and not alone:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(sockaddr)
        opened.listen(_BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: the port is in use"
    return f"cannot listen on {host}:{port}: {error.strerror or error}"
