"""Owns the fuzzing of Socket.IO: payloads by a grammar, damaged or not, and what must come of each.

The plain dialect is the second opinion on events, python-socketio's codec that on what is sent back.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from socketio.packet import Packet

from collab.errors import EngineRefused, InvalidPacket, MessageError
from collab.wire.codec import decode
from collab.wire.engineio import SEPARATOR, check_request, parse_payload, payload_of
from collab.wire.messages import RouteRequest
from collab.wire.plain import PLAIN
from collab.wire.session import Connect, Left, Message, MessageFailed, Reply, SocketIoSession, Violation
from collab.wire.socketio import MAX_ATTACHMENTS, SOCKETIO
from fuzz import texts
from fuzz.draw import damage, dice

if TYPE_CHECKING:
    import random

    from collab.wire.session import Action

AREA = "packets"
_SPICE = (
    *(b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"b", b"42", b"45", b"9-", b"-", b"1-", b"99-"),
    *(
        b"/",
        b"/,",
        b"/x,",
        b",",
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"\x1e",
        b"\x1e\x1e",
        b"\x00",
        b"\xff",
        b"NaN",
    ),
    *(b'{"_placeholder":true,"num":0}', "٣".encode(), b"\\ud800", b"1" * 40),
)
_PACKETS = (
    *(
        b"40",
        b"40/,",
        b"40{}",
        b"40/x,",
        b'40{"user_id":"ada"}',
        b"41",
        b"41/x,",
        b"1",
        b"2",
        b"3",
        b"2probe",
        b"5",
        b"6",
    ),
    *(
        b"43[]",
        b'431["x"]',
        b'451-["x",{"_placeholder":true,"num":0}]',
        b'450-["x"]',
        b'4599-["x"]',
        b"461-7[]",
    ),
    *(
        b"b",
        b"bAAAA",
        b"4",
        b"42",
        b"47",
        b'44{"message":"x"}',
        b'42["ping"]',
        b'427["ping",1]',
        b'42/x,["ping"]',
    ),
)
_METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS")
_PARAMETERS = ("EIO", "transport", "sid", "j", "user_id", "x", "%45IO")
_VALUES = ("4", "3", "", "polling", "websocket", "flashsocket", "x" * 20, "%ff", "\x00", "4%26EIO=3")
_LONG_INTEGER = re.compile(rb"[0-9]{101}")
NUMBERS = frozenset(range(6))


def payload(draw: random.Random) -> bytes:
    """A body of some packets, mostly sound ones; now and then one is damaged, or all of it is."""
    packets = [] if draw.random() < 0.2 else [b"40"]
    for _ in range(1 + int(draw.random() * 6)):
        made = event(draw) if draw.random() < 0.5 else draw.choice(_PACKETS)
        packets.append(damage(draw, made, _SPICE) if draw.random() < 0.15 else made)
    body = SEPARATOR.join(packets)
    return damage(draw, body, _SPICE) if draw.random() < 0.1 else body


def event(draw: random.Random) -> bytes:
    """An EVENT whose data may be anything that the grammar of texts makes."""
    reply_id = draw.choice((b"", b"", b"0", b"7", b"9" * 16, b"9" * 17))
    data = texts._event(draw) if draw.random() < 0.8 else texts._value(draw, 3)
    return b'42%b["collab_event",%b]' % (reply_id, data.encode())


def run(seed: int, index: int) -> None:
    """One payload through a session, and one query: nothing raises, nothing unsound comes out."""
    draw = dice(AREA, seed, index)
    _check_query(draw)
    body = payload(draw)
    try:
        packets = parse_payload(body)
    except InvalidPacket:
        return
    assert SEPARATOR.join(packets) == body
    assert all(packets)
    session = SocketIoSession()
    for packet in packets:
        was_over, was_ready = session.is_over, session.is_ready
        action = session.receive(packet)
        if was_over:
            assert action is None
            return
        _check_action(session, packet, action)
        if was_ready and packet.startswith(b"42"):
            _check_event(packet, action)


def end(body: bytes) -> str:
    """Where a session is after this payload: inside, outside, or ended, and by what."""
    try:
        packets = parse_payload(body)
    except InvalidPacket:
        return "no payload"
    session, state = SocketIoSession(), "waiting"
    for packet in packets:
        match session.receive(packet):
            case Connect():
                session.accept("sid")
                state = "connected"
            case Violation(close):
                return str(int(close.code))
            case Left():
                return "left"
    return state


def _check_action(session: SocketIoSession, packet: bytes, action: Action | None) -> None:
    if isinstance(action, Connect):
        _read(session.accept("sid"))
    elif isinstance(action, Violation):
        assert session.is_over
        assert action.close.code in (1002, 1003)
        assert len(action.close.reason.encode()) <= 123
    elif isinstance(action, Reply):
        _read(action.frame)
    elif isinstance(action, MessageFailed):
        assert action.error.code in texts.ERROR_CODES
        assert action.error.reply_id in packet
        _read(SOCKETIO.error_frame(action.error))


def _check_event(packet: bytes, action: Action | None) -> None:
    """It means what it means in the plain dialect, or fails there as well, and for the same reason."""
    assert isinstance(action, Message | MessageFailed)
    direct: object
    try:
        direct = SOCKETIO.decode(packet)
    except MessageError as error:
        direct = (error.code, error.detail)
    if isinstance(action, Message):
        assert direct == action.message
    else:
        assert direct == (action.error.code, action.error.detail)
    start = b'["collab_event",'
    head, _, rest = packet.partition(start)
    if not rest.endswith(b"]") or not (head == b"42" or head[2:].isdigit()) or len(head) > 18:
        return
    try:
        plain = decode(b'{"event":"collab_event","data":%b}' % rest[:-1])
    except MessageError as error:
        # Where it is no single value, where that is noticed differs.
        assert isinstance(action, MessageFailed)
        if error.code == "invalid_event":
            assert action.error.code == "invalid_event"
        return
    if isinstance(action, Message) and isinstance(plain, RouteRequest):
        assert isinstance(action.message, RouteRequest)
        ours, theirs = action.message.event, plain.event
        assert (ours.type, ours.to_users, ours.from_user) == (theirs.type, theirs.to_users, theirs.from_user)
        assert bytes(ours.data) == bytes(theirs.data)
        _read(SOCKETIO.event_frame(ours, texts.USER))
        _read(SOCKETIO.ack_frame(ours.type, 1, [], action.message.reply_id))
        assert PLAIN.event_frame(ours, texts.USER)


def _read(frames: bytes) -> None:
    """What is sent can be read by a client's codec."""
    position = 0
    while position < len(frames):
        body, position = payload_of(frames, position)
        for packet in filter(None, body.split(SEPARATOR)):
            assert packet[:1] == b"4"
            if _LONG_INTEGER.search(packet):
                # It is sound JSON, and its reader's own limit.
                continue
            read = Packet(encoded_packet=packet[1:].decode())
            assert 0 <= read.attachment_count <= MAX_ATTACHMENTS


def _check_query(draw: random.Random) -> None:
    pairs = [(draw.choice(_PARAMETERS), draw.choice(_VALUES)) for _ in range(int(draw.random() * 6))]
    query = "&".join(f"{name}={value if draw.random() < 0.7 else quote(value)}" for name, value in pairs)
    try:
        asked = check_request(query, method=draw.choice(_METHODS), is_upgrade=draw.random() < 0.3)
    except EngineRefused as refused:
        number = refused.number
    else:
        number = 0
        assert asked.transport in ("polling", "websocket")
    assert number in NUMBERS
