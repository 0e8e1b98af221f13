"""Owns all connections of a run: opens them, waits on them in one loop, closes them."""

from __future__ import annotations

import resource
import select
import selectors
import socket
import time
from itertools import islice
from typing import TYPE_CHECKING, Self

from collab.bench.connection import Connection, Unreachable
from collab.bench.dialects import DIALECTS
from collab.bench.encrypted import client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from collab.bench.connection import Take
    from collab.bench.options import Options

_CONNECT_SECONDS = 10.0
_OPEN_SECONDS = 120.0
_SETTLE_SECONDS = 120.0
_SCRATCH_BYTES = 256 * 1024
_SPARE_FILES = 64
_TOKEN_SECONDS = 3600


class Crowd:
    """Connections that share one loop. Owns them: leaving the block closes all.

    Raises:
        Unreachable: nobody listens, or this process may not open so many files.
    """

    def __init__(self, options: Options, connections: int) -> None:
        _raise_file_limit(connections + _SPARE_FILES)
        self.options = options
        self._open_connections: set[Connection] = set()
        self._let_in = 0
        self.ended_reasons: list[str] = []
        """Why connections ended that had been let in, and that we did not end."""
        self._refusals: list[str] = []
        self._address = _reach(options.host, options.port)
        self._tls = client_context() if options.is_encrypted else None
        # Before any connection: select() takes no descriptor above 1,023.
        self._selector = selectors.DefaultSelector()
        self._waiter: int = getattr(self._selector, "fileno", lambda: -1)()
        self._scratch = bytearray(_SCRATCH_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for connection in list(self._open_connections):
            connection.close()
        self._selector.close()

    def open(self, users: Mapping[str, Take], *, at_once: int = 64) -> list[Connection]:
        """Connect these users, at most `at_once` on their way at a time, and wait until all are connected.

        Each comes with what is called with the frames that it gets. The connections are in the same order.

        Raises:
            Unreachable: one was refused, or it took longer than two minutes.
        """
        options = self.options
        dialect = DIALECTS[options.dialect]
        deadline = time.monotonic() + _OPEN_SECONDS
        opened: list[Connection] = []
        self._refusals.clear()
        self._let_in = 0
        waiting = iter(users.items())
        while self._let_in < len(users):
            under_way = len(opened) - self._let_in
            for user_id, take in islice(waiting, at_once - under_way):
                connection = Connection(
                    user_id,
                    address=self._address,
                    host=f"{options.host}:{options.port}",
                    target=dialect.target(options.path, user_id, wants_presence=options.wants_presence)
                    + _token(options.secret, user_id),
                    dialect=dialect,
                    take=take,
                    owner=self,
                    selector=self._selector,
                    scratch=self._scratch,
                    tls=self._tls,
                )
                self._open_connections.add(connection)
                opened.append(connection)
            self.turn(0.1)
            if self._refusals:
                raise Unreachable(f"a connection was not let in: {self._refusals[0]}")
            if time.monotonic() > deadline:
                missing = len(users) - self._let_in
                raise Unreachable(f"{missing} of {len(users)} connections were not let in in time")
        return opened

    def drop(self, connections: Sequence[Connection]) -> None:
        """Let these vanish without a word."""
        for connection in connections:
            connection.drop()
            self._open_connections.discard(connection)

    def turn(self, timeout_seconds: float) -> None:
        """Wait at most so long for something to happen, and handle what did."""
        if 0 < timeout_seconds < 0.05 and self._waiter >= 0:
            # The selector rounds up to milliseconds, which would be seen in an open loop's latency.
            select.select([self._waiter], [], [], timeout_seconds)
            timeout_seconds = 0
        for key, events in self._selector.select(timeout_seconds):
            key.data(events)

    def settle(self, is_done: Callable[[], bool], patience_seconds: float) -> bool:
        """Go on until `is_done`, or until nothing came for so long. Gives back whether it is done."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        last = time.monotonic()
        while not is_done():
            now = time.monotonic()
            if self._selector.select(min(patience_seconds, 0.1)):
                last = now
                self.turn(0)
            elif now - last > patience_seconds:
                return False
            if now > deadline:
                return False
        return True

    def connected(self, connection: Connection) -> None:
        """See `collab.bench.connection.Owner`."""
        self._let_in += 1

    def ended(self, connection: Connection, reason: str) -> None:
        """See `collab.bench.connection.Owner`."""
        self._open_connections.discard(connection)
        reasons = self.ended_reasons if connection.is_connected else self._refusals
        reasons.append(reason)


def _token(secret: str, user_id: str) -> str:
    """The parameter with a token for a user, where users need one."""
    if not secret:
        return ""
    import jwt

    claims = {"sub": user_id, "exp": int(time.time()) + _TOKEN_SECONDS, "peers": ["*"]}
    return "&token=" + jwt.encode(claims, secret, algorithm="HS256")


def _reach(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family and address of the first that accepts a connection."""
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS) as probe:
            return socket.AddressFamily(probe.family), probe.getpeername()[:2]
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unreachable(f"cannot reach {host}:{port}: {reason}") from None


def _raise_file_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise Unreachable(f"needs {needed} open files, this process may have {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
