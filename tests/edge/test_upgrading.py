"""From polling to a WebSocket: nothing lost, nothing twice, and whatever dies on the way."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
import trio.testing
from engine_peers import (
    PollingClient,
    begin_upgrade,
    collab_packet,
    events_of,
    upgrade,
)
from peers import frame, head
from test_polling_sessions import NARROW, OPERATOR, full_window, session_of, sessions

from collab.settings import AuditSettings, Duration, ServerSettings, Settings
from collab.testing import open_service


@pytest.mark.trio
async def test_over_the_websocket_no_close_packet_is_sent(open_anyhow):
    async with open_anyhow() as local:
        client = await PollingClient.connect(local, "ada")
        socket = await upgrade(client)
        await socket.say("42" + json.dumps(["ping"]))
        await socket.receive("pong")
        (connection,) = local.service.registry.of_user("ada")
        connection.end(OPERATOR)
        assert await socket.until_end() == (["41"], (4004, OPERATOR.reason))


@pytest.mark.trio
async def test_nothing_is_taken_behind_an_upgrade_whose_session_ended_meanwhile(tmp_path):
    log = tmp_path / "audit.jsonl"
    settings = attrs.evolve(NARROW, audit=AuditSettings(file=str(log)))
    async with open_service(settings, in_memory=True) as local, trio.open_nursery() as nursery:
        cyd = await local.connect("cyd")
        ada = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(ada)
        bob, _ = await full_window(local, ada, nursery)
        await socket.say("5", collab_packet(["cyd"], "behind"))
        await trio.testing.wait_all_tasks_blocked()
        session_of(local, ada).connection.end(OPERATOR)
        bob.resume()
        _, closed = await socket.until_end()
        assert closed == (4004, OPERATOR.reason)
        await bob.send_event("t", ["cyd"], "after")
        assert (await cyd.receive("collab_event"))["data"]["data"] == "after"
        nursery.cancel_scope.cancel()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["user_id"] for line in lines if line["event"] == "evict"] == ["ada"]


class AtStep(trio.abc.Instrument):
    """Does something once, before the n-th step from now."""

    def __init__(self, at_step, act):
        self.steps = 0
        self.at_step = at_step
        self.act = act

    def before_task_step(self, task):
        self.steps += 1
        if self.steps == self.at_step:
            self.act()


@pytest.mark.trio
async def test_a_drain_that_begins_at_any_step_of_an_upgrade_is_heard():
    settings = Settings(server=ServerSettings(drain=Duration("2s")))
    step, steps = 1, 2
    while step < steps:
        async with open_service(settings, in_memory=True) as local:
            client = await PollingClient.connect(local, "ada")
            socket = await begin_upgrade(client)
            local.service.status.draining = True
            acceptor = local.service._acceptor

            def begin_drain(acceptor=acceptor):
                acceptor.stop_reading()
                acceptor.send_away(trio.current_time() + 2)

            instrument = AtStep(step, begin_drain)
            trio.lowlevel.add_instrument(instrument)
            await socket.say("5")
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(instrument)
            steps = instrument.steps
            step += 1
            if instrument.steps < instrument.at_step:
                break
            with trio.fail_after(1):
                _, closed = await socket.until_end()
            assert closed[0] == 1001, step
    assert step > 5


@pytest.mark.trio
async def test_binary_messages_beside_the_probe_are_not_hoarded():
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        piece, taken = frame(2, bytes(60_000)), 0
        far_end = socket.backend._far_end
        receive = far_end.receive_some

        async def count(max_bytes=None):
            nonlocal taken
            data = await receive(max_bytes)
            taken += len(data)
            return data

        far_end.receive_some = count
        for _ in range(100):
            await socket.backend.stream.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < taken < 5 * len(piece)


@pytest.mark.trio
async def test_the_websocket_of_an_upgrade_ends_with_its_session(autojump_clock):
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        begun = trio.current_time()
        session_of(local, client).connection.end(OPERATOR)
        assert await socket.until_end() == ([], (4004, OPERATOR.reason))
        assert trio.current_time() - begun < 1
        assert await client.until_end() == ["41"]


@pytest.mark.trio
async def test_an_upgrade_does_not_wait_for_ever_for_a_poll_whose_end_is_not_told(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=100) as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        session_of(local, client).begin_poll()
        await socket.say("5")
        begun = trio.current_time()
        _, closed = await socket.until_end()
        assert closed[0] == 4005
        assert trio.current_time() - begun < 30
        assert sessions(local) == []
        assert local.online() == set()


@pytest.mark.trio
async def test_a_breach_of_the_protocol_behind_the_upgrade_is_answered(open_anyhow):
    async with open_anyhow() as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        await socket.backend.stream.send_all(frame(1, b"5") + frame(7, b"x"))
        _, closed = await socket.until_end()
        assert closed[0] == 1002


@pytest.mark.trio
async def test_what_a_lost_poll_may_have_brought_is_not_sent_again(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=100) as local:
        client = await PollingClient.connect(local, "ada")
        bob = await local.connect("bob")
        socket = await begin_upgrade(client)
        stream, far_end = await local.open_stream()
        far_end.hold()
        await bob.send_event("t", ["ada"], "once")
        await bob.receive("event_ack")
        await stream.send_all(head("GET", client.target))
        await trio.testing.wait_all_tasks_blocked()
        await socket.say("5")
        await trio.testing.wait_all_tasks_blocked()
        local.service._door.abort_exchanges()
        packets, closed = await socket.until_end()
        assert events_of(packets, "collab_event") == []
        assert closed[0] == 4005
        await trio.aclose_forcefully(stream)
