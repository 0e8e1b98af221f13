"""Owns Engine.IO 4: its packets, the payloads of long polling, its handshake and its errors.

https://socket.io/docs/v4/engine-io-protocol/. What is queued for a session is RFC 6455 text frames, one for
each packet, whatever carries them: an upgrade then changes nothing in the queue, and an event is written
once for all sessions. `payload_of` makes the answer of a poll of them.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from typing import Literal
from urllib.parse import parse_qsl

import attrs
from engineio import packet as codec

from collab.errors import EngineRefused, InvalidPacket
from collab.wire.frames import text_frame

Transport = Literal["polling", "websocket"]

ENGINE_PATHS = ("/socket.io/", "/socket.io")
"""Where it is spoken; clients ask for the first."""
SEPARATOR = b"\x1e"
MAX_PACKETS_OF_A_POLL = 16
"""python-engineio's clients give up on an answer with more."""
_FREE_PACKETS = 256
_BYTES_PER_PACKET = 32


class Kind(IntEnum):
    """Kinds of Engine.IO packets."""

    OPEN = codec.OPEN
    CLOSE = codec.CLOSE
    PING = codec.PING
    PONG = codec.PONG
    MESSAGE = codec.MESSAGE
    UPGRADE = codec.UPGRADE
    NOOP = codec.NOOP


def packet_frame(kind: Kind, data: str | dict[str, object] | None = None) -> bytes:
    """A packet as the text frame that is queued for the peer. Not for the messages of every event."""
    return text_frame(codec.Packet(int(kind), data).encode().encode())


PING_FRAME = packet_frame(Kind.PING)
"""The service's keepalive: the client answers with a pong."""
CLOSE_FRAME = packet_frame(Kind.CLOSE)
"""The end of a session whose transport is polling."""
PROBE_ANSWER_FRAME = packet_frame(Kind.PONG, "probe")
NOOP_PAYLOAD = b"%d" % Kind.NOOP
"""The answer of a poll that has nothing to bring."""


BINARY_PACKET = b"b"
"""What stands for a binary message, whatever was in it: none is taken."""


def is_binary_packet(text: bytes) -> bool:
    """Whether this is a binary message, in base64."""
    return text[:1] == b"b"


def parse_packet(text: bytes) -> tuple[Kind, bytes]:
    """The kind and the data of one text packet, which must be UTF-8.

    Raises:
        InvalidPacket: it is empty, binary or of an unknown kind, or has data that its kind has not.
    """
    if not text:
        raise InvalidPacket("An Engine.IO packet is empty")
    if is_binary_packet(text):
        raise InvalidPacket("Binary packets are not taken")
    kind = _KINDS.get(text[:1])
    if kind is None:
        raise InvalidPacket("An Engine.IO packet is of an unknown kind")
    data = text[1:]
    if data and kind is not Kind.MESSAGE and (kind, data) not in _PROBES:
        raise InvalidPacket(f"An Engine.IO packet of kind {kind.name.lower()} has no data")
    return kind, data


_KINDS = {b"%d" % kind: kind for kind in Kind}
_PROBES = ((Kind.PING, b"probe"), (Kind.PONG, b"probe"))


def parse_payload(body: bytes) -> list[bytes]:
    """The packets in the body of a POST, each as its text, checked for UTF-8 and no further.

    Raises:
        InvalidPacket: not UTF-8, nothing in it, an empty packet, or far too many small ones.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise InvalidPacket("A payload is not UTF-8") from None
    # Packets may be small, but a payload of almost nothing else is an attack on time.
    if body.count(SEPARATOR) >= _FREE_PACKETS + len(body) // _BYTES_PER_PACKET:
        raise InvalidPacket("A payload has too many small packets")
    packets = body.split(SEPARATOR)
    if not all(packets):
        raise InvalidPacket("An Engine.IO packet is empty")
    return packets


def payload_of(
    frames: bytes, start: int = 0, *, max_packets: int = MAX_PACKETS_OF_A_POLL
) -> tuple[bytes, int]:
    """The answer of a poll out of the service's frames from `start` on, and where the rest begins.

    `frames` holds whole, unmasked frames as `text_frame` makes them. Control frames are left out: they
    are for WebSockets. Without any packet the payload is empty; `NOOP_PAYLOAD` is what to send then.
    The packet that closes the session comes alone: clients act on it before what came together with it.
    """
    packets: list[bytes] = []
    position, end = start, len(frames)
    while position < end and len(packets) < max_packets:
        if packets and frames.startswith(CLOSE_FRAME, position):
            break
        is_text = frames[position] == 0x81
        size = frames[position + 1]
        position += 2
        if size == 126:
            size = int.from_bytes(frames[position : position + 2], "big")
            position += 2
        elif size == 127:
            size = int.from_bytes(frames[position : position + 8], "big")
            position += 8
        if is_text:
            packets.append(frames[position : position + size])
        position += size
    return SEPARATOR.join(packets), position


def new_sid() -> str:
    """An id that nobody can guess: of a session of Engine.IO, or of its namespace."""
    return secrets.token_urlsafe(15)


def open_frame(
    sid: str, *, can_upgrade: bool, ping_interval_ms: int, ping_timeout_ms: int, max_payload: int
) -> bytes:
    """The handshake: the first packet of every session. `max_payload` is in bytes."""
    return packet_frame(
        Kind.OPEN,
        {
            "sid": sid,
            "upgrades": ["websocket"] if can_upgrade else [],
            "pingInterval": ping_interval_ms,
            "pingTimeout": ping_timeout_ms,
            "maxPayload": max_payload,
        },
    )


@attrs.frozen(kw_only=True)
class EngineRequest:
    """What a request asks of Engine.IO. Without a `sid` it is a handshake."""

    transport: Transport
    sid: str


_TRANSPORTS: dict[str, Transport] = {"polling": "polling", "websocket": "websocket"}


def check_request(query: str, *, method: str, is_upgrade: bool) -> EngineRequest:
    """What a request with this raw query string asks for; `is_upgrade`: for a WebSocket.

    Whether there is a session of that `sid`, and whether it may be asked for this, is not known here.

    Raises:
        EngineRefused: with the error of the protocol.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise bad_request() from None
    ours = [(name, value) for name, value in pairs if name in ("EIO", "transport", "sid", "j")]
    parameters = dict(ours)
    if len(parameters) < len(ours) or "j" in parameters:
        raise bad_request()
    transport = _TRANSPORTS.get(parameters.get("transport", ""))
    if transport is None:
        raise unknown_transport()
    sid = parameters.get("sid", "")
    if not sid:
        if method != "GET":
            raise bad_handshake_method()
        if parameters.get("EIO") != "4":
            raise unsupported_version()
    if is_upgrade != (transport == "websocket") or method not in ("GET", "POST"):
        raise bad_request()
    return EngineRequest(transport=transport, sid=sid)


def unknown_transport() -> EngineRefused:
    """Neither polling nor WebSocket."""
    return EngineRefused(0, "Transport unknown")


def unknown_sid() -> EngineRefused:
    """There is no session of this id, or none any more."""
    return EngineRefused(1, "Session ID unknown")


def bad_handshake_method() -> EngineRefused:
    """A session begins with a GET."""
    return EngineRefused(2, "Bad handshake method")


def bad_request() -> EngineRefused:
    """The request is not what the session can take."""
    return EngineRefused(3, "Bad request")


def forbidden() -> EngineRefused:
    """Who asks may not come in."""
    return EngineRefused(4, "Forbidden", status=403)


def unsupported_version() -> EngineRefused:
    """Another revision of the protocol than 4."""
    return EngineRefused(5, "Unsupported protocol version")
