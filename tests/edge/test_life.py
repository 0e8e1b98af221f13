"""What a connected backend says and hears: docs/protocol.md, "Messages" and "Closing codes", row by row."""

from __future__ import annotations

import json
import time

import pytest
import trio
from peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    event_text,
    frame,
    text,
    until_end,
)

from collab.settings import Duration, LimitSettings, Settings, Size
from collab.testing import Closed, open_service


async def online_become(local, users):
    with trio.fail_after(5):
        while local.online() != users:
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.trio
async def test_connected_comes_first_and_counts_distinct_users(open_anyhow):
    async with open_anyhow() as local:
        await local.connect("ada")
        await local.connect("ada")
        backend = await local.open("/?user_id=bob&backend_url=http://x&presence=all")
        assert (await backend.receive())["data"] == {
            "user_id": "bob",
            "message": "Connected to collaboration service",
            "active_users": 2,
        }


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize(
    "type",
    ["position_shared", "comment_added", "position_updated", "share_revoked", "anything else", "t" * 64],
)
async def test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged(open_anyhow, type):
    async with open_anyhow() as local:
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        await ada.send(
            "collab_event", {"type": type, "from_user": "ada", "to_users": ["bob", "cyd"], "data": {"x": 1}}
        )
        for backend in (bob, cyd):
            assert await backend.receive() == {
                "event": "collab_event",
                "data": {"type": type, "from_user": "ada", "to_users": ["bob", "cyd"], "data": {"x": 1}},
            }
        assert await ada.receive() == {
            "event": "event_ack",
            "data": {"event_type": type, "delivered_to": 2, "total_recipients": 2},
        }


@pytest.mark.trio
async def test_from_user_is_filled_in_and_data_is_an_empty_object_where_they_are_left_out(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.send("collab_event", {"type": "comment_added", "to_users": ["bob"]})
        assert (await bob.receive())["data"] == {
            "type": "comment_added",
            "from_user": "ada",
            "to_users": ["bob"],
            "data": {},
        }


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize(
    "data",
    [
        '{"b": 1.0,  "a":1e2, "a": [ ] }',
        "null",
        '"\\u00e4\\ud83d\\ude00 ä 🙂"',
        "12345678901234567890123456789",
        "[1.10, -0.0, 1E400]",
        "true",
    ],
)
async def test_data_reaches_the_recipient_byte_for_byte(open_anyhow, data):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        message = f'{{"event":"collab_event","data":{{"type":"t","to_users":["bob"],"data":{data}}}}}'
        await ada.send_text(message)
        expected = (
            '{"event":"collab_event","data":{"type":"t","from_user":"ada","to_users":["bob"],"data":%s}}'
        )
        assert await bob.receive_text() == expected % data


@pytest.mark.trio
async def test_other_members_are_dropped_and_a_key_given_twice_means_one_thing(open_anyhow):
    async with open_anyhow() as local:
        ada, bob, eve = [await local.connect(user_id) for user_id in ("ada", "bob", "eve")]
        await ada.send_text(
            '{"event":"collab_event","to":"x","data":{"type":"a","type":"b","admin":true,'
            '"to_users":["eve"],"to_users":["bob"],"from_user":"ada","data":1,"data":2}}'
        )
        assert await bob.receive_text() == (
            '{"event":"collab_event","data":{"type":"b","from_user":"ada","to_users":["bob"],"data":2}}'
        )
        assert (await ada.receive())["data"]["total_recipients"] == 1
        assert await eve.echoes()


@pytest.mark.trio
async def test_duplicate_recipients_count_once_and_are_relayed_as_sent(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.send_event("comment_added", ["bob", "nobody", "bob", "nobody"])
        assert (await bob.receive())["data"]["to_users"] == ["bob", "nobody", "bob", "nobody"]
        assert (await ada.receive())["data"] == {
            "event_type": "comment_added",
            "delivered_to": 1,
            "total_recipients": 2,
            "undelivered": ["nobody"],
        }
        await ada.send("ping")
        await bob.send("ping")
        assert (await bob.receive())["event"] == "pong"


@pytest.mark.trio
async def test_an_event_to_nobody_is_acknowledged_as_0_of_0(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_event("comment_added", [], id="none")
        assert await ada.receive() == {
            "event": "event_ack",
            "id": "none",
            "data": {"event_type": "comment_added", "delivered_to": 0, "total_recipients": 0},
        }


@pytest.mark.trio
async def test_an_event_to_oneself_arrives_at_oneself(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_event("comment_added", ["ada"], 1)
        messages = [await ada.receive(), await ada.receive()]
        assert {message["event"] for message in messages} == {"collab_event", "event_ack"}
        ack = next(message["data"] for message in messages if message["event"] == "event_ack")
        assert ack == {"event_type": "comment_added", "delivered_to": 1, "total_recipients": 1}


@pytest.mark.trio
async def test_an_event_reaches_every_connection_of_its_recipient_and_counts_once(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        bobs = [await local.connect("bob") for _ in range(3)]
        await ada.send_event("comment_added", ["bob"], "hello")
        for bob in bobs:
            assert (await bob.receive())["data"]["data"] == "hello"
        assert (await ada.receive())["data"]["delivered_to"] == 1


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_delivered_to_is_the_truth_about_those_who_are_gone(open_anyhow):
    async with open_anyhow() as local:
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        await bob.close()
        await cyd.drop()
        await online_become(local, {"ada"})
        await ada.send_event("comment_added", ["cyd", "bob", "ada"])
        assert (await ada.receive("event_ack"))["data"] == {
            "event_type": "comment_added",
            "delivered_to": 1,
            "total_recipients": 3,
            "undelivered": ["cyd", "bob"],
        }


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_events_and_acks_keep_their_order_also_among_fragmented_messages(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        wire = bytearray()
        for number in range(200):
            whole = json.dumps(
                {
                    "event": "collab_event",
                    "id": number,
                    "data": {"type": "t", "to_users": ["bob"], "data": number},
                }
            ).encode()
            if number % 7 == 3:
                wire += (
                    frame(TEXT, whole[:20], fin=False) + frame(PING, b"!") + frame(CONTINUATION, whole[20:])
                )
            else:
                wire += frame(TEXT, whole)
        for start in range(0, len(wire), 997):
            await ada.stream.send_all(wire[start : start + 997])
        acks, events = [], []
        async with trio.open_nursery() as nursery:

            async def collect(backend, name, into):
                while len(into) < 200:
                    into.append(await backend.receive(name))

            nursery.start_soon(collect, ada, "event_ack", acks)
            nursery.start_soon(collect, bob, "collab_event", events)
        assert [ack["id"] for ack in acks] == list(range(200))
        assert [event["data"]["data"] for event in events] == list(range(200))


@pytest.mark.trio
@pytest.mark.parametrize("data", [..., {}, None, {"x": 1}, []])
async def test_ping_is_answered_with_the_time_in_milliseconds(open_anyhow, data):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        message = {"event": "ping"} if data is ... else {"event": "ping", "data": data}
        await ada.send_text(json.dumps(message))
        pong = await ada.receive()
        assert pong == {"event": "pong", "data": {"timestamp": pong["data"]["timestamp"]}}
        assert isinstance(pong["data"]["timestamp"], int)
        assert abs(pong["data"]["timestamp"] - time.time() * 1000) < 10_000


@pytest.mark.trio
@pytest.mark.parametrize("id", ["a", "i" * 64, "ä🙂", "", 0, -7, 7, 2**53, 10**63])
async def test_ack_pong_and_error_carry_the_id_back(open_anyhow, id):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_text(json.dumps({"event": "ping", "id": id}))
        await ada.send_text(
            json.dumps({"event": "collab_event", "id": id, "data": {"type": "t", "to_users": []}})
        )
        await ada.send_text(json.dumps({"event": "nothing", "id": id}))
        await ada.send_text(json.dumps({"event": "collab_event", "id": id, "data": {"type": "t"}}))
        answers = [await ada.receive() for _ in range(4)]
        assert sorted(answer["event"] for answer in answers) == ["error", "error", "event_ack", "pong"]
        assert [answer["id"] for answer in answers] == [id] * 4


@pytest.mark.trio
async def test_without_an_id_no_answer_has_one(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send("ping")
        await ada.send_event("t", [])
        await ada.send("nothing")
        for answer in [await ada.receive() for _ in range(3)]:
            assert set(answer) == {"event", "data"}


@pytest.mark.trio
@pytest.mark.parametrize("id", ["1.5", "null", "true", "{}", "[1]", '"%s"' % ("i" * 65), "1" * 65, "-0.0"])
async def test_another_id_is_an_invalid_message_and_is_not_echoed(open_anyhow, id):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_text(f'{{"event":"ping","id":{id}}}')
        answer = await ada.receive()
        assert answer["event"] == "error"
        assert answer["data"]["code"] == "invalid_message"
        assert answer["data"]["error"].startswith("id:")
        assert "id" not in answer


EVENT = '{"event":"collab_event","data":%s}'


@pytest.mark.trio
@pytest.mark.parametrize(
    ("message", "code", "named"),
    [
        ("", "invalid_json", ""),
        ("hello", "invalid_json", ""),
        ('{"event":"ping"', "invalid_json", ""),
        ('{"event":"ping"} x', "invalid_json", ""),
        ('{"event":"ping","data":' + "[" * 5000 + "]" * 5000 + "}", "invalid_json", "deep"),
        ('{"event":"ping","data":NaN}', "invalid_json", ""),
        ("[]", "invalid_message", ""),
        ("null", "invalid_message", ""),
        ('"ping"', "invalid_message", ""),
        ("{}", "invalid_message", "event"),
        ('{"event":7}', "invalid_message", "event"),
        ('{"event":"connected","data":{}}', "unknown_event", "connected"),
        ('{"event":"PING"}', "unknown_event", "PING"),
        ('{"event":"refresh","data":{"token":"x"}}', "unknown_event", "refresh"),
        ('{"event":"collab_event"}', "invalid_event", "data"),
        (EVENT % "null", "invalid_event", "data"),
        (EVENT % "[]", "invalid_event", "data"),
        (EVENT % "{}", "invalid_event", "data."),
        (EVENT % '{"type":"","to_users":[]}', "invalid_event", "data.type"),
        (EVENT % ('{"type":"%s","to_users":[]}' % ("t" * 65)), "invalid_event", "data.type"),
        (EVENT % '{"type":1,"to_users":[]}', "invalid_event", "data.type"),
        (EVENT % '{"type":"t"}', "invalid_event", "data.to_users"),
        (EVENT % '{"type":"t","to_users":"bob"}', "invalid_event", "data.to_users"),
        (EVENT % '{"type":"t","to_users":null}', "invalid_event", "data.to_users"),
        (EVENT % '{"type":"t","to_users":["bob",7]}', "invalid_event", "data.to_users[1]"),
        (EVENT % '{"type":"t","to_users":["bob",""]}', "invalid_event", "data.to_users[1]"),
        (EVENT % '{"type":"t","to_users":["bob","a\\nb"]}', "invalid_event", "data.to_users[1]"),
        (EVENT % ('{"type":"t","to_users":["%s"]}' % ("b" * 129)), "invalid_event", "data.to_users[0]"),
        (EVENT % '{"type":"t","to_users":[],"from_user":7}', "invalid_event", "data.from_user"),
        (EVENT % '{"type":"t","to_users":[],"from_user":null}', "invalid_event", "data.from_user"),
        (EVENT % '{"type":"t","to_users":["bob"],"from_user":"bob"}', "from_user_mismatch", "data.from_user"),
        (EVENT % '{"type":"t","to_users":["bob"],"from_user":""}', "from_user_mismatch", "data.from_user"),
        (EVENT % '{"type":"t","to_users":["a","b","c","d"]}', "too_many_recipients", "data.to_users"),
    ],
)
async def test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays(
    open_anyhow, message, code, named
):
    settings = Settings(limits=LimitSettings(max_recipients=3))
    async with open_anyhow(settings) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.send_text(message)
        answer = await ada.receive()
        assert answer["event"] == "error"
        assert set(answer["data"]) == {"message", "error", "code"}
        assert answer["data"]["code"] == code
        assert named in answer["data"]["error"]
        assert answer["data"]["message"]
        assert await ada.echoes()
        await bob.send("ping", id="nothing came before")
        assert (await bob.receive())["id"] == "nothing came before"


@pytest.mark.trio
async def test_at_most_1000_recipients_by_default(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_event("t", [f"u{number}" for number in range(1000)])
        assert (await ada.receive())["data"]["total_recipients"] == 1000
        await ada.send_event("t", [f"u{number}" for number in range(1001)])
        assert (await ada.receive())["data"]["code"] == "too_many_recipients"


@pytest.mark.trio
async def test_user_online_tells_of_the_first_connection_of_another_user(open_anyhow):
    async with open_anyhow() as local:
        observer = await local.connect("observer", presence="all")
        await local.connect("observer")
        first = await local.connect("ada", display_name="Ada L.", presence="all")
        await local.connect("ada", display_name="Ada 2")
        assert await observer.receive() == {
            "event": "user_online",
            "data": {"user_id": "ada", "display_name": "Ada L."},
        }
        for backend in (observer, first):
            await backend.send("ping", id=1)
            assert (await backend.receive())["event"] == "pong"


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize("leave", ["close", "drop"])
async def test_user_offline_tells_of_the_last_connection_of_another_user(open_anyhow, leave):
    async with open_anyhow() as local:
        observer = await local.connect("observer", presence="all")
        older, newer = await local.connect("ada"), await local.connect("ada")
        assert (await observer.receive())["event"] == "user_online"
        await getattr(older, leave)()
        assert await observer.echoes()
        assert local.online() == {"ada", "observer"}
        await getattr(newer, leave)()
        assert await observer.receive() == {"event": "user_offline", "data": {"user_id": "ada"}}


@pytest.mark.trio
async def test_presence_none_hears_of_nobody(open_anyhow):
    async with open_anyhow() as local:
        quiet = await local.connect("quiet", presence="none")
        ada = await local.connect("ada")
        await ada.close()
        await quiet.send("ping")
        assert (await quiet.receive())["event"] == "pong"


@pytest.mark.trio
async def test_presence_is_all_where_it_is_left_out(open_anyhow):
    async with open_anyhow() as local:
        observer = await local.open("/?user_id=o&backend_url=http://x")
        await local.connect("ada")
        assert [(await observer.receive())["event"] for _ in range(2)] == ["connected", "user_online"]


@pytest.mark.trio
@pytest.mark.also_over_tls
@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_1000_normal_a_backend_that_closes_gets_its_close_answered(open_anyhow, code):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(CLOSE, code.to_bytes(2, "big") + b"bye"))
        closed = await ada.wait_closed()
        assert closed.code in (code, 1000)
        await online_become(local, set())


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_what_was_sent_before_a_close_is_routed(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.stream.send_all(event_text(["bob"], "last words") + frame(CLOSE, b"\x03\xe8"))
        assert (await bob.receive())["data"]["data"] == "last words"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("name", "wire", "code"),
    [
        ("a reserved bit", frame(TEXT, b"{}", reserved=0x40), 1002),
        ("an unknown opcode", frame(3, b""), 1002),
        ("an unknown control opcode", frame(11, b""), 1002),
        ("a frame without a mask", b"\x81\x02{}", 1002),
        ("a control frame over 125 bytes", frame(PING, b"x" * 126), 1002),
        ("a fragmented control frame", frame(PING, b"", fin=False), 1002),
        ("a continuation of nothing", frame(CONTINUATION, b"x"), 1002),
        ("a message begun twice", frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
        ("a close frame of one byte", frame(CLOSE, b"\x03"), 1002),
        ("a close frame with code 1005", frame(CLOSE, b"\x03\xed"), 1002),
        ("a length that is not the shortest", b"\x81\xfe\x00\x05" + b"\0" * 9, 1002),
        ("a binary message", frame(BINARY, b"{}"), 1003),
        ("an empty binary message", frame(BINARY), 1003),
        ("a fragmented binary message", frame(BINARY, b"{", fin=False) + frame(CONTINUATION, b"}"), 1003),
        ("text that is not UTF-8", frame(TEXT, b'{"event":"\xff"}'), 1007),
        ("a lone surrogate", frame(TEXT, b'"\xed\xa0\x80"'), 1007),
        ("UTF-8 that ends too early", frame(TEXT, b'"\xc3'), 1007),
        ("bad UTF-8 in a fragment", frame(TEXT, b"ab", fin=False) + frame(CONTINUATION, b"\xff"), 1007),
        ("bad UTF-8 at the end of fragments", frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION), 1007),
        ("a close reason that is not UTF-8", frame(CLOSE, b"\x03\xe8\xff"), 1007),
        ("far too many fragments", frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 300, 1008),
        ("a message over the limit", frame(TEXT, b"x" * 65537), 1009),
        ("a frame that claims too much", frame(TEXT, b"x", size=2**40), 1009),
        ("fragments over the limit", frame(TEXT, b"x" * 40000, fin=False) + frame(0, b"x" * 40000), 1009),
    ],
)
async def test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it(open_anyhow, name, wire, code):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.stream.send_all(event_text(["bob"], "before") + wire)
        messages, (closed_code, reason) = await until_end(ada)
        assert closed_code == code, name
        assert reason
        assert [message["event"] for message in messages] == ["event_ack"]
        assert (await bob.receive())["data"]["data"] == "before"
        assert await bob.echoes()
        assert local.online() == {"bob"}


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_1011_a_fault_of_the_service_ends_that_connection_alone(open_anyhow, monkeypatch):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        (of_ada,) = local.service.registry.of_user("ada")

        class Faulty:
            name = "faulty"

            def decode(self, text):
                raise ZeroDivisionError("a fault of ours")

        of_ada.dialect = Faulty()
        await ada.send("ping")
        closed = await ada.wait_closed()
        assert (closed.code, closed.reason) == (1011, "Internal error")
        assert await bob.echoes()
        assert local.online() == {"bob"}


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_the_limit_of_a_message_counts_bytes_and_not_characters(open_anyhow):
    settings = Settings(limits=LimitSettings(message_bytes=Size("1KiB")))
    async with open_anyhow(settings) as local:
        for make in (
            lambda payload: frame(TEXT, payload),
            lambda payload: frame(TEXT, payload[:300], fin=False) + frame(CONTINUATION, payload[300:]),
        ):
            ada, bob = await local.connect("ada"), await local.connect("bob")
            start, end = b'{"event":"ping","data":"', b'"}'
            letters = (1024 - len(start) - len(end)) // 2
            assert len(start + end) % 2 == 0
            fits = start + "ä".encode() * letters + end
            assert len(fits) == 1024
            await ada.stream.send_all(make(fits))
            assert (await ada.receive())["event"] == "pong"
            over = start + "ä".encode() * letters + b"a" + end
            assert len(over.decode()) < 1024
            await bob.stream.send_all(make(over))
            assert (await bob.wait_closed()).code == 1009
            await ada.close()


@pytest.mark.trio
@pytest.mark.parametrize("fragments", [1, 9])
async def test_the_limit_of_a_message_can_be_2_mib(fragments):
    settings = Settings(limits=LimitSettings(message_bytes=Size("2MiB"), mailbox_bytes=Size("4MiB")))
    async with open_service(settings, timeout_seconds=20) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        message = {"event": "collab_event", "data": {"type": "t", "to_users": ["bob"], "data": ""}}
        padding = 2 * 1024 * 1024 - len(json.dumps(message))
        message["data"]["data"] = "x" * padding
        whole = json.dumps(message).encode()
        size = -(-len(whole) // fragments)
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        wire = [
            frame(CONTINUATION if number else TEXT, piece, fin=number == fragments - 1)
            for number, piece in enumerate(pieces)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ada.stream.send_all, b"".join(wire))
            assert (await bob.receive())["data"]["data"] == "x" * padding
        assert (await ada.receive())["data"]["delivered_to"] == 1
        await ada.stream.send_all(frame(TEXT, size=2 * 1024 * 1024 + 1))
        assert (await ada.wait_closed()).code == 1009


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_an_event_larger_than_the_whole_mailbox_gets_in_where_it_is_empty(open_anyhow):
    settings = Settings(limits=LimitSettings(message_bytes=Size("64KiB"), mailbox_bytes=Size("1KiB")))
    async with open_anyhow(settings) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        for _ in range(3):
            await ada.send_event("t", ["bob"], "x" * 60000, id=1)
            assert (await bob.receive())["data"]["data"] == "x" * 60000
            assert (await ada.receive())["data"]["delivered_to"] == 1


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_a_websocket_ping_is_answered_with_its_own_payload(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.stream.send_all(frame(PING, b"hello") + frame(PONG, b"unasked") + text("ping", id=1))
        received = b""
        while b"\x8a\x05hello" not in received or b"pong" not in received:
            received += await ada.stream.receive_some()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_frames_may_come_a_byte_at_a_time(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        for byte in event_text(["bob"], "drip") + frame(PING, b"x") + event_text(["bob"], "drop"):
            await ada.stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert [(await bob.receive())["data"]["data"] for _ in range(2)] == ["drip", "drop"]


@pytest.mark.trio
async def test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=4, slow_consumer=Duration("2s")))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        observer = await local.connect("observer", presence="all")
        bob.stall()
        start = trio.current_time()
        for number in range(6):
            await ada.send_event("t", ["bob", "cyd"], number, id=number)
        acks = [await ada.receive("event_ack") for _ in range(6)]
        assert trio.current_time() - start == pytest.approx(2, abs=0.5)
        assert [ack["id"] for ack in acks] == list(range(6))
        assert [ack["data"]["delivered_to"] for ack in acks] == [2, 2, 2, 2, 1, 1]
        assert [ack["data"].get("undelivered") for ack in acks] == [None] * 4 + [["bob"]] * 2
        assert [(await cyd.receive("collab_event"))["data"]["data"] for _ in range(6)] == list(range(6))
        assert await observer.receive() == {"event": "user_offline", "data": {"user_id": "bob"}}
        bob.resume()
        _, (code, reason) = await until_end(bob)
        assert code == 4003
        assert reason


@pytest.mark.trio
async def test_a_recipient_that_reads_again_in_time_gets_everything_in_order(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=2, slow_consumer=Duration("2s")))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(20):
            await ada.send_event("t", ["bob"], number, id=number)
        await trio.sleep(1)
        bob.resume()
        assert [(await bob.receive())["data"]["data"] for _ in range(20)] == list(range(20))
        assert [(await ada.receive())["data"]["delivered_to"] for _ in range(20)] == [1] * 20


@pytest.mark.trio
async def test_one_slow_consumer_does_not_hold_up_other_senders(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1, in_flight=2))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        bob.stall()
        start = trio.current_time()
        for number in range(10):
            await ada.send_event("t", ["bob"], number)
        for number in range(50):
            await cyd.send_event("t", ["cyd"], number)
            await cyd.receive("event_ack")
        assert trio.current_time() == start


@pytest.mark.trio
async def test_a_recipient_with_one_stalled_connection_counts_by_its_other_one(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, stalled, well = (
            await local.connect("ada"),
            await local.connect("bob"),
            await local.connect("bob"),
        )
        observer = await local.connect("observer", presence="all")
        stalled.stall()
        start = trio.current_time()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
            assert (await ada.receive())["data"]["delivered_to"] == 1
            assert (await well.receive())["data"]["data"] == number
        assert trio.current_time() == start
        await trio.sleep(5)
        assert len(local.service.registry.of_user("bob")) == 1
        assert await well.echoes()
        await observer.send("ping")
        assert (await observer.receive())["event"] == "pong"


@pytest.mark.trio
async def test_a_connection_that_ends_while_a_stalled_one_holds_its_ack_gets_its_close_frame(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob"], number)
        await trio.testing.wait_all_tasks_blocked()
        await ada.stream.send_all(frame(BINARY, b"x"))
        assert (await ada.wait_closed()).code == 1003


@pytest.mark.trio
async def test_a_sender_that_reads_no_answers_is_read_from_no_more(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=2, slow_consumer=Duration("60s")))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada = await local.connect("ada")
        ada.stall()
        for number in range(500):
            await ada.stream.send_all(text("ping", id=number))
            await trio.testing.wait_all_tasks_blocked()
        (connection,) = local.service.registry.of_user("ada")
        assert connection.mailbox.messages <= 2
        assert not connection.may_read()
        ada.resume()
        assert [(await ada.receive())["id"] for _ in range(500)] == list(range(500))


@pytest.mark.trio
async def test_a_peer_that_reads_nothing_for_the_write_timeout_is_dropped(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=60) as local:
        ada = await local.connect("ada")
        ada.stall()
        await ada.send("ping")
        start = trio.current_time()
        await trio.sleep_until(start + 9.9)
        assert local.online() == {"ada"}
        await trio.sleep_until(start + 10.1)
        assert local.online() == set()


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_nothing_is_routed_that_comes_after_the_service_began_to_close(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.stream.send_all(frame(BINARY, b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await ada.stream.send_all(event_text(["bob"], "too late") + frame(PING, b"x"))
        assert (await ada.wait_closed()).code == 1003
        await bob.send("ping")
        assert (await bob.receive())["event"] == "pong"


@pytest.mark.trio
async def test_nothing_is_sent_after_the_close_frame(open_anyhow):
    async with open_anyhow() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.stream.send_all(frame(BINARY, b"x"))
        with pytest.raises(Closed):
            await ada.receive()
        await bob.send_event("t", ["ada"])
        assert (await bob.receive())["data"]["undelivered"] == ["ada"]


@pytest.mark.trio
async def test_a_sender_whose_events_wait_is_read_from_no_more_than_its_window(autojump_clock):
    limits = LimitSettings(mailbox_messages=1, in_flight=4, slow_consumer=Duration("60s"))
    async with open_service(Settings(limits=limits), in_memory=True, timeout_seconds=100) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(100):
            await ada.stream.send_all(event_text(["bob"], number, id=number))
            await trio.testing.wait_all_tasks_blocked()
        (of_ada,) = local.service.registry.of_user("ada")
        assert of_ada.in_flight == 4
        bob.resume()
        assert [(await bob.receive())["data"]["data"] for _ in range(100)] == list(range(100))
        assert [(await ada.receive())["id"] for _ in range(100)] == list(range(100))
        assert of_ada.in_flight == 0


@pytest.mark.trio
async def test_the_events_of_a_sender_that_left_still_reach_their_recipient(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
        await trio.testing.wait_all_tasks_blocked()
        await ada.drop()
        await trio.sleep(1)
        assert local.online() == {"bob"}
        bob.resume()
        assert [(await bob.receive())["data"]["data"] for _ in range(5)] == list(range(5))


@pytest.mark.trio
async def test_a_recipient_that_leaves_while_events_wait_for_it_settles_their_acks_at_once(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1, slow_consumer=Duration("60s")))
    async with open_service(settings, in_memory=True, timeout_seconds=100) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob"], number)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await bob.drop()
        acks = [await ada.receive() for _ in range(3)]
        assert trio.current_time() == start
        assert [ack["data"]["delivered_to"] for ack in acks] == [1, 0, 0]


@pytest.mark.trio
async def test_an_event_to_a_user_who_is_offline_is_not_kept_for_later(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        await ada.send_event("comment_added", ["bob"], "too early")
        assert (await ada.receive())["data"]["undelivered"] == ["bob"]
        bob = await local.connect("bob")
        await ada.send_event("comment_added", ["bob"], "in time")
        assert (await bob.receive())["data"]["data"] == "in time"


@pytest.mark.trio
async def test_pong_and_error_may_overtake_the_ack_of_an_earlier_event(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1, slow_consumer=Duration("60s")))
    async with open_service(settings, in_memory=True, timeout_seconds=100) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(2):
            await ada.send_event("t", ["bob"], number, id=number)
        await ada.send("ping", id="ping")
        await ada.send("nothing", id="nothing")
        assert [(await ada.receive())["id"] for _ in range(3)] == [0, "ping", "nothing"]
        bob.resume()
        late = await ada.receive()
        assert (late["event"], late["id"]) == ("event_ack", 1)


@pytest.mark.trio
async def test_the_same_message_again_gives_the_same_error(open_anyhow):
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        for message in ("{", "{}", '{"event":"x"}', EVENT % "{}", EVENT % '{"type":"t","to_users":[""]}'):
            answers = []
            for _ in range(3):
                await ada.send_text(message)
                answers.append(await ada.receive())
            assert answers[0]["event"] == "error"
            assert answers == answers[:1] * 3


@pytest.mark.trio
async def test_what_is_queued_is_sent_before_the_close_frame(autojump_clock):
    settings = Settings(limits=LimitSettings(connections_per_user=1))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
            assert (await ada.receive())["data"]["delivered_to"] == 1
        await local.connect("bob")
        bob.resume()
        messages, (code, _) = await until_end(bob)
        assert [message["data"]["data"] for message in messages] == list(range(5))
        assert code == 4002


@pytest.mark.trio
async def test_what_is_queued_for_a_slow_consumer_is_dropped(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=4, slow_consumer=Duration("2s")))
    async with open_service(settings, in_memory=True, timeout_seconds=60) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
            # The first goes to the writer alone, and so into the stream; the others are queued.
            await trio.testing.wait_all_tasks_blocked()
        assert [(await ada.receive())["data"]["delivered_to"] for _ in range(5)] == [1, 1, 1, 1, 0]
        bob.resume()
        messages, (code, _) = await until_end(bob)
        assert [message["data"]["data"] for message in messages] == [0]
        assert code == 4003
