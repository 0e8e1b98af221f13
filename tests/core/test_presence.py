from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_connections import (
    Core,
    LinesDialect,
    RecordingMailbox,
    batch,
    fill,
    make_connection,
    messages_in,
    read_all,
)
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collab.core.connection import Connection


def heard(connection: Connection) -> list[tuple[str, str]]:
    """The notices that entered a mailbox, in order."""
    assert isinstance(connection.mailbox, RecordingMailbox)
    messages = messages_in(b"".join(connection.mailbox.entered))
    return [(m["event"], m["data"]["user_id"]) for m in messages if m["event"].startswith("user_")]


@pytest.mark.trio
async def test_everybody_else_is_told_who_came_online() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.join("bob", display_name="Bob B.")
    core.tell()
    assert await read_all(ada) == [
        {"event": "user_online", "data": {"user_id": "bob", "display_name": "Bob B."}}
    ]
    assert [m["event"] for m in await read_all(bob)] == ["connected"]


@pytest.mark.trio
async def test_everybody_else_is_told_who_went_offline() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob")
    core.drop(bob)
    core.tell()
    assert await read_all(ada) == [{"event": "user_offline", "data": {"user_id": "bob"}}]


@pytest.mark.trio
async def test_nobody_is_told_of_themselves_on_any_of_their_connections() -> None:
    core = Core()
    one, two = core.join("ada"), core.join("ada")
    core.tell()
    core.drop(one)
    core.tell()
    core.drop(two)
    three = core.join("ada")
    core.tell()
    assert heard(one) == heard(two) == heard(three) == []


@pytest.mark.trio
async def test_who_does_not_want_to_know_is_not_told_but_others_are_told_of_them() -> None:
    core = Core()
    ada, quiet = core.register("ada"), core.join("quiet", wants_presence=False)
    core.join("bob")
    core.tell()
    assert heard(quiet) == []
    assert heard(ada) == [("user_online", "quiet"), ("user_online", "bob")]


@pytest.mark.trio
async def test_while_the_service_goes_down_nobody_is_said_to_be_offline() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob")
    core.status.draining = True
    core.drop(bob)
    core.tell()
    assert heard(ada) == []


@pytest.mark.trio
async def test_a_notice_that_finds_a_full_mailbox_waits_in_order() -> None:
    core = Core()
    ada = core.register("ada", max_messages=1)
    fill(ada)
    bob = core.join("bob")
    core.tell()
    core.drop(bob)
    core.tell()
    assert [m["event"] for m in await read_all(ada)] == ["user_online", "user_offline"]


@pytest.mark.trio
async def test_a_connection_that_is_closing_is_passed_over() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob")
    ada.mailbox.close(discard=True)
    core.join("cy")
    core.tell()
    assert heard(ada) == []
    assert heard(bob) == [("user_online", "cy")]


@pytest.mark.trio
async def test_a_notice_speaks_the_dialect_of_whom_it_goes_to() -> None:
    core = Core()

    class Shouting(LinesDialect):
        def frame(self, message, reply_id=b""):
            return super().frame(message, reply_id).replace(b"user_online", b"USER_ONLINE")

    plain, shouting = core.register("ada"), core.register("bob", dialect=Shouting("shouting"))
    core.join("cy")
    core.tell()
    assert (await read_all(plain))[0]["event"] == "user_online"
    assert (await read_all(shouting))[0]["event"] == "USER_ONLINE"


def test_a_newcomer_is_told_what_follows_its_own_arrival() -> None:
    core = Core()
    core.join("ada")
    bob = core.join("bob")
    cy = core.join("cy")
    core.drop(cy)
    core.tell()
    assert isinstance(bob.mailbox, RecordingMailbox)
    (connected, notices) = bob.mailbox.entered
    assert messages_in(connected)[0]["event"] == "connected"
    assert len(messages_in(notices)) == 2
    assert heard(bob) == [("user_online", "cy"), ("user_offline", "cy")]


@pytest.mark.trio
async def test_the_notices_of_one_tick_are_one_message_and_one_object_for_everybody() -> None:
    core = Core()
    watchers = [core.register(f"w{number}") for number in range(5)]
    for number in range(10):
        core.join(f"u{number}", wants_presence=False)
    core.tell()
    told = [watcher.mailbox.entered for watcher in watchers]
    assert [len(entered) for entered in told] == [1] * 5
    assert len({id(entered[0]) for entered in told}) == 1
    assert heard(watchers[0]) == [("user_online", f"u{number}") for number in range(10)]
    core.tell()
    assert [len(entered) for entered in told] == [1] * 5


@pytest.mark.trio
async def test_who_comes_and_goes_within_one_tick_is_told_of_both_times() -> None:
    core = Core()
    ada = core.register("ada")
    for _ in range(3):
        core.drop(core.join("bob"))
    core.tell()
    assert heard(ada) == [("user_online", "bob"), ("user_offline", "bob")] * 3


@pytest.mark.trio
async def test_what_was_noted_is_told_a_tick_after_the_first_of_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    core = Core()
    await nursery.start(core.presence.run)
    ada = core.register("ada")
    await trio.sleep(1)
    core.join("bob")
    await trio.sleep(0.015)
    core.join("cy")
    assert heard(ada) == []
    await trio.sleep(0.006)
    assert heard(ada) == [("user_online", "bob"), ("user_online", "cy")]
    core.join("dee")
    assert len(heard(ada)) == 2
    await trio.sleep(0.021)
    assert heard(ada)[2:] == [("user_online", "dee")]


@pytest.mark.trio
async def test_an_event_of_a_newcomer_comes_after_the_notice_of_its_arrival(nursery: trio.Nursery) -> None:
    core = Core()
    await nursery.start(core.router.run)
    ada, bob = core.register("ada"), core.join("bob")
    core.join("cy")
    core.router.route([batch(bob, ("1", ["ada"]), ("2", ["ada"]))])
    messages = await read_all(ada)
    assert [m["event"] for m in messages] == ["user_online", "user_online", "collab_event", "collab_event"]
    assert [m["data"].get("user_id") for m in messages[:2]] == ["bob", "cy"]
    core.tell()
    assert await read_all(ada) == []


@pytest.mark.trio
async def test_an_event_of_one_of_whom_everybody_knows_does_not_end_the_tick() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.join("bob")
    core.tell()
    core.join("cy")
    core.router.route([batch(bob, ("1", ["ada"]))])
    assert heard(ada) == [("user_online", "bob")]


@pytest.mark.trio
async def test_2000_users_who_come_and_go_and_return_are_all_told_of() -> None:
    core = Core()
    watcher = core.register("watcher")
    quiet = core.register("quiet", wants_presence=False)
    users = [f"u{number}" for number in range(2000)]
    connections = [core.join(user_id, wants_presence=number < 20) for number, user_id in enumerate(users)]
    core.tell()
    late = core.join("late")
    for connection in connections:
        core.drop(connection)
    core.tell()
    returned = [core.join(user_id, wants_presence=False) for user_id in users]
    for connection in returned[::2]:
        core.drop(connection)
    core.tell()
    left = [("user_offline", user_id) for user_id in users]
    back = [("user_online", user_id) for user_id in users]
    left_again = [("user_offline", user_id) for user_id in users[::2]]
    assert heard(watcher) == [*back, ("user_online", "late"), *left, *back, *left_again]
    assert heard(late) == [*left, *back, *left_again]
    # Everyone was told of those after them, up to their own end, which nothing of the second tick reached.
    assert [heard(connection) for connection in connections[:20]] == [
        back[number + 1 :] for number in range(20)
    ]
    assert isinstance(quiet.mailbox, RecordingMailbox)
    assert quiet.mailbox.entered == []
    assert quiet.mailbox.messages == 0
    # One bytes object for all who hear the whole of a tick, and one message for each tick.
    assert isinstance(watcher.mailbox, RecordingMailbox)
    assert isinstance(late.mailbox, RecordingMailbox)
    assert len(watcher.mailbox.entered) == 3
    assert watcher.mailbox.entered[2] is late.mailbox.entered[-1]
    assert core.registry.user_count == 1003


steps = st.lists(
    st.tuples(st.sampled_from(["join", "quietly", "leave", "tell"]), st.sampled_from(["a", "b", "c"])),
    max_size=40,
)


@given(steps)
@pytest.mark.trio
async def test_everybody_hears_every_transition_of_others_during_their_life(
    steps: list[tuple[str, str]],
) -> None:
    core = Core()
    alive: list[tuple[Connection, list[tuple[str, str]]]] = []
    done: list[tuple[Connection, list[tuple[str, str]]]] = []

    def note(event: str, user_id: str) -> None:
        for connection, expected in alive:
            if connection.identity.wants_presence:
                assert connection.user_id != user_id
                expected.append((event, user_id))

    for step, user_id in steps:
        mine = [pair for pair in alive if pair[0].user_id == user_id]
        if step == "tell":
            core.tell()
        elif step == "leave":
            if mine:
                pair = mine[0]
                alive.remove(pair)
                # What was not told before somebody left is not told to them.
                core.drop(pair[0])
                done.append(pair)
                if len(mine) == 1:
                    note("user_offline", user_id)
        else:
            if not mine:
                note("user_online", user_id)
            alive.append((core.join(user_id, wants_presence=step == "join"), []))
    core.tell()
    for connection, expected in alive:
        assert heard(connection) == expected
    for connection, expected in done:
        assert heard(connection) == expected[: len(heard(connection))]


@pytest.mark.trio
async def test_who_never_joined_may_leave_and_is_not_told() -> None:
    core = Core()
    ada, stranger = core.register("ada"), make_connection("bob")
    core.presence.left(stranger, last=False)
    core.tell()
    assert heard(ada) == heard(stranger) == []
