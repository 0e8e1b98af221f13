"""Socket.IO over a WebSocket and over polling: who comes in, what is refused, and all rules alike."""

from __future__ import annotations

import gc
import json
import logging
from collections import Counter

import pytest
import trio
import trio.testing
from counts import count
from engine_peers import (
    POLLING,
    PollingClient,
    SocketClient,
    begin_upgrade,
    collab_packet,
    connect_packet,
    event_of,
    event_packet,
    events_of,
    identity,
    upgrade,
    with_query,
)
from peers import ask, frame
from tokens import SECRET, token

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.edge.polling import PollingSession
from collab.edge.socketio import SocketIoIntake
from collab.settings import (
    AdminSettings,
    AuditSettings,
    AuthSettings,
    Duration,
    LimitSettings,
    PolicySettings,
    ServerSettings,
    Settings,
)
from collab.testing import open_service
from collab.wire.session import SocketIoSession
from collab.wire.upgrade import UpgradeMachine

JWT = AuthSettings(mode="jwt", secret=SECRET, leeway=Duration("0s"))
OPERATOR_TOKEN = "x" * 32
TRANSPORTS = [PollingClient, SocketClient]
any_transport = pytest.mark.parametrize("kind", TRANSPORTS, ids=["polling", "websocket"])


async def ending(client):
    """What the client still hears until its session ends."""
    heard = await client.until_end()
    return heard if isinstance(client, PollingClient) else heard[0]


@pytest.mark.trio
@any_transport
@pytest.mark.parametrize(
    ("query", "auth", "code"),
    [
        (with_query("ada"), identity("eve"), "invalid_parameter"),
        ("", identity("ada\x07"), "invalid_parameter"),
        ("", identity("ada\u202e"), "invalid_parameter"),
        ("", identity("x" * 129), "invalid_parameter"),
        ("", {**identity("ada"), "backend_url": "javascript:x"}, "invalid_parameter"),
        ("", {**identity("ada"), "user_id": 7}, "invalid_parameter"),
    ],
)
async def test_an_identity_that_cannot_be_is_refused(kind, query, auth, code):
    async with open_service(in_memory=True) as local:
        client = await kind.open(local, query)
        await client.say(connect_packet(auth))
        (refusal,) = await ending(client)
        assert refusal.startswith("44{")
        assert json.loads(refusal[2:])["data"]["code"] == code
        assert local.online() == set()


@pytest.mark.trio
@any_transport
async def test_who_says_not_who_it_is_is_told_so_by_an_event(kind):
    async with open_service(in_memory=True) as local:
        client = await kind.open(local)
        await client.say(connect_packet())
        accepted, error, left = await ending(client)
        assert accepted.startswith('40{"sid"')
        assert event_of(error) == ("error", {"message": "user_id and backend_url are required"})
        assert left == "41"


@pytest.mark.trio
@any_transport
async def test_a_token_is_taken_from_the_auth_and_told_to_nobody(kind, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "audit.jsonl"
    settings = Settings(auth=JWT, audit=AuditSettings(file=str(log)))
    canaries = [token("ada"), token("eve", key="another key that is 32 characters long")]
    async with open_service(settings, in_memory=True) as local:
        ada = await kind.connect(local, "ada", token=canaries[0])
        assert local.online() == {"ada"}
        stranger = await kind.open(local)
        await stranger.say(connect_packet(identity("eve", token=canaries[1])))
        (refusal,) = await ending(stranger)
        assert json.loads(refusal[2:])["data"]["code"] == "unauthenticated"
        await ada.say(event_packet("refresh", {"token": canaries[1]}))
        error = await ada.receive("error")
        told = caplog.text + log.read_text() + refusal + json.dumps(error)
    assert not any(canary in told for canary in canaries)


@pytest.mark.trio
@any_transport
async def test_a_token_ends_the_session_when_it_ends_and_says_to_whom_it_may_send(kind, autojump_clock):
    settings = Settings(auth=JWT, policy=PolicySettings(send="token"))
    async with open_service(settings, in_memory=True, timeout_seconds=100) as local:
        ada = await kind.connect(local, "ada", token=token("ada", seconds=15, peers=["bob"]))
        await kind.connect(local, "bob", token=token("bob", seconds=9000))
        await kind.connect(local, "cyd", token=token("cyd", seconds=9000))
        begun = trio.current_time()
        await ada.say(collab_packet(["bob", "cyd"]))
        assert (await ada.receive("event_ack"))["undelivered"] == ["cyd"]
        assert local.online() == {"ada", "bob", "cyd"}
        with trio.fail_after(18):
            assert (await ending(ada))[0] == "41"
        assert 13 < trio.current_time() - begun < 18
        assert "ada" not in local.online()


@pytest.mark.trio
@any_transport
@pytest.mark.parametrize(
    "packets",
    [
        [event_packet("collab_event", {})],
        [connect_packet(identity("ada")), connect_packet(identity("ada"))],
        ["4"],
        ["7"],
        ["2"],
        ["5"],
        ["6x"],
        ["b4AAEC"],
        ["452-" + json.dumps(["x", {"_placeholder": True, "num": 0}])],
        ["4999-[]"],
        ["43[]"],
    ],
)
async def test_a_packet_that_may_not_come_ends_the_session_and_nobody_else(kind, packets):
    async with open_service(in_memory=True) as local:
        bob = await local.connect("bob")
        client = await kind.open(local)
        await client.say(*packets)
        await ending(client)
        await trio.testing.wait_all_tasks_blocked()
        assert local.online() == {"bob"}
        assert await bob.echoes()


@pytest.mark.trio
async def test_an_announced_attachment_is_refused_with_its_event_and_no_other_binary_is_taken():
    async with open_service(in_memory=True) as local:
        client = await SocketClient.connect(local, "ada")
        await client.say('451-7["collab_event",{"_placeholder":true,"num":0}]')
        await client.backend.stream.send_all(frame(2, b"\0\1"))
        assert (await client.receive("error"))["message"] == "Invalid event format"
        await client.say(event_packet("ping"))
        await client.receive("pong")
        await client.backend.stream.send_all(frame(2, b"\0\1"))
        assert (await client.until_end())[1][0] == 1003


@pytest.mark.trio
@any_transport
async def test_floods_of_pongs_and_of_errors_end_with_1008(kind):
    settings = Settings(limits=LimitSettings(control_frames=1, errors=1))
    async with open_service(settings, in_memory=True) as local:
        for user_id, packet in (("ada", "3"), ("bob", event_packet("nothing"))):
            client = await kind.connect(local, user_id)
            (connection,) = local.service.registry.of_user(user_id)
            await client.say(*[packet] * 30)
            assert (await ending(client))[-1] == "41"
            assert connection.close.code == 1008


@pytest.mark.trio
async def test_pings_come_on_schedule_even_while_the_client_talks(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=1000) as local:
        client = await SocketClient.connect(local, "ada")
        pings = []
        begun = trio.current_time()
        while trio.current_time() - begun < 100:
            with trio.move_on_after(3):
                while True:
                    if await client.backend.receive_text() == "2":
                        pings.append(round(trio.current_time() - begun))
                        await client.say("3")
            await client.say(event_packet("ping"))
        assert [round(ping / 25) for ping in pings] == [1, 2, 3, 4][: len(pings)]
        assert len(pings) >= 3


@pytest.mark.trio
async def test_silence_over_the_websocket_ends_with_4005(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=1000) as local:
        client = await SocketClient.connect(local, "ada")
        assert await client.backend.receive_text() == "2"
        assert (await client.backend.wait_closed()).code == 4005
        assert 44 < trio.current_time() < 48


@pytest.mark.trio
async def test_polls_bring_pings_and_a_session_without_polls_ends(autojump_clock):
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        begun = trio.current_time()
        for number in range(1, 4):
            assert await client.poll() == ["2"]
            assert abs(trio.current_time() - begun - 25 * number) < 3.5
            await client.say("3")
        stopped = trio.current_time()
        while local.online():  # noqa: ASYNC110 - the time of its end is the point
            await trio.sleep(0.5)
        assert 19 < trio.current_time() - stopped < 23
        await trio.sleep(3)
        assert (await client.get()).json["code"] == 1


@pytest.mark.trio
@any_transport
async def test_without_a_connect_the_session_ends_with_the_time_of_a_handshake(kind, autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=1000) as local:
        client = await kind.open(local)
        assert await ending(client) == []
        assert trio.current_time() < 7.5


@pytest.mark.trio
async def test_abandoned_handshakes_leave_nothing(autojump_clock):
    async with open_service(in_memory=True) as local:
        root = trio.lowlevel.current_root_task()

        def tasks():
            waiting, found = [root], 0
            while waiting:
                task = waiting.pop()
                found += 1
                waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            return found

        await (await PollingClient.open(local)).say("1")
        await trio.sleep(10)
        before = tasks()
        for _ in range(count(200, 10_000)):
            assert (await ask(local, "GET", POLLING)).status == 200
        assert len(local.service._acceptor.sessions.sessions()) > 100
        await trio.sleep(10)
        assert local.service._acceptor.sessions.sessions() == []
        assert tasks() == before
        gc.collect()
        # Of all that a session consists of, what a loop variable holds may be left: one, however many came.
        kinds = (PollingSession, SocketIoIntake, SocketIoSession, Connection, Mailbox, UpgradeMachine)
        kept = Counter(type(found) for found in gc.get_objects() if type(found) in kinds)
        assert all(number <= 1 for number in kept.values()), kept
        assert local.service._acceptor._admission._count == 0


@pytest.mark.trio
async def test_sessions_count_as_connections_and_an_upgrade_takes_no_second_place():
    settings = Settings(limits=LimitSettings(connections=3, connections_per_address=2))
    async with open_service(settings, in_memory=True) as local:
        first = await PollingClient.connect(local, "ada")
        await PollingClient.connect(local, "bob")
        refused = await ask(local, "GET", POLLING)
        assert refused.refusal == (429, "too_many_connections")
        assert refused.headers["retry-after"]
        socket = await upgrade(first)
        await socket.say(event_packet("ping"))
        await socket.receive("pong")
        assert local.service._acceptor._admission._count == 2
        await socket.say("1")
        await socket.until_end()
        await trio.testing.wait_all_tasks_blocked()
        await PollingClient.open(local)


@pytest.mark.trio
async def test_who_connects_too_often_is_refused_also_by_polling():
    settings = Settings(limits=LimitSettings(connects_per_second=1))
    async with open_service(settings, in_memory=True) as local:
        answers = [await ask(local, "GET", POLLING) for _ in range(12)]
        assert answers[0].status == 200
        assert answers[-1].refusal == (429, "rate_limited")
        assert int(answers[-1].headers["retry-after"]) >= 1


@pytest.mark.trio
async def test_who_is_refused_late_is_not_taken_for_one_that_never_said_who_it_is(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=60) as local:
        client = await SocketClient.open(local, with_query("ada"))
        await trio.sleep(4)
        await client.say(connect_packet(identity("eve")))
        packets, closed = await client.until_end()
        assert packets[0].startswith("44")
        assert closed[0] == 1000


@pytest.mark.trio
async def test_1013_a_user_who_connects_too_often_may_come_again_and_is_not_told_to_stay_away():
    settings = Settings(limits=LimitSettings(connects_per_second=1))
    async with open_service(settings, in_memory=True) as local:
        local.service._acceptor._connects_by_user.spend("ada", 10, trio.current_time())
        client = await SocketClient.open(local)
        await client.say(connect_packet(identity("ada")))
        packets, closed = await client.until_end()
        assert (packets, closed[0]) == ([], 1013)


@pytest.mark.trio
async def test_who_does_not_poll_is_a_slow_consumer_and_the_ack_says_so(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=4))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada = await local.connect("ada")
        await PollingClient.connect(local, "bob")
        (bob,) = local.service.registry.of_user("bob")
        for number in range(6):
            await ada.send_event("t", ["bob"], number)
        acks = [(await ada.receive("event_ack"))["data"] for _ in range(6)]
        assert [ack.get("undelivered") for ack in acks] == [None] * 4 + [["bob"]] * 2
        assert bob.close.code == 4003
        assert 1.9 < trio.current_time() < 3


@pytest.mark.trio
@any_transport
async def test_an_operator_sees_tells_and_ends_it_and_policies_hold(kind, tmp_path):
    log = tmp_path / "audit.jsonl"
    policy = tmp_path / "policy.toml"
    policy.write_text('pairs = [["ada", "bob"]]')
    settings = Settings(
        admin=AdminSettings(token=OPERATOR_TOKEN),
        auth=JWT,
        audit=AuditSettings(file=str(log)),
        policy=PolicySettings(send="file", file=str(policy)),
    )
    bearing = {"authorization": f"Bearer {OPERATOR_TOKEN}", "content-type": "application/json"}
    async with open_service(settings, in_memory=True) as local:
        ada = await kind.connect(local, "ada", token=token("ada"))
        bob = await local.connect("bob", token=token("bob"))
        await local.connect("cyd", token=token("cyd"))
        await ada.say(collab_packet(["bob", "cyd"], 1))
        assert (await ada.receive("event_ack"))["undelivered"] == ["cyd"]
        assert (await bob.receive("collab_event"))["data"]["data"] == 1
        listed = (await ask(local, "GET", "/api/admin/connections", headers=bearing)).json
        dialects = {each["user_id"]: each["dialect"] for each in listed["connections"]}
        assert dialects == {"ada": "socketio", "bob": "plain", "cyd": "plain"}
        body = json.dumps({"message": "hello"}).encode()
        answer = await ask(local, "POST", "/api/admin/notice", body, bearing)
        assert answer.status == 200, answer
        assert (await ada.receive("notice"))["message"] == "hello"
        await ask(
            local,
            "POST",
            "/api/admin/users/ada/disconnect",
            b"{}",
            bearing,
        )
        assert (await ending(ada))[-1] == "41"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["user_id"] for line in lines if line.get("dialect") == "socketio"] == ["ada"]
    assert {"route", "evict"} <= {line["event"] for line in lines if line.get("user_id") == "ada"}


@pytest.mark.trio
@pytest.mark.parametrize("how", ["polling", "hanging", "websocket", "upgraded", "probing"])
async def test_a_drain_is_heard_and_ends_in_time(how, autojump_clock):
    settings = Settings(server=ServerSettings(drain=Duration("5s")))
    async with (
        open_service(settings, in_memory=True, timeout_seconds=60) as local,
        trio.open_nursery() as nursery,
    ):
        client = await (SocketClient if how == "websocket" else PollingClient).connect(local, "ada")
        if how == "upgraded":
            client = await upgrade(client)
            await client.say(event_packet("ping"))
            await client.receive("pong")
        if how == "probing":
            await begin_upgrade(client)
        heard, has_heard = [], trio.Event()

        async def listen():
            heard.append(await client.until_end())
            has_heard.set()

        # Beside a probe no poll hangs, and no client polls.
        is_silent = how in ("polling", "probing")
        if not is_silent:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        nursery.start_soon(local.service.drain)
        if is_silent:
            await trio.testing.wait_all_tasks_blocked()
            assert (await client.request("GET", POLLING)).status == 503
            await listen()
        await has_heard.wait()
        packets = heard[0] if isinstance(client, PollingClient) else heard[0][0]
        assert len(events_of(packets, "service_shutdown")) == 1
        if isinstance(client, SocketClient):
            assert heard[0][1][0] == 1001
        assert trio.current_time() - begun < 5
        await local.service.drain()
        assert trio.current_time() - begun < 5
