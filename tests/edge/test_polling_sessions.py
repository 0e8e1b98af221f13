"""Sessions whose transport is polling: their keepalive, their bounds, and every way in which they end."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from engine_peers import (
    PollingClient,
    collab_packet,
    connect_packet,
    event_packet,
    events_of,
    identity,
)
from peers import head, read_answer
from tokens import SECRET

from collab.settings import (
    AuthSettings,
    Duration,
    LimitSettings,
    ServerSettings,
    Settings,
    TimeoutSettings,
)
from collab.testing import open_service
from collab.wire.close import Close, CloseCode

OPERATOR = Close(CloseCode.DISCONNECTED_BY_OPERATOR, "Disconnected by an operator")
NARROW = Settings(
    limits=LimitSettings(mailbox_messages=1, in_flight=1, slow_consumer=Duration("60s")),
)


def sessions(local):
    return local.service._acceptor.sessions.sessions()


def session_of(local, client):
    return local.service._acceptor.sessions.find(client.sid)


async def full_window(local, ada, nursery):
    """Ada's window is full, as bob reads nothing: bob, and what will be the answer to her next POST."""
    bob = await local.connect("bob")
    bob.stall()
    await ada.say(*[collab_packet(["bob"], number) for number in range(4)])
    answers = []

    async def post():
        answers.append(await ada.post(collab_packet(["cyd"], "late")))

    nursery.start_soon(post)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == []
    return bob, answers


async def held_poll(local, client):
    """A poll of which the client has asked for the answer, and takes nothing of it yet."""
    stream, far_end = await local.open_stream()
    far_end.hold()
    await stream.send_all(head("GET", client.target))
    await trio.testing.wait_all_tasks_blocked()
    return stream, far_end


@pytest.mark.trio
async def test_a_post_waits_for_the_window_of_its_user():
    async with open_service(NARROW, in_memory=True) as local, trio.open_nursery() as nursery:
        cyd = await local.connect("cyd")
        ada = await PollingClient.connect(local, "ada")
        bob, answers = await full_window(local, ada, nursery)
        bob.resume()
        assert [(await bob.receive("collab_event"))["data"]["data"] for _ in range(4)] == [0, 1, 2, 3]
        await trio.testing.wait_all_tasks_blocked()
        # Her acks fill her own mailbox, and she must fetch them first.
        assert answers == []
        for _ in range(4):
            await ada.receive("event_ack")
        assert (await cyd.receive("collab_event"))["data"]["data"] == "late"
        await ada.receive("event_ack")
        assert answers[0].body == b"ok"


@pytest.mark.trio
async def test_nothing_is_taken_of_a_post_whose_session_ended_while_it_waited():
    async with open_service(NARROW, in_memory=True) as local, trio.open_nursery() as nursery:
        cyd = await local.connect("cyd")
        ada = await PollingClient.connect(local, "ada")
        bob, _ = await full_window(local, ada, nursery)
        session_of(local, ada).connection.end(OPERATOR)
        bob.resume()
        await trio.testing.wait_all_tasks_blocked()
        await bob.send_event("t", ["cyd"], "after")
        assert (await cyd.receive("collab_event"))["data"]["data"] == "after"
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_end_of_a_session_waits_for_the_poll_behind_one_that_is_under_way():
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        bob = await local.connect("bob")
        stream, far_end = await held_poll(local, client)
        await bob.send_event("t", ["ada"], "first")
        await bob.receive("event_ack")
        await trio.testing.wait_all_tasks_blocked()
        session_of(local, client).connection.end(OPERATOR)
        await trio.testing.wait_all_tasks_blocked()
        far_end.release()
        first = (await read_answer(stream)).body.decode().split("\x1e")
        assert [event["data"] for event in events_of(first, "collab_event")] == ["first"]
        assert await client.until_end() == ["41"]
        await trio.testing.wait_all_tasks_blocked()
        assert sessions(local) == []


@pytest.mark.trio
async def test_a_session_that_ends_before_its_task_runs_is_over(autojump_clock):
    async with open_service(in_memory=True) as local:
        session = local.service._acceptor.open_session(
            origins=[], address="127.0.0.1", query="", authorization=[]
        )
        session.connection.end(OPERATOR)
        await trio.sleep(5)
        assert sessions(local) == []


@pytest.mark.trio
async def test_a_fault_of_ours_ends_one_session_and_nobody_else(monkeypatch, caplog):
    settings = Settings(auth=AuthSettings(mode="jwt", secret=SECRET))
    async with open_service(settings, in_memory=True) as local:

        async def fail(_):
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(local.service._authenticator, "authenticate", fail)
        client = await PollingClient.open(local)
        other = await PollingClient.open(local)
        await client.say(connect_packet({"token": "x"}))
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.get()).json["code"] == 1
        assert [session.sid for session in sessions(local)] == [other.sid]
        assert [record.message for record in caplog.records] == ["Connection failed"]
        caplog.clear()


@pytest.mark.trio
async def test_posts_alone_keep_no_session_alive(autojump_clock):
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        begun = trio.current_time()
        while sessions(local):
            await trio.sleep(4)
            assert trio.current_time() - begun < 30
            if local.online():
                await client.say("3")


@pytest.mark.trio
@pytest.mark.parametrize("hangs", [True, False], ids=["a poll hangs", "between polls"])
async def test_time_in_which_the_service_did_not_run_ends_no_session(hangs, autojump_clock):
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        client = await PollingClient.connect(local, "ada")
        heard = []

        async def poll():
            heard.extend(await client.poll())

        if hangs:
            nursery.start_soon(poll)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(100)
        await trio.sleep(1)
        if not hangs:
            nursery.start_soon(poll)
        await trio.sleep(1)
        # Its ping is long due, and it may answer.
        assert heard == ["2"]
        await client.say("3")
        assert local.online() == {"ada"}


@pytest.mark.trio
async def test_a_drain_cuts_a_goodbye_short_that_has_begun(autojump_clock):
    settings = Settings(
        server=ServerSettings(drain=Duration("1s")), timeouts=TimeoutSettings(close=Duration("10s"))
    )
    async with open_service(settings, in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        session_of(local, client).connection.end(OPERATOR)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        await local.service.drain()
        assert trio.current_time() - begun <= 1.1


@pytest.mark.trio
async def test_who_does_not_poll_what_was_answered_before_connect_is_a_slow_consumer(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=4))
    async with open_service(settings, in_memory=True) as local:
        client = await PollingClient.open(local)
        await client.say(*["40/other,"] * 8, connect_packet(identity("ada")))
        connection = session_of(local, client).connection
        assert local.online() == {"ada"}
        await trio.sleep(2.5)
        assert connection.close is not None
        assert connection.close.code == CloseCode.SLOW_CONSUMER


@pytest.mark.trio
async def test_what_stands_behind_a_flood_of_pongs_is_not_taken():
    settings = Settings(limits=LimitSettings(control_frames=1))
    async with open_service(settings, in_memory=True) as local:
        bob = await local.connect("bob")
        ada = await PollingClient.connect(local, "ada")
        await ada.say(*["3"] * 30, collab_packet(["bob"], "behind the flood"))
        assert await ada.until_end() == ["41"]
        await trio.testing.wait_all_tasks_blocked()
        await bob.send_event("t", ["bob"], "after")
        assert (await bob.receive("collab_event"))["data"]["data"] == "after"


@pytest.mark.trio
async def test_a_client_that_vanishes_while_its_poll_hangs_is_gone_at_once_and_no_event_is_counted_for_it(
    open_anyhow,
):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        bob = await PollingClient.connect(local, "bob")
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", bob.target, {}))
        while not session_of(local, bob)._poll_begun_at:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.aclose_forcefully(stream)
        while local.online() != {"ada"}:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await ada.send_event("t", ["bob"], 1)
        ack = (await ada.receive("event_ack"))["data"]
        assert (ack["delivered_to"], ack["undelivered"]) == (0, ["bob"])
        assert (await bob.get()).json["code"] in (1, 3)


@pytest.mark.trio
async def test_a_client_may_close_its_connection_with_the_last_byte_of_its_poll():
    async with open_service() as local:
        bob = await PollingClient.connect(local, "bob")
        for number in range(50):
            await bob.say(event_packet("ping"))
            stream, _ = await local.open_stream()
            await stream.send_all(head("GET", bob.target, {}))
            answer = b""
            while not answer.endswith(b"]"):
                answer += await stream.receive_some(65536)
            # Before the service's own side is through with it.
            stream.socket.close() if number % 2 else await trio.aclose_forcefully(stream)
            assert local.online() == {"bob"}
