from __future__ import annotations

import json

import wsproto.frame_protocol as oracle
from msgspec import UNSET, Raw

from collab.errors import InvalidEvent
from collab.wire.messages import CollabEvent, PingRequest, Pong
from collab.wire.plain import PLAIN


def message_in(frame: bytes) -> object:
    """The JSON value in a server's text frame, read by wsproto."""
    client = oracle.FrameProtocol(client=True, extensions=[])
    client.receive_bytes(frame)
    (found,) = list(client.received_frames())
    assert (found.opcode, found.message_finished) == (oracle.Opcode.TEXT, True)
    return json.loads(found.payload)


def test_a_text_is_one_message() -> None:
    assert PLAIN.decode(b'{"event":"ping","id":1}') == PingRequest(b"1")


def test_a_message_is_one_text_frame() -> None:
    assert message_in(PLAIN.frame(Pong(timestamp=5), b'"x"')) == {
        "event": "pong",
        "id": "x",
        "data": {"timestamp": 5},
    }


def test_an_event_of_any_size_is_one_text_frame() -> None:
    for size in (0, 100, 70_000):
        event = CollabEvent("t", ["bob"], UNSET, Raw(b'"%b"' % (b"x" * size)))
        assert message_in(PLAIN.event_frame(event, "ada")) == {
            "event": "collab_event",
            "data": {"type": "t", "from_user": "ada", "to_users": ["bob"], "data": "x" * size},
        }


def test_an_error_carries_sentence_detail_code_and_id() -> None:
    assert message_in(PLAIN.error_frame(InvalidEvent("data: required", reply_id=b"7"))) == {
        "event": "error",
        "id": 7,
        "data": {"message": "Invalid event format", "error": "data: required", "code": "invalid_event"},
    }


def test_an_error_without_an_id_has_none() -> None:
    assert set(message_in(PLAIN.error_frame(InvalidEvent("x")))) == {"event", "data"}
