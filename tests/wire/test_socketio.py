from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from socketio.packet import Packet

from collab.errors import (
    InvalidEvent,
    InvalidJson,
    InvalidMessage,
    InvalidPacket,
    MessageError,
    RateLimited,
    UnknownEvent,
)
from collab.wire.engineio import payload_of
from collab.wire.frames import text_frame
from collab.wire.messages import CollabEvent, Connected, PingRequest, Pong, RefreshRequest, RouteRequest
from collab.wire.plain import PLAIN
from collab.wire.socketio import SOCKETIO, PacketType, SocketIoPacket, packet_text_frame, read_packet

DATA = b'{"type":"t","to_users":["bob"],"data": {"a" : 1.0} }'


def packets(frames):
    """The packets in the service's frames, as python-socketio reads them."""
    payload, _ = payload_of(frames)
    texts = payload.decode().split("\x1e")
    assert all(text[0] == "4" for text in texts)
    return [Packet(encoded_packet=text[1:]) for text in texts]


def events(frames):
    return [packet.data for packet in packets(frames) if packet.packet_type == PacketType.EVENT]


def acks(frames):
    return [(packet.id, packet.data) for packet in packets(frames) if packet.packet_type == PacketType.ACK]


def as_told(decode, text):
    """What a dialect makes of a text, in a form that can be compared."""
    try:
        message = decode(text)
    except MessageError as error:
        return type(error), error.reply_id
    if isinstance(message, RouteRequest):
        event = message.event
        return event.type, event.to_users, event.from_user, bytes(event.data), message.reply_id
    return message


@pytest.mark.parametrize(
    ("text", "reply_id"),
    [
        (b'42["collab_event",%b]', b""),
        (b'427["collab_event",%b]', b"7"),
        (b'420["collab_event",%b]', b"0"),
        (b'421234567890123456["collab_event",%b]', b"1234567890123456"),
        (b'42 ["collab_event",%b]', None),
        (b'42[ "collab_event" , %b ] ', b""),
        (b'42["collab\\u005fevent",%b]', b""),
        (b'42/,["collab_event",%b]', b""),
        (b'42/,12["collab_event",%b]', b"12"),
    ],
)
def test_an_event_is_a_list_of_its_name_and_its_data(text, reply_id):
    if reply_id is None:
        with pytest.raises(InvalidMessage):
            SOCKETIO.decode(text % DATA)
        return
    request = SOCKETIO.decode(text % DATA)
    assert isinstance(request, RouteRequest)
    assert request.reply_id == reply_id
    assert (request.event.type, request.event.to_users) == ("t", ["bob"])
    assert bytes(request.event.data) == b'{"a" : 1.0}'


@pytest.mark.parametrize("arguments", [b"", b",null", b",{}", b",1,2,3"])
def test_a_ping_may_have_any_arguments(arguments):
    assert SOCKETIO.decode(b'42["ping"%b]' % arguments) == PingRequest()
    assert SOCKETIO.decode(b'425["ping"%b]' % arguments) == PingRequest(b"5")


def test_a_refresh_has_a_token():
    assert SOCKETIO.decode(b'423["refresh",{"token":"x"}]') == RefreshRequest("x", b"3")


@pytest.mark.parametrize(
    ("text", "kind", "detail", "reply_id"),
    [
        (b'427["collab_event"]', InvalidEvent, "data: required", b"7"),
        (b'427["collab_event",{},{}]', InvalidEvent, "data: expected one argument, got 2", b"7"),
        (b'427["collab_event",{}]', InvalidEvent, "data.type: required", b"7"),
        (
            b'427["collab_event",{"type":"t","to_users":[1]}]',
            InvalidEvent,
            "data.to_users[0]: expected",
            b"7",
        ),
        (b'42["collab_event","x"]', InvalidEvent, "data: expected object, got str", b""),
        (b'42["collab_event",null]', InvalidEvent, "data: expected object, got null", b""),
        (b'427["refresh"]', InvalidMessage, "data: required", b"7"),
        (b'427["refresh",{},1]', InvalidMessage, "data: expected one argument, got 2", b"7"),
        (b'427["refresh",{"token":1}]', InvalidMessage, "data.token: expected str, got int", b"7"),
        (b'427["hello",1]', UnknownEvent, "event: hello", b"7"),
        (b'427["connect"]', UnknownEvent, "event: connect", b"7"),
        (b'427["disconnect"]', UnknownEvent, "event: disconnect", b"7"),
        (b'427["' + b"x" * 200 + b'"]', UnknownEvent, "event: " + "x" * 64 + " is", b"7"),
        (b"427[]", InvalidMessage, "event: required", b"7"),
        (b"427[1]", InvalidMessage, "event: expected str, got int", b"7"),
        (b"427[null]", InvalidMessage, "event: expected str, got null", b"7"),
        (b'427["collab_event",{]', InvalidJson, "", b"7"),
        (b'427["a"] x', InvalidJson, "", b"7"),
        (b'427["\\ud800"]', InvalidJson, "", b"7"),
        (b"42" + b"[" * 100_000, InvalidJson, "nested too deeply", b""),
        (b"42", InvalidMessage, "packet:", b""),
        (b"42{}", InvalidMessage, "packet:", b""),
        (b"42hello", InvalidMessage, "packet:", b""),
        (b'42-1["ping"]', InvalidMessage, "packet:", b""),
        (b'421-["ping"]', InvalidMessage, "packet:", b""),
        ("42²[]".encode(), InvalidMessage, "packet:", b""),
        (b'4212345678901234567["ping"]', InvalidMessage, "id: longer than 16 digits", b""),
        (b"42" + b"1" * 50_000 + b'["ping"]', InvalidMessage, "id: longer than 16 digits", b""),
        (b'4212345678901234567["collab_event",%b]' % DATA, InvalidMessage, "id: longer", b""),
        (b'42/admin,["ping"]', InvalidMessage, "namespace: not connected", b""),
        (b'43["collab_event",%b]' % DATA, InvalidMessage, "packet:", b""),
        (b'437["collab_event",%b]' % DATA, InvalidMessage, "packet:", b""),
    ],
)
def test_an_event_that_cannot_be_handled_is_named(text, kind, detail, reply_id):
    with pytest.raises(MessageError) as caught:
        SOCKETIO.decode(text)
    assert type(caught.value) is kind
    assert caught.value.detail.startswith(detail)
    assert caught.value.reply_id == reply_id


def test_a_malformed_event_is_told_as_clients_of_the_first_service_know_it():
    with pytest.raises(InvalidEvent) as caught:
        SOCKETIO.decode(b'42["collab_event",{"type":"t"}]')
    [(name, data)] = events(SOCKETIO.error_frame(caught.value))
    assert name == "error"
    assert data == {
        "message": "Invalid event format",
        "error": "data.to_users: required",
        "code": "invalid_event",
    }


@given(st.binary(max_size=60), st.sampled_from([b"", b"7", b"12["]))
@example(b'["collab_event",{"type":"t","to_users":["\xff"]}]', b"")
def test_any_text_is_a_message_or_its_sender_is_told(rest, id):
    as_told(SOCKETIO.decode, b"42" + id + rest)


fragments = st.sampled_from(
    [
        b'"type":"t"',
        b'"to_users":["a","b"]',
        b'"to_users":[1]',
        b'"data":{"x":[1, 2]}',
        b'"from_user":"a"',
        b'"y":0',
    ]
)


@given(st.lists(fragments, max_size=6), st.sampled_from([b"", b"7", b"1234567890123456"]))
def test_an_event_means_the_same_in_both_dialects(members, reply_id):
    data = b"{" + b",".join(members) + b"}"
    plain_id = b'"id":%b,' % reply_id if reply_id else b""
    assert as_told(SOCKETIO.decode, b'42%b["collab_event",%b]' % (reply_id, data)) == as_told(
        PLAIN.decode, b'{%b"event":"collab_event","data":%b}' % (plain_id, data)
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    json_values,
    st.integers(0, 10**16 - 1) | st.none(),
)
def test_what_the_codec_writes_is_read(name, value, reply_id):
    written = Packet(PacketType.EVENT, [name, value], id=reply_id).encode()
    told = as_told(SOCKETIO.decode, b"4" + written.encode())
    id_text = b"" if reply_id is None else b"%d" % reply_id
    if name == "ping":
        assert told == PingRequest(id_text)
    elif name not in ("collab_event", "refresh"):
        assert told == (UnknownEvent, id_text)


def test_an_event_is_relayed_byte_for_byte():
    event = CollabEvent("t", ["bob", "bob"], data=Raw(b'{"a" : 1.0, "a":"\\u00e9"}'))
    frame = SOCKETIO.event_frame(event, "ada")
    assert frame == text_frame(
        b'42["collab_event",{"type":"t","from_user":"ada","to_users":["bob","bob"],'
        b'"data":{"a" : 1.0, "a":"\\u00e9"}}]'
    )
    assert events(frame)[0][0] == "collab_event"


def test_a_message_is_an_event_with_its_data():
    frame = SOCKETIO.frame(Connected(user_id="ada", active_users=2))
    assert events(frame) == [
        ["connected", {"user_id": "ada", "message": "Connected to collaboration service", "active_users": 2}]
    ]
    assert acks(frame) == []


@pytest.mark.parametrize("undelivered", [(), ("bob", "cleo")])
def test_an_ack_has_the_data_of_the_plain_dialect(undelivered):
    plain, _ = payload_of(PLAIN.ack_frame("t", 3, undelivered, b""))
    [(name, data)] = events(SOCKETIO.ack_frame("t", 3, undelivered, b""))
    assert (name, data) == ("event_ack", json.loads(plain)["data"])


def test_a_reply_comes_as_an_event_and_to_the_callback():
    failed = InvalidEvent("data: required", reply_id=b"9")
    limited = RateLimited(0.5, reply_id=b"9")
    for frames in (
        SOCKETIO.ack_frame("t", 1, (), b"9"),
        SOCKETIO.frame(Pong(timestamp=5), b"9"),
        SOCKETIO.error_frame(failed),
        SOCKETIO.error_frame(limited),
    ):
        event, ack = packets(frames)
        assert (event.packet_type, event.id) == (PacketType.EVENT, None)
        assert (ack.packet_type, ack.id) == (PacketType.ACK, 9)
        assert ack.data == event.data[1:]


def test_without_a_callback_nothing_is_called_back():
    for frames in (
        SOCKETIO.ack_frame("t", 1, (), b""),
        SOCKETIO.frame(Pong(timestamp=5)),
        SOCKETIO.error_frame(InvalidEvent("data: required")),
    ):
        assert acks(frames) == []
        assert len(packets(frames)) == 1


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        (b"0", SocketIoPacket(type=PacketType.CONNECT)),
        (b"0/", SocketIoPacket(type=PacketType.CONNECT)),
        (b"0/,", SocketIoPacket(type=PacketType.CONNECT)),
        (b'0{"a":"b"}', SocketIoPacket(type=PacketType.CONNECT, data={"a": "b"})),
        (b'0/,{"a":1}', SocketIoPacket(type=PacketType.CONNECT, data={"a": 1})),
        (b"0/admin", SocketIoPacket(type=PacketType.CONNECT, namespace="/admin")),
        (b"0/a-b?c=d,{}", SocketIoPacket(type=PacketType.CONNECT, namespace="/a-b?c=d", data={})),
        ("0/büro,".encode(), SocketIoPacket(type=PacketType.CONNECT, namespace="/büro")),
        (b"0/admin{}", SocketIoPacket(type=PacketType.CONNECT, namespace="/admin{}")),
        (b"1", SocketIoPacket(type=PacketType.DISCONNECT)),
        (b"1/admin,", SocketIoPacket(type=PacketType.DISCONNECT, namespace="/admin")),
        (b"30[]", SocketIoPacket(type=PacketType.ACK, reply_id=b"0", data=[])),
        (b'3/x,12["a-b"]', SocketIoPacket(type=PacketType.ACK, namespace="/x", reply_id=b"12", data=["a-b"])),
        (b'51-["a"]', SocketIoPacket(type=PacketType.BINARY_EVENT, attachments=1, data=["a"])),
        (
            b'610-/x,3["a"]',
            SocketIoPacket(
                type=PacketType.BINARY_ACK, namespace="/x", attachments=10, reply_id=b"3", data=["a"]
            ),
        ),
    ],
)
def test_a_sound_packet_is_read(text, packet):
    assert read_packet(text) == packet


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"7",
        b"9[]",
        b"x",
        "²".encode(),
        b"-1",
        b"0[]",
        b"0[1]",
        b'0"x"',
        b"01",
        b'01{"a":1}',
        b'01-{"a":1}',
        b'0{"a":1',
        b'0{"a":NaN}',
        b'0{"a":"\\ud800"}',
        b'0{"a":' + b"[" * 100_000,
        b'0{"a":' + b"9" * 5_000 + b"}",
        b'0{"a":1}x',
        b"0admin",
        b"0/admin,x",
        b"0/" + b"x" * 128 + b",",
        b"0/a b,",
        b"0/a\x00b,",
        b"0/a\x1e3,",
        b"1{}",
        b"11",
        b"1[]",
        b"3[]",
        b"31",
        b"31{}",
        b'31"x"',
        b"312345678901234567[]",
        b"3" + b"1" * 50_000 + b"[]",
        b"31-[]",
        b'5["a"]',
        b'50-["a"]',
        b'500-["a"]',
        b'511-["a"]',
        b'599-["a"]',
        b'559999999-["a"]',
        b'5-1-["a"]',
        b"51-",
        b"51-{}",
        b'61-["a"]',
        b"2",
        b"2{}",
    ],
)
def test_a_packet_that_its_type_does_not_allow_is_refused(text):
    with pytest.raises(InvalidPacket):
        read_packet(text)


@given(
    st.one_of(
        st.binary(max_size=40),
        st.lists(
            st.sampled_from(
                [
                    b"0",
                    b"1",
                    b"3",
                    b"5",
                    b"6",
                    b"9",
                    b"-",
                    b"/",
                    b"/x",
                    b",",
                    b"[",
                    b"]",
                    b"{}",
                    b"[1]",
                    b'{"a":1}',
                    b'"',
                ]
            ),
            max_size=8,
        ).map(b"".join),
    )
)
def test_any_text_is_a_packet_within_bounds_or_is_refused(text):
    try:
        text.decode()
        packet = read_packet(text)
    except (InvalidPacket, UnicodeDecodeError):
        return
    again = Packet(encoded_packet=text.decode())
    assert (again.packet_type, again.attachment_count) == (packet.type, packet.attachments)
    assert (again.namespace or "/") == packet.namespace.partition("?")[0]
    assert (b"" if again.id is None else b"%d" % again.id) == (
        packet.reply_id.lstrip(b"0") or packet.reply_id[:1]
    )
    assert packet.attachments <= 10
    assert len(packet.reply_id) <= 16


def test_a_packet_is_written_as_the_protocol_has_it():
    assert packet_text_frame(PacketType.CONNECT, {"sid": "abc"}) == text_frame(b'40{"sid":"abc"}')
    assert packet_text_frame(PacketType.DISCONNECT) == text_frame(b"41")
    assert packet_text_frame(PacketType.CONNECT_ERROR, {"message": "no"}, namespace="/x") == text_frame(
        b'44/x,{"message":"no"}'
    )
