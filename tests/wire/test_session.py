from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from socketio.packet import Packet

from collab.errors import Draining, Forbidden, InvalidEvent, InvalidMessage, Refused, UnknownEvent
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import SEPARATOR, Kind, parse_packet, parse_payload, payload_of
from collab.wire.frames import text_frame
from collab.wire.identity import IDENTITY_REQUIRED
from collab.wire.messages import PingRequest
from collab.wire.session import (
    Connect,
    Left,
    Message,
    MessageFailed,
    Pong,
    Reply,
    SocketIoSession,
    Violation,
)
from collab.wire.socketio import PacketType


def waiting():
    return SocketIoSession()


def deciding():
    session = SocketIoSession()
    assert session.receive(b"40") == Connect({})
    return session


def connected():
    session = deciding()
    session.accept("sid")
    return session


def sent(frames):
    """The packets in the service's frames."""
    packets, position = [], 0
    while position < len(frames):
        payload, position = payload_of(frames, position)
        packets += payload.split(SEPARATOR)
    return packets


STATES = pytest.mark.parametrize("session_in", [waiting, deciding, connected])


def is_violation(action, code=CloseCode.PROTOCOL_ERROR):
    return isinstance(action, Violation) and action.close.code == code and 0 < len(action.close.reason) <= 123


def test_a_client_connects_with_and_without_auth():
    assert waiting().receive(b"40") == Connect({})
    assert waiting().receive(b"40/,") == Connect({})
    assert waiting().receive(b'40{"user_id":"ada","n":1}') == Connect({"user_id": "ada", "n": 1})


def test_who_is_let_in_gets_a_sid_and_may_send():
    session = deciding()
    assert not session.is_ready
    assert sent(session.accept("abc")) == [b'40{"sid":"abc"}']
    assert session.is_ready
    assert session.receive(b'427["ping"]') == Message(PingRequest(b"7"))


def test_an_event_that_cannot_be_handled_leaves_the_session_open():
    session = connected()
    for text, kind, reply_id in [
        (b'425["hello"]', UnknownEvent, b"5"),
        (b'425["collab_event"]', InvalidEvent, b"5"),
        (b'42/admin,["ping"]', InvalidMessage, b""),
        (b"42{}", InvalidMessage, b""),
        (b"47", InvalidMessage, b""),
        (b'49["custom"]', InvalidMessage, b""),
        (b"4x", InvalidMessage, b""),
    ]:
        action = session.receive(text)
        assert isinstance(action, MessageFailed)
        assert (type(action.error), action.error.reply_id) == (kind, reply_id)
    assert session.is_ready


@STATES
def test_another_namespace_is_refused_and_the_session_goes_on(session_in):
    session = session_in()
    was_ready = session.is_ready
    for text in (b"40/admin", b"40/admin,", b'40/admin,{"user_id":"ada"}'):
        action = session.receive(text)
        assert isinstance(action, Reply)
        assert action.is_error
        assert sent(action.frame) == [b'44/admin,{"message":"Invalid namespace"}']
    assert not session.is_over
    assert session.is_ready == was_ready


def test_the_refusal_of_a_namespace_reads_as_one_for_the_codec():
    action = waiting().receive("40/büro,".encode())
    [text] = sent(action.frame)
    read = Packet(encoded_packet=text[1:].decode())
    assert (read.packet_type, read.namespace) == (PacketType.CONNECT_ERROR, "/büro")
    assert read.data == {"message": "Invalid namespace"}


@STATES
def test_a_pong_is_taken_at_any_time(session_in):
    assert session_in().receive(b"3") == Pong()


@STATES
@pytest.mark.parametrize("text", [b"1", b"41", b"41/,"])
def test_a_client_may_leave_at_any_time(session_in, text):
    session = session_in()
    assert session.receive(text) == Left()
    assert session.is_over
    assert not session.is_ready
    assert sent(session.farewell(CloseCode.POLICY)) == []


@STATES
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b'0{"sid":"x"}',
        b"1bye",
        b"2",
        b"2probe",
        b"3probe",
        b"4",
        b"5",
        b"6",
        b"7",
        b"hello",
        b"\xc2\xb2",
        b"40[]",
        b'40"x"',
        b"40{",
        b"401",
        b"41{}",
        b"41/admin,",
        b"43[]",
        b'43/admin,1["x"]',
        b"44",
        b'44{"message":"x"}',
        b'45["x"]',
        b'450-["x"]',
        b'4511-["x"]',
        b'4559999999-["x"]',
        b'451-/admin,["x"]',
        b"451-{}",
        b"46[]",
    ],
)
def test_a_packet_that_a_client_may_never_send_ends_the_session(session_in, text):
    session = session_in()
    assert is_violation(session.receive(text))
    assert session.is_over
    assert not session.is_ready


@pytest.mark.parametrize("session_in", [waiting, deciding])
@pytest.mark.parametrize("text", [b'42["ping"]', b"43" + b"1[]", b'451-["x"]', b"47"])
def test_a_message_before_the_client_is_let_in_ends_the_session(session_in, text):
    assert is_violation(session_in().receive(text))


@pytest.mark.parametrize("session_in", [deciding, connected])
def test_a_second_connect_ends_the_session(session_in):
    assert is_violation(session_in().receive(b"40"))


def test_an_ack_that_nobody_asked_for_is_no_more_than_an_error():
    session = connected()
    assert session.receive(b"431[]") == Reply(b"", is_error=True)
    assert session.receive(b'43/,12[{"a":1}]') == Reply(b"", is_error=True)
    assert session.is_ready


@pytest.mark.parametrize("packet", [b"bAAAA", b""])
def test_announced_attachments_are_refused_and_swallowed(packet):
    session = connected()
    action = session.receive(
        b'452-7["collab_event",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    )
    assert isinstance(action, MessageFailed)
    assert isinstance(action.error, InvalidEvent)
    assert action.error.detail == "data: binary attachments are not taken"
    assert action.error.reply_id == b"7"
    for _ in range(2):
        assert not session.is_ready
        assert session.receive(b"3") == Pong()
        assert (session.receive(packet) if packet else session.receive_binary()) is None
    assert session.is_ready
    assert session.receive(b'42["ping"]') == Message(PingRequest())


def test_an_ack_with_attachments_is_refused_and_has_no_callback():
    session = connected()
    action = session.receive(b'461-7[{"_placeholder":true,"num":0}]')
    assert isinstance(action, MessageFailed)
    assert action.error.reply_id == b""
    assert session.receive_binary() is None
    assert session.is_ready


def test_a_text_in_place_of_an_attachment_ends_the_session():
    session = connected()
    session.receive(b'451-["x",{"_placeholder":true,"num":0}]')
    assert is_violation(session.receive(b'42["ping"]'))


@STATES
def test_a_binary_message_that_nobody_announced_ends_the_session_with_1003(session_in):
    assert is_violation(session_in().receive_binary(), CloseCode.BINARY_MESSAGE)
    assert is_violation(session_in().receive(b"bAAAA"), CloseCode.BINARY_MESSAGE)


def test_one_binary_message_too_many_ends_the_session():
    session = connected()
    session.receive(b'451-["x",{"_placeholder":true,"num":0}]')
    assert session.receive_binary() is None
    assert is_violation(session.receive_binary(), CloseCode.BINARY_MESSAGE)


@STATES
def test_after_the_end_everything_is_ignored(session_in):
    session = session_in()
    session.receive(b"9")
    for text in (b"40", b'42["ping"]', b"", b"1", b"bAAAA"):
        assert session.receive(text) is None
    assert session.receive_binary() is None
    assert not session.is_ready


def test_who_does_not_say_who_it_is_is_told_by_an_event_and_disconnected():
    session = deciding()
    frames = session.refuse(Refused(400, "missing_parameter", IDENTITY_REQUIRED), "abc")
    assert sent(frames) == [
        b'40{"sid":"abc"}',
        b'42["error",{"message":"user_id and backend_url are required"}]',
    ]
    assert session.is_over
    assert sent(session.farewell(CloseCode.NORMAL)) == [b"41"]
    assert session.farewell(CloseCode.NORMAL) == b""


def test_who_may_not_come_in_gets_a_connect_error_with_the_code():
    session = deciding()
    assert sent(session.refuse(Forbidden("the token is another user's"), "abc")) == [
        b'44{"message":"the token is another user\'s","data":{"code":"forbidden"}}'
    ]
    assert session.is_over


def test_who_may_come_in_later_is_told_nothing_so_that_it_comes_back_by_itself():
    session = deciding()
    assert session.refuse(Draining(1.0), "abc") == b""
    assert session.is_over


@pytest.mark.parametrize("code", CloseCode)
def test_a_client_is_disconnected_where_it_is_not_to_come_back_by_itself(code):
    stays_away = code in (1002, 1003, 1007, 1008, 4001, 4002, 4004)
    assert sent(connected().farewell(code)) == ([b"41"] if stays_away else [])
    # The packet that closes the transport keeps python-socketio away as well.
    ends = [b"41", b"1"] if stays_away else [b"1"] if code == 1000 else []
    assert sent(connected().farewell(code, is_polling=True)) == ends
    assert connected().farewell(code) in (b"", text_frame(b"41"))


@pytest.mark.parametrize("session_in", [waiting, deciding])
def test_who_is_not_let_in_yet_is_not_disconnected_from_anything(session_in):
    assert session_in().farewell(CloseCode.POLICY) == b""
    assert sent(session_in().farewell(CloseCode.POLICY, is_polling=True)) == [b"1"]


def test_a_farewell_is_said_once():
    session = connected()
    assert session.receive(b"9") is not None
    assert sent(session.farewell(CloseCode.PROTOCOL_ERROR)) == [b"41"]
    assert session.farewell(CloseCode.PROTOCOL_ERROR) == b""


PACKETS = [
    b"",
    b"0",
    b"1",
    b"2",
    b"3",
    b"5",
    b"6",
    b"x",
    b"40",
    b'40{"user_id":"ada"}',
    b"40/x,",
    b"41",
    b'42["ping"]',
    b'423["ping"]',
    b'42["hello"]',
    b'42["collab_event",{"type":"t","to_users":[]}]',
    b"42{}",
    b"431[]",
    b"44",
    b'451-["a"]',
    b'452-3["a"]',
    b'461-1["a"]',
    b'4599-["a"]',
    b"49",
    b"bAAAA",
]


class Model:
    """What the session should do, in the plainest words: `do` gives the kind of action that is due."""

    def __init__(self):
        self.phase = "waiting"
        self.missing = 0

    def do(self, text):
        if self.phase == "over":
            return None
        due = self._due(text)
        if due in (Violation, Left):
            self.phase = "over"
        elif due is Connect:
            self.phase = "connected"  # the tests let everybody in at once
        return due

    def _due(self, text):
        if text == b"bAAAA":
            self.missing -= 1
            return Violation if self.missing < 0 else None
        if text == b"3":
            return Pong
        if text == b"1":
            return Left
        if text[:1] != b"4" or self.missing:
            return Violation
        if text == b"40/x,":
            return Reply
        if text == b"41":
            return Left
        if self.phase == "waiting":
            return Connect if text[:2] == b"40" else Violation
        if text[:3] in (b"451", b"452", b"461"):
            self.missing = int(text[2:3])
            return MessageFailed
        if text[:2] == b"42":
            return Message if b"ping" in text or b"collab" in text else MessageFailed
        return {b"43": Reply, b"49": MessageFailed}.get(text[:2], Violation)


@given(st.lists(st.sampled_from(PACKETS), max_size=12))
def test_any_sequence_of_packets_does_what_the_rules_say(packets):
    session, model = SocketIoSession(), Model()
    for packet in packets:
        action = session.receive(packet)
        assert (action and type(action)) == model.do(packet), packet
        if isinstance(action, Connect):
            session.accept("sid")
        assert session.is_over == (model.phase == "over")
        assert session.is_ready == (model.phase == "connected" and not model.missing)


@given(st.lists(st.binary(max_size=30), max_size=6), st.booleans())
def test_any_texts_are_taken_or_refused_and_never_raise(texts, is_inside):
    session = connected() if is_inside else waiting()
    for text in texts:
        action = session.receive(text)
        if isinstance(action, Violation):
            assert isinstance(action.close, Close)
            assert session.is_over


@given(
    st.lists(st.sampled_from([packet for packet in PACKETS if packet]), min_size=1, max_size=12), st.data()
)
def test_it_is_the_same_however_packets_are_split_into_payloads(packets, data):
    whole, split = SocketIoSession(), SocketIoSession()

    def receive(session, packet):
        action = session.receive(packet)
        if isinstance(action, Connect):
            session.accept("sid")
        return type(action)

    expected = [receive(whole, packet) for packet in packets]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(packets)), max_size=4)) | {0, len(packets)})
    got = []
    for start, end in pairwise(cuts):
        got += [receive(split, packet) for packet in parse_payload(b"\x1e".join(packets[start:end]))]
    assert got == expected


@given(st.sampled_from(CloseCode), st.booleans())
def test_what_is_said_at_the_end_is_sound_packets(code, is_polling):
    for text in sent(connected().farewell(code, is_polling=is_polling)):
        assert parse_packet(text)[0] in (Kind.MESSAGE, Kind.CLOSE)
