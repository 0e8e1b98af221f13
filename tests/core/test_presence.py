from __future__ import annotations

import pytest
from fake_connections import (
    Core,
    LinesDialect,
    RecordingMailbox,
    fill,
    make_connection,
    messages_in,
    read_all,
)


def presence_frames(entered: list[bytes]) -> list[tuple[str, str]]:
    messages = messages_in(b"".join(entered))
    return [(m["event"], m["data"]["user_id"]) for m in messages]


@pytest.mark.trio
async def test_everybody_else_is_told_who_came_online() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob", display_name="Bob B.")
    core.presence.came_online(bob)
    assert await read_all(ada) == [
        {"event": "user_online", "data": {"user_id": "bob", "display_name": "Bob B."}}
    ]
    assert await read_all(bob) == []


@pytest.mark.trio
async def test_everybody_else_is_told_who_went_offline() -> None:
    core = Core()
    ada, bob = core.register("ada"), make_connection("bob")
    core.presence.went_offline(bob)
    assert await read_all(ada) == [{"event": "user_offline", "data": {"user_id": "bob"}}]


@pytest.mark.trio
async def test_nobody_is_told_of_themselves_on_any_of_their_connections() -> None:
    core = Core()
    one, two = core.register("ada"), core.register("ada")
    core.presence.came_online(two)
    core.presence.went_offline(one)
    assert await read_all(one) == await read_all(two) == []


@pytest.mark.trio
async def test_who_does_not_want_to_know_is_not_told_but_others_are_told_of_them() -> None:
    core = Core()
    quiet, ada = core.register("quiet", wants_presence=False), core.register("ada")
    core.presence.came_online(quiet)
    core.presence.came_online(ada)
    assert await read_all(quiet) == []
    assert [m["data"]["user_id"] for m in await read_all(ada)] == ["quiet"]


@pytest.mark.trio
async def test_while_the_service_goes_down_nobody_is_said_to_be_offline() -> None:
    core = Core()
    ada = core.register("ada")
    core.status.draining = True
    core.presence.went_offline(make_connection("bob"))
    assert await read_all(ada) == []


@pytest.mark.trio
async def test_a_notice_that_finds_a_full_mailbox_waits_in_order() -> None:
    core = Core()
    ada, bob = core.register("ada", max_messages=1), make_connection("bob")
    fill(ada)
    core.presence.came_online(bob)
    core.presence.went_offline(bob)
    assert [m["event"] for m in await read_all(ada)] == ["user_online", "user_offline"]


@pytest.mark.trio
async def test_a_connection_that_is_closing_is_passed_over() -> None:
    core = Core()
    ada, bob = core.register("ada"), core.register("bob")
    ada.mailbox.close(discard=True)
    core.presence.came_online(make_connection("cy"))
    assert [m["data"]["user_id"] for m in await read_all(bob)] == ["cy"]


@pytest.mark.trio
async def test_a_notice_speaks_the_dialect_of_whom_it_goes_to() -> None:
    core = Core()

    class Shouting(LinesDialect):
        def frame(self, message, reply_id=b""):
            return super().frame(message, reply_id).replace(b"user_online", b"USER_ONLINE")

    plain, shouting = core.register("ada"), core.register("bob", dialect=Shouting("shouting"))
    core.presence.came_online(make_connection("cy"))
    assert (await read_all(plain))[0]["event"] == "user_online"
    assert (await read_all(shouting))[0]["event"] == "USER_ONLINE"


def test_a_newcomer_is_told_what_follows_its_own_arrival() -> None:
    core = Core()
    core.join("ada")
    bob = core.join("bob")
    cy = core.join("cy")
    core.drop(cy)
    assert isinstance(bob.mailbox, RecordingMailbox)
    assert presence_frames(bob.mailbox.entered) == [
        ("connected", "bob"),
        ("user_online", "cy"),
        ("user_offline", "cy"),
    ]
