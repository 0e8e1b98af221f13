from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from fake_connections import (
    Core,
    LinesDialect,
    RecordingMailbox,
    events_of,
    fill,
    messages_in,
    read_all,
    read_some,
    request,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collab.core.connection import Connection
from collab.core.router import Batch
from collab.wire.close import Close, CloseCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
async def core(nursery: trio.Nursery) -> Core:
    core = Core()
    await nursery.start(core.router.run)
    return core


async def acks_of(connection: Connection) -> list[tuple[str, int, int, list[str]]]:
    """What became of the events of a connection: id, delivered, total, undelivered."""
    return [in_short(ack) for ack in await read_all(connection, "event_ack")]


def in_short(ack: dict[str, Any]) -> tuple[str, int, int, list[str]]:
    data = ack["data"]
    assert data["event_type"] == "t"
    # Left out unless somebody was not reached.
    assert data.get("undelivered", ["x"])
    return ack["id"], data["delivered_to"], data["total_recipients"], data.get("undelivered", [])


@pytest.mark.trio
async def test_an_event_reaches_its_recipients_and_nobody_else(core: Core) -> None:
    ada, bob, cy, dee = (core.register(user_id) for user_id in ("ada", "bob", "cy", "dee"))
    await core.route(ada, ("1", ["bob", "cy"]))
    (event,) = await read_all(bob)
    assert event == {
        "event": "collab_event",
        "data": {"type": "t", "from_user": "ada", "to_users": ["bob", "cy"], "data": "1"},
    }
    assert await read_all(cy) == [event]
    assert await read_all(dee) == []
    assert await acks_of(ada) == [("1", 2, 2, [])]


@pytest.mark.trio
async def test_an_event_for_one_user_never_reaches_another_whose_id_looks_alike(core: Core) -> None:
    sender = core.register("sender")
    alike = {user_id: core.register(user_id) for user_id in ("Ada", "ada", "ada ", "a\u0301da", "\u00e1da")}
    for user_id in alike:
        await core.route(sender, (user_id, [user_id]))
    await core.route(sender, ("nobody", ["ADA", " ada"]))
    for user_id, connection in alike.items():
        assert await events_of(connection) == [user_id]
    assert (await acks_of(sender))[-1] == ("nobody", 0, 2, ["ADA", " ada"])


@pytest.mark.trio
async def test_recipients_who_are_offline_are_named(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob")
    await core.route(ada, ("1", ["x", "bob", "y"]), ("2", ["z"]))
    assert await acks_of(ada) == [("1", 1, 3, ["x", "y"]), ("2", 0, 1, ["z"])]
    assert await events_of(bob) == ["1"]


@pytest.mark.trio
async def test_a_recipient_named_twice_counts_once_and_gets_the_event_once(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob")
    await core.route(ada, ("1", ["bob", "bob", "x", "bob", "x"]))
    assert await acks_of(ada) == [("1", 1, 2, ["x"])]
    (event,) = await read_all(bob)
    assert event["data"]["to_users"] == ["bob", "bob", "x", "bob", "x"]


@pytest.mark.trio
async def test_a_sender_may_be_among_its_recipients(core: Core) -> None:
    ada = core.register("ada")
    await core.route(ada, ("1", ["ada"]))
    messages = await read_all(ada)
    assert [m["event"] for m in messages] == ["collab_event", "event_ack"]
    assert in_short(messages[1]) == ("1", 1, 1, [])


@pytest.mark.trio
async def test_an_event_for_nobody_is_acknowledged(core: Core) -> None:
    ada = core.register("ada")
    await core.route(ada, ("1", []))
    assert await acks_of(ada) == [("1", 0, 0, [])]
    assert core.status.total_events_routed == 1


@pytest.mark.trio
async def test_every_connection_of_a_recipient_gets_the_event_and_the_recipient_counts_once(
    core: Core,
) -> None:
    ada, one, two = core.register("ada"), core.register("bob"), core.register("bob")
    await core.route(ada, ("1", ["bob"]))
    assert await acks_of(ada) == [("1", 1, 1, [])]
    assert await events_of(one) == await events_of(two) == ["1"]


@pytest.mark.trio
async def test_only_the_sending_connection_gets_the_ack(core: Core) -> None:
    ada, other = core.register("ada"), core.register("ada")
    await core.route(ada, ("1", []))
    assert await acks_of(other) == []
    assert await acks_of(ada) == [("1", 0, 0, [])]


@pytest.mark.trio
async def test_an_event_is_built_once_for_each_dialect(core: Core) -> None:
    one, two = LinesDialect("one"), LinesDialect("two")
    ada = core.register("ada")
    for dialect in (one, two, one):
        core.register("bob", dialect=dialect)
        core.register("cy", dialect=dialect)
    await core.route(ada, ("1", ["bob", "cy", "x"]))
    assert (one.events_built, two.events_built) == (1, 1)


@pytest.mark.trio
async def test_events_of_a_sender_keep_their_order_and_so_do_their_acks(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob")
    ids = [str(i) for i in range(50)]
    for batch in (ids[:7], ids[7:8], ids[8:]):
        await core.route(ada, *((id, ["bob"]) for id in batch))
    assert await events_of(bob) == ids
    assert [ack[0] for ack in await acks_of(ada)] == ids


@pytest.mark.trio
async def test_a_routed_event_is_logged_without_its_payload(core: Core) -> None:
    ada = core.register("ada")
    await core.route(ada, ("1", ["x", "x"]))
    assert core.events.lines == [("t", "ada", ["x", "x"])]


# A full mailbox


@pytest.mark.trio
async def test_one_full_recipient_holds_up_nobody_else(core: Core) -> None:
    ada, bob, cy = core.register("ada"), core.register("bob", max_messages=1), core.register("cy")
    dee = core.register("dee")
    fill(bob)
    await core.route(ada, ("1", ["bob", "cy"]))
    await core.route(dee, ("2", ["cy", "ada"]))
    assert await events_of(cy) == ["1", "2"]
    assert await events_of(ada) == ["2"]
    assert await acks_of(dee) == [("2", 2, 2, [])]


@pytest.mark.trio
async def test_an_event_that_waits_is_acknowledged_once_there_is_room(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob", "x"]))
    assert await acks_of(ada) == []
    assert (ada.in_flight, core.status.total_events_routed) == (1, 0)
    await read_some(bob)
    assert await acks_of(ada) == [("1", 1, 2, ["x"])]
    assert (ada.in_flight, core.status.total_events_routed) == (0, 1)
    assert await events_of(bob) == ["1"]


@pytest.mark.trio
async def test_an_ack_that_is_due_waits_for_the_one_before_it(core: Core) -> None:
    ada, bob, cy = core.register("ada"), core.register("bob", max_messages=1), core.register("cy")
    fill(bob)
    await core.route(ada, ("1", ["bob"]), ("2", ["cy"]), ("3", []))
    assert await acks_of(ada) == []
    assert await events_of(cy) == ["2"]
    await read_some(bob)
    assert [ack[0] for ack in await acks_of(ada)] == ["1", "2", "3"]


@pytest.mark.trio
async def test_the_acks_of_another_sender_do_not_wait(core: Core) -> None:
    ada, bob, cy = core.register("ada"), core.register("bob", max_messages=1), core.register("cy")
    fill(bob)
    await core.route(ada, ("1", ["bob"]))
    await core.route(cy, ("2", ["ada"]))
    assert await acks_of(cy) == [("2", 1, 1, [])]


@pytest.mark.trio
async def test_events_that_wait_for_one_recipient_stay_in_order(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=2)
    fill(bob)
    for id in "123456":
        await core.route(ada, (id, ["bob"]))
    assert await events_of(bob) == list("123456")
    assert [ack[0] for ack in await acks_of(ada)] == list("123456")


@pytest.mark.trio
async def test_an_event_larger_than_a_mailbox_gets_through_when_that_is_empty(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_bytes=50)
    await core.route(ada, ("x" * 200, ["bob"]), ("y" * 200, ["bob"]))
    assert await events_of(bob) == ["x" * 200, "y" * 200]
    assert [ack[1] for ack in await acks_of(ada)] == [1, 1]


@pytest.mark.trio
async def test_a_recipient_with_room_on_one_connection_is_reached_at_once(core: Core) -> None:
    ada = core.register("ada")
    full, free = core.register("bob", max_messages=1), core.register("bob")
    fill(full)
    await core.route(ada, ("1", ["bob"]))
    assert await acks_of(ada) == [("1", 1, 1, [])]
    assert await events_of(free) == ["1"]
    # The slow connection gets it too, later, and nothing is acknowledged twice.
    assert await events_of(full) == ["1"]
    assert await acks_of(ada) == []


@pytest.mark.trio
async def test_a_recipient_whose_connections_are_all_full_counts_once_as_soon_as_one_takes_it(
    core: Core,
) -> None:
    ada = core.register("ada")
    one, two = core.register("bob", max_messages=1), core.register("bob", max_messages=1)
    fill(one)
    fill(two)
    await core.route(ada, ("1", ["bob"]))
    core.drop(one)
    assert await acks_of(ada) == []
    await read_some(two)
    assert await acks_of(ada) == [("1", 1, 1, [])]


@pytest.mark.trio
async def test_a_recipient_who_loses_every_full_connection_is_named_once(core: Core) -> None:
    ada = core.register("ada")
    one, two = core.register("bob", max_messages=1), core.register("bob", max_messages=1)
    fill(one)
    fill(two)
    await core.route(ada, ("1", ["bob"]))
    core.drop(one)
    core.drop(two)
    assert await acks_of(ada) == [("1", 0, 1, ["bob"])]


@pytest.mark.trio
async def test_a_recipient_that_leaves_while_an_event_waits_for_it_is_named(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob", "x"]))
    core.drop(bob)
    assert await acks_of(ada) == [("1", 0, 2, ["x", "bob"])]


@pytest.mark.trio
async def test_a_connection_whose_mailbox_is_closed_is_passed_over(core: Core) -> None:
    ada, bob, other = core.register("ada"), core.register("bob"), core.register("cy")
    bob.mailbox.close(discard=False)
    fill(other)
    await core.route(ada, ("1", ["bob"]))
    assert await acks_of(ada) == [("1", 0, 1, ["bob"])]


@pytest.mark.trio
async def test_a_sender_whose_own_mailbox_is_full_gets_its_acks_in_order_later(core: Core) -> None:
    ada, bob = core.register("ada", max_messages=1), core.register("bob")
    fill(ada)
    await core.route(ada, ("1", ["bob", "ada"]), ("2", ["ada"]), ("3", ["bob"]))
    assert await events_of(bob) == ["1", "3"]
    assert not ada.may_read()
    messages = await read_all(ada)
    assert [m["data"]["data"] for m in messages if m["event"] == "collab_event"] == ["1", "2"]
    assert [m["id"] for m in messages if m["event"] == "event_ack"] == ["1", "2", "3"]
    assert ada.may_read()


@pytest.mark.trio
async def test_two_full_senders_that_send_to_each_other_both_get_on(core: Core) -> None:
    ada, bob = core.register("ada", max_messages=1), core.register("bob", max_messages=1)
    fill(ada)
    fill(bob)
    await core.route(ada, ("a1", ["bob"]), ("a2", ["bob", "ada"]))
    await core.route(bob, ("b1", ["ada"]), ("b2", ["ada", "bob"]))
    heard: dict[str, list[dict[str, Any]]] = {"ada": [], "bob": []}
    while ada.mailbox.messages or bob.mailbox.messages:
        heard["ada"] += await read_some(ada)
        heard["bob"] += await read_some(bob)
    assert [m["id"] for m in heard["ada"] if m["event"] == "event_ack"] == ["a1", "a2"]
    assert [m["id"] for m in heard["bob"] if m["event"] == "event_ack"] == ["b1", "b2"]


@pytest.mark.trio
async def test_a_sender_that_waits_for_its_own_mailbox_reads_on_once_that_has_room(core: Core) -> None:
    ada = core.register("ada", max_messages=1)
    fill(ada)
    await core.route(ada, ("1", []))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.wait_may_read)
            await trio.testing.wait_all_tasks_blocked()
            await read_some(ada)


# Slow consumers


@pytest.mark.trio
async def test_time_that_is_discounted_is_held_against_nobody(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob"]))
    mock_clock.jump(101.5)
    await core.route(ada, ("2", ["bob"]))
    core.router.discount(100)
    # The second has not waited for less than no time.
    assert bob.mailbox.waiting_since == trio.current_time() - 1.5
    mock_clock.jump(0.4)
    core.router.evict_slow_consumers()
    assert bob.close is None
    mock_clock.jump(0.1)
    core.router.evict_slow_consumers()
    assert bob.close is not None


@pytest.mark.trio
async def test_a_slow_consumer_is_ended_and_named_as_not_reached(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada, bob, cy = core.register("ada"), core.register("bob", max_messages=1), core.register("cy")
    fill(bob)
    await core.route(ada, ("1", ["bob", "cy"]), ("2", ["cy"]))
    mock_clock.jump(1.9)
    core.router.evict_slow_consumers()
    assert bob.close is None
    mock_clock.jump(0.1)
    core.router.evict_slow_consumers()
    assert bob.close is not None
    assert bob.close.code == CloseCode.SLOW_CONSUMER
    assert await acks_of(ada) == [("1", 1, 2, ["bob"]), ("2", 1, 1, [])]
    assert core.registry.online_user("bob") is None
    assert (ada.close, cy.close) == (None, None)


@pytest.mark.trio
async def test_many_slow_consumers_can_be_ended_a_few_at_a_time(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada = core.register("ada")
    crowd = [core.register(f"slow{number}", max_messages=1) for number in range(5)]
    for slow in crowd:
        fill(slow)
    await core.route(ada, ("1", [slow.user_id for slow in crowd]))
    assert core.router.evict_slow_consumers(2) is False
    mock_clock.jump(2)
    ended = []
    while core.router.evict_slow_consumers(2):
        ended.append(sum(slow.close is not None for slow in crowd))
    assert ended == [2, 4]
    assert all(slow.close is not None for slow in crowd)


@pytest.mark.trio
async def test_those_who_are_leaving_already_neither_hold_up_acks_nor_shield_a_slow_consumer(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada = core.register("ada")
    leaving = [core.register(f"leaving{number}", max_messages=1) for number in range(20)]
    slow = core.register("slow", max_messages=1)
    for consumer in (*leaving, slow):
        fill(consumer)
    await core.route(ada, ("1", [consumer.user_id for consumer in (*leaving, slow)]))
    for consumer in leaving:
        # Its goodbye is under way: it is not ended a second time.
        consumer.close = Close(CloseCode.REPLACED, "replaced")
    mock_clock.jump(2)
    core.router.evict_slow_consumers(1)
    core.router.evict_slow_consumers(1)
    assert slow.close is not None
    assert slow.close.code == CloseCode.SLOW_CONSUMER
    ((number, delivered, total, undelivered),) = await acks_of(ada)
    assert (number, delivered, total) == ("1", 0, 21)
    assert set(undelivered) == {consumer.user_id for consumer in (*leaving, slow)}


@pytest.mark.trio
async def test_a_consumer_that_makes_room_in_time_stays(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    for id in "12345":
        await core.route(ada, (id, ["bob"]))
        mock_clock.jump(1.5)
        await read_some(bob)
        core.router.evict_slow_consumers()
    assert bob.close is None
    assert [ack[0] for ack in await acks_of(ada)] == list("12345")


@pytest.mark.trio
async def test_a_consumer_that_fell_behind_twice_is_still_watched(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    for id in "12":
        fill(bob)
        await core.route(ada, (id, ["bob"]))
        await read_all(bob)
        core.router.evict_slow_consumers()
    assert bob.close is None
    fill(bob)
    await core.route(ada, ("3", ["bob"]))
    mock_clock.jump(3)
    core.router.evict_slow_consumers()
    assert bob.close is not None


@pytest.mark.trio
async def test_a_sender_that_does_not_read_its_own_acks_is_a_slow_consumer(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    ada = core.register("ada", max_messages=1)
    fill(ada)
    await core.route(ada, ("1", []))
    mock_clock.jump(3)
    core.router.evict_slow_consumers()
    assert ada.close is not None
    assert ada.in_flight == 0


@pytest.mark.trio
async def test_slow_consumers_that_wait_for_each_other_are_all_ended(
    core: Core, mock_clock: trio.testing.MockClock
) -> None:
    users = ["ada", "bob", "cy"]
    connections = [core.register(user_id, max_messages=1) for user_id in users]
    for connection in connections:
        fill(connection)
    for connection in connections:
        await core.route(connection, ("1", users))
    mock_clock.jump(3)
    core.router.evict_slow_consumers()
    assert all(connection.close is not None for connection in connections)
    assert core.registry.connection_count == 0
    assert [connection.in_flight for connection in connections] == [0, 0, 0]
    with trio.fail_after(10):
        await core.router.wait_settled()


@pytest.mark.trio
async def test_giving_up_what_waits_lets_the_acks_out(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob", "ada"]))
    core.router.give_up_waiting()
    assert await acks_of(ada) == [("1", 1, 2, ["bob"])]
    assert [m["event"] for m in await read_some(bob)] == ["filler"]


# Senders that are gone, and the inbox


@pytest.mark.trio
async def test_an_event_of_a_sender_that_is_gone_before_routing_still_reaches_its_recipients(
    core: Core,
) -> None:
    ada, bob = core.register("ada"), core.register("bob")
    await core.router.submit([Batch(ada, [request("1", ["bob", "ada"])])])
    core.drop(ada)
    await trio.testing.wait_all_tasks_blocked()
    assert await events_of(bob) == ["1"]
    assert ada.in_flight == 0
    assert core.status.total_events_routed == 1


@pytest.mark.trio
async def test_a_sender_that_leaves_while_its_event_waits_does_not_stop_it(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob"]))
    core.drop(ada)
    assert await events_of(bob) == ["1"]
    assert ada.in_flight == 0
    with trio.fail_after(10):
        await core.router.wait_settled()


@pytest.mark.trio
async def test_events_count_as_in_flight_from_the_moment_they_are_handed_over() -> None:
    core = Core()
    ada = core.register("ada", max_in_flight=2)
    await core.router.submit([Batch(ada, [request("1", []), request("2", []), request("3", [])])])
    assert ada.in_flight == 3
    assert not ada.may_read()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.router.run)
        await core.router.wait_settled()
        nursery.cancel_scope.cancel()
    assert ada.in_flight == 0
    assert ada.may_read()


@pytest.mark.trio
async def test_a_full_inbox_holds_the_sender_up_and_a_cancelled_sender_owes_nothing() -> None:
    core = Core()
    ada = core.register("ada", max_in_flight=1000)
    batches = 0
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:

            async def sender() -> None:
                nonlocal batches
                while True:
                    await core.router.submit([Batch(ada, [request("1", []), request("2", [])])])
                    batches += 1

            nursery.start_soon(sender)
            await trio.testing.wait_all_tasks_blocked()
            assert 1 <= batches <= 256
            assert ada.in_flight == 2 * (batches + 1)
            scope.cancel()
    assert ada.in_flight == 2 * batches
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.router.run)
        await core.router.wait_settled()
        nursery.cancel_scope.cancel()
    assert ada.in_flight == 0
    assert len(await acks_of(ada)) == 2 * batches


@pytest.mark.trio
async def test_a_batch_of_nothing_is_settled(core: Core) -> None:
    ada = core.register("ada")
    await core.route(ada)
    with trio.fail_after(10):
        await core.router.wait_settled()
    assert ada.in_flight == 0


@pytest.mark.trio
async def test_settled_is_waited_for_until_the_last_waiting_event_is_decided(core: Core) -> None:
    ada, bob = core.register("ada"), core.register("bob", max_messages=1)
    fill(bob)
    await core.route(ada, ("1", ["bob"]), ("2", ["bob"]))
    done = 0

    async def waiter() -> None:
        nonlocal done
        await core.router.wait_settled()
        done += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        await read_some(bob)
        await trio.testing.wait_all_tasks_blocked()
        assert done == 0
        await read_some(bob)
    assert done == 2


# Any order of all of it


@attrs.define(eq=False)
class Peer:
    """One live connection as the model sees it."""

    connection: Connection
    taken: bytes = b""
    read: list[bytes] = attrs.field(factory=list)

    @property
    def mailbox(self) -> RecordingMailbox:
        assert isinstance(self.connection.mailbox, RecordingMailbox)
        return self.connection.mailbox


USERS = ["ada", "bob", "cy"]


class RouterModel(RuleBasedStateMachine):
    """Whatever senders, readers and leavers do: every event is acknowledged once, truthfully, in order."""

    @initialize()
    def start(self) -> None:
        self.core = Core(slow_consumer_seconds=2.0)
        self.now = 0.0
        self.peers: list[Peer] = []
        self.everybody: list[Peer] = []
        self.sent: dict[Peer, list[str]] = {}
        self.recipients: dict[str, list[str]] = {}

    def within_trio(self, step: Callable[[], Awaitable[object]]) -> None:
        clock = trio.testing.MockClock()

        async def main() -> None:
            clock.jump(self.now)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.core.router.run)
                await step()
                nursery.cancel_scope.cancel()

        trio.run(main, clock=clock)
        # Too much waited for them: they take nothing more, and the next sweep evicts them.
        self.peers = [peer for peer in self.peers if not peer.mailbox.overrun]

    def peer(self, data: st.DataObject) -> Peer:
        return data.draw(st.sampled_from(self.peers), label="peer")

    @rule(user_id=st.sampled_from(USERS), max_messages=st.integers(1, 3), max_bytes=st.integers(100, 400))
    def connect(self, user_id: str, max_messages: int, max_bytes: int) -> None:
        peer = Peer(self.core.register(user_id, max_messages=max_messages, max_bytes=max_bytes))
        self.peers.append(peer)
        self.everybody.append(peer)
        self.sent[peer] = []

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        batch=st.lists(st.lists(st.sampled_from([*USERS, "nobody"]), max_size=4), min_size=1, max_size=3),
    )
    def send(self, data: st.DataObject, batch: list[list[str]]) -> None:
        peer = self.peer(data)
        events = []
        for to_users in batch:
            id = str(len(self.recipients))
            self.recipients[id] = to_users
            self.sent[peer].append(id)
            events.append((id, to_users))
        self.within_trio(lambda: self.core.route(peer.connection, *events))

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        peer = self.peer(data)
        if peer.taken or not peer.mailbox.messages:
            return

        async def step() -> None:
            peer.taken = await peer.mailbox.take()

        self.within_trio(step)

    @precondition(lambda self: any(peer.taken for peer in self.peers))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from([peer for peer in self.peers if peer.taken]), label="peer")
        peer.read += peer.taken.splitlines(keepends=True)
        peer.taken = b""

        async def step() -> None:
            peer.mailbox.sent()

        self.within_trio(step)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        peer = self.peer(data)

        async def step() -> None:
            self.core.drop(peer.connection)

        self.within_trio(step)
        self.peers = [other for other in self.peers if other is not peer]

    @rule(seconds=st.floats(0.1, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

        async def step() -> None:
            self.core.router.evict_slow_consumers()

        self.within_trio(step)
        self.peers = [peer for peer in self.peers if peer.connection.close is None]

    @invariant()
    def no_mailbox_is_over_its_bounds(self) -> None:
        for peer in self.peers:
            assert peer.mailbox.messages <= peer.mailbox._max_messages
            assert peer.mailbox.bytes <= peer.mailbox._max_bytes or peer.mailbox.messages == 1

    @invariant()
    def nobody_has_waited_for_longer_than_a_slow_consumer_may(self) -> None:
        assert all(peer.mailbox.waiting_since > self.now - 2.0 for peer in self.peers)

    @invariant()
    def what_was_read_is_what_entered_in_order(self) -> None:
        for peer in self.everybody:
            assert b"".join(peer.mailbox.entered).startswith(b"".join(peer.read))

    @invariant()
    def what_is_in_flight_is_what_was_sent_and_not_acknowledged(self) -> None:
        for peer in self.peers:
            waiting_acks = len(self.sent[peer]) - peer.connection.in_flight - len(self.acks(peer))
            assert waiting_acks >= 0
            assert peer.mailbox.has_waiting or waiting_acks == 0

    def acks(self, peer: Peer) -> list[dict[str, Any]]:
        return [m for m in messages_in(b"".join(peer.mailbox.entered)) if m["event"] == "event_ack"]

    def events(self, peer: Peer) -> list[tuple[str, str]]:
        heard = messages_in(b"".join(peer.mailbox.entered))
        return [(m["data"]["from_user"], m["data"]["data"]) for m in heard if m["event"] == "collab_event"]

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.within_trio(self.read_everything)
        reached: dict[str, set[str]] = {id: set() for id in self.recipients}
        for peer in self.everybody:
            ids = [id for _, id in self.events(peer)]
            assert len(ids) == len(set(ids))
            for id in ids:
                reached[id].add(peer.connection.user_id)
            for sender in self.everybody:
                # From one connection to one recipient in the order in which they were sent.
                from_sender = [int(id) for id in ids if id in self.sent[sender]]
                assert from_sender == sorted(from_sender)
        for id, users in reached.items():
            assert users <= set(self.recipients[id])
        for peer in self.everybody:
            assert peer.connection.in_flight == 0
            acks = [in_short(ack) for ack in self.acks(peer)]
            if peer in self.peers:
                assert [ack[0] for ack in acks] == self.sent[peer]
            for id, delivered, total, undelivered in acks:
                distinct = set(self.recipients[id])
                assert total == len(distinct)
                assert delivered + len(undelivered) == total
                assert set(undelivered) == distinct - reached[id]
        assert self.core.status.total_events_routed == len(self.recipients)

    async def read_everything(self) -> None:
        for peer in self.peers:
            if peer.taken:
                peer.mailbox.sent()
                peer.read += peer.taken.splitlines(keepends=True)
                peer.taken = b""
        while any(peer.mailbox.messages for peer in self.peers if not peer.mailbox.overrun):
            for peer in self.peers:
                if peer.mailbox.messages and not peer.mailbox.overrun:
                    peer.read += (await peer.mailbox.take()).splitlines(keepends=True)
                    peer.mailbox.sent()
        self.peers = [peer for peer in self.peers if not peer.mailbox.overrun]
        for peer in self.peers:
            assert b"".join(peer.read) == b"".join(peer.mailbox.entered)
        with trio.fail_after(10):
            await self.core.router.wait_settled()


TestAnyUseOfARouter = RouterModel.TestCase
TestAnyUseOfARouter.settings = settings(
    max_examples=max(settings().max_examples // 2, 1), stateful_step_count=40
)


@pytest.mark.trio
async def test_once_the_audit_has_failed_no_event_is_routed_and_its_sender_goes() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob")
    before = list(bob.mailbox.entered)
    core.router._audit = SimpleNamespace(has_failed=True)
    core.router.route([Batch(ada, [request("1", ["bob"])])])
    assert bob.mailbox.entered == before
    assert ada.close is not None
    assert ada.close.code == 1001
