from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_connections import fill, make_connection, messages_in, read_all

from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.wire.close import Close, CloseCode
from collab.wire.messages import Pong

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.core.connection import Connection

BYE = Close(CloseCode.GOING_AWAY, "bye")
OTHER = Close(CloseCode.REPLACED, "other")


def tight(**rest: int) -> Connection:
    """A connection with room for one message."""
    return make_connection(mailbox=Mailbox(Outbox(), max_messages=1, max_bytes=1000), **rest)


def acknowledge(connection: Connection) -> None:
    """One of its events was acknowledged."""
    connection.in_flight -= 1
    connection.changed()


async def wakes(wait: Callable[[], Awaitable[None]], cause: Callable[[], object]) -> bool:
    """Whether a task that waits goes on after the cause, and not before it."""
    woken = False

    async def waiter() -> None:
        nonlocal woken
        await wait()
        woken = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken
        cause()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return woken


def test_two_connections_of_a_user_are_not_equal() -> None:
    one, two = make_connection("ada"), make_connection("ada")
    assert one != two
    assert len({one, two}) == 2
    assert one.user_id == two.user_id == "ada"


def test_the_first_reason_to_end_is_the_one_that_counts() -> None:
    connection, ends = make_connection(), list[Close]()
    connection.on_end = ends.append
    connection.end(BYE)
    connection.end(OTHER)
    assert connection.close == BYE
    assert ends == [BYE]


def test_ending_from_within_the_end_does_nothing_more() -> None:
    connection, ends = make_connection(), list[Close]()

    def on_end(close: Close) -> None:
        ends.append(close)
        connection.end(OTHER)

    connection.on_end = on_end
    connection.end(BYE)
    assert ends == [BYE]


@pytest.mark.trio
async def test_a_message_for_one_connection_enters_its_mailbox_with_its_id() -> None:
    connection = make_connection()
    connection.send(Pong(timestamp=1), b"7")
    assert await read_all(connection) == [{"event": "pong", "id": 7, "data": {"timestamp": 1}}]


@pytest.mark.trio
async def test_a_reply_that_waits_pauses_reading_until_it_got_in() -> None:
    connection = tight()
    connection.mailbox.on_room = connection.changed
    fill(connection)
    assert connection.may_read()
    connection.send(Pong(timestamp=1))
    assert not connection.may_read()
    await connection.mailbox.take()
    assert await wakes(connection.wait_may_read, connection.mailbox.sent)
    with trio.fail_after(5):
        assert messages_in(await connection.mailbox.take())[0]["event"] == "pong"


@pytest.mark.trio
async def test_a_full_window_pauses_reading_until_an_event_is_acknowledged() -> None:
    connection = make_connection(max_in_flight=2)
    connection.in_flight = 1
    assert connection.may_read()
    connection.in_flight = 3
    assert not connection.may_read()
    acknowledge(connection)
    assert not connection.may_read()
    assert await wakes(connection.wait_may_read, lambda: acknowledge(connection))


@pytest.mark.trio
async def test_a_window_that_is_still_full_does_not_wake_the_reader() -> None:
    connection = make_connection(max_in_flight=1)
    connection.in_flight = 3
    assert not await wakes(connection.wait_may_read, lambda: acknowledge(connection))


@pytest.mark.trio
async def test_an_ending_connection_is_read_whatever_is_full() -> None:
    connection = tight(max_in_flight=1)
    connection.in_flight = 5
    fill(connection)
    connection.send(Pong(timestamp=1))
    assert await wakes(connection.wait_may_read, lambda: connection.end(BYE))
    assert connection.may_read()


@pytest.mark.trio
async def test_one_may_wait_for_the_last_acknowledgement() -> None:
    connection = make_connection()
    with trio.fail_after(10):
        await connection.wait_acknowledged()
    connection.in_flight = 2
    assert not await wakes(connection.wait_acknowledged, lambda: acknowledge(connection))
    assert await wakes(connection.wait_acknowledged, lambda: acknowledge(connection))


@pytest.mark.trio
async def test_one_may_wait_until_nothing_waits_for_room() -> None:
    connection = tight()
    connection.mailbox.on_room = connection.changed
    fill(connection)
    connection.send(Pong(timestamp=1))
    await connection.mailbox.take()
    assert await wakes(connection.wait_all_entered, connection.mailbox.sent)


@pytest.mark.trio
async def test_every_task_that_waits_is_woken() -> None:
    connection = make_connection(max_in_flight=1)
    connection.in_flight = 1
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(connection.wait_may_read)
            nursery.start_soon(connection.wait_acknowledged)
        await trio.testing.wait_all_tasks_blocked()
        acknowledge(connection)


@pytest.mark.trio
async def test_a_cancelled_wait_leaves_the_next_one_whole() -> None:
    connection = make_connection(max_in_flight=1)
    connection.in_flight = 1
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.wait_may_read()
    assert await wakes(connection.wait_may_read, lambda: acknowledge(connection))
