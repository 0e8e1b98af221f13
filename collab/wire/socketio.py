"""Owns Socket.IO 5: its packets, and the dialect of those who speak it.

https://socket.io/docs/v4/socket-io-protocol/. Events are read and written here, as there are many of
them; all other packets go through python-socketio's codec, once they are known to be what it should
see: it takes unknown types, any number of attachments and JSON that no other reader takes.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

import attrs
import msgspec
from msgspec import Raw
from socketio import packet as packet_codec

from collab.errors import InvalidEvent, InvalidJson, InvalidMessage, InvalidPacket, UnknownEvent
from collab.wire import codec
from collab.wire.codec import MALFORMED
from collab.wire.engineio import Kind, packet_frame
from collab.wire.frames import text_frame
from collab.wire.messages import (
    ClientMessage,
    CollabEvent,
    PingRequest,
    RefreshRequest,
    RouteRequest,
    ServerMessage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.errors import MessageError

MAX_ID_DIGITS = 16
MAX_NAMESPACE_BYTES = 128
MAX_ATTACHMENTS = 10
ROOT = "/"


class PacketType(IntEnum):
    """Types of Socket.IO packets."""

    CONNECT = packet_codec.CONNECT
    DISCONNECT = packet_codec.DISCONNECT
    EVENT = packet_codec.EVENT
    ACK = packet_codec.ACK
    CONNECT_ERROR = packet_codec.CONNECT_ERROR
    BINARY_EVENT = packet_codec.BINARY_EVENT
    BINARY_ACK = packet_codec.BINARY_ACK


@attrs.frozen(kw_only=True)
class SocketIoPacket:
    """One packet as it was read. `data` is an object for CONNECT, and a list for the rest of them."""

    type: PacketType
    namespace: str = ROOT
    reply_id: bytes = b""
    """The digits of the ack id; empty where there is none."""
    attachments: int = 0
    data: dict[str, object] | list[object] | None = None


_decode_emit = msgspec.json.Decoder(tuple[Literal["collab_event"], CollabEvent]).decode
_decode_arguments = msgspec.json.Decoder(list[Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode
_decode_list = msgspec.json.Decoder(list[object]).decode


class SocketIoDialect:
    """How the messages travel to and from Socket.IO clients. Stateless: one instance serves all connections.

    A reply whose message came with an ack id is sent twice, in one piece: as the event that handlers wait
    for, and as the ack that the callback of the emit waits for.
    """

    name = "socketio"

    def decode(self, text: bytes) -> ClientMessage:
        """The client's message in an Engine.IO text packet that begins with `42`. It must be UTF-8.

        Raises:
            MessageError: what the sender is to be told.
        """
        try:
            # Nearly every message is a sound event: one pass takes it whole.
            if text.startswith(b"42["):
                return RouteRequest(_decode_emit(text[2:])[1])
            start = text.find(b"[", 3, 3 + MAX_ID_DIGITS)
            reply_id = text[2:start]
            if start > 0 and reply_id.isdigit() and text.startswith(b"42"):
                return RouteRequest(_decode_emit(text[start:])[1], reply_id)
        except MALFORMED:
            pass
        return _decode_step_by_step(text)

    def frame(self, message: ServerMessage, reply_id: bytes = b"") -> bytes:
        """A message of the service as frames ready to send."""
        data = codec.encode_data(message)
        event = text_frame(b'42["%b",%b]' % (message.event.encode(), data))
        return event + text_frame(b"43%b[%b]" % (reply_id, data)) if reply_id else event

    def event_frame(self, event: CollabEvent, from_user: str) -> bytes:
        """An event as the frame that every recipient gets."""
        return text_frame(codec.encode_event(event, from_user, b'42["collab_event",{"type":', b"}]"))

    def ack_frame(
        self, event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes
    ) -> bytes:
        """The acknowledgement of an event to so many distinct recipients."""
        data = codec.encode_ack_data(event_type, recipients, undelivered)
        event = text_frame(b'42["event_ack",%b]' % data)
        return event + text_frame(b"43%b[%b]" % (reply_id, data)) if reply_id else event

    def error_frame(self, error: MessageError) -> bytes:
        """The `error` that answers a message."""
        return self.frame(codec.error_reply(error), error.reply_id)


SOCKETIO = SocketIoDialect()


def packet_text_frame(
    type: PacketType, data: dict[str, object] | list[object] | None = None, *, namespace: str = ROOT
) -> bytes:
    """A packet as the text frame that is queued for the peer. Not for the messages of every event."""
    return packet_frame(Kind.MESSAGE, packet_codec.Packet(int(type), data, namespace).encode())


_HEADER = re.compile(
    rb"(?P<type>[0-6])(?:(?P<attachments>[0-9]{1,2})-)?"
    # A namespace may have any character but a control character, a space and a comma.
    rb"(?:(?P<namespace>/[^\x00-\x20,\x7f]{0,%d})(?:,|\Z))?"
    rb"(?P<id>[0-9]{0,%d})(?P<data>[\[{].*)?" % (MAX_NAMESPACE_BYTES - 1, MAX_ID_DIGITS),
    re.DOTALL,
)
_WITH_ATTACHMENTS = (PacketType.BINARY_EVENT, PacketType.BINARY_ACK)
_WITH_ID_NEEDED = (PacketType.ACK, PacketType.BINARY_ACK)


def read_packet(text: bytes) -> SocketIoPacket:
    """The packet in the data of an Engine.IO message, which must be UTF-8. Events are for `decode`.

    Raises:
        InvalidPacket: it is empty, of an unknown type, or not what its type must be.
    """
    header = _HEADER.fullmatch(text)
    if header is None:
        raise InvalidPacket("A Socket.IO packet is empty, of an unknown type or malformed")
    type = PacketType(int(header["type"]))
    attachments = int(header["attachments"] or 0)
    if type in _WITH_ATTACHMENTS:
        if not 0 < attachments <= MAX_ATTACHMENTS:
            raise InvalidPacket(
                f"A Socket.IO packet has 1 to {MAX_ATTACHMENTS} attachments, or is none of these"
            )
    elif header["attachments"]:
        raise InvalidPacket(f"A Socket.IO packet of type {type.name} has no attachments")
    reply_id = header["id"]
    data = header["data"] or b""
    if type in (PacketType.CONNECT, PacketType.DISCONNECT, PacketType.CONNECT_ERROR):
        is_sound = not reply_id
    else:
        is_sound = bool(data) and (bool(reply_id) or type not in _WITH_ID_NEEDED)
    if not is_sound or (type is PacketType.DISCONNECT and data):
        raise InvalidPacket(
            f"A Socket.IO packet of type {type.name} has an id or data that do not belong to it"
        )
    try:
        if data:
            _ = _decode_object(data) if type is PacketType.CONNECT else _decode_list(data)
        read = packet_codec.Packet(encoded_packet=text.decode())
    except (*MALFORMED, ValueError):
        raise InvalidPacket(f"The data of a Socket.IO packet of type {type.name} is malformed") from None
    return SocketIoPacket(
        type=type,
        namespace=(header["namespace"] or b"/").decode(),
        reply_id=reply_id,
        attachments=attachments,
        data=read.data,
    )


_EVENT_HEADER = re.compile(rb"42(?:(?P<namespace>/[^,]*),)?(?P<id>[0-9]*)(?P<data>\[.*)", re.DOTALL)


def _decode_step_by_step(text: bytes) -> ClientMessage:
    header = _EVENT_HEADER.fullmatch(text)
    if header is None:
        raise InvalidMessage("packet: expected the list of an event's name and its data")
    if (header["namespace"] or b"/") != b"/":
        raise InvalidMessage("namespace: not connected")
    reply_id = header["id"]
    if len(reply_id) > MAX_ID_DIGITS:
        raise InvalidMessage(f"id: longer than {MAX_ID_DIGITS} digits")
    try:
        arguments = _decode_arguments(header["data"])
    except MALFORMED as error:
        raise InvalidJson(codec.parse_fault(error), reply_id=reply_id) from None
    name = _name(arguments, reply_id)
    if name == "ping":
        return PingRequest(reply_id)
    if name == "collab_event":
        _check_one(arguments, InvalidEvent, reply_id)
        return RouteRequest(codec.decode_event(arguments[1], reply_id), reply_id)
    if name == "refresh":
        _check_one(arguments, InvalidMessage, reply_id)
        return RefreshRequest(codec.decode_refresh(arguments[1], reply_id), reply_id)
    raise UnknownEvent(f"event: {codec.shown(name)} is not an event that clients send", reply_id=reply_id)


def _name(arguments: list[Raw], reply_id: bytes) -> str:
    if not arguments:
        raise InvalidMessage("event: required", reply_id=reply_id)
    try:
        return _decode_name(arguments[0])
    except msgspec.ValidationError as error:
        raise InvalidMessage(codec.field_at_fault(error, "event"), reply_id=reply_id) from None
    except MALFORMED as error:
        raise InvalidJson(codec.parse_fault(error), reply_id=reply_id) from None


def _check_one(arguments: list[Raw], fault: type[MessageError], reply_id: bytes) -> None:
    if len(arguments) != 2:
        given = len(arguments) - 1
        raise fault(
            f"data: expected one argument, got {given}" if given else "data: required", reply_id=reply_id
        )
