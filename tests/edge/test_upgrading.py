"""From polling to a WebSocket: nothing lost, nothing twice, and whatever dies on the way."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
import trio.testing
from counts import count
from engine_peers import (
    WEBSOCKET,
    PollingClient,
    SocketClient,
    begin_upgrade,
    collab_packet,
    event_packet,
    events_of,
    upgrade,
)
from peers import frame, head
from peers import upgrade as peer_upgrade
from test_polling_sessions import NARROW, OPERATOR, full_window, session_of, sessions

from collab.settings import AuditSettings, Duration, ServerSettings, Settings
from collab.testing import open_service
from collab.wire.close import Close, CloseCode


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
async def test_a_binary_message_beside_the_probe_ends_the_upgrade_and_the_polls_go_on():
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        await socket.backend.stream.send_all(frame(2, bytes(60_000)))
        assert (await socket.until_end())[1][0] == 1002
        await client.say(event_packet("ping"))
        assert "timestamp" in await client.receive("pong")


@pytest.mark.trio
async def test_the_websocket_of_an_upgrade_ends_with_its_session(autojump_clock):
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        begun = trio.current_time()
        session_of(local, client).connection.end(OPERATOR)
        assert await socket.until_end() == ([], (4004, OPERATOR.reason))
        assert trio.current_time() - begun < 1.5
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


ACTIONS = ("event", "poll", "probe", "upgrade")


def orders(sent=3, polled=2):
    """Every order of so many events, polls, and the two packets of an upgrade."""

    def extend(done, left):
        if not any(left.values()):
            yield done
        for action in left:
            if left[action] and (action != "upgrade" or "probe" in done):
                yield from extend((*done, action), {**left, action: left[action] - 1})

    yield from extend((), {"event": sent, "poll": polled, "probe": 1, "upgrade": 1})


@pytest.mark.trio
@pytest.mark.parametrize("waits", [True, False], ids=["settled", "at once"])
async def test_nothing_is_lost_doubled_or_overtaken_at_any_interleaving_of_an_upgrade(waits):
    async with open_service(in_memory=True) as local:
        bob = await local.connect("bob")
        for order in list(orders())[:: count(3, 1)]:
            client = await PollingClient.connect(local, "ada")
            socket = SocketClient(await local.open(f"{WEBSOCKET}&sid={client.sid}"))
            polled, sent = [], 0
            async with trio.open_nursery() as nursery:

                async def poll(client=client, polled=polled):
                    answer = await client.get()
                    if answer.status == 200:
                        polled.extend(answer.body.decode().split("\x1e"))

                polls = 0
                for action in order:
                    if action == "event":
                        await bob.send_event("t", ["ada"], sent)
                        sent += 1
                    elif action == "poll" and not any(
                        task.name.endswith("poll") for task in nursery.child_tasks
                    ):
                        polls += 1
                        nursery.start_soon(poll)
                    elif action in ("probe", "upgrade"):
                        await socket.say("2probe" if action == "probe" else "5")
                    if waits:
                        await trio.testing.wait_all_tasks_blocked()
            await bob.send_event("t", ["ada"], sent)
            heard = events_of(polled, "collab_event")
            while not heard or heard[-1]["data"] != sent:
                packet = await socket.next()
                heard += events_of([packet], "collab_event")
            assert [event["data"] for event in heard] == list(range(sent + 1)), order
            await socket.say("1")
            await socket.until_end()
            for _ in range(sent + 1):
                await bob.receive("event_ack")


@pytest.mark.trio
@pytest.mark.parametrize("said", [[], ["2probe"], ["x"], ["5"], ["2probe", "2probe"], ["40"]])
async def test_a_websocket_that_does_not_go_through_with_it_leaves_the_polls_as_they_were(said, open_anyhow):
    async with open_anyhow() as local:
        client = await PollingClient.connect(local, "ada")
        bob = await local.connect("bob")
        socket = await begin_upgrade(client, probe=False)
        second = await peer_upgrade(local, f"{WEBSOCKET}&sid={client.sid}")
        assert (second.status, second.json["code"]) == (400, 3)
        await socket.say(*said)
        if said in ([], ["2probe"]):
            await socket.backend.drop()
        else:
            _, closed = await socket.until_end()
            assert closed[0] == 1002
        await bob.send_event("t", ["ada"], "still here")
        assert (await client.receive("collab_event"))["data"] == "still here"
        with trio.fail_after(5):
            while session_of(local, client).upgrade.state.name != "NONE":
                await trio.lowlevel.checkpoint()
        again = await upgrade(client)
        await again.say(collab_packet(["bob"], "moved"))
        assert (await bob.receive("collab_event"))["data"]["data"] == "moved"
        assert (await client.get()).json["code"] == 1


@pytest.mark.trio
async def test_what_a_half_fetched_mailbox_holds_goes_first(open_anyhow):
    async with open_anyhow() as local:
        client = await PollingClient.connect(local, "ada")
        bob = await local.connect("bob")
        for number in range(40):
            await bob.send_event("t", ["ada"], number)
            await bob.receive("event_ack")
        heard = events_of(await client.poll(), "collab_event")
        socket = await begin_upgrade(client)
        await socket.say("5", *[collab_packet(["ada"], number) for number in (40, 41)])
        while len(heard) < 42:
            heard.append(await socket.receive("collab_event"))
        assert [event["data"] for event in heard] == list(range(42))


@pytest.mark.trio
async def test_an_end_between_the_probe_and_the_upgrade_is_heard_over_the_websocket():
    async with open_service() as local:
        client = await PollingClient.connect(local, "ada")
        socket = await begin_upgrade(client)
        (ada,) = local.service.registry.of_user("ada")
        ada.end(Close(CloseCode.DISCONNECTED_BY_OPERATOR, "The operator"))
        await socket.say("5")
        with trio.fail_after(5):
            packets, closed = await socket.until_end()
        assert "41" in packets
        assert closed[0] == 4004
