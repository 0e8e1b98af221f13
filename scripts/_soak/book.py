"""Owns what the crowd holds against the service: every event from its sending to its last delivery.

The same promises as tests/invariants.py, checked as messages come and forgotten once they are kept, so
that hours of it fit into memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs

from _soak.client import Client

PATIENCE_SECONDS = 60.0
"""When an event should long have been decided, also where the machine is busy elsewhere. A slow consumer
holds its ack up for a few seconds."""


@attrs.define(eq=False)
class Event:
    """One event on its way."""

    sender: Client
    number: int
    to_users: Sequence[str]
    size: int
    due: float
    """When it should have been sent: latencies count from here."""
    sent_at: float
    owed: set[Client]
    """Connections that stay and have not got it yet."""
    reached: list[str] = attrs.field(factory=list)
    undelivered: set[str] | None = None
    """Whom the ack named; None while there is none."""


class Book:
    """What was sent, and what became of it. `faults` counts what should not be, by promise."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """The first of each fault."""
        self.sent = self.acked = self.delivered = self.undelivered = 0
        self.late: list[float] = []
        """Seconds from due to delivered, of clients that stay; whoever reads them empties it."""
        self.staying: dict[str, set[Client]] = {}
        """The connections that stay, by user."""
        self._senders: dict[int, str] = {}
        self._events: dict[tuple[int, int], Event] = {}
        self._is_closed = False

    def fault(self, promise: str, detail: object) -> None:
        """Something that should not be."""
        self.faults[promise] += 1
        self.first.setdefault(promise, str(detail)[:300])

    def send(self, sender: Client, to_users: Sequence[str], size: int, due: float, now: float) -> Event:
        """A new event of this sender."""
        owed: set[Client] = set()
        for user_id in to_users:
            owed |= self.staying.get(user_id, set())
        event = Event(sender, sender.sent, to_users, size, due, now, owed)
        self._senders[sender.number] = sender.user_id
        self._events[sender.number, sender.sent] = event
        sender.sent += 1
        self.sent += 1
        return event

    def acknowledge(self, client: Client, message: dict[str, Any]) -> Event | None:
        """An `event_ack` came."""
        number, data = message["id"], message["data"]
        if number != client.acked:
            self.fault("I2", f"{client.user_id}: ack of {number} after {client.acked - 1}")
        client.acked = number + 1
        self.acked += 1
        event = self._events.get((client.number, number))
        if event is None and self._is_closed and not client.stays:
            # One who does not stay may leave with acks on their way, and hear them while it leaves.
            return None
        if event is None or event.undelivered is not None:
            self.fault("I2", f"{client.user_id}: {number} was acknowledged twice, or much too late")
            return None
        named = data.get("undelivered", [])
        event.undelivered = undelivered = set(named)
        recipients = set(event.to_users)
        self.undelivered += len(undelivered)
        if (
            len(named) != len(undelivered)
            or not undelivered <= recipients
            or data["total_recipients"] != len(recipients)
            or data["delivered_to"] + len(undelivered) != len(recipients)
        ):
            self.fault("I1", f"{message} for {event.to_users}")
        if lied := undelivered.intersection(event.reached):
            self.fault("I2", f"{lied} got {number} of {client.user_id}, whose ack names them")
        for user_id in recipients:
            if (user_id in undelivered) != user_id.startswith("absent"):
                if user_id in self.staying:
                    self.fault("I2", f"{user_id} reads all the time and is named in {message}")
                elif user_id.startswith("absent"):
                    self.fault("I1", f"{user_id} was never there: {message}")
        self._settle(event)
        return event

    def receive(self, client: Client, message: dict[str, Any], now: float) -> None:
        """A `collab_event` came."""
        data = message["data"]
        content = data["data"]
        sender, number = content["s"], content["n"]
        self.delivered += 1
        if data["from_user"] != self._senders.get(sender):
            self.fault("I6", f"{data['from_user']} is said to have sent {number} of {sender}")
        if client.user_id not in data["to_users"]:
            self.fault("I1", f"{client.user_id} got what is for {data['to_users']}")
        last = client.last.get(sender, -1)
        if number <= last:
            self.fault("I3", f"{client.user_id} got {number} of {sender} after {last}")
        client.last[sender] = number
        event = self._events.get((sender, number))
        if event is None:
            return
        if len(content["x"]) != event.size or data["to_users"] != event.to_users:
            self.fault("I1", f"{number} of {sender} was changed on its way")
        if event.undelivered is not None and client.user_id in event.undelivered:
            self.fault("I2", f"{client.user_id} got {number} of {sender}, whose ack names them")
        event.reached.append(client.user_id)
        if client.stays:
            self.late.append(now - event.due)
            event.owed.discard(client)
            self._settle(event)

    def look_for_overdue(self, now: float) -> None:
        """Give up what is older than `PATIENCE_SECONDS`; what a client that stays still misses is a fault."""
        for key, event in list(self._events.items()):
            if event.sent_at > now - PATIENCE_SECONDS:
                break
            del self._events[key]
            self._give_up(event)

    def give_up_all(self) -> None:
        """The end: whatever is still owed is a fault."""
        for event in self._events.values():
            self._give_up(event)
        self._events.clear()
        self._is_closed = True

    @property
    def owed(self) -> int:
        """Events that are not yet decided or not yet everywhere, of clients that stay."""
        return sum(event.sender.stays for event in self._events.values())

    def _settle(self, event: Event) -> None:
        if event.undelivered is not None and not event.owed:
            self._events.pop((event.sender.number, event.number), None)

    def _give_up(self, event: Event) -> None:
        sender = event.sender
        if event.undelivered is None:
            if sender.stays:
                self.fault("I2", f"no ack for {event.number} of {sender.user_id} to {event.to_users}")
        elif event.owed:
            missing = {client.user_id for client in event.owed}
            self.fault("I2", f"{event.number} of {sender.user_id} never reached {missing}")
