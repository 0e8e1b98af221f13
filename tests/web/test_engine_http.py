"""Engine.IO over HTTP, as a client sees it: the handshake, polls, posts, and what is refused."""

from __future__ import annotations

import json

import pytest
import trio
from engine_peers import (
    POLLING,
    WEBSOCKET,
    PollingClient,
    SocketClient,
    collab_packet,
    connect_packet,
    event_of,
    events_of,
    identity,
    with_query,
)
from peers import ask, upgrade

from collab.settings import HttpSettings, LimitSettings, OriginSettings, Settings
from collab.testing import open_service

ORIGIN = {"origin": "http://app.example"}


@pytest.mark.trio
async def test_the_handshake_says_what_the_client_must_know(open_anyhow):
    async with open_anyhow() as local:
        answer = await ask(local, "GET", POLLING)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
        assert answer.headers["connection"] == "close"
        assert answer.body[:1] == b"0"
        handshake = json.loads(answer.body[1:])
        sid = handshake.pop("sid")
        assert handshake == {
            "upgrades": ["websocket"],
            "pingInterval": 25_000,
            "pingTimeout": 20_000,
            "maxPayload": 65_536,
        }
        assert len(sid) == 20
        assert (await PollingClient.open(local)).sid != sid
        socket = await SocketClient.open(local)
        assert socket.handshake.pop("sid") not in ("", sid)
        assert socket.handshake == {**handshake, "upgrades": []}


@pytest.mark.trio
async def test_the_path_may_lack_its_last_slash():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", POLLING.replace("/?", "?"))
        assert answer.status == 200
        sid = json.loads(answer.body[1:])["sid"]
        target = f"/socket.io?EIO=4&transport=polling&sid={sid}"
        assert (await ask(local, "POST", target, connect_packet(identity("ada")).encode())).body == b"ok"
        assert local.online() == {"ada"}


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/socket.io/x", "/socket.io//", "/socket.iox", "/engine.io/", "/Socket.io"])
async def test_nothing_is_at_other_paths(path):
    async with open_service(in_memory=True) as local:
        query = POLLING.partition("?")[2]
        assert (await ask(local, "GET", f"{path}?{query}")).refusal == (404, "not_found")
        assert (await ask(local, "POST", f"{path}?{query}", b"40")).refusal == (404, "not_found")
        assert (await upgrade(local, f"{path}?{WEBSOCKET.partition('?')[2]}")).refusal == (404, "not_found")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "query", "number"),
    [
        ("GET", "", 0),
        ("GET", "EIO=4", 0),
        ("GET", "EIO=4&transport=", 0),
        ("GET", "EIO=4&transport=flashsocket", 0),
        ("GET", "EIO=4&transport=POLLING", 0),
        ("POST", "EIO=4&transport=abc&sid=x", 0),
        ("GET", "EIO=4&transport=polling&sid=nobody", 1),
        ("POST", "EIO=4&transport=polling&sid=nobody", 1),
        ("POST", "EIO=4&transport=polling", 2),
        ("PUT", "EIO=4&transport=polling", 2),
        ("DELETE", "EIO=4&transport=polling", 2),
        ("PATCH", "EIO=4&transport=polling", 2),
        ("PUT", "EIO=4&transport=polling&sid=x", 3),
        ("GET", "EIO=4&transport=websocket", 3),
        ("GET", "EIO=4&transport=polling&j=0", 3),
        ("GET", "EIO=4&transport=polling&sid=x&sid=y", 3),
        ("GET", "EIO=4&transport=polling&transport=websocket", 3),
        ("GET", "EIO=4&transport=polling&sid=%ff", 3),
        ("GET", "EIO=3&transport=polling", 5),
        ("GET", "transport=polling", 5),
        ("GET", "EIO=&transport=polling", 5),
        ("GET", "EIO=5&transport=polling", 5),
    ],
)
async def test_what_is_no_request_of_engine_io_gets_the_error_of_the_protocol(method, query, number):
    async with open_service(in_memory=True) as local:
        answer = await ask(
            local, method, f"/socket.io/?{query}", b"" if method != "GET" else None, {**ORIGIN}
        )
        assert answer.status == 400
        body = answer.json
        assert body["code"] == number
        assert body["message"]
        assert answer.headers["access-control-allow-origin"] == "*"
        assert local.service._acceptor.sessions.sessions() == []


@pytest.mark.trio
async def test_a_head_opens_nothing_and_has_no_body():
    async with open_service(in_memory=True) as local:
        for target in (POLLING, f"{POLLING}&sid=x"):
            answer = await ask(local, "HEAD", target)
            assert (answer.status, answer.body) == (400, b"")
        assert local.service._acceptor.sessions.sessions() == []


@pytest.mark.trio
async def test_a_page_of_another_origin_may_not_open_a_session():
    settings = Settings(origins=OriginSettings(allowed=("http://app.example",)))
    async with open_service(settings, in_memory=True) as local:
        answer = await ask(local, "GET", POLLING, headers={"origin": "http://evil.example"})
        assert (answer.status, answer.json) == (403, {"code": 4, "message": "Forbidden"})
        assert (await upgrade(local, WEBSOCKET, {"origin": "http://evil.example"})).status == 403
        client = await PollingClient.open(local, headers=dict(ORIGIN))
        target = f"{WEBSOCKET}&sid={client.sid}"
        assert (await upgrade(local, target, {"origin": "http://evil.example"})).status == 403
        assert (await upgrade(local, target, ORIGIN)).status == 101


@pytest.mark.trio
async def test_pages_may_read_what_they_poll_and_why_they_were_refused():
    async with open_service(in_memory=True) as local:
        preflight = await ask(
            local, "OPTIONS", POLLING, headers={**ORIGIN, "access-control-request-method": "POST"}
        )
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert {"GET", "POST"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
        client = await PollingClient.open(local, headers=dict(ORIGIN))
        posted = await client.post(connect_packet(identity("ada")))
        polled = await client.get()
        gone = await client.request("GET", f"{POLLING}&sid=nobody")
        for answer in (posted, polled, gone):
            assert answer.headers["access-control-allow-origin"] == "*"
        assert posted.headers["content-type"] == "text/html"
        assert polled.headers["content-type"] == "text/plain; charset=UTF-8"


@pytest.mark.trio
async def test_only_the_origins_that_are_set_may_read_polls():
    settings = Settings(http=HttpSettings(cors_origins=("http://app.example",)))
    async with open_service(settings, in_memory=True) as local:
        mine = await ask(local, "GET", POLLING, headers=ORIGIN)
        other = await ask(local, "GET", POLLING, headers={"origin": "http://evil.example"})
        assert mine.headers["access-control-allow-origin"] == "http://app.example"
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.trio
async def test_events_go_both_ways_between_polling_and_the_others(open_anyhow):
    async with open_anyhow() as local:
        ada = await PollingClient.connect(local, "ada")
        bob = await SocketClient.connect(local, "bob")
        cyd = await local.connect("cyd")
        await ada.say(collab_packet(["bob", "cyd", "nobody"], {"n": 1}, reply_id=7))
        relayed = {"type": "t", "from_user": "ada", "to_users": ["bob", "cyd", "nobody"], "data": {"n": 1}}
        assert await bob.receive("collab_event") == relayed
        assert (await cyd.receive("collab_event"))["data"] == relayed
        ack = {"event_type": "t", "delivered_to": 2, "total_recipients": 3, "undelivered": ["nobody"]}
        assert event_of(await ada.next()) == ("event_ack", ack)
        assert await ada.next() == "437" + json.dumps([ack], separators=(",", ":"))
        await bob.say(collab_packet(["ada"], 2))
        await bob.receive("event_ack")
        await cyd.send_event("t", ["ada"], 3)
        assert [(await ada.receive("collab_event"))["data"] for _ in range(2)] == [2, 3]


@pytest.mark.trio
async def test_an_answer_has_at_most_16_packets_and_the_next_the_rest():
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        bob = await PollingClient.connect(local, "bob")
        for number in range(40):
            await ada.send_event("t", ["bob"], number)
        for _ in range(40):
            await ada.receive("event_ack")
        polls = [await bob.poll() for _ in range(3)]
        assert [len(packets) for packets in polls] == [16, 16, 8]
        events = [event["data"] for packets in polls for event in events_of(packets, "collab_event")]
        assert events == list(range(40))


@pytest.mark.trio
async def test_several_packets_come_in_one_post_and_are_taken_in_order():
    async with open_service(in_memory=True) as local:
        bob = await local.connect("bob")
        ada = await PollingClient.open(local)
        await ada.say(connect_packet(identity("ada")), *[collab_packet(["bob"], n) for n in range(100)])
        received = [(await bob.receive("collab_event"))["data"]["data"] for _ in range(100)]
        assert received == list(range(100))


@pytest.mark.trio
async def test_the_identity_may_be_in_the_query_in_the_auth_or_in_both():
    async with open_service(in_memory=True) as local:
        for number, (query, auth) in enumerate(
            [
                (with_query("ada"), None),
                ("", identity("bob")),
                (with_query("cyd"), {"display_name": "Cyd"}),
                (with_query("dan"), identity("dan")),
            ],
            1,
        ):
            client = await PollingClient.open(local, query)
            await client.say(connect_packet(auth))
            assert (await client.next()).startswith('40{"sid"')
            assert len(local.online()) == number
        assert local.online() == {"ada", "bob", "cyd", "dan"}
        assert local.service.registry.online_user("cyd").display_name == "Cyd"


@pytest.mark.trio
async def test_two_polls_at_once_end_the_session():
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        answers = []

        async def hang():
            answers.append(await client.get())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            second = await client.get()
        assert (second.status, second.json["code"]) == (400, 3)
        assert local.online() == set()
        # It was connected, and must not come back by itself.
        assert answers[0].body == b"41"
        assert (await client.get()).body == b"1"
        assert (await client.get()).json["code"] == 1


@pytest.mark.trio
async def test_a_body_over_the_limit_is_413_and_the_session_goes_on():
    settings = Settings(limits=LimitSettings(message_bytes=1024))
    async with open_service(settings, in_memory=True) as local:
        client = await PollingClient.open(local)
        assert client.handshake["maxPayload"] == 1024
        assert (await client.post("4" * 1025)).refusal == (413, "too_large")
        await client.say(connect_packet(identity("ada")))
        assert local.online() == {"ada"}


@pytest.mark.trio
@pytest.mark.parametrize("body", [b"", b"\x1e", b"40\x1e", b"\xff", b"40\x1e\x1e40", b"3\x1e" * 3000 + b"3"])
async def test_a_body_that_is_no_payload_ends_the_session(body):
    async with open_service(in_memory=True) as local:
        client = await PollingClient.connect(local, "ada")
        answer = await client.request("POST", client.target, body)
        assert (answer.status, answer.json["code"]) == (400, 3)
        assert local.online() == set()
        assert await client.until_end() == ["41"]
