"""Owns the crowd: who is there, who comes and leaves and how, what they send each other."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from _bench.servers import Failed

from _soak.book import PATIENCE_SECONDS, Book
from _soak.client import Client, Request, Sockets, text_frames
from collab.bench.frames import PING, client_frame

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

STAYING = 0.6
"""The part of the clients that is there all the time; the others come and leave."""

LIFE_SECONDS = 10.0
"""How long one of the others stays, on average."""

_LEAVE_SECONDS = 30.0
"""Until when a client that leaves must see the end. A stalled one fills its mailbox first."""

_SIZES = (0, 40, 100, 200, 1_000, 4_000, 20_000, 48_000)
_SIZE_WEIGHTS = (10, 20, 30, 20, 12, 5, 2, 1)
_FLOOD_BYTES = 16_000
_FLOOD_PART = 0.1
"""The part of the events that goes to whoever stalls, so that its mailbox is full within seconds."""

_CALLS = (
    ("GET", "/ready", b"", 200),
    ("GET", "/api/users/online", b"", 200),
    ("GET", "/api/users/absent-1", b"", 404),
    ("POST", "/api/register", b'{"user_id":"ada","backend_url":"http://localhost:8000"}', 200),
    ("POST", "/api/register", b'{"user_id":"ada"}', 400),
    ("GET", "/nothing/here", b"", 404),
)
_AT_ONCE = 32

_STALLING_BUFFER_BYTES = 4096
_STAYING_BUFFER_BYTES = 65536
_BLOCKING_EVENTS = 24
_BLOCKED_AT_ONCE = 2


class Crowd:
    """Clients of one service. Drive it by `turn`; it keeps the rate by itself."""

    def __init__(self, port: int, draw: random.Random) -> None:
        self.book = Book()
        self.ways: Counter[str] = Counter()
        """How many left in each way, and what was seen beside."""
        self.health: dict[str, int] = {}
        """The last answer of `/health`."""
        self._port = port
        self._draw = draw
        self._sockets = Sockets()
        self._fillers = {size: "x" * size for size in (*_SIZES, _FLOOD_BYTES)}
        self._count = 0
        self._stayers: list[Client] = []
        self._others: list[Client] = []
        self._leaving: dict[Client, None] = {}
        self._stalled: Client | None = None
        self._calls = 0
        self._open_calls = 0

    @property
    def connections(self) -> int:
        """Sockets of clients that are open at this moment, on their way in and out included."""
        return len(self._stayers) + len(self._others) + len(self._leaving)

    @property
    def passing(self) -> int:
        """Those who are there for a while only."""
        return len(self._others)

    def turn(self, timeout_seconds: float) -> None:
        """Wait at most so long for something to happen, and handle what did."""
        self._sockets.turn(timeout_seconds)

    def settle(self, is_done: Callable[[], bool], patience_seconds: float) -> bool:
        """Go on until `is_done`: whether it is, in time."""
        deadline = time.monotonic() + patience_seconds
        while not is_done():
            if time.monotonic() > deadline:
                return False
            self.turn(0.05)
        return True

    def let_stayers_in(self, count: int) -> None:
        """Connect those who stay. One user in eight has two connections.

        Raises:
            Failed: one was not let in.
        """
        users = [f"stay-{i}" for i in range(count - count // 9)]
        users += users[: count - len(users)]
        for i, user_id in enumerate(users):
            client = self._connect(
                user_id, stays=True, wants_presence=i % 5 == 0, buffer_bytes=_STAYING_BUFFER_BYTES
            )
            self._stayers.append(client)
            self.settle(lambda: sum(not c.is_open for c in self._stayers) < _AT_ONCE, 10)
        self.settle(lambda: all(client.is_open for client in self._stayers), 20)
        if len(self._stayers) < count or not all(client.is_open for client in self._stayers):
            raise Failed(f"those who stay were not all let in: {self.book.first.get('end', 'in time')}")

    def block_each_stayer_once(self) -> None:
        """Make each of them stop reading until the service cannot write, and read on.

        A connection gets its writer when a write blocks for the first time, and keeps it. By chance that
        takes minutes, and looks like a leak meanwhile.
        """
        for begin in range(0, len(self._stayers), _BLOCKED_AT_ONCE):
            blocked = self._stayers[begin : begin + _BLOCKED_AT_ONCE]
            sender = self._stayers[begin - 1]
            for client in blocked:
                client.pause()
            for _ in range(_BLOCKING_EVENTS):
                self._post(sender, [client.user_id for client in blocked], _SIZES[-1], time.monotonic())
            self.settle(lambda: sender.acked == sender.sent, 5)  # noqa: B023 - it is called here
            for client in blocked:
                client.resume()
            self.settle(lambda: not self.book.owed, 5)
        self.book.late.clear()

    def come(self) -> None:
        """One more of those who do not stay: a new user, or a second connection of somebody's."""
        draw = self._draw.random()
        user_id = ""
        if draw < 0.15 and self._stayers:
            user_id = self._draw.choice(self._stayers).user_id
        elif draw < 0.25 and self._others:
            user_id = self._draw.choice(self._others).user_id
        # Far from the eight at which the service closes the oldest.
        if not user_id or sum(client.user_id == user_id for client in self._others) > 2:
            user_id = f"pass-{self._count}"
        self._others.append(self._connect(user_id, stays=False, wants_presence=draw > 0.9))

    def leave(self) -> None:
        """One of those who do not stay leaves, in one way or another."""
        if self._stalled is None:
            self._stalled = self._connect(
                "stall-" + str(self._count), stays=False, buffer_bytes=_STALLING_BUFFER_BYTES
            )
            self._leaving[self._stalled] = None
            # From the beginning: it must be away in time, wherever it gets stuck.
            self._stalled.deadline = time.monotonic() + _LEAVE_SECONDS
        if not self._others:
            return
        position = self._draw.randrange(len(self._others))
        client = self._others[position]
        self._others[position] = self._others[-1]
        self._others.pop()
        self._part_with(client, self._draw.choice(("close", "close", "reset", "half-close")))

    def send(self, due: float) -> None:
        """One event from somebody to some."""
        draw = self._draw
        if not self._stayers:
            # All were sent away, each of them a fault.
            return
        pick = draw.random()
        sender = draw.choice(self._others) if pick < 0.3 and self._others else draw.choice(self._stayers)
        if not sender.is_open:
            sender = draw.choice(self._stayers)
            if not sender.is_open:
                return
        to_users, size = self._recipients(), draw.choices(_SIZES, _SIZE_WEIGHTS)[0]
        stalled = self._stalled
        if stalled is not None and stalled.leaving and draw.random() < _FLOOD_PART:
            to_users, size = [stalled.user_id, to_users[0]], _FLOOD_BYTES
        pick = draw.random()
        self._post(sender, to_users, size, due, is_split=pick < 0.02)
        if pick > 0.98:
            sender.send(client_frame(b"soak", PING))
            self.ways["ping"] += 1
        elif pick > 0.975:
            self._lie(sender)

    def call(self) -> None:
        """One HTTP request of each second, and one for `/health`."""
        self._open_calls += 2
        Request(self._port, "GET", "/health", b"", self._heard_of_health, self._sockets)
        method, target, body, wanted = _CALLS[self._calls % len(_CALLS)]
        self._calls += 1

        def answered(status: int, answer: bytes) -> None:
            self._open_calls -= 1
            self.ways["HTTP"] += 1
            if status != wanted:
                self.book.fault("HTTP", f"{method} {target}: {status} {answer[:100]!r}")
            elif target == "/api/users/online":
                self._compare_with_registry(answer)

        Request(self._port, method, target, body, answered, self._sockets)

    def look_after(self) -> None:
        """Once a second: see that nothing is overdue."""
        now = time.monotonic()
        self.book.look_for_overdue(now)
        for client in list(self._leaving):
            if now > client.deadline:
                self.book.fault("end", f"{client.user_id} did not see its end after {client.leaving}")
                client.drop()
                self._forget(client)

    def wait_for_all(self) -> None:
        """Wait until every event of those who stay is where it belongs; what is not then is a fault."""
        self.settle(lambda: not self.book.owed and not self._open_calls, PATIENCE_SECONDS)
        self.book.give_up_all()
        for client in self._stayers:
            if client.lies:
                self.book.fault("I6", f"{client.user_id}: a forged sender was not refused")

    def leave_all(self) -> None:
        """Everybody leaves, in every way."""
        clients, self._stayers, self._others = self._stayers + self._others, [], []
        self.book.staying.clear()
        for i, client in enumerate(clients):
            self._part_with(client, ("close", "reset", "half-close")[i % 3])
        stalled = self._stalled
        if stalled is not None:
            stalled.leaving = stalled.leaving or "reset"
            stalled.drop()
            self._forget(stalled)
        if not self.settle(lambda: not self._leaving, _LEAVE_SECONDS + 1):
            self.look_after()

    def opened(self, client: Client) -> None:
        """See `_soak.client.Owner`."""
        if client is self._stalled:
            client.stall()
        elif client.stays:
            self.book.staying.setdefault(client.user_id, set()).add(client)

    def took(self, client: Client, message: dict[str, Any]) -> None:
        """See `_soak.client.Owner`."""
        event, data = message["event"], message["data"]
        if event == "collab_event":
            self.book.receive(client, message, time.monotonic())
        elif event == "event_ack":
            acknowledged = self.book.acknowledge(client, message)
            stalled = self._stalled
            if stalled and acknowledged and stalled.user_id in (acknowledged.undelivered or ()):
                self._was_evicted(stalled)
        elif event == "error" and data["code"] == "from_user_mismatch" and client.lies:
            client.lies -= 1
        elif event in ("user_online", "user_offline"):
            self.ways["presence"] += 1
            user_id = data["user_id"]
            if user_id == client.user_id:
                self.book.fault("presence", f"{user_id} was told of itself")
            elif event == "user_offline" and user_id in self.book.staying:
                self.book.fault("presence", f"{user_id} stays and is said to be offline")
        else:
            self.book.fault("messages", message)

    def ended(self, client: Client, reason: str) -> None:
        """See `_soak.client.Owner`."""
        if client.leaving:
            if client.leaving == "close" and reason != "1000":
                self.book.fault("end", f"{client.user_id} closed and saw {reason}")
            elif client.leaving == "sent away":
                self.book.fault("end", f"{client.user_id} was sent away with {reason}")
            self._forget(client)
            if client.leaving == "sent away":
                self._strike_out(client)
            return
        self.book.fault("end", f"{client.user_id} was ended: {reason}")
        self._strike_out(client)

    def _strike_out(self, client: Client) -> None:
        for group in (self._stayers, self._others):
            if client in group:
                group.remove(client)
        self.book.staying.get(client.user_id, set()).discard(client)

    def _forget(self, client: Client) -> None:
        self._leaving.pop(client, None)
        if client is self._stalled:
            self._stalled = None

    def _connect(
        self, user_id: str, *, stays: bool, wants_presence: bool = False, buffer_bytes: int = 0
    ) -> Client:
        self._count += 1
        return Client(
            self._count,
            user_id,
            self._port,
            owner=self,
            sockets=self._sockets,
            stays=stays,
            wants_presence=wants_presence,
            buffer_bytes=buffer_bytes,
        )

    def _part_with(self, client: Client, way: str) -> None:
        if not client.is_open:
            # Still in its handshake: vanishing is all that it can do.
            way = "reset"
        self.ways[way] += 1
        client.deadline = time.monotonic() + _LEAVE_SECONDS
        if way == "reset":
            client.reset()
            return
        self._leaving[client] = None
        if way == "close":
            client.close()
        else:
            client.half_close()

    def _post(
        self, sender: Client, to_users: list[str], size: int, due: float, *, is_split: bool = False
    ) -> None:
        event = self.book.send(sender, to_users, size, due, time.monotonic())
        claimed = f'"from_user":"{sender.user_id}",' if event.number % 2 else ""
        payload = (
            f'{{"event":"collab_event","id":{event.number},"data":{{"type":"soak",{claimed}'
            f'"to_users":{json.dumps(to_users)},"data":{{"s":{sender.number},"n":{event.number},'
            f'"x":"{self._fillers[size]}"}}}}}}'
        ).encode()
        sender.send(text_frames(payload, is_split=is_split))

    def _was_evicted(self, stalled: Client) -> None:
        """Its mailbox was full for too long: it reads on to its end, and the next one stalls."""
        self.ways["evicted"] += 1
        self._stalled = None
        stalled.deadline = time.monotonic() + _LEAVE_SECONDS
        stalled.resume()

    def _recipients(self) -> list[str]:
        draw = self._draw
        pick = draw.random()
        count = 1 if pick < 0.88 else 5 if pick < 0.99 else 40
        users = [client.user_id for client in draw.choices(self._stayers, k=count)]
        if pick < 0.1 and self._others:
            users = [draw.choice(self._others).user_id]
        elif pick < 0.15:
            users.append(f"absent-{draw.randrange(1000)}")
        elif pick < 0.17:
            users.append(users[0])
        return users

    def _lie(self, sender: Client) -> None:
        sender.lies += 1
        self.ways["forged"] += 1
        sender.send(
            client_frame(
                b'{"event":"collab_event","id":"lie","data":{"type":"soak","from_user":"absent-0",'
                b'"to_users":["stay-0"]}}'
            )
        )

    def _heard_of_health(self, status: int, answer: bytes) -> None:
        self._open_calls -= 1
        self.ways["HTTP"] += 1
        if status == 200:
            self.health = msgspec.json.decode(answer)
        else:
            self.book.fault("HTTP", f"/health: {status} {answer[:100]!r}")

    def _compare_with_registry(self, answer: bytes) -> None:
        online = {user["user_id"] for user in msgspec.json.decode(answer)["users"]}
        if missing := self.book.staying.keys() - online:
            self.book.fault("I4", f"{missing} stay and are not online")
