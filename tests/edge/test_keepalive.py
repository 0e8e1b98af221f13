"""Keepalive: silence is answered with a ping, no answer to it with 4005, by mock clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
from fake_connections import Core, batch
from peers import PING, PONG, event_text, frame, text

from collab.edge.keepalive import Sweeper
from collab.edge.stops import Stops
from collab.settings import Duration, LimitSettings, Settings, TimeoutSettings
from collab.testing import open_service

PING_FRAME = b"\x89\x00"
SLACK_SECONDS = 2.5


async def read_raw(backend, seconds):
    """What comes in that time, without any answer to it."""
    data = b""
    with trio.move_on_after(seconds):
        while piece := await backend.stream.receive_some(65536):
            data += piece
    return data


@pytest.mark.trio
async def test_a_ping_comes_after_25_seconds_of_silence(autojump_clock):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        assert await read_raw(ada, 24.9) == b""
        assert await read_raw(ada, SLACK_SECONDS) == PING_FRAME


@pytest.mark.trio
async def test_4005_comes_when_no_byte_came_within_20_seconds_of_the_ping(autojump_clock):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        assert await read_raw(ada, 44.9) == PING_FRAME
        assert local.online() == {"ada"}
        data = await read_raw(ada, SLACK_SECONDS)
        assert data[:1] == b"\x88"
        assert data[2:4] == (4005).to_bytes(2, "big")
        assert data[4:]
        assert local.online() == set()


@pytest.mark.trio
async def test_a_backend_that_answers_pings_stays_for_ever(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=1000) as local, trio.open_nursery() as nursery:
        ada = await local.connect("ada")
        heard = []

        async def read():
            while True:
                heard.append(await ada.receive())

        nursery.start_soon(read)
        await trio.sleep(900)
        assert local.online() == {"ada"}
        assert heard == []
        nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.parametrize("said", [frame(PONG, b"x"), text("ping"), b"\x81"])
async def test_any_byte_after_the_ping_is_an_answer(autojump_clock, said):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        assert PING_FRAME in await read_raw(ada, 25 + SLACK_SECONDS)
        await trio.sleep(15)
        await ada.stream.send_all(said)
        await trio.sleep(20)
        assert local.online() == {"ada"}


@pytest.mark.trio
async def test_a_backend_that_talks_is_not_pinged(autojump_clock):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        for _ in range(20):
            await trio.sleep(20)
            await ada.stream.send_all(event_text([]))
        assert PING_FRAME not in await read_raw(ada, 10)
        assert local.online() == {"ada"}


@pytest.mark.trio
async def test_half_a_frame_and_then_nothing_is_4005(autojump_clock):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.stream.send_all(event_text(["ada"], "cut off")[:-5])
        data = await read_raw(ada, 60)
        assert data[2:6] == b"\x88" + data[3:4] + (4005).to_bytes(2, "big")
        assert local.online() == set()


@pytest.mark.trio
async def test_the_times_are_those_that_are_set(autojump_clock):
    timeouts = TimeoutSettings(ping_interval=Duration("3s"), ping_timeout=Duration("2s"))
    async with open_service(Settings(timeouts=timeouts), in_memory=True) as local:
        ada = await local.connect("ada")
        start = trio.current_time()
        assert await read_raw(ada, 2.9) == b""
        assert await read_raw(ada, 0.7) == PING_FRAME
        assert (await ada.wait_closed()).code == 4005
        assert trio.current_time() - start == pytest.approx(5.2, abs=0.4)


@pytest.mark.trio
async def test_the_clock_stands_still_while_the_service_does_not_read(autojump_clock):
    timeouts = TimeoutSettings(
        ping_interval=Duration("3s"), ping_timeout=Duration("2s"), write=Duration("200s")
    )
    limits = LimitSettings(mailbox_messages=1, in_flight=1, slow_consumer=Duration("100s"))
    settings = Settings(limits=limits, timeouts=timeouts)
    async with open_service(settings, in_memory=True, timeout_seconds=300) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        async with trio.open_nursery() as nursery:

            async def keep_talking():
                while True:
                    await bob.stream.send_all(text("nothing"))
                    await trio.sleep(1)

            nursery.start_soon(keep_talking)
            for number in range(3):
                await ada.send_event("t", ["bob"], number, id=number)
            await trio.sleep(50)
            (connection,) = local.service.registry.of_user("ada")
            assert not connection.may_read()
            bob.resume()
            acks = [await ada.receive("event_ack") for _ in range(3)]
            assert [ack["data"]["delivered_to"] for ack in acks] == [1, 1, 1]
            assert await ada.echoes()
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_time_in_which_the_service_did_not_run_is_held_against_no_consumer(autojump_clock):
    limits = LimitSettings(mailbox_messages=1, slow_consumer=Duration("2s"))
    settings = Settings(limits=limits, timeouts=TimeoutSettings(write=Duration("1000s")))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob"], number, id=number)
        await trio.sleep(1)
        # As after SIGSTOP and SIGCONT.
        autojump_clock.jump(100)
        await trio.sleep(0.7)
        assert local.online() == {"ada", "bob"}
        bob.resume()
        assert [(await bob.receive("collab_event"))["data"]["data"] for _ in range(3)] == [0, 1, 2]
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob"], number, id=number)
        await trio.sleep(1.8)
        assert local.online() == {"ada", "bob"}
        await trio.sleep(0.5)
        assert local.online() == {"ada"}


@pytest.mark.trio
async def test_a_crowd_of_slow_consumers_is_sent_away_8_at_a_time_and_others_have_turns_between(
    autojump_clock,
):
    core = Core()
    ada = core.register("ada")
    crowd = [core.register(f"slow{number}", max_messages=1) for number in range(40)]
    for slow in crowd:
        assert slow.mailbox.put(b"the mailbox is full")
    core.router.route([batch(ada, ("1", [slow.user_id for slow in crowd]))])
    acceptor = SimpleNamespace(lives=list, stops=Stops())
    ended = []
    async with trio.open_nursery() as nursery:
        await nursery.start(Sweeper(Settings(), acceptor, core.router).run)
        while not all(slow.close for slow in crowd) and trio.current_time() < 10:
            await trio.sleep(0.001)
            ended.append(sum(slow.close is not None for slow in crowd))
        nursery.cancel_scope.cancel()
    assert sorted(set(ended) - {0}) == [8, 16, 24, 32, 40]


@pytest.mark.trio
async def test_a_backend_that_vanished_goes_offline_after_ping_and_timeout(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=200) as local:
        observer = await local.connect("observer", presence="all")
        gone = await local.connect("gone")
        assert (await observer.receive())["event"] == "user_online"
        gone.stall()
        start = trio.current_time()
        assert await observer.receive() == {"event": "user_offline", "data": {"user_id": "gone"}}
        assert trio.current_time() - start <= 45 + SLACK_SECONDS


@pytest.mark.trio
@pytest.mark.parametrize(
    ("said", "answer"), [(frame(PING, b"x"), b"\x8a\x01x"), (text("nonsense"), b"unknown_event")]
)
async def test_pings_and_errors_within_their_limits_are_answered_for_ever(autojump_clock, said, answer):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.stream.send_all(said * 200)
        assert (await read_raw(ada, 1)).count(answer) == 200
        for _ in range(60):
            await ada.stream.send_all(said * 20)
            assert (await read_raw(ada, 1)).count(answer) == 20
        await ada.stream.send_all(said * 50)
        assert b"\x88" in await read_raw(ada, 1)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("said", "answer"), [(frame(PING, b"x"), b"\x8a\x01x"), (text("nonsense"), b"unknown_event")]
)
async def test_what_gathered_while_the_service_did_not_run_is_no_flood(autojump_clock, said, answer):
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.stream.send_all(said * 100)
        assert (await read_raw(ada, 1)).count(answer) == 100
        # As after SIGSTOP and SIGCONT. What came in between is read before anybody notices the stop.
        autojump_clock.jump(60)
        await ada.stream.send_all(said * 1000)
        assert (await read_raw(ada, 1)).count(answer) == 1000
        # Nor is it once the stop was noticed.
        autojump_clock.jump(60)
        await trio.sleep(1)
        await ada.stream.send_all(said * 1000)
        assert (await read_raw(ada, 1)).count(answer) == 1000
        # A newcomer is forgiven nothing.
        bob = await local.connect("bob")
        await bob.stream.send_all(said * 201)
        assert b"\x88" in await read_raw(bob, 1)
        await ada.stream.send_all(said * 1000)
        assert b"\x88" in await read_raw(ada, 1)
