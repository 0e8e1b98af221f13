"""Owns the promises of how soon the registry is right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from clients import Clients, answer_of, open_files
from commands import Command
from peers import TEXT, UPGRADE, frame, head
from proxy import Proxy

from _promises.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clients import Client

_SERVE = ("serve", "--host=127.0.0.1", "--port=0", "--log-file=")
_VICTIMS = Path(__file__).resolve().parents[2] / "tests" / "faults" / "victims.py"
_KILLED, _KILLED_AT_ONCE = 1000, 20
_EOF_SECONDS = 1.0
_SILENT = 200
_PING_SECONDS, _PONG_SECONDS, _SLACK_SECONDS = 2, 2, 5


def killed(directory: Path) -> Iterator[Figure]:
    """1,000 clients killed by signal 9 in mid-frame: the registry is right within 1 s of each."""
    draw = random.Random(9)
    whole = frame(TEXT, b'{"event":"ping","x":"' + b"x" * 2000)
    took: list[float] = []
    with (
        Command(directory, *_SERVE) as command,
        Clients(command.address()) as clients,
        subprocess.Popen(
            [sys.executable, str(_VICTIMS), str(clients.address[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as victims,
    ):
        assert victims.stdin is not None
        assert victims.stdout is not None
        (observer,) = clients.connect(["observer"], wants_presence=True)
        for number in range(0, _KILLED, _KILLED_AT_ONCE):
            users = [f"victim{number + n}" for n in range(_KILLED_AT_ONCE)]
            pids = []
            for user_id in users:
                target = f"/?user_id={user_id}&backend_url=http://x&presence=none"
                said = head("GET", target, UPGRADE) + whole[: draw.randrange(1, len(whole))]
                victims.stdin.write(said.hex().encode() + b"\n")
                victims.stdin.flush()
                pids.append(int(victims.stdout.readline()))
            clients.until(lambda users=users: _told("user_online", observer) >= {*users})
            at = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            clients.until(lambda users=users: _told("user_offline", observer) >= {*users})
            # The whole group counts from its first, so none of them was slower than that.
            took.append(time.monotonic() - at)
            observer.heard.clear()
        assert _online(clients) == {"observer"}
        victims.stdin.close()
    yield Figure(f"{_KILLED:,} killed in mid-frame: gone from the registry", max(took), _EOF_SECONDS)


def silent(directory: Path) -> Iterator[Figure]:
    """200 clients behind a proxy that stops forwarding: gone within ping + pong + 5 s."""
    environ = {
        "COLLAB_TIMEOUTS__PING_INTERVAL": f"{_PING_SECONDS}s",
        "COLLAB_TIMEOUTS__PING_TIMEOUT": f"{_PONG_SECONDS}s",
    }
    with (
        open_files(4 * _SILENT + 256),
        Command(directory, *_SERVE, environ=environ) as command,
        Clients(command.address()) as clients,
    ):
        (observer,) = clients.connect(["observer"], wants_presence=True)
        took = trio.run(_freeze, clients, observer)
        assert _online(clients) == {"observer"}
    most = _PING_SECONDS + _PONG_SECONDS + _SLACK_SECONDS
    yield Figure(f"{_SILENT} behind a frozen proxy: gone from the registry", took, most)


async def _freeze(clients: Clients, observer: Client) -> float:
    """Let a crowd in through a proxy, stop that, and wait until all are gone: how long it took, in seconds.

    The crowd lives in a thread of its own, and answers pings as long as they come.
    """
    users = {f"silent{number}" for number in range(_SILENT)}
    proxy = Proxy(clients.address)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(proxy.run)

        def let_in() -> None:
            own, clients.address = clients.address, (clients.address[0], port)
            try:
                clients.connect(sorted(users))
            finally:
                clients.address = own
            # They are pinged, and stay as long as they can answer.
            clients.until(lambda: proxy.pings >= _SILENT)
            assert not _told("user_offline", observer)

        await trio.to_thread.run_sync(let_in)
        proxy.freeze()
        at = time.monotonic()

        def wait() -> None:
            patience = 2.0 * (_PING_SECONDS + _PONG_SECONDS + _SLACK_SECONDS)
            clients.until(lambda: _told("user_offline", observer) == users, patience)

        await trio.to_thread.run_sync(wait)
        took = time.monotonic() - at
        nursery.cancel_scope.cancel()
    return took


def _told(event: str, observer: Client) -> set[str]:
    """The users that the observer heard this of."""
    return {message["data"]["user_id"] for message in observer.heard if message["event"] == event}


def _online(clients: Clients) -> set[str]:
    return {user["user_id"] for user in answer_of(clients.address, "/api/users/online")[1]["users"]}
