from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from fake_connections import Core, fill, make_connection, read_all

from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.wire.close import CloseCode

if TYPE_CHECKING:
    from collab.core.connection import Connection


async def notices(core: Core, connection: Connection) -> list[tuple[str, str]]:
    core.tell()
    return [
        (m["event"], m["data"]["user_id"]) for m in await read_all(connection) if m["event"] != "connected"
    ]


def close_codes(connections: list[Connection]) -> list[int | None]:
    return [connection.close.code if connection.close else None for connection in connections]


@pytest.mark.trio
async def test_a_newcomer_is_greeted_first_with_the_number_of_users() -> None:
    core = Core()
    core.join("ada")
    core.join("ada")
    bob = core.join("bob")
    core.join("cy")
    messages = await read_all(bob)
    assert messages[0] == {
        "event": "connected",
        "data": {
            "user_id": "bob",
            "message": "Connected to collaboration service",
            "active_users": 2,
        },
    }
    assert core.status.total_connections == 4


@pytest.mark.trio
async def test_only_the_first_and_the_last_connection_of_a_user_are_news() -> None:
    core = Core()
    ada = core.join("ada")
    one = core.join("bob")
    two = core.join("bob")
    assert await notices(core, ada) == [("user_online", "bob")]
    core.drop(one)
    assert await notices(core, ada) == []
    core.drop(two)
    assert await notices(core, ada) == [("user_offline", "bob")]
    core.join("bob")
    assert await notices(core, ada) == [("user_online", "bob")]


@pytest.mark.trio
async def test_a_reconnect_before_the_old_connection_ended_is_no_news() -> None:
    core = Core()
    ada = core.join("ada")
    old = core.join("bob")
    await notices(core, ada)
    new = core.join("bob")
    core.drop(old)
    core.membership.leave(old)
    assert await notices(core, ada) == []
    assert list(core.registry.of_user("bob")) == [new]


@pytest.mark.trio
async def test_leaving_twice_is_told_once() -> None:
    core = Core()
    ada, bob = core.join("ada"), core.join("bob")
    for _ in range(3):
        core.membership.leave(bob)
    assert await notices(core, ada) == [("user_online", "bob"), ("user_offline", "bob")]


@pytest.mark.trio
async def test_who_never_joined_may_leave() -> None:
    core = Core()
    ada = core.join("ada")
    core.membership.leave(make_connection("ada"))
    core.membership.leave(make_connection("bob"))
    assert await notices(core, ada) == []
    assert core.registry.connection_count == 1


def test_over_the_limit_the_oldest_connection_of_the_user_is_replaced() -> None:
    core = Core(connections_per_user=2)
    other = core.join("bob")
    connections = [core.join("ada") for _ in range(4)]
    assert close_codes(connections) == [CloseCode.REPLACED, CloseCode.REPLACED, None, None]
    assert other.close is None
    assert list(core.registry.of_user("ada")) == connections[2:]


@pytest.mark.trio
async def test_replacing_the_only_connection_is_no_news() -> None:
    core = Core(connections_per_user=1)
    watcher = core.join("bob")
    connections = [core.join("ada") for _ in range(3)]
    assert await notices(core, watcher) == [("user_online", "ada")]
    assert close_codes(connections) == [CloseCode.REPLACED, CloseCode.REPLACED, None]
    assert core.registry.connection_count == 2


def test_at_the_limit_nobody_is_replaced() -> None:
    core = Core(connections_per_user=3)
    assert close_codes([core.join("ada") for _ in range(3)]) == [None, None, None]


def test_without_a_limit_nobody_is_replaced() -> None:
    core = Core(connections_per_user=0)
    assert close_codes([core.join("ada") for _ in range(50)]) == [None] * 50


@pytest.mark.trio
async def test_a_connection_that_joins_while_the_service_goes_down_is_told_when_to_come_back() -> None:
    core = Core()
    core.status.draining = True
    ada = core.join("ada")
    assert close_codes([ada]) == [CloseCode.GOING_AWAY]
    messages = await read_all(ada)
    assert [m["event"] for m in messages] == ["connected", "service_shutdown"]
    assert 500 <= messages[-1]["data"]["reconnect_in_ms"] <= 5000
    assert core.registry.connection_count == 0


@pytest.mark.trio
async def test_a_full_mailbox_makes_its_reader_wait_from_the_moment_of_joining() -> None:
    core = Core()
    connection = make_connection("ada", mailbox=Mailbox(Outbox(), max_messages=1, max_bytes=1000))
    core.membership.join(connection)
    fill(connection)
    core.join("bob")
    core.tell()
    assert not connection.may_read()
    await read_all(connection)
    assert connection.may_read()


def test_coming_and_going_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    core = Core()
    with caplog.at_level(logging.INFO):
        ada = core.join("ada")
        core.drop(ada)
        core.drop(ada)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in lines] == ["connected", "disconnected"]
    assert all("ada" in line for line in lines)
