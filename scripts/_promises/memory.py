"""Owns the promise that those who come and never say who they are leave no memory behind."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from commands import Command

from _promises.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARM_UP, _HANDSHAKES = 5_000, 10_000
_GROWTH_MIB = 4.0
_HANDSHAKE_SECONDS, _CLOSE_SECONDS, _SLACK_SECONDS = 1, 1, 3
_REQUEST = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: localhost\r\n\r\n"


def abandoned(directory: Path) -> Iterator[Figure]:
    """10,000 handshakes of Socket.IO by polling, each abandoned: memory stays what it was."""
    environ = {
        "COLLAB_TIMEOUTS__HANDSHAKE": f"{_HANDSHAKE_SECONDS}s",
        "COLLAB_TIMEOUTS__CLOSE": f"{_CLOSE_SECONDS}s",
    }
    serve = ("serve", "--host=127.0.0.1", "--port=0", "--log-file=")
    with Command(directory, *serve, environ=environ) as command:
        address = command.address()
        # The first thousands fill pools and caches, which stay.
        _abandon(address, _WARM_UP)
        before = _resident_mib(command.pid)
        _abandon(address, _HANDSHAKES)
        grown = _resident_mib(command.pid) - before
        yield Figure(f"{_HANDSHAKES:,} abandoned handshakes: growth", grown, _GROWTH_MIB, "MiB")


def _abandon(address: tuple[str, int], handshakes: int) -> None:
    """Open so many sessions, one after the other, and wait until the last of them must have ended."""
    for _ in range(handshakes):
        with socket.create_connection(address) as opened:
            opened.sendall(_REQUEST)
            assert opened.recv(64).startswith(b"HTTP/1.1 200")
    time.sleep(_HANDSHAKE_SECONDS + _CLOSE_SECONDS + _SLACK_SECONDS)


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
