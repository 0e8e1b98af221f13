"""How often users may send and connect, by mock clock."""

from __future__ import annotations

import pytest
import trio
from peers import ADA, upgrade

from collab.edge.peer import Ends
from collab.settings import LimitSettings, Settings
from collab.testing import Closed, FakeBackend, Rejected, open_service


def limited(**limits) -> Settings:
    return Settings(limits=LimitSettings(**limits))


@pytest.mark.trio
async def test_events_over_the_rate_get_an_error_with_the_time_to_wait(
    autojump_clock,
):
    async with open_service(limited(events_per_second=2, burst=3), in_memory=True) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        for number in range(3):
            await ada.send_event("t", ["bob"], number)
            assert (await ada.receive())["event"] == "event_ack"
        await ada.send_event("t", ["bob"], "too many", id="x")
        error = await ada.receive()
        assert (error["event"], error["id"], error["data"]["code"]) == ("error", "x", "rate_limited")
        assert 400 < error["data"]["retry_after_ms"] <= 500
        await trio.sleep(error["data"]["retry_after_ms"] / 1000)
        await ada.send_event("t", ["bob"], 3)
        assert (await ada.receive())["event"] == "event_ack"
        assert [(await bob.receive())["data"]["data"] for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.trio
async def test_the_rate_is_the_users_and_not_the_connections(autojump_clock):
    async with open_service(limited(events_per_second=2), in_memory=True) as local:
        first, second = await local.connect("ada"), await local.connect("ada")
        await first.send_event("t", [], 1)
        assert await first.receive("event_ack")
        await second.send_event("t", [], 2)
        assert await second.receive("event_ack")
        await first.send_event("t", [], 3)
        assert (await first.receive("error"))["data"]["code"] == "rate_limited"
        await first.drop()
        again = await local.connect("ada")
        await again.send_event("t", [], 4)
        assert (await again.receive("error"))["data"]["code"] == "rate_limited"
        bob = await local.connect("bob")
        await bob.send_event("t", [], 5)
        assert await bob.receive("event_ack")


@pytest.mark.trio
async def test_an_event_to_many_counts_once_for_each_ten_of_them(autojump_clock):
    async with open_service(limited(events_per_second=1, burst=10), in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.send_event("t", [f"u{number}" for number in range(91)], 1)
        assert await ada.receive("event_ack")
        await ada.send_event("t", [], 2)
        assert (await ada.receive("error"))["data"]["code"] == "rate_limited"
        # One to more than the burst allows is not refused for ever.
        await trio.sleep(10)
        await ada.send_event("t", [f"u{number}" for number in range(500)], 3)
        assert await ada.receive("event_ack")


@pytest.mark.trio
async def test_who_keeps_on_is_closed_with_1008(autojump_clock):
    async with open_service(limited(events_per_second=1, errors=1), in_memory=True) as local:
        ada = await local.connect("ada")
        for number in range(12):
            await ada.send_event("t", [], number)
            await ada.receive()
        with pytest.raises(Closed) as caught:
            await ada.receive()
        assert caught.value.code == 1008


@pytest.mark.trio
async def test_connects_over_the_rate_are_refused_for_a_while_by_address(autojump_clock):
    async with open_service(limited(connects_per_second=1), in_memory=True) as local:
        for number in range(10):
            await (await local.connect(f"u{number}")).drop()
        answer = await upgrade(local, ADA)
        assert answer.refusal == (429, "rate_limited")
        assert answer.headers["retry-after"] == "1"
        await trio.sleep(1)
        assert await local.connect("ada")


@pytest.mark.trio
async def test_connects_over_the_rate_are_refused_by_user():
    async with open_service(limited(connects_per_second=1), in_memory=True) as local:
        for number in range(11):
            # From an address of its own each time.
            stream, far_end = await local.open_stream()
            assert far_end is not None
            far_end.socket = Ends((f"10.0.0.{number}", 50000), ("127.0.0.1", 9000))
            backend = FakeBackend(stream, far_end=far_end, timeout_seconds=5)
            target = "/?user_id=ada&backend_url=http://x"
            if number < 10:
                await backend.open("localhost", target)
            else:
                with pytest.raises(Rejected) as caught:
                    await backend.open("localhost", target)
                assert (caught.value.status, caught.value.code) == (429, "rate_limited")
