"""The promises of docs/reliability.md, I1 to I7, each as a check that bears its name.

A `Ledger` keeps what the players of a test sent, were told and received, and holds I1, I2, I3 and I6 to it.
The other three look at the service: `check_i4_registry`, `check_i5_bounds`, `check_i7_baseline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from baseline import Holdings, settles_at

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from collab.testing import LocalService


@attrs.define(eq=False, repr=False)
class SentEvent:
    """One event as its sender knows it. Without a repr: each names others, and a failure would never end."""

    number: int
    life: Life
    to_users: list[str]
    undelivered: list[str] | None = None
    """Whom the ack named; None while there is no ack."""
    received_by: list[Life] = attrs.field(factory=list)

    @property
    def recipients(self) -> set[str]:
        return set(self.to_users)

    @property
    def reached(self) -> set[str]:
        """The users with whom it arrived."""
        return {life.user_id for life in self.received_by}


@attrs.define(eq=False, repr=False)
class Life:
    """One connection of a user, from its handshake to its end."""

    user_id: str
    sent: list[SentEvent] = attrs.field(factory=list)
    acknowledged: list[SentEvent] = attrs.field(factory=list)
    received: list[SentEvent] = attrs.field(factory=list)
    stays: bool = False
    """Whether it reads all the time, and lives from before the first event to after the last check."""

    @property
    def in_flight(self) -> int:
        return len(self.sent) - len(self.acknowledged)


@attrs.define(eq=False, repr=False)
class Ledger:
    """What was sent, acknowledged and received. It has no opinion of when."""

    events: dict[int, SentEvent] = attrs.field(factory=dict)
    lives: list[Life] = attrs.field(factory=list)

    def begin(self, user_id: str, *, stays: bool = False) -> Life:
        """A user has connected."""
        self.lives.append(Life(user_id, stays=stays))
        return self.lives[-1]

    def send(self, life: Life, to_users: Iterable[str]) -> SentEvent:
        """A new event; its number is what the test must put into its `id` and into its `data`."""
        event = SentEvent(len(self.events), life, list(to_users))
        self.events[event.number] = event
        life.sent.append(event)
        return event

    def acknowledge(self, life: Life, message: dict[str, Any]) -> SentEvent:
        """An `event_ack` came: whole, to the right one, once, and its numbers agree (I1)."""
        event, data = self.events[message["id"]], message["data"]
        assert event.life is life, "I2: acknowledged to somebody else"
        assert event.undelivered is None, "I2: acknowledged twice"
        event.undelivered = list(data.get("undelivered", []))
        assert data["total_recipients"] == len(event.recipients), f"I1: {message}"
        assert data["delivered_to"] + len(event.undelivered) == data["total_recipients"], f"I1: {message}"
        life.acknowledged.append(event)
        return event

    def receive(self, life: Life, number: int, message: dict[str, Any]) -> SentEvent:
        """A `collab_event` came; `number` is what its `data` says."""
        event, data = self.events[number], message["data"]
        self.check_i6_identity(event, data["from_user"])
        assert data["to_users"] == event.to_users
        event.received_by.append(life)
        life.received.append(event)
        return event

    def check(self) -> None:
        """All that can be held against what was noted so far."""
        self.check_i1_conservation()
        self.check_i2_ack_truth()
        self.check_i3_order()

    def check_i6_identity(self, event: SentEvent, from_user: str) -> None:
        """An event is from the user of the connection that sent it."""
        assert from_user == event.life.user_id, f"I6: {event.number} came as from {from_user}"

    def check_i1_conservation(self) -> None:
        """Every acknowledged event's recipients are those reached and those named, and nobody else had it."""
        for event in self.events.values():
            assert event.reached <= event.recipients, f"I1: {event.number} reached somebody not named in it"
            if event.undelivered is not None:
                undelivered = set(event.undelivered)
                assert len(undelivered) == len(event.undelivered), f"I1: {event.number} names one twice"
                assert undelivered <= event.recipients, f"I1: {event.number} names somebody else"

    def check_i2_ack_truth(self) -> None:
        """Who stayed got exactly the events whose ack does not name them; nobody got one whose ack does.

        Acks come in the order of their events, and none is left out.
        """
        staying = {life.user_id for life in self.lives if life.stays}
        for life in self.lives:
            assert life.acknowledged == life.sent[: len(life.acknowledged)], f"I2: acks of {life.user_id}"
        for event in self.events.values():
            if event.undelivered is None:
                continue
            undelivered = set(event.undelivered)
            lied = undelivered & event.reached
            assert not lied, f"I2: {event.number} reached {lied}, and its ack says that it did not"
            missing = (event.recipients & staying) - undelivered - event.reached
            assert not missing, f"I2: {event.number} did not reach {missing}, and its ack says that it did"

    def check_i3_order(self) -> None:
        """Each connection got each sender's events in the order in which they were sent, and none twice."""
        for life in self.lives:
            last: dict[Life, int] = {}
            for event in life.received:
                before = last.get(event.life, -1)
                assert event.number != before, f"I3: {life.user_id} got {event.number} twice"
                assert event.number > before, f"I3: {life.user_id} got {event.number} after {before}"
                last[event.life] = event.number


def check_i4_registry(local: LocalService, users: Collection[str]) -> None:
    """At rest the registry is exactly the open connections; `users` has each user once for each of theirs."""
    registry = local.service.registry
    found = sorted(connection.user_id for user_id in set(users) for connection in registry.of_user(user_id))
    assert found == sorted(users), "I4: other connections than those of the users"
    assert registry.connection_count == len(users), "I4: connections of nobody who is there"
    assert local.online() == set(users), "I4: others are online"


def check_i5_bounds(local: LocalService) -> None:
    """No mailbox holds more than the settings allow; one frame of any size is allowed into an empty one."""
    limits = local.service.settings.limits
    for connection in local.service.registry.connections():
        mailbox = connection.mailbox
        assert mailbox.messages <= limits.mailbox_messages, f"I5: {mailbox.messages} messages"
        assert mailbox.bytes <= limits.mailbox_bytes or mailbox.messages == 1, f"I5: {mailbox.bytes} bytes"


async def check_i7_baseline(before: Holdings) -> None:
    """Tasks, descriptors and threads are back at what they were, within 5 s."""
    await settles_at(before)
    assert Holdings.now().threads <= before.threads, "I7: threads"
