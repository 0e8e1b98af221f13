"""How often users may send and connect, and strangers shake hands, by mock clock."""

from __future__ import annotations

import json

import pytest
import trio
from engine_peers import PollingClient, SocketClient, collab_packet, event_of
from peers import ADA, ask, head, read_answer, upgrade

from collab.edge.peer import Ends
from collab.edge.tls import TlsStream
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
@pytest.mark.parametrize("kind", [PollingClient, SocketClient], ids=["polling", "websocket"])
async def test_the_rate_of_a_user_is_one_for_all_dialects_and_the_callback_hears_of_it(kind, autojump_clock):
    async with open_service(limited(events_per_second=2, burst=3), in_memory=True) as local:
        bob = await local.connect("bob")
        plain, client = await local.connect("ada"), await kind.connect(local, "ada")
        await plain.send_event("t", ["bob"], 0)
        await plain.receive("event_ack")
        await client.say(*[collab_packet(["bob"], number, reply_id=number) for number in (1, 2, 3)])
        heard = [await client.next() for _ in range(6)]
        assert [event_of(packet)[0] for packet in heard[::2]] == ["error", "event_ack", "event_ack"]
        assert [packet[:3] for packet in heard[1::2]] == ["433", "431", "432"]
        (error,) = json.loads(heard[1][3:])
        assert error == event_of(heard[0])[1]
        assert error["code"] == "rate_limited"
        await trio.sleep(error["retry_after_ms"] / 1000)
        await client.say(collab_packet(["bob"], 4))
        await client.receive("event_ack")
        assert [(await bob.receive())["data"]["data"] for _ in range(4)] == [0, 1, 2, 4]


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


async def open_from(local, address: str) -> FakeBackend:
    """A backend in memory that has said nothing yet, at this address."""
    stream, far_end = await local.open_stream()
    assert far_end is not None
    far_end.socket = Ends((address, 50000), ("127.0.0.1", 9000))
    return FakeBackend(stream, far_end=far_end, timeout_seconds=5)


@pytest.mark.trio
async def test_connects_over_the_rate_are_refused_by_user():
    async with open_service(limited(connects_per_second=1), in_memory=True) as local:
        for number in range(11):
            # From an address of its own each time.
            backend = await open_from(local, f"10.0.0.{number}")
            target = "/?user_id=ada&backend_url=http://x"
            if number < 10:
                await backend.open("localhost", target)
            else:
                with pytest.raises(Rejected) as caught:
                    await backend.open("localhost", target)
                assert (caught.value.status, caught.value.code) == (429, "rate_limited")


async def refused_from(local, address: str, number: int) -> tuple[int, str] | None:
    """How a connect of a new user from this address is refused, if it is."""
    try:
        backend = await open_from(local, address)
        await backend.open("localhost", f"/?user_id=user{number}&backend_url=http://x")
    except Rejected as rejected:
        return rejected.status, rejected.code
    return None


@pytest.mark.trio
@pytest.mark.parametrize(
    ("limits", "most", "refusal"),
    [
        ({"connects_per_second": 1}, 10, (429, "rate_limited")),
        ({"connections_per_address": 3}, 3, (429, "too_many_connections")),
    ],
)
@pytest.mark.parametrize(
    ("same", "other"),
    [("2001:db8::{:x}", "2001:db8:0:1::1"), ("::ffff:192.0.2.1", "::ffff:192.0.2.2")],
)
async def test_an_ipv6_network_counts_as_one_address_and_a_mapped_one_as_ipv4(
    limits, most, refusal, same, other
):
    async with open_service(limited(**limits), in_memory=True) as local:
        for number in range(most):
            assert await refused_from(local, same.format(number), number) is None
        assert await refused_from(local, same.format(most), most) == refusal
        assert await refused_from(local, same.removeprefix("::ffff:").format(most), most) == refusal
        assert await refused_from(local, other, most) is None


async def shakes_hands(local, address: str) -> bool:
    stream, far_end = await local.open_stream()
    far_end.socket = Ends((address, 50000), ("127.0.0.1", 9000))
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        return False
    await stream.send_all(head("GET", "/ready"))
    assert (await read_answer(stream)).status == 200
    await trio.aclose_forcefully(stream)
    return True


@pytest.mark.trio
async def test_tls_handshakes_far_over_the_rate_of_connects_are_not_begun(
    certificates, autojump_clock, monkeypatch, caplog
):
    begun = []
    handshake = TlsStream.handshake

    async def noted(stream):
        begun.append(stream)
        await handshake(stream)

    monkeypatch.setattr(TlsStream, "handshake", noted)
    caplog.set_level("INFO")
    async with certificates.open_service(limited(connects_per_second=1), in_memory=True) as local:
        # An address may shake hands ten times as often as it may connect: requests do so too.
        for number in range(100):
            assert await shakes_hands(local, f"2001:db8::{number:x}")
        for _ in range(3):
            assert not await shakes_hands(local, "2001:db8::1")
        assert len(begun) == 100
        assert await shakes_hands(local, "192.0.2.1")
        await trio.sleep(1)
        assert await shakes_hands(local, "2001:db8::1")
    (told,) = [each for each in caplog.records if "over the rate" in each.getMessage()]
    assert "3" in str(told.__dict__)


@pytest.mark.trio
async def test_without_a_rate_of_connects_handshakes_have_none(certificates, autojump_clock):
    async with certificates.open_service(in_memory=True) as local:
        for _ in range(120):
            assert await shakes_hands(local, "192.0.2.1")


@pytest.mark.trio
async def test_requests_over_plain_tcp_count_as_no_connects():
    async with open_service(limited(connects_per_second=1), in_memory=True) as local:
        for _ in range(120):
            assert (await ask(local, "GET", "/ready")).status == 200
        assert await local.connect("ada")
