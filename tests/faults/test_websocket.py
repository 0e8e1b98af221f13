"""Attacks on the WebSocket half over real sockets. After each, the service is as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import random

import attrs
import pytest
import trio
from baseline import Holdings, unharmed
from invariants import check_i7_baseline
from peers import (
    ADA,
    BINARY,
    CLOSE,
    CONTINUATION,
    PATIENCE_SECONDS,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    event_text,
    frame,
    head,
    read_answer,
    read_to_end,
    reset,
    small_receiver,
    text,
    until_end,
)

from collab.settings import Duration, LimitSettings, Settings, Size, TimeoutSettings
from collab.testing import Closed, FakeBackend, open_service

BRISK = Settings(
    timeouts=TimeoutSettings(handshake=Duration("1s"), write=Duration("500ms"), close=Duration("500ms"))
)


@pytest.mark.trio
@pytest.mark.parametrize(
    "said",
    [
        head("GET", ADA, UPGRADE),
        head("GET", ADA, UPGRADE)[:-2],
        head("GET", "/?user_id=ada", UPGRADE),
        head("GET", "/nowhere", UPGRADE),
        head("GET", ADA, {**UPGRADE, "sec-websocket-version": "8"}),
        head("GET", ADA, UPGRADE) + event_text(["ada"], "x"),
        head("GET", ADA, UPGRADE) + frame(BINARY, b"x"),
        head("GET", ADA, UPGRADE) + frame(CLOSE) + frame(PING),
        head("GET", ADA, UPGRADE) + b"\xff" * 100,
        head("GET", ADA, UPGRADE) + frame(TEXT, b"half", size=200),
    ],
)
async def test_a_peer_that_says_something_and_then_resets_ends_itself_alone(open_over_sockets, said):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        for rest_seconds in (0, 0, 0, 0.01, 0.01):
            stream, _ = await local.open_stream()
            await stream.send_all(said)
            if rest_seconds:
                await trio.testing.wait_all_tasks_blocked(rest_seconds)
            reset(stream)


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize("end", ["reset", "fin"])
async def test_a_connected_backend_that_vanishes_goes_offline(open_over_sockets, end):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        backends = [await local.connect(f"u{number}") for number in range(20)]
        for backend in backends:
            await (backend.drop() if end == "reset" else backend.stream.aclose())


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_frame_sent_with_the_handshake_is_not_lost(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", ADA, UPGRADE) + text("ping", id="early"))
        received = b""
        with trio.fail_after(5):
            while b'"id":"early"' not in received:
                received += await stream.receive_some()
        reset(stream)


@pytest.mark.trio
@pytest.mark.parametrize("flood", [frame(PING, b"x" * 125), frame(PONG), frame(PING)])
async def test_a_flood_of_control_frames_while_the_service_closes_harms_nobody(open_over_sockets, flood):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        with trio.move_on_after(2):
            try:
                await ada.stream.send_all(frame(BINARY, b"x") + flood * 2000)
                while True:
                    await ada.stream.send_all(flood * 10)
                    await trio.testing.wait_all_tasks_blocked(0.01)
            except trio.BrokenResourceError:
                pass
        await ada.stream.aclose()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_ping_during_a_close_by_the_service_ends_that_connection_alone(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(BINARY, b"x"))
        closing = b""
        while b"\x88" not in closing:
            closing += await ada.stream.receive_some()
        await ada.stream.send_all(frame(PING, b"are you there") + frame(TEXT, b"{}"))
        await ada.stream.send_all(frame(CLOSE, b"\x03\xeb"))
        assert await read_to_end(ada.stream) == b""
        await ada.stream.aclose()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_ping_flood_by_a_peer_that_reads_nothing_is_bounded(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        stream = await small_receiver(local)
        ada = FakeBackend(stream, far_end=None, timeout_seconds=5)
        await ada.open("localhost", "/?user_id=ada&backend_url=http://x")
        flood = frame(PING, b"x" * 125) * 500
        with trio.fail_after(10):
            try:
                while True:
                    await stream.send_all(flood)
            except trio.BrokenResourceError:
                pass
        await stream.aclose()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        pytest.param(frame(PING, b"x"), "Too many pings and pongs", id="pings"),
        pytest.param(frame(PONG), "Too many pings and pongs", id="pongs"),
        pytest.param(frame(TEXT, b"x"), "Too many messages with errors", id="no-json"),
        pytest.param(text("nonsense"), "Too many messages with errors", id="errors"),
    ],
)
async def test_a_flood_that_no_client_needs_is_1008_and_others_are_served(open_over_sockets, flood, reason):
    async with open_over_sockets(BRISK, timeout_seconds=10) as local, unharmed(local):
        ada, bob = await local.connect("ada"), await local.connect("bob")
        async with trio.open_nursery() as nursery:

            async def send():
                # Closed: ada has read the close frame, and answered it.
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while True:
                        await ada.stream.send_all(flood * 1000)

            nursery.start_soon(send)
            for _ in range(20):
                assert await bob.echoes()
            with trio.fail_after(PATIENCE_SECONDS):
                messages, end = await until_end(ada)
            nursery.cancel_scope.cancel()
        assert end == (1008, reason)
        assert {message["event"] for message in messages} <= {"error"}
        assert local.online() == {"healthy-cyd", "healthy-dan", "bob"}
        await ada.stream.aclose()
        await bob.close()


@pytest.mark.trio
async def test_a_ping_flood_that_is_allowed_gets_its_pongs_and_others_are_served(open_over_sockets):
    settings = attrs.evolve(BRISK, limits=LimitSettings(control_frames=0))
    async with open_over_sockets(settings, timeout_seconds=10) as local, unharmed(local):
        ada, bob = await local.connect("ada"), await local.connect("bob")
        async with trio.open_nursery() as nursery:

            async def flood():
                await ada.stream.send_all(frame(PING, b"x") * 5_000 + text("ping", id="last"))

            nursery.start_soon(flood)
            for _ in range(20):
                assert await bob.echoes()
            received = b""
            with trio.fail_after(10):
                while received.count(b"\x8a\x01x") < 5_000 or b'"id":"last"' not in received:
                    received += await ada.stream.receive_some(65536)
        await ada.stream.aclose()
        await bob.close()


@pytest.mark.trio
async def test_empty_fragments_without_end_are_1008(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        async with trio.open_nursery() as nursery:
            flood = frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 5000
            nursery.start_soon(send_until_broken, ada, flood)
            assert (await ada.wait_closed()).code == 1008


async def send_until_broken(backend, data):
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        await backend.stream.send_all(data)


@pytest.mark.trio
@pytest.mark.parametrize("size", [65537, 2**31, 2**62])
async def test_a_frame_that_claims_to_be_huge_is_1009_at_once(open_over_sockets, size):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(TEXT, b"x", size=size))
        assert (await ada.wait_closed()).code == 1009


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_peer_in_the_middle_of_a_huge_message_reads_its_1009(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_broken, ada, frame(TEXT, b"x" * 500_000))
            assert (await ada.wait_closed()).code == 1009


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize(
    "breach", [frame(BINARY, b"x"), frame(3), frame(TEXT, b"\xff"), frame(TEXT, size=2**40), b"\x81\x01x"]
)
async def test_a_peer_that_answers_no_close_frame_is_closed_by_force(open_over_sockets, breach):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        ada = await local.connect("ada")
        await ada.stream.send_all(breach)
        assert b"\x88" in await read_to_end(ada.stream)
        with trio.fail_after(PATIENCE_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            while True:
                await ada.stream.send_all(b"\x00")
                await trio.testing.wait_all_tasks_blocked(0.01)
        await ada.stream.aclose()


@pytest.mark.trio
async def test_a_peer_in_the_middle_of_a_frame_that_is_not_utf8_hears_the_end_at_once(open_over_sockets):
    settings = Settings(timeouts=TimeoutSettings(close=Duration("1m")))
    async with open_over_sockets(settings) as local, unharmed(local):
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(TEXT, b"ab\xff", fin=False, size=20))
        # Its close frame would be taken for the rest of the text: only the end of our side tells it to go.
        assert (await read_to_end(ada.stream))[2:4] == b"\x03\xef"
        await ada.stream.aclose()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_half_a_frame_and_then_nothing_is_4005(open_over_sockets):
    timeouts = TimeoutSettings(
        ping_interval=Duration("200ms"), ping_timeout=Duration("200ms"), close=Duration("200ms")
    )
    async with open_over_sockets(Settings(timeouts=timeouts)) as local:
        await trio.testing.wait_all_tasks_blocked()
        before = Holdings.now()
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(TEXT, b"half", size=100))
        data = await read_to_end(ada.stream)
        assert b"\x88" in data
        assert (4005).to_bytes(2, "big") in data
        await ada.stream.aclose()
        await check_i7_baseline(before)
        assert local.online() == set()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_slow_consumer_is_evicted_and_its_sender_told(open_over_sockets):
    limits = LimitSettings(mailbox_messages=4, slow_consumer=Duration("300ms"))
    settings = Settings(timeouts=BRISK.timeouts, limits=limits)
    async with open_over_sockets(settings) as local, unharmed(local):
        stream = await small_receiver(local)
        bob = FakeBackend(stream, far_end=None, timeout_seconds=5)
        await bob.open("localhost", "/?user_id=bob&backend_url=http://x")
        ada = await local.connect("ada")
        sent = 0
        while True:
            await ada.send_event("t", ["bob"], "x" * 60_000, id=sent)
            ack = await ada.receive("event_ack")
            assert ack["id"] == sent
            sent += 1
            if ack["data"]["delivered_to"] == 0:
                break
        assert ack["data"]["undelivered"] == ["bob"]
        assert "bob" not in local.online()
        await bob.drop()
        await ada.close()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_slow_consumer_that_reads_on_finds_4003(open_over_sockets):
    limits = LimitSettings(mailbox_messages=4, slow_consumer=Duration("300ms"))
    async with open_over_sockets(Settings(limits=limits), timeout_seconds=10) as local, unharmed(local):
        bob, ada = await local.connect("bob"), await local.connect("ada")
        sent = 0
        while True:
            await ada.send_event("t", ["bob"], "x" * 60_000)
            if (await ada.receive("event_ack"))["data"]["delivered_to"] == 0:
                break
            sent += 1
        events, (code, reason) = await until_end(bob)
        assert code == 4003
        assert reason
        assert len(events) <= sent
        await ada.close()


@pytest.mark.trio
async def test_random_bytes_after_the_handshake_end_that_connection_alone(open_over_sockets):
    draw = random.Random(7)
    async with open_over_sockets(BRISK) as local, unharmed(local):
        for _ in range(60):
            backend = await local.connect("ada")
            await send_until_broken(backend, draw.randbytes(draw.randrange(1, 400)))
            if draw.random() < 0.5:
                await backend.drop()
            else:
                await backend.stream.aclose()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_frames_cut_anywhere_by_a_reset_end_that_connection_alone(open_over_sockets):
    whole = event_text(["healthy-cyd", "ada"], "x" * 200) + frame(PING, b"y") + frame(TEXT, b"{", fin=False)
    async with open_over_sockets(BRISK) as local:
        observer = await local.connect("observer", presence="all")
        for cut in range(1, len(whole), 7):
            backend = await local.connect("ada")
            await backend.stream.send_all(whole[:cut])
            await backend.drop()
        with trio.fail_after(5):
            while local.online() != {"observer"}:
                await observer.receive("user_offline")
        await observer.close()
        async with unharmed(local):
            pass


@pytest.mark.trio
async def test_a_user_that_comes_and_goes_100_times_is_told_of_in_turns(open_over_sockets):
    async with open_over_sockets(timeout_seconds=10) as local:
        observer = await local.connect("observer", presence="all")
        async with trio.open_nursery() as nursery:

            async def flap():
                for number in range(100):
                    backend = await local.connect("ada")
                    await (backend.drop() if number % 2 else backend.close())
                    with trio.fail_after(5):
                        while "ada" in local.online():
                            await trio.lowlevel.checkpoint()

            nursery.start_soon(flap)
            for _ in range(100):
                assert (await observer.receive())["event"] == "user_online"
                assert (await observer.receive())["event"] == "user_offline"


@pytest.mark.trio
async def test_pairs_that_exchange_while_others_come_and_go_lose_nothing(open_over_sockets):
    draw = random.Random(11)
    async with open_over_sockets(timeout_seconds=20) as local:
        pairs = [(await local.connect(f"a{n}"), await local.connect(f"b{n}"), f"b{n}") for n in range(4)]

        async def talk(sender, recipient, user_id):
            for number in range(100):
                await sender.send_event("t", [user_id, "ghost"], number, id=number)
                assert (await recipient.receive("collab_event"))["data"]["data"] == number
                ack = await sender.receive("event_ack")
                assert ack["id"] == number
                assert "ghost" in ack["data"].get("undelivered", ["ghost"])

        async def churn():
            while True:
                try:
                    ghost = await local.connect("ghost", presence="all")
                    await ghost.stream.send_all(os.urandom(draw.randrange(100)))
                    await ghost.drop()
                except (Closed, trio.BrokenResourceError):
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn)
            async with trio.open_nursery() as talking:
                for pair in pairs:
                    talking.start_soon(talk, *pair)
            nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_2_mib_messages_pass_whole_and_fragmented_between_real_sockets(open_over_sockets):
    limits = LimitSettings(message_bytes=Size("2MiB"), mailbox_bytes=Size("8MiB"))
    async with open_over_sockets(Settings(limits=limits), timeout_seconds=20) as local, unharmed(local):
        ada, bob = await local.connect("ada"), await local.connect("bob")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ada.send_event, "t", ["bob"], "ä" * 900_000)
                assert len((await bob.receive())["data"]["data"]) == 900_000
        for backend in (ada, bob):
            await backend.close()


@pytest.mark.trio
async def test_an_unfinished_handshake_answers_nothing_and_is_ended(open_over_sockets):
    async with open_over_sockets(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", ADA, UPGRADE)[:-1])
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert await read_to_end(stream) == b""
        await stream.aclose()


@pytest.mark.trio
async def test_mutated_messages_are_answered_each_and_harm_nobody():
    draw = random.Random(42)
    valid = (
        b'{"event":"collab_event","id":"i","data":{"type":"t","from_user":"ada","to_users":["ada","x"],'
        b'"data":{"a":[1,2.5,"\\u00e4\\ud83d\\ude00",null,true]}}}'
    )
    spice = (
        b"\\ud800",
        b"\\",
        b'"',
        b"{",
        b"[",
        b"]}",
        b"null",
        b"1e999",
        b"\x00",
        b"\\u0000",
        "\u202e".encode(),
    )
    async with open_service(Settings(limits=LimitSettings(errors=0)), in_memory=True) as local:
        bob = await local.connect("bob")
        ada = await local.connect("ada")
        for number in range(1500):
            message = bytearray(valid)
            for _ in range(draw.randrange(1, 4)):
                at = draw.randrange(len(message))
                message[at : at + draw.randrange(4)] = draw.choice(spice)
            whole = message.decode(errors="replace").encode()
            await ada.stream.send_all(frame(TEXT, whole) + text("ping", id=f"after-{number}"))
            answers = []
            while True:
                # The standard library's parser: msgspec's own refuses numbers that JSON allows.
                answer = json.loads(await ada.receive_text())
                if answer.get("id") == f"after-{number}":
                    break
                answers.append(answer["event"])
            # An ack may come after the pong: the router is a task of its own.
            assert set(answers) <= {"error", "event_ack", "collab_event", "pong"}
        assert await bob.echoes()
        assert local.online() == {"ada", "bob"}


@pytest.mark.trio
@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff\\ud800", "\\ud83dx"])
@pytest.mark.parametrize("field", ["event", "type", "to_users", "from_user", "id", "data", "key"])
async def test_half_a_surrogate_pair_in_any_field_is_an_error_at_most(field, escape):
    values = dict.fromkeys(("event", "type", "to_users", "from_user", "id", "data", "key"), "x")
    values |= {"event": "collab_event", "from_user": "ada", field: escape}
    message = (
        '{{"event":"{event}","id":"{id}","{key}":1,'
        '"data":{{"type":"{type}","to_users":["{to_users}"],"from_user":"{from_user}","data":"{data}"}}}}'
    ).format(**values)
    async with open_service(in_memory=True) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.send_text(message)
        assert (await ada.receive())["event"] in ("error", "event_ack")
        assert await ada.echoes()
        assert await bob.echoes()
