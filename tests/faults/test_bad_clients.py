"""Clients that die, stop, fall silent, drip or flood, many at a time. How soon they are gone is measured
by scripts/promises, what they cost the others by scripts/neighbours."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
from baseline import unharmed
from clients import open_files
from counts import count
from invariants import check_i4_registry, check_i5_bounds
from peers import (
    ADA,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    event_text,
    frame,
    head,
    read_answer,
    read_to_end,
    small_receiver,
    text,
)
from proxy import Proxy

from collab.settings import Duration, LimitSettings, Settings, Size, TimeoutSettings
from collab.testing import Closed, FakeBackend

BRISK = Settings(
    timeouts=TimeoutSettings(handshake=Duration("1s"), write=Duration("500ms"), close=Duration("500ms"))
)
HEALTHY = {"healthy-cyd", "healthy-dan"}
STOPPED = count(40, 500)
SILENT = count(20, 200)


@pytest.fixture(autouse=True)
def enough_files():
    """Both ends of every connection are in this process, and so is the proxy."""
    with open_files(max(2 * STOPPED, 4 * SILENT) + 256):
        yield


def target(user_id, presence="none"):
    return f"/?user_id={user_id}&backend_url=http://x&presence={presence}"


async def until(holds):
    with trio.fail_after(30):
        while not holds():
            await trio.testing.wait_all_tasks_blocked(0.005)


# Killed


@pytest.mark.trio
async def test_clients_killed_in_the_middle_of_a_frame_leave_nothing_behind(open_over_sockets):
    draw = random.Random(9)
    at_once = 20
    whole = event_text(["healthy-cyd"], "x" * 2000) + frame(TEXT, b"{", fin=False) + frame(PING, b"beat" * 20)
    async with open_over_sockets(BRISK, timeout_seconds=10) as local, unharmed(local):
        port = local.service.addresses[0][1]
        victims = await trio.lowlevel.open_process(
            [sys.executable, str(Path(__file__).with_name("victims.py")), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            heard = b""
            for _ in range(count(100, 1000) // at_once):
                users = []
                for number in range(at_once):
                    request = head("GET", target(f"victim{number}"), UPGRADE)
                    # One in ten dies in the middle of its request.
                    cut = draw.randrange(1, len(whole))
                    said = request + whole[:cut] if number % 10 else request[: draw.randrange(len(request))]
                    users += [f"victim{number}"] * bool(number % 10)
                    await victims.stdin.send_all(said.hex().encode() + b"\n")
                while heard.count(b"\n") < at_once:
                    heard += await victims.stdout.receive_some()
                await until(lambda users=users: local.online() == {*users, *HEALTHY})
                for pid in heard.split():
                    os.kill(int(pid), signal.SIGKILL)
                heard = b""
                await until(lambda: local.online() == HEALTHY)
                check_i4_registry(local, sorted(HEALTHY))
        finally:
            await victims.stdin.aclose()
            await victims.wait()
            await victims.stdout.aclose()


# Stopped


@pytest.mark.trio
async def test_stopped_clients_are_held_to_their_bounds_and_sent_away_and_idle_ones_stay(open_over_sockets):
    limits = LimitSettings(
        mailbox_messages=8, mailbox_bytes=Size("128KiB"), slow_consumer=Duration("300ms"), in_flight=16
    )
    settings = attrs.evolve(BRISK, limits=limits)
    async with open_over_sockets(settings, timeout_seconds=30) as local, unharmed(local):
        opened: list[FakeBackend] = []

        async def connect(user_id: str) -> FakeBackend:
            backend = FakeBackend(await small_receiver(local), far_end=None, timeout_seconds=30)
            opened.append(backend)
            await backend.open("localhost", target(user_id))
            return backend

        stopped = [f"stopped{number}" for number in range(STOPPED)]
        for user_id in stopped:
            await connect(user_id)
        idle = await connect("idle")
        ada = await local.connect("ada")
        left = set(stopped)
        named: set[str] = set()

        async def read_acks(task_status=trio.TASK_STATUS_IGNORED):
            task_status.started()
            expected = 0
            while True:
                ack = await ada.receive("event_ack")
                assert ack["id"] == expected
                expected += 1
                data = ack["data"]
                undelivered = set(data.get("undelivered", []))
                assert data["delivered_to"] + len(undelivered) == data["total_recipients"]
                # Whoever was once sent away is reached no more.
                assert not (named - undelivered) & set(stopped)
                named.update(undelivered)

        async with trio.open_nursery() as nursery:
            await nursery.start(read_acks)
            number = 0
            with trio.fail_after(60):
                while left:
                    await ada.send_event("t", [*stopped, "nobody"], "x" * 16_000, id=number)
                    number += 1
                    churner = await local.connect("churner", presence="all")
                    await churner.drop()
                    check_i5_bounds(local)
                    for connection in local.service.registry.connections():
                        assert connection.mailbox._waiting_bytes <= (1 << 20) + 16_500
                    left = set(stopped) & local.online()
                    await trio.testing.wait_all_tasks_blocked(0.01)
            await ada.send_event("t", stopped, id=number)
            await until(lambda: named == {*stopped, "nobody"})
            nursery.cancel_scope.cancel()
        assert await idle.echoes()
        assert await ada.echoes()
        assert local.online() - {"churner"} == {*HEALTHY, "idle", "ada"}
        for backend in [*opened, ada]:
            await backend.drop()


# Silent


async def close_all(streams):
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_clients_behind_a_proxy_that_stops_forwarding_are_gone_after_ping_and_pong(open_over_sockets):
    timeouts = TimeoutSettings(
        ping_interval=Duration("300ms"), ping_timeout=Duration("2s"), close=Duration("200ms")
    )
    async with open_over_sockets(Settings(timeouts=timeouts), timeout_seconds=20) as local:
        observer = await local.connect("observer", presence="all")
        async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
            proxy = Proxy(local.service.addresses[0])
            port = await nursery.start(proxy.run)
            silent = {f"silent{number}" for number in range(SILENT)}
            gone = []
            streams = []
            stack.push_async_callback(close_all, streams)

            async def listen():
                while True:
                    message = await observer.receive()
                    if message["event"] == "user_offline":
                        gone.append(message["data"]["user_id"])

            async def live(backend):
                with contextlib.suppress(Closed):
                    while True:
                        await backend.receive()

            nursery.start_soon(listen)
            for user_id in sorted(silent):
                streams.append(await trio.open_tcp_stream("127.0.0.1", port))
                backend = FakeBackend(streams[-1], far_end=None, timeout_seconds=60)
                await backend.open("localhost", target(user_id))
                nursery.start_soon(live, backend)
            # They answer pings for as long as they can be reached.
            await until(lambda: proxy.pings >= len(silent))
            assert gone == []
            assert local.online() == {*silent, "observer"}
            proxy.freeze()
            await until(lambda: local.online() == {"observer"})
            await until(lambda: len(gone) == len(silent))
            assert set(gone) == silent
            check_i4_registry(local, ["observer"])
            nursery.cancel_scope.cancel()


# Dripping


@pytest.mark.trio
async def test_heads_that_come_a_byte_at_a_time_are_408_or_in_time_and_others_are_served(open_over_sockets):
    request = head("GET", ADA, UPGRADE)
    async with open_over_sockets(BRISK, timeout_seconds=10) as local, unharmed(local):
        cyd = await local.connect("cyd")
        answers = []

        async def drip(pause_seconds):
            stream, _ = await local.open_stream()
            async with stream, trio.open_nursery() as nursery:

                async def send():
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        for byte in request:
                            await stream.send_all(bytes([byte]))
                            await trio.sleep(pause_seconds)

                nursery.start_soon(send)
                answers.append((await read_answer(stream)).status)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(count(40, 200)):
                nursery.start_soon(drip, 0.05)
            for _ in range(20):
                assert await cyd.echoes()
        assert set(answers) == {408}
        answers.clear()
        await drip(0)
        assert answers == [101]
        await cyd.close()


# Floods


@pytest.mark.trio
@pytest.mark.parametrize(
    ("begin", "flood"),
    [
        pytest.param(b"", frame(PING, b"x"), id="pings"),
        pytest.param(b"", frame(PONG), id="pongs"),
        pytest.param(frame(TEXT, fin=False), frame(CONTINUATION, fin=False), id="empty-fragments"),
        pytest.param(frame(TEXT, b"x", fin=False), frame(CONTINUATION, b"x", fin=False), id="byte-fragments"),
        pytest.param(b"", frame(TEXT, b"x"), id="byte-messages"),
    ],
)
async def test_a_flooder_that_does_not_obey_its_close_frame_is_cut_off(open_over_sockets, begin, flood):
    async with open_over_sockets(BRISK, timeout_seconds=10) as local, unharmed(local):
        bob = await local.connect("bob")
        for _ in range(count(1, 10)):
            ada = await local.connect("ada")
            async with trio.open_nursery() as nursery:
                received = bytearray()

                async def read(ada=ada, received=received):
                    received += await read_to_end(ada.stream)

                nursery.start_soon(read)
                with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
                    await ada.stream.send_all(begin)
                    while True:
                        await ada.stream.send_all(flood * 5000)
                        assert await bob.echoes()
            assert b"\x88" in received
            assert (1008).to_bytes(2, "big") in received
            assert local.online() == {*HEALTHY, "bob"}
            await ada.stream.aclose()
        await bob.close()


@pytest.mark.trio
async def test_a_flood_of_messages_in_tiny_fragments_is_answered_and_others_are_served(open_over_sockets):
    message = b'{"event":"ping"}'
    pieces = [frame(CONTINUATION if n else TEXT, message[n : n + 1], fin=n == 15) for n in range(16)]
    messages = count(1_000, 10_000)
    async with open_over_sockets(BRISK, timeout_seconds=30) as local, unharmed(local):
        ada, bob = await local.connect("ada"), await local.connect("bob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.stream.send_all, b"".join(pieces) * messages + text("ping", id="last"))
            answers = 0
            while "id" not in await ada.receive("pong"):
                answers += 1
                if answers % 100 == 0:
                    assert await bob.echoes()
        assert answers == messages
        await ada.close()
        await bob.close()
