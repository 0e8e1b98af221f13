"""Owns the workloads that send nothing: idle connections, and a storm of users who come and go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from collab.bench.cost import cpu_seconds, resident_bytes
from collab.bench.report import Cost, Memory, Phase, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.bench.connection import Buffer, Connection
    from collab.bench.crowd import Crowd

    Progress = Callable[[str, float], None]

QUIET_SECONDS = 1.0
_NOTICE_SECONDS = 5.0
_AT_ONCE = 64


def run_idle(crowd: Crowd, token: str, progress: Progress) -> Report:
    """Hold connections, with the server's memory read at half of them and at all.

    Raises:
        Unreachable: a connection was not let in.
        NoSuchProcess: the process to measure is not there.
    """
    options = crowd.options
    users = [f"{token}i{i}" for i in range(options.connections)]
    half = len(users) // 2
    _open_slowly(crowd, users[:half], progress, 0.0)
    half_bytes = _settled_bytes(crowd)
    _open_slowly(crowd, users[half:], progress, 0.5)
    all_bytes = _settled_bytes(crowd)
    begin, own, server = time.monotonic(), time.process_time(), _cpu(options.pid)
    while (held := time.monotonic() - begin) < options.seconds:
        progress("holding", held / options.seconds)
        crowd.turn(0.1)
    return Report(
        workload=options.workload,
        dialect=options.dialect,
        connections=len(users),
        seconds=held,
        cost=Cost.between(server, _cpu(options.pid), own_seconds=time.process_time() - own),
        connections_lost=len(crowd.ended_reasons),
        first_end=next(iter(crowd.ended_reasons), ""),
        memory=Memory(
            half_connections=half,
            half_bytes=half_bytes,
            all_connections=len(users),
            all_bytes=all_bytes,
        ),
    )


def run_storm(crowd: Crowd, token: str, progress: Progress) -> Report:
    """Let users connect at once, drop, and return, while one stays and counts the notices.

    Raises:
        Unreachable: a connection was not let in.
        NoSuchProcess: the process to measure is not there.
    """
    options = crowd.options
    users = [f"{token}u{i}" for i in range(options.connections)]
    watcher = _Watcher(token)
    if options.wants_presence:
        crowd.open({f"{token}w": watcher.take})
    begin, own, server = time.monotonic(), time.process_time(), _cpu(options.pid)
    phases: list[Phase] = []

    def phase(name: str, act: Callable[[], None]) -> None:
        progress(name, len(phases) / 3)
        expected = len(users) if options.wants_presence else 0
        watcher.count = 0
        start, cpu = time.monotonic(), _cpu(options.pid)
        act()
        crowd.settle(lambda: watcher.count >= expected, _NOTICE_SECONDS)
        seconds = time.monotonic() - start
        # Work for connections that are gone may go on after the notices are out.
        crowd.settle(lambda: False, QUIET_SECONDS)
        after = _cpu(options.pid)
        phases.append(
            Phase(
                name=name,
                users=len(users),
                seconds=seconds,
                server_seconds=None if cpu is None or after is None else after - cpu,
                notices=watcher.count,
                expected_notices=expected,
            )
        )

    came: list[Connection] = []
    phase("connecting", lambda: came.extend(crowd.open(dict.fromkeys(users, _ignore), at_once=len(users))))
    watcher.looks_for_offline()
    phase("dropping", lambda: crowd.drop(came))
    watcher.looks_for_online()
    phase("returning", lambda: came.extend(crowd.open(dict.fromkeys(users, _ignore), at_once=len(users))))
    return Report(
        workload=options.workload,
        dialect=options.dialect,
        connections=len(users) + options.wants_presence,
        seconds=time.monotonic() - begin,
        cost=Cost.between(server, _cpu(options.pid), own_seconds=time.process_time() - own),
        connections_lost=len(crowd.ended_reasons),
        first_end=next(iter(crowd.ended_reasons), ""),
        phases=tuple(phases),
    )


class _Watcher:
    """The one who stays: counts the notices about this run's users."""

    def __init__(self, token: str) -> None:
        self.count = 0
        self._user = token.encode() + b"u"
        self._event = b"user_online"

    def looks_for_offline(self) -> None:
        """Count `user_offline` from now on."""
        self._event = b"user_offline"

    def looks_for_online(self) -> None:
        """Count `user_online` from now on."""
        self._event = b"user_online"

    def take(self, buffer: Buffer, end: int, frames: int) -> None:
        """Frames for the one who stays."""
        if self._user in buffer:
            self.count += buffer.count(self._event, 0, end)


def _open_slowly(crowd: Crowd, users: list[str], progress: Progress, done: float) -> None:
    for i in range(0, len(users), _AT_ONCE):
        progress("connecting", done + i / len(users) / 2)
        crowd.open(dict.fromkeys(users[i : i + _AT_ONCE], _ignore))


def _settled_bytes(crowd: Crowd) -> int | None:
    crowd.settle(lambda: False, QUIET_SECONDS)
    return None if crowd.options.pid is None else resident_bytes(crowd.options.pid)


def _cpu(pid: int | None) -> float | None:
    return None if pid is None else cpu_seconds(pid)


def _ignore(buffer: Buffer, end: int, frames: int) -> None:
    pass
