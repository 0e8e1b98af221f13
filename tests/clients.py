"""Many clients in one loop, each with its share of a `Ledger`; cheap enough to play a thousand of them.

They are built on the sockets of the load generator, which share nothing with the service. All of it is
synchronous: a test of a service in its own process runs it in a worker thread.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import pytest
from invariants import Ledger, Life

from collab.bench.connection import Connection
from collab.bench.dialects import DIALECTS
from collab.bench.frames import TEXT, client_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATIENCE_SECONDS = 30.0
_TURN_SECONDS = 0.05
_SCRATCH_BYTES = 256 * 1024


@attrs.define(eq=False)
class Client(Life):
    """One connection, which reads all the time unless it is stalled."""

    clients: Clients = attrs.field(kw_only=True)
    wants_presence: bool = attrs.field(default=False, kw_only=True)
    connection: Connection = attrs.field(init=False)
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    """Every message but events and acks, which are in the ledger."""
    ended: str | None = None
    """How the service ended it: its close code and reason, or the status line of a refusal."""

    @property
    def is_upgraded(self) -> bool:
        """Whether the answer to its upgrade was 101."""
        return self.connection._is_upgraded

    @property
    def is_connected(self) -> bool:
        return self.connection.is_connected and self.ended is None

    @property
    def events_heard(self) -> list[str]:
        """The names of the messages in `heard`."""
        return [message["event"] for message in self.heard]

    def say(self, event: str, **members: object) -> None:
        """Send one message."""
        self.connection.send(client_frame(json.dumps({"event": event, **members}).encode()))

    def send_event(self, to_users: list[str], *, padding: int = 0) -> None:
        """Send one event that the ledger knows."""
        event = self.clients.ledger.send(self, to_users)
        data = f"{event.number} {'x' * padding}"
        self.say("collab_event", id=event.number, data={"type": "t", "to_users": to_users, "data": data})

    def take(self, buffer: bytes | bytearray, end: int, _frames: int) -> None:
        """What the socket brought, up to the end of its last whole frame."""
        position = 0
        while position < end:
            first, size = buffer[position], buffer[position + 1]
            start = position + 2
            if size > 125:
                start += 2 if size == 126 else 8
                size = int.from_bytes(buffer[position + 2 : start], "big")
            position = start + size
            if first == TEXT:
                self._hear(json.loads(buffer[start:position]))

    def _hear(self, message: dict[str, Any]) -> None:
        if message["event"] == "collab_event":
            number = int(message["data"]["data"].split()[0])
            self.clients.ledger.receive(self, number, message)
        elif message["event"] == "event_ack":
            self.clients.ledger.acknowledge(self, message)
        else:
            self.heard.append(message)


class Clients:
    """All clients of a test, and the one ledger of what they said and heard. Owns their sockets."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.ledger = Ledger()
        self.all: list[Client] = []
        self._of: dict[Connection, Client] = {}
        self._selector = selectors.DefaultSelector()
        self._scratch = bytearray(_SCRATCH_BYTES)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop(self.all)
        self._selector.close()

    def begin(
        self,
        user_id: str,
        *,
        stays: bool = False,
        wants_presence: bool = False,
        backend_url: str = "http://x",
    ) -> Client:
        """Ask to be let in; `turn` brings the answer."""
        client = Client(user_id, stays=stays, clients=self, wants_presence=wants_presence)
        query = {"user_id": user_id, "backend_url": backend_url}
        if not wants_presence:
            query["presence"] = "none"
        client.connection = Connection(
            user_id,
            address=(socket.AF_INET, self.address),
            host="localhost",
            target=f"/?{urlencode(query)}",
            dialect=DIALECTS["plain"],
            take=client.take,
            owner=self,
            selector=self._selector,
            scratch=self._scratch,
        )
        self._of[client.connection] = client
        self.ledger.lives.append(client)
        self.all.append(client)
        return client

    def connect(self, user_ids: Iterable[str], *, at_once: int = 64, **options: Any) -> list[Client]:
        """Connect all of these, at most so many on their way at a time, and wait until all are in."""
        opened: list[Client] = []
        for user_id in user_ids:
            opened.append(self.begin(user_id, **options))
            self.until(lambda: sum(not client.is_connected for client in opened[-at_once:]) < at_once)
        self.until(lambda: all(client.is_connected for client in opened))
        return opened

    def drop(self, clients: Iterable[Client]) -> None:
        """Let these vanish with a reset."""
        for client in clients:
            client.connection.drop()
            self._of.pop(client.connection, None)

    def turn(self, timeout_seconds: float = _TURN_SECONDS) -> None:
        """Wait at most so long for something to happen, and handle what did."""
        for key, events in self._selector.select(timeout_seconds):
            key.data(events)

    def until(self, is_done: Callable[[], bool], patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Go on until `is_done`, or fail."""
        deadline = time.monotonic() + patience_seconds
        while not is_done():
            if time.monotonic() > deadline:
                ended = sorted({client.ended for client in self.all if client.ended is not None})
                pytest.fail(f"not within {patience_seconds} s; connections ended: {ended[:5]}")
            self.turn()

    def live_for(self, seconds: float, each_turn: Callable[[], object] = lambda: None) -> None:
        """Go on for a while: what is under way is the point."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            each_turn()
            self.turn(0.01)

    def acknowledged(self) -> bool:
        """Whether every event has its ack."""
        return all(client.in_flight == 0 for client in self.all)

    def exchange(self, sender: Client, recipient: Client) -> None:
        """Assert that an event goes from one to the other."""
        received = len(recipient.received)
        sender.send_event([recipient.user_id])
        self.until(lambda: sender.in_flight == 0 and len(recipient.received) > received)
        assert sender.acknowledged[-1].undelivered == []

    def connected(self, connection: Connection) -> None:
        """See `collab.bench.connection.Owner`."""

    def ended(self, connection: Connection, reason: str) -> None:
        """See `collab.bench.connection.Owner`."""
        if connection in self._of:
            self._of[connection].ended = reason


@attrs.define
class Traffic:
    """An open loop: events at a rate, whatever comes back, from each client in turn to others of them."""

    clients: list[Client]
    events_per_second: float
    recipients: int = 2
    sent: int = 0
    _began: float = attrs.field(factory=time.monotonic)

    def send_due(self) -> None:
        """Send what is due by now, from those who are still connected."""
        due = int((time.monotonic() - self._began) * self.events_per_second)
        everybody = self.clients
        for number in range(self.sent, due):
            sender = everybody[number % len(everybody)]
            if sender.is_connected:
                # Steps that share no factor with the number of clients would do; primes nearly always do.
                to = [everybody[(number * 7 + 13 * (n + 1)) % len(everybody)] for n in range(self.recipients)]
                sender.send_event([recipient.user_id for recipient in to])
        self.sent = due


@contextlib.contextmanager
def open_files(needed: int) -> Iterator[None]:
    """Let this process open so many files while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if soft != resource.RLIM_INFINITY and soft < needed else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answer_of(address: tuple[str, int], target: str) -> tuple[int, Any]:
    """Status and JSON body of one GET."""
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as asking:
        asking.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: asking.recv(65536), b"")).partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1.1 (\d+)", head)
    assert status is not None
    return int(status[1]), json.loads(body)
