"""Real Socket.IO clients, played by processes of their own: socket.io-client on Node, python-socketio twice.

A `Players` is one process, which plays any number of clients of one library; a `Player` is one of these.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parent / "socketio"
LIBRARIES = {
    "node": ["node", str(DIRECTORY / "player.js")],
    "asyncio": [sys.executable, str(DIRECTORY / "asyncio_player.py")],
    "threads": [sys.executable, str(DIRECTORY / "threads_player.py")],
}
EVENTS = [
    "connected",
    "collab_event",
    "event_ack",
    "user_online",
    "user_offline",
    "pong",
    "error",
    "notice",
    "refreshed",
    "service_shutdown",
]
TRANSPORTS = {"default": None, "websocket": ["websocket"], "polling": ["polling"]}
DISCONNECTED_BY_SERVICE = {
    "node": "io server disconnect",
    "asyncio": "server disconnect",
    "threads": "server disconnect",
}
PATIENCE_SECONDS = 15.0
_POLL_SECONDS = 0.02


class Players:
    """The clients of one library. Owns the process."""

    def __init__(self, library: str) -> None:
        check_installed()
        self.library = library
        self._numbers = itertools.count(1)
        self._players: dict[str, Player] = {}
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            LIBRARIES[library],
            # Proxies are for other addresses than ours.
            env={**os.environ, "NO_PROXY": "*", "no_proxy": "*"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.errors = ""
        self._readers = [threading.Thread(target=read) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def connect(
        self,
        url: str,
        user_id: str = "",
        *,
        how: str = "auth",
        transports: str = "default",
        namespace: str = "",
        comes_back: bool = True,
        auth: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        ca: Path | None = None,
    ) -> Player:
        """A client that connects; where `user_id` is given it says so, and the rest, in `auth` or `query`."""
        if user_id:
            identity = {"user_id": user_id, "backend_url": "http://localhost:8000", "display_name": user_id}
            if how == "auth":
                auth = {**identity, **(auth or {})}
            else:
                query = {**identity, **(query or {})}
        player = Player(self, f"{user_id}#{next(self._numbers)}", user_id)
        self._players[player.name] = player
        player.act(
            "connect",
            url=url,
            namespace=namespace,
            query=query,
            auth=auth,
            transports=TRANSPORTS[transports],
            headers=headers,
            ca=None if ca is None else str(ca),
            comes_back=comes_back,
            events=EVENTS,
        )
        return player

    def disconnect_all(self) -> None:
        """Let every client go: the next test begins with none."""
        for player in self._players.values():
            player.act("disconnect")
        with self.changed:
            self._players.clear()

    def _read(self) -> None:
        for line in self.process.stdout:
            said = json.loads(line)
            with self.changed:
                if player := self._players.get(said["client"]):
                    player.heard.append((said["event"], said["args"]))
                    self.changed.notify_all()

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.errors += line


class Player:
    """One client, and all that it heard: the service's events by name, its own library's in `<…>`."""

    def __init__(self, players: Players, name: str, user_id: str) -> None:
        self.players = players
        self.name = name
        self.user_id = user_id
        self.heard: list[tuple[str, list[Any]]] = []
        self._taken: dict[str, int] = {}

    def act(self, act: str, **arguments: Any) -> None:
        """Have it do this."""
        self.players.process.stdin.write(json.dumps({"act": act, "client": self.name, **arguments}) + "\n")

    def of(self, event: str) -> list[Any]:
        """The first argument of each of these events, as they came."""
        with self.players.changed:
            return [args[0] if args else None for name, args in self.heard if name == event]

    def hear(self, event: str) -> Any:
        """The first argument of the next event of this name, behind the last one that was asked for."""
        number = self._taken.get(event, 0)
        self._taken[event] = number + 1
        return self.hear_many(event, number + 1)[number]

    def hear_many(self, event: str, count: int) -> list[Any]:
        """Wait until so many of these events have come since the beginning, and give them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.players.changed:
            while len(found := self.of(event)) < count:
                if not self.players.changed.wait(deadline - time.monotonic()):
                    pytest.fail(
                        f"{self.name} did not hear {event}; it heard {self.heard}\n{self.players.errors}"
                    )
        return found

    def emit(self, event: str, data: Any) -> None:
        """Emit without a callback."""
        self.act("emit", event=event, data=data)

    def send_event(self, to_users: list[str], data: Any = None, type: str = "position_shared") -> None:
        """Emit a `collab_event`."""
        self.emit("collab_event", {"type": type, "to_users": to_users, "data": data})

    def call(self, event: str, data: Any) -> Any:
        """Emit with a callback, and what that is called with."""
        self.act("call", event=event, data=data)
        return self.hear("<reply>")

    def state(self) -> dict[str, Any]:
        """Whether it is connected, is coming back by itself, and its transport."""
        self.act("state")
        return self.hear("<state>")

    def until(self, **wanted: Any) -> None:
        """Wait until its state is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not wanted.items() <= (state := self.state()).items():
            if time.monotonic() > deadline:
                pytest.fail(f"{self.name} is {state}, not {wanted}; it heard {self.heard}")
            time.sleep(_POLL_SECONDS)


def check_installed() -> None:
    """Fail where the clients for Node are missing: no test is left out for want of them."""
    if not (DIRECTORY / "node_modules" / "socket.io-client").is_dir():
        pytest.fail("socket.io-client is not installed in tests/socketio: run scripts/test once")
