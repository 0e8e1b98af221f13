"""Cancelled at every one of their steps, a poll, a post and an upgrade leave their session whole or ended."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from engine_peers import PollingClient, begin_upgrade, collab_packet, events_of
from peers import head

from collab.testing import Closed, open_service


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


async def a_request(local, client, method, body=b""):
    stream, _ = await local.open_stream()
    await stream.send_all(head(method, client.target, {"content-length": str(len(body))}) + body)
    return stream


async def poll(local, client):
    return await a_request(local, client, "GET")


async def post(local, client):
    return await a_request(local, client, "POST", collab_packet(["bob"], "posted").encode())


async def upgrade(local, client):
    try:
        socket = await begin_upgrade(client)
    except Closed:
        return None
    await socket.say("5", collab_packet(["bob"], "posted"))
    return socket.backend.stream


@pytest.mark.trio
@pytest.mark.parametrize("path", [poll, post, upgrade], ids=lambda path: path.__name__)
async def test_a_request_cancelled_at_any_step_leaves_its_session_whole_or_ended(
    path, autojump_clock, caplog
):
    # At step 0 nothing is cut, and the steps are counted.
    step = steps = 0
    while step <= steps:
        async with open_service(in_memory=True, timeout_seconds=100) as local:
            service = local.service
            client = await PollingClient.connect(local, "ada")
            bob = await local.connect("bob")
            before = set(service._streams)
            await bob.send_event("t", ["ada"], "once")
            await bob.receive("event_ack")

            def cut(service=service, before=before):
                for scope in service._streams - before:
                    scope.cancel()

            instrument = AtStep(step, cut)
            trio.lowlevel.add_instrument(instrument)
            stream = await path(local, client)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(instrument)
            steps = steps or instrument.steps
            step += 1
            if stream is not None:
                await trio.aclose_forcefully(stream)
            # Whoever has it now ends it for want of a peer, and gives everything back.
            if path is not upgrade and (answer := await client.get()).status == 200:
                heard = events_of(answer.body.decode().split("\x1e"), "collab_event")
                assert [event["data"] for event in heard] in ([], ["once"])
            await trio.sleep(60)
            assert service._acceptor.sessions.sessions() == []
            assert local.online() <= {"bob"}
            assert service._acceptor._admission._count <= 1
            assert not caplog.records
    assert step > 8
