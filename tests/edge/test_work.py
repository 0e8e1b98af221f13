"""How much work an event takes: counted, not timed."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import pytest
import trio
import trio.lowlevel
import trio.testing
from peers import event_text, reset, text

from collab.edge import tap
from collab.settings import Duration, LimitSettings, Settings
from collab.testing import open_service
from collab.wire.plain import PLAIN


class Switches(trio.abc.Instrument):
    """Counts how often tasks of the service were scheduled, by name, and which were started."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.spawned: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps[_short(task)] += 1

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.spawned[_short(task)] += 1


def _short(task: trio.lowlevel.Task) -> str:
    return task.name.removeprefix("collab.")


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every non-blocking write of the service."""
    seen: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        seen.append(data)
        return os.write(descriptor, data)

    monkeypatch.setattr(tap, "os", SimpleNamespace(read=os.read, write=write))
    return seen


@pytest.mark.trio
@pytest.mark.parametrize("pairs", [1, 10])
async def test_a_round_takes_one_step_of_the_pump_and_none_of_any_other_task_of_the_service(pairs, writes):
    async with open_service() as local:
        senders = [await local.connect(f"a{number}") for number in range(pairs)]
        recipients = [await local.connect(f"b{number}") for number in range(pairs)]
        frames = [event_text([f"b{number}"], "x" * 200) for number in range(pairs)]
        sockets = [backend.stream.socket for backend in (*senders, *recipients)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        switches = Switches()
        trio.lowlevel.add_instrument(switches)
        writes.clear()
        rounds = 20
        for _ in range(rounds):
            for sender, frame in zip(senders, frames, strict=True):
                os.write(sender.stream.socket.fileno(), frame)
            for opened in sockets:
                await opened.recv(65536)
        trio.lowlevel.remove_instrument(switches)
        # An event and its ack: one write each.
        assert len(writes) == 2 * rounds * pairs
        mine = {name: steps for name, steps in switches.steps.items() if "Pump.run" in name}
        assert sum(mine.values()) <= 2 * rounds
        # Nothing else of a connection or of the router ran: no hop, no writer, no reader of trio-websocket.
        others = [n for n in switches.steps if "Router" in n or "Life" in n or "websocket" in n.lower()]
        assert others == []
        assert not any("Life" in name for name in switches.spawned)


@pytest.mark.trio
async def test_what_is_read_together_is_written_together(writes):
    async with open_service() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        writes.clear()
        await ada.stream.send_all(event_text(["bob"], "x" * 20) * 16)
        for _ in range(16):
            await bob.receive("collab_event")
            await ada.receive("event_ack")
        assert len(writes) == 2, [(len(w), w.count(b"collab_event"), w.count(b"event_ack")) for w in writes]
        assert [data.count(b"collab_event") for data in sorted(writes, key=len)] == [0, 16]


@pytest.mark.trio
async def test_an_event_to_100_recipients_is_built_once_and_the_same_object_is_written_to_each(
    writes, monkeypatch
):
    built = []
    original = type(PLAIN).event_frame

    def event_frame(self, event, from_user):
        built.append(original(self, event, from_user))
        return built[-1]

    monkeypatch.setattr(type(PLAIN), "event_frame", event_frame)
    async with open_service() as local:
        ada = await local.connect("ada")
        users = [f"u{number}" for number in range(100)]
        crowd = [await local.connect(user_id) for user_id in users]
        writes.clear()
        await ada.send_event("t", users, "x" * 200)
        for backend in crowd:
            assert (await backend.receive())["data"]["data"] == "x" * 200
        assert (await ada.receive("event_ack"))["data"]["delivered_to"] == 100
        assert len(built) == 1
        # No copy on the way: the very object that was built, and the ack.
        assert sum(data is built[0] for data in writes) == 100
        assert len(writes) == 101


@pytest.mark.trio
async def test_connections_that_never_block_have_two_tasks_and_start_no_others():
    async with open_service() as local:
        await local.connect("first")
        switches = Switches()
        trio.lowlevel.add_instrument(switches)
        crowd = [await local.connect(f"u{number}") for number in range(10)]
        for backend in crowd:
            assert await backend.echoes()
            await backend.send_event("t", ["u0"])
        await trio.testing.wait_all_tasks_blocked(0.02)
        trio.lowlevel.remove_instrument(switches)
        # The connection itself and trio-websocket's reader; no writer.
        of_service = {n: count for n, count in switches.spawned.items() if "attempt_connect" not in n}
        assert sum(of_service.values()) == 2 * 10, of_service


@pytest.mark.trio
async def test_presence_that_nobody_wants_costs_no_write(writes):
    async with open_service() as local:
        crowd = [await local.connect(f"u{number}") for number in range(10)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        # One `connected` each.
        assert len(writes) == len(crowd)


@pytest.mark.trio
async def test_one_stalled_reader_holds_bounded_memory():
    limits = LimitSettings(mailbox_messages=16, in_flight=16, slow_consumer=Duration("20s"))
    async with open_service(Settings(limits=limits)) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        frame = event_text(["bob"], "x" * 20_000)
        with trio.move_on_after(1):
            # Until the kernel's buffers are full; the acks wait in the kernel too.
            while True:
                await ada.stream.send_all(frame)
        tracemalloc.start()
        with trio.move_on_after(0.3):
            while True:
                await ada.stream.send_all(frame)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        (of_bob,) = local.service.registry.of_user("bob")
        (of_ada,) = local.service.registry.of_user("ada")
        assert of_bob.mailbox.messages <= 16
        assert not of_ada.may_read()
        assert peak < 2 << 20
        for backend in (ada, bob):
            reset(backend.stream)


# Backpressure, end to end


@pytest.mark.trio
async def test_one_stalled_reader_among_many_holds_up_its_own_senders_alone(open_over_sockets):
    limits = LimitSettings(mailbox_messages=8, in_flight=16, slow_consumer=Duration("700ms"))
    async with open_over_sockets(Settings(limits=limits), timeout_seconds=10) as local:
        sender = await local.connect("sender")
        stalled = await local.connect("stalled")
        pairs = [(await local.connect(f"a{n}"), await local.connect(f"b{n}"), f"b{n}") for n in range(10)]
        (of_stalled,) = local.service.registry.of_user("stalled")
        (of_sender,) = local.service.registry.of_user("sender")
        acks: list[dict] = []
        acknowledged = trio.Event()
        highest = 0

        async def send_to_the_stalled_one() -> None:
            number = 0
            while of_stalled.close is None:
                await sender.send_event("t", ["stalled", "b0"], "x" * 20_000, id=number)
                number += 1
                await trio.lowlevel.checkpoint()
            await sender.send_event("last", [], id="last")

        async def read_acks() -> None:
            while not acks or acks[-1]["id"] != "last":
                acks.append(await sender.receive("event_ack"))
            acknowledged.set()

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 20
            nursery.start_soon(send_to_the_stalled_one)
            nursery.start_soon(read_acks)
            exchanged = 0
            while of_stalled.close is None:
                for ada, bob, user_id in pairs[1:]:
                    await ada.send_event("t", [user_id], exchanged)
                    assert (await bob.receive())["data"]["data"] == exchanged
                    assert (await ada.receive())["data"]["delivered_to"] == 1
                    assert of_stalled.mailbox.messages <= 8
                    highest = max(highest, of_stalled.mailbox.messages)
                # b0 reads what the sender sent to both of them, also while the other one stalls.
                with trio.move_on_after(0.001):
                    while True:
                        await pairs[0][1].receive()
                exchanged += of_stalled.mailbox.has_waiting
            nursery.start_soon(_read_on, pairs[0][1])
            with trio.fail_after(10):
                await acknowledged.wait()
            nursery.cancel_scope.cancel()
        assert acknowledged.is_set()
        # The others went on while the sender waited.
        assert exchanged > 5
        assert highest == 8
        assert of_stalled.close is not None
        assert of_stalled.close.code == 4003
        # One ack for each event, in order, and from some event on the stalled one is named.
        assert [ack["id"] for ack in acks[:-1]] == list(range(len(acks) - 1))
        named = ["stalled" in ack["data"].get("undelivered", []) for ack in acks[:-1]]
        assert named == sorted(named)
        assert any(named)
        assert not all(named)
        assert all("b0" not in ack["data"].get("undelivered", []) for ack in acks)
        assert of_sender.in_flight == 0
        # Everything that was acknowledged as delivered had been written or lost with the eviction alone.
        heard = 0
        closed = None
        while closed is None:
            try:
                await stalled.receive("collab_event")
                heard += 1
            except Exception as error:
                closed = error
        assert getattr(closed, "code", None) in (4003, 1006)
        assert heard <= named.count(False)


async def _read_on(backend) -> None:
    while True:
        await backend.receive()


@pytest.mark.trio
async def test_a_burst_of_one_read_to_a_reader_that_keeps_up_evicts_nobody(open_anyhow):
    async with open_anyhow(timeout_seconds=10) as local:
        ada = await local.connect("ada")
        wire = b"".join(text("ping") for _ in range(2700))
        assert len(wire) <= 65536
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.stream.send_all, wire)
            for _ in range(2700):
                assert (await ada.receive())["event"] == "pong"
        assert local.online() == {"ada"}
