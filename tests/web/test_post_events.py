"""`POST /api/events`: one event of somebody who has no connection."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import pytest
import trio
import trio.testing
from engine_peers import PollingClient, SocketClient, event_of, event_packet
from peers import ask
from tokens import SECRET, token

from collab.core.router import Router
from collab.settings import (
    AuthSettings,
    Duration,
    LimitSettings,
    OriginSettings,
    PolicySettings,
    Settings,
    Size,
)
from collab.testing import Closed, open_service
from collab.web import events

AUTH = AuthSettings(mode="jwt", secret=SECRET)


def bearing(user_id: str, **claims: object) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user_id, **claims)}"}


async def post(local, body, headers=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(local, "POST", "/api/events", data, headers)


def event(to_users, data=None, *, from_user="ada", **others):
    body = {"type": "t", "to_users": to_users, "data": data, **others}
    return body if from_user is None else {**body, "from_user": from_user}


@pytest.mark.trio
async def test_an_event_reaches_its_recipients_and_the_answer_is_the_data_of_its_ack(open_anyhow):
    async with open_anyhow() as local:
        bob, again, ada = [await local.connect(user_id) for user_id in ("bob", "bob", "ada")]
        answer = await post(local, event(["bob", "cyd", "bob"], {"a": 1}))
        assert answer.status == 200
        assert answer.json == {
            "event_type": "t",
            "delivered_to": 1,
            "total_recipients": 2,
            "undelivered": ["cyd"],
        }
        for backend in (bob, again):
            message = await backend.receive()
            assert message == {"event": "collab_event", "data": event(["bob", "cyd", "bob"], {"a": 1})}
        # The ack is the answer's alone, and nobody has come online by it.
        assert await ada.echoes()
        assert local.online() == {"ada", "bob"}
        assert (await ask(local, "GET", "/health")).json["total_events_routed"] == 1
        assert (await ask(local, "GET", "/health")).json["total_connections"] == 3


@pytest.mark.trio
@pytest.mark.parametrize("kind", [PollingClient, SocketClient], ids=["polling", "websocket"])
async def test_an_event_reaches_users_of_socket_io_as_well(kind):
    async with open_service(in_memory=True) as local:
        ada, bob = [await kind.connect(local, user_id) for user_id in ("ada", "bob")]
        answer = await post(local, event(["bob", "cyd"], {"a": 1}))
        assert (answer.json["delivered_to"], answer.json["undelivered"]) == (1, ["cyd"])
        assert await bob.receive("collab_event") == event(["bob", "cyd"], {"a": 1})
        # The ack is the answer's alone.
        await ada.say(event_packet("ping"))
        assert event_of(await ada.next())[0] == "pong"


@pytest.mark.trio
async def test_an_event_to_all_who_are_there_has_no_undelivered():
    async with open_service(in_memory=True) as local:
        await local.connect("bob")
        whole = {"event_type": "t", "delivered_to": 1, "total_recipients": 1}
        assert (await post(local, event(["bob"]))).json == whole
        assert (await post(local, event([]))).json == {**whole, "delivered_to": 0, "total_recipients": 0}


@pytest.mark.trio
async def test_data_is_relayed_byte_for_byte():
    async with open_service(in_memory=True) as local:
        bob = await local.connect("bob")
        raw = '{ "a" : 1.0, "a":"ä\\u00e4🙂" }'
        body = f'{{"x":9,"data":{raw},"to_users":["bob"],"type":"t","from_user":"ada"}}'.encode()
        assert (await post(local, body)).status == 200
        assert raw in await bob.receive_text()


@pytest.mark.trio
async def test_events_sent_one_after_the_other_arrive_in_that_order(open_anyhow):
    async with open_anyhow() as local:
        bob = await local.connect("bob")
        for number in range(20):
            assert (await post(local, event(["bob"], number))).json["delivered_to"] == 1
        assert [(await bob.receive())["data"]["data"] for _ in range(20)] == list(range(20))


@pytest.mark.trio
async def test_with_authentication_the_sender_is_the_tokens_user():
    async with open_service(Settings(auth=AUTH), in_memory=True) as local:
        bob = await local.connect("bob", headers=bearing("bob"))
        for from_user in (None, "ada"):
            answer = await post(local, event(["bob"], from_user=from_user), bearing("ada"))
            assert answer.status == 200
            assert (await bob.receive())["data"]["from_user"] == "ada"
        for from_user in ("eve", "", "bob"):
            answer = await post(local, event(["bob"], from_user=from_user), bearing("ada"))
            assert answer.refusal == (403, "from_user_mismatch")
        assert (await post(local, event(["bob"]))).refusal == (401, "unauthenticated")
        odd = await post(local, event(["bob"], from_user=None), bearing("e\u202ev"))
        assert odd.refusal == (401, "unauthenticated")
        assert await bob.echoes()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (event(["bob"], from_user=None), (400, "missing_parameter")),
        (event(["bob"], from_user=""), (400, "missing_parameter")),
        (event(["bob"], from_user="x" * 129), (400, "invalid_parameter")),
        (event(["bob"], from_user="a\u001b"), (400, "invalid_parameter")),
        (event(["bob"], from_user=7), (400, "invalid_event")),
        (event("bob"), (400, "invalid_event")),
        (event(["bob", 1]), (400, "invalid_event")),
        (event(["bob", ""]), (400, "invalid_event")),
        (event(["bob", "b\u202eb"]), (400, "invalid_event")),
        (event(["bob"], type=""), (400, "invalid_event")),
        (event(["bob"], type="x" * 65), (400, "invalid_event")),
        ({"to_users": ["bob"], "from_user": "ada"}, (400, "invalid_event")),
        ([], (400, "invalid_event")),
        (b"", (400, "invalid_json")),
        (b"{", (400, "invalid_json")),
        (b'{"type":"t","from_user":"ada","to_users":["bob"],"data":' + b"[" * 9000, (400, "invalid_json")),
        (b'{"type":"t","from_user":"ada","to_users":["bob"],"data":"\xff"}', (400, "invalid_json")),
        (b'{"type":"t","from_user":"ada","to_users":["bob"],"data":"\\ud800"}', (400, "invalid_json")),
        (b'{"x":"\xff","type":"t","from_user":"ada","to_users":["bob"]}', (400, "invalid_json")),
    ],
)
async def test_an_event_that_is_none_is_refused_and_reaches_nobody(body, refusal):
    async with open_service(in_memory=True) as local:
        bob = await local.connect("bob")
        assert (await post(local, body)).refusal == refusal
        assert await bob.echoes()


@pytest.mark.trio
async def test_the_cap_on_recipients_holds_and_one_more_is_refused():
    async with open_service(in_memory=True) as local:
        users = [f"u{number}" for number in range(1001)]
        assert (await post(local, event(users[:1000]))).json["total_recipients"] == 1000
        # One named twice counts once.
        assert (await post(local, event([*users[:1000], "u0"]))).json["total_recipients"] == 1000
        assert (await post(local, event(users))).refusal == (400, "too_many_recipients")


@pytest.mark.trio
async def test_an_event_over_the_limit_of_a_message_is_413():
    settings = Settings(limits=LimitSettings(message_bytes=Size("1KiB")))
    async with open_service(settings, in_memory=True) as local:
        assert (await post(local, event(["bob"], "x" * 1024))).refusal == (413, "too_large")


@pytest.mark.trio
async def test_a_rate_is_the_users_whether_by_socket_or_not(autojump_clock):
    settings = Settings(limits=LimitSettings(events_per_second=1, burst=2))
    async with open_service(settings, in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.send_event("t", [], 1)
        assert await ada.receive("event_ack")
        assert (await post(local, event([]))).status == 200
        answer = await post(local, event([]))
        assert answer.status == 429
        assert set(answer.json) == {"error", "code", "retry_after_ms"}
        assert answer.json["code"] == "rate_limited"
        assert 900 < answer.json["retry_after_ms"] <= 1000
        assert int(answer.headers["retry-after"]) == math.ceil(answer.json["retry_after_ms"] / 1000)
        await ada.send_event("t", [], 2)
        assert (await ada.receive("error"))["data"]["code"] == "rate_limited"
        assert (await post(local, event([], from_user="bob"))).status == 200
        await trio.sleep(1)
        assert (await post(local, event([]))).status == 200


@pytest.mark.trio
async def test_whom_one_may_not_reach_is_undelivered_as_over_a_socket():
    settings = Settings(auth=AUTH, policy=PolicySettings(send="token"))
    async with open_service(settings, in_memory=True) as local:
        bob = await local.connect("bob", headers=bearing("bob"))
        cyd = await local.connect("cyd", headers=bearing("cyd"))
        sender = bearing("ada", peers=["bob"])
        answer = await post(local, event(["cyd", "offline", "bob"], from_user=None), sender)
        assert answer.json["undelivered"] == ["cyd", "offline"]
        assert (await bob.receive())["data"]["from_user"] == "ada"
        assert await cyd.echoes()
        assert (await post(local, event(["bob"], from_user=None), bearing("ada"))).json["delivered_to"] == 0


@pytest.mark.trio
async def test_the_answer_waits_for_a_slow_consumer_and_tells_the_truth(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=2, slow_consumer=Duration("2s")))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob, cyd = await local.connect("bob"), await local.connect("cyd")
        bob.stall()
        for number in range(2):
            assert (await post(local, event(["bob", "cyd"], number))).json["delivered_to"] == 2
        start = trio.current_time()
        answer = await post(local, event(["bob", "cyd"], 2))
        assert trio.current_time() - start == pytest.approx(2, abs=0.5)
        assert answer.json["undelivered"] == ["bob"]
        assert [(await cyd.receive())["data"]["data"] for _ in range(3)] == [0, 1, 2]
        assert local.online() == {"cyd"}


@pytest.mark.trio
async def test_a_recipient_that_reads_again_in_time_gets_it(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob = await local.connect("bob")
        bob.stall()
        await post(local, event(["bob"], 0))
        answers = []

        async def send(number):
            answers.append((await post(local, event(["bob"], number))).json)

        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(send, number)
                await trio.sleep(0.1)
            assert answers == []
            bob.resume()
            assert [(await bob.receive())["data"]["data"] for _ in range(4)] == [0, 1, 2, 3]
        assert [answer["delivered_to"] for answer in answers] == [1, 1, 1]


@pytest.mark.trio
async def test_an_ack_that_never_comes_is_504_and_leaves_nothing_behind(autojump_clock, monkeypatch):
    monkeypatch.setattr(Router, "evict_slow_consumers", lambda *_: False)
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob = await local.connect("bob")
        bob.stall()
        await post(local, event(["bob"], 0))
        start = trio.current_time()
        assert (await post(local, event(["bob"], 1))).refusal == (504, "not_acknowledged")
        assert trio.current_time() - start == pytest.approx(7, abs=0.5)
        bob.resume()
        assert [(await bob.receive())["data"]["data"] for _ in range(2)] == [0, 1]
        with trio.fail_after(5):
            await local.service._router.wait_settled()


@pytest.mark.trio
async def test_so_many_events_of_one_user_may_wait_and_so_many_in_all(autojump_clock, monkeypatch):
    monkeypatch.setattr(events, "MOST_UNDER_WAY", 4)
    settings = Settings(limits=LimitSettings(mailbox_messages=1, in_flight=3))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob = await local.connect("bob")
        bob.stall()
        await post(local, event(["bob"], 0))
        waiting = []

        async def send(from_user):
            waiting.append((await post(local, event(["bob"], from_user=from_user))).status)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, "ada")
            await trio.sleep(0.1)
            mine = await post(local, event(["cyd"]))
            assert mine.refusal == (429, "rate_limited")
            assert mine.headers["retry-after"] == "1"
            nursery.start_soon(send, "eve")
            await trio.sleep(0.1)
            anybodys = await post(local, event(["cyd"], from_user="cyd"))
            assert anybodys.refusal == (503, "overloaded")
            assert anybodys.headers["retry-after"] == "1"
        assert waiting == [200] * 4
        # Every place was given back.
        assert (await post(local, event(["cyd"]))).status == 200


@pytest.mark.trio
async def test_while_the_service_drains_no_event_is_taken():
    async with open_service(in_memory=True) as local:
        local.service.status.draining = True
        answer = await post(local, event(["bob"]))
        assert answer.refusal == (503, "draining")
        assert "retry-after" in answer.headers


@pytest.mark.trio
async def test_a_drain_waits_for_the_ack_of_an_event_that_was_taken(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1, slow_consumer=Duration("60s")))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob = await local.connect("bob")
        bob.stall()
        await post(local, event(["bob"], 0))
        answers = []

        async def send():
            answers.append(await post(local, event(["bob"], 1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.1)
            await local.service.drain()
        assert [answer.status for answer in answers] == [200]
        assert answers[0].json["undelivered"] == ["bob"]


@pytest.mark.trio
async def test_a_sender_who_leaves_before_the_answer_leaves_nothing_behind(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        bob = await local.connect("bob")
        bob.stall()
        for number in range(2):
            stream, _ = await local.open_stream()
            body = json.dumps(event(["bob"], number)).encode()
            head = f"POST /api/events HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body)
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(stream)
        await trio.sleep(30)
        assert (await post(local, event(["cyd"]))).status == 200
        with trio.fail_after(5):
            await local.service._router.wait_settled()


@pytest.mark.trio
async def test_a_fault_in_routing_is_500_and_the_next_event_goes_on(monkeypatch):
    def fail(self, sender, request):
        raise ZeroDivisionError("a secret detail")

    async with open_service(in_memory=True) as local:
        with monkeypatch.context() as patch:
            patch.setattr(Router, "_route", fail)
            answer = await post(local, event(["bob"]))
            assert answer.refusal == (500, "internal")
            assert b"secret" not in answer.body
        assert (await post(local, event(["bob"]))).status == 200


@pytest.mark.trio
async def test_a_page_that_may_not_connect_may_not_send_either():
    settings = Settings(origins=OriginSettings(allowed=("https://good.example",)))
    async with open_service(settings, in_memory=True) as local:
        bob = await local.connect("bob")
        for origin in ("https://evil.example", "null"):
            plain = {"origin": origin, "content-type": "text/plain"}
            assert (await post(local, event(["bob"]), plain)).refusal == (403, "origin_not_allowed")
        assert await bob.echoes()
        for headers in ({"origin": "https://good.example"}, {}):
            assert (await post(local, event(["bob"]), headers)).status == 200


@pytest.mark.trio
async def test_acks_are_true_and_order_holds_among_many_senders(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=3, slow_consumer=Duration("500ms")))
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        received: dict[str, list[tuple[str, int]]] = {"bob": [], "cyd": []}
        undelivered: dict[tuple[str, int], list[str]] = {}

        async def read(user_id, backend):
            with suppress(Closed):
                while True:
                    data = (await backend.receive("collab_event"))["data"]
                    received[user_id].append((data["from_user"], data["data"]))

        async def send(from_user):
            for number in range(20):
                to_users = ["bob", "cyd", "dan", "nobody"]
                body = (await post(local, event(to_users, number, from_user=from_user))).json
                assert body["total_recipients"] == 4
                assert body["delivered_to"] == 4 - len(body["undelivered"])
                undelivered[from_user, number] = body["undelivered"]

        async with trio.open_nursery() as readers:
            for user_id in received:
                readers.start_soon(read, user_id, await local.connect(user_id))
            dan = await local.connect("dan")
            dan.stall()
            async with trio.open_nursery() as senders:
                for number in range(8):
                    senders.start_soon(send, f"sender{number}")
            await trio.sleep(1)
            readers.cancel_scope.cancel()
        assert len(undelivered) == 160
        # What dan's mailbox took counts as delivered; the rest names dan.
        assert 0 < sum("dan" not in named for named in undelivered.values()) <= 3
        assert all("nobody" in named for named in undelivered.values())
        for user_id, got in received.items():
            assert sorted(got) == sorted(key for key, named in undelivered.items() if user_id not in named)
            for number in range(8):
                of_sender = [each for sender, each in got if sender == f"sender{number}"]
                assert of_sender == list(range(20))
