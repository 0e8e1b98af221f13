from __future__ import annotations

import pytest
from engineio.packet import Packet
from engineio.payload import Payload
from hypothesis import given
from hypothesis import strategies as st

from collab.errors import EngineRefused, InvalidPacket
from collab.wire import engineio
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import Kind, check_request, parse_packet, parse_payload, payload_of
from collab.wire.frames import PING_FRAME as WEBSOCKET_PING
from collab.wire.frames import close_frame, text_frame

GET = {"method": "GET", "is_upgrade": False}
# What a packet may hold, in one payload with others: anything in UTF-8 but the separator.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1e"), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        (b"0", Kind.OPEN, b""),
        (b"1", Kind.CLOSE, b""),
        (b"2", Kind.PING, b""),
        (b"2probe", Kind.PING, b"probe"),
        (b"3", Kind.PONG, b""),
        (b"3probe", Kind.PONG, b"probe"),
        (b"4", Kind.MESSAGE, b""),
        (b'42["ping"]', Kind.MESSAGE, b'2["ping"]'),
        (b"5", Kind.UPGRADE, b""),
        (b"6", Kind.NOOP, b""),
    ],
)
def test_a_packet_has_a_kind_and_data(text, kind, data):
    assert parse_packet(text) == (kind, data)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "empty"),
        (b"bAAAA", "Binary"),
        (b"7", "unknown kind"),
        (b"9", "unknown kind"),
        (b"x", "unknown kind"),
        (b'd=4{"a":1}', "unknown kind"),
        (b" 4", "unknown kind"),
        ("²".encode(), "unknown kind"),
        (b'0{"sid":"x"}', "no data"),
        (b"1bye", "no data"),
        (b"2x", "no data"),
        (b"3x", "no data"),
        (b"5x", "no data"),
        (b"6x", "no data"),
    ],
)
def test_what_nobody_may_send_is_no_packet(text, why):
    with pytest.raises(InvalidPacket, match=why):
        parse_packet(text)


@given(st.binary(max_size=40))
def test_any_text_is_a_packet_or_is_refused(text):
    try:
        kind, data = parse_packet(text)
    except InvalidPacket:
        return
    assert b"%d" % kind + data == text


def test_a_payload_is_packets_with_a_separator_between_them():
    assert parse_payload(b'42["a"]\x1e3\x1e42["b"]') == [b'42["a"]', b"3", b'42["b"]']
    assert parse_payload(b"3") == [b"3"]


@pytest.mark.parametrize("body", [b"", b"\x1e", b"3\x1e", b"\x1e3", b"3\x1e\x1e3"])
def test_a_payload_with_an_empty_packet_is_refused(body):
    with pytest.raises(InvalidPacket, match="empty"):
        parse_payload(body)


def test_a_payload_that_is_not_utf8_is_refused():
    with pytest.raises(InvalidPacket, match="UTF-8"):
        parse_payload(b'42["\xff"]')


def test_a_payload_of_almost_nothing_but_separators_is_refused():
    with pytest.raises(InvalidPacket, match="too many"):
        parse_payload(b"\x1e".join([b"3"] * 1_000))


def test_a_burst_of_the_smallest_events_is_one_payload():
    event = b'42["collab_event",{"type":"t","to_users":[]}]'
    assert len(parse_payload(b"\x1e".join([event] * 10_000))) == 10_000


@given(st.lists(texts, min_size=1, max_size=16))
def test_the_codec_splits_a_payload_in_the_same_places(packets):
    body = "\x1e".join("4" + packet for packet in packets)
    assert parse_payload(body.encode()) == [f"4{packet}".encode() for packet in packets]
    read = Payload(encoded_payload=body).packets
    assert len(read) == len(packets)
    assert all(packet.packet_type == Kind.MESSAGE for packet in read)


@given(
    st.lists(
        st.one_of(
            texts.map(str.encode),
            st.integers(120, 130).map(bytes),
            st.sampled_from([65535, 65536]).map(bytes),
        ),
        max_size=40,
    ),
    st.integers(1, 20),
)
def test_polls_bring_every_queued_packet_once_and_in_order(packets, max_packets):
    frames = b"".join(text_frame(packet) for packet in packets)
    brought, position = [], 0
    while position < len(frames):
        payload, position = payload_of(frames, position, max_packets=max_packets)
        got = payload.split(b"\x1e")
        assert len(got) <= max_packets
        brought += got
    assert brought == packets


def test_a_poll_brings_no_more_than_a_python_client_takes():
    frames = text_frame(b'42["notice",{}]') * 40
    payload, rest = payload_of(frames)
    assert len(Payload(encoded_payload=payload.decode()).packets) == 16
    assert frames[rest:] == text_frame(b'42["notice",{}]') * 24


def test_the_end_of_a_session_comes_alone_as_clients_act_on_it_before_what_came_with_it():
    frames = text_frame(b"41") + text_frame(b"1")
    assert payload_of(frames) == (b"41", len(text_frame(b"41")))
    assert payload_of(frames, len(text_frame(b"41"))) == (b"1", len(frames))


def test_frames_for_websockets_alone_are_left_out_of_a_poll():
    frames = (
        WEBSOCKET_PING + text_frame(b"2") + close_frame(Close(CloseCode.GOING_AWAY, "bye")) + text_frame(b"6")
    )
    assert payload_of(frames) == (b"2\x1e6", len(frames))
    assert payload_of(WEBSOCKET_PING) == (b"", len(WEBSOCKET_PING))
    assert payload_of(b"") == (b"", 0)


def test_the_handshake_says_what_the_protocol_asks_for():
    frame = engineio.open_frame(
        "abc", can_upgrade=True, ping_interval_ms=25_000, ping_timeout_ms=20_000, max_payload=65_536
    )
    payload, _ = payload_of(frame)
    read = Packet(encoded_packet=payload.decode())
    assert read.packet_type == Kind.OPEN
    assert read.data == {
        "sid": "abc",
        "upgrades": ["websocket"],
        "pingInterval": 25_000,
        "pingTimeout": 20_000,
        "maxPayload": 65_536,
    }


def test_a_session_that_began_as_a_websocket_has_nothing_to_upgrade_to():
    frame = engineio.open_frame(
        "abc", can_upgrade=False, ping_interval_ms=1, ping_timeout_ms=1, max_payload=1
    )
    assert b'"upgrades":[]' in frame


def test_control_packets_are_text_frames():
    assert text_frame(b"2") == engineio.PING_FRAME
    assert text_frame(b"1") == engineio.CLOSE_FRAME
    assert text_frame(b"3probe") == engineio.PROBE_ANSWER_FRAME
    assert engineio.NOOP_PAYLOAD == b"6"


def test_a_sid_is_long_and_never_the_same():
    sids = {engineio.new_sid() for _ in range(1_000)}
    assert len(sids) == 1_000
    assert all(len(sid) == 20 for sid in sids)


@pytest.mark.parametrize(
    ("query", "request_", "transport", "sid"),
    [
        ("EIO=4&transport=polling", GET, "polling", ""),
        ("EIO=4&transport=polling&t=abc&user_id=ada", GET, "polling", ""),
        ("EIO=4&transport=websocket", {"method": "GET", "is_upgrade": True}, "websocket", ""),
        ("EIO=4&transport=polling&sid=x", GET, "polling", "x"),
        ("EIO=4&transport=polling&sid=x", {"method": "POST", "is_upgrade": False}, "polling", "x"),
        ("transport=polling&sid=x", GET, "polling", "x"),
        ("EIO=4&transport=websocket&sid=x", {"method": "GET", "is_upgrade": True}, "websocket", "x"),
    ],
)
def test_a_request_is_a_handshake_or_for_a_session(query, request_, transport, sid):
    assert check_request(query, **request_) == engineio.EngineRequest(transport=transport, sid=sid)


@pytest.mark.parametrize(
    ("query", "request_", "number"),
    [
        ("EIO=4", GET, 0),
        ("", GET, 0),
        ("EIO=4&transport=webtransport", GET, 0),
        ("EIO=4&transport=", GET, 0),
        ("EIO=4&transport=polling", {"method": "POST", "is_upgrade": False}, 2),
        ("EIO=4&transport=polling", {"method": "PUT", "is_upgrade": False}, 2),
        ("EIO=4&transport=polling&sid=x", {"method": "PUT", "is_upgrade": False}, 3),
        ("EIO=4&transport=websocket", GET, 3),
        ("EIO=4&transport=websocket&sid=x", {"method": "POST", "is_upgrade": False}, 3),
        ("EIO=4&transport=polling", {"method": "GET", "is_upgrade": True}, 3),
        ("EIO=4&transport=polling&j=0", GET, 3),
        ("EIO=4&transport=polling&transport=websocket", GET, 3),
        ("EIO=4&transport=polling&sid=x&sid=y", GET, 3),
        ("EIO=4&EIO=3&transport=polling", GET, 3),
        ("EIO=4&transport=polling&x=%ff", GET, 3),
        ("EIO=3&transport=polling", GET, 5),
        ("transport=polling", GET, 5),
        ("EIO=5&transport=polling", GET, 5),
        ("EIO=3&transport=websocket", {"method": "GET", "is_upgrade": True}, 5),
    ],
)
def test_another_request_is_refused_with_the_error_of_the_protocol(query, request_, number):
    with pytest.raises(EngineRefused) as caught:
        check_request(query, **request_)
    assert (caught.value.number, caught.value.status) == (number, 400)


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (engineio.unknown_transport(), 400, {"code": 0, "message": "Transport unknown"}),
        (engineio.unknown_sid(), 400, {"code": 1, "message": "Session ID unknown"}),
        (engineio.bad_handshake_method(), 400, {"code": 2, "message": "Bad handshake method"}),
        (engineio.bad_request(), 400, {"code": 3, "message": "Bad request"}),
        (engineio.forbidden(), 403, {"code": 4, "message": "Forbidden"}),
        (engineio.unsupported_version(), 400, {"code": 5, "message": "Unsupported protocol version"}),
    ],
)
def test_an_error_has_the_body_that_clients_read(error, status, body):
    assert error.status == status
    assert error.body == body
