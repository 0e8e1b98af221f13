"""Owns the session of one Socket.IO client: which packet may come when, and what each asks for.

Sans-IO. The owner hands in every packet and carries out what comes back. While `is_ready` holds, a text that
begins with `42` needs no session: `SOCKETIO.decode` reads it.
"""

from __future__ import annotations

from enum import Enum, auto

import attrs

from collab.errors import InvalidEvent, InvalidMessage, InvalidPacket, MessageError, Refused
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import CLOSE_FRAME, Kind, is_binary_packet, parse_packet
from collab.wire.messages import ClientMessage
from collab.wire.socketio import ROOT, SOCKETIO, PacketType, SocketIoPacket, packet_text_frame, read_packet


@attrs.frozen
class Reply:
    """Send this frame (nothing where it is empty). `is_error`: it counts as a message with an error."""

    frame: bytes
    is_error: bool = False


@attrs.frozen
class Connect:
    """The client wants to come in: check who it is, then `accept` or `refuse`."""

    auth: dict[str, object]


@attrs.frozen
class Message:
    """A message, to be handled as on any connection."""

    message: ClientMessage


@attrs.frozen
class MessageFailed:
    """A message that could not be handled, to be answered as on any connection."""

    error: MessageError


@attrs.frozen
class Pong:
    """The answer to the keepalive ping."""


@attrs.frozen
class Left:
    """The client has ended the session: it is over."""


@attrs.frozen
class Violation:
    """The session must end, for this reason."""

    close: Close


Action = Reply | Connect | Message | MessageFailed | Pong | Left | Violation

_NO_BINARY = Close(CloseCode.BINARY_MESSAGE, "Messages are text frames")
_STAY_AWAY = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.BINARY_MESSAGE,
        CloseCode.INVALID_UTF8,
        CloseCode.POLICY,
        CloseCode.TOKEN_EXPIRED,
        CloseCode.REPLACED,
        CloseCode.DISCONNECTED_BY_OPERATOR,
    }
)
_TEMPORARY = frozenset({408, 429, 503})


class _State(Enum):
    WAITING = auto()
    DECIDING = auto()
    CONNECTED = auto()
    OVER = auto()


class SocketIoSession:
    """One Engine.IO session with its one namespace, from the handshake to its end."""

    __slots__ = ("_attachments", "_is_inside", "_is_shown_out", "_state", "is_ready")

    def __init__(self) -> None:
        self._state = _State.WAITING
        self._attachments = 0
        # Whether the client knows itself connected: it heard CONNECT, and no DISCONNECT passed either way.
        self._is_inside = False
        # Whether it was let in only to be told why not; `farewell` says the rest.
        self._is_shown_out = False
        self.is_ready = False
        """Whether it is connected and no announced attachment is still to come."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is taken any more."""
        return self._state is _State.OVER

    def receive(self, text: bytes) -> Action | None:
        """A text packet, which must be UTF-8; None: nothing is to be done. After the end all is ignored."""
        if self._state is _State.OVER:
            return None
        if is_binary_packet(text):
            return self.receive_binary()
        try:
            return self._take(text)
        except InvalidPacket as error:
            return self._violated(Close(CloseCode.PROTOCOL_ERROR, str(error)))

    def receive_binary(self) -> Action | None:
        """A binary message: swallowed where it was announced as an attachment."""
        if self._state is _State.OVER:
            return None
        if not self._attachments:
            return self._violated(_NO_BINARY)
        self._attachments -= 1
        self.is_ready = not self._attachments
        return None

    def accept(self, sid: str) -> bytes:
        """Let the client in: the answer to its `Connect`."""
        assert self._state is _State.DECIDING
        self._state = _State.CONNECTED
        self.is_ready = self._is_inside = True
        return packet_text_frame(PacketType.CONNECT, {"sid": sid})

    def refuse(self, error: Refused, sid: str) -> bytes:
        """Do not let the client in: the answer to its `Connect`. The session is over.

        Who did not say who it is gets in just to be told so by an event, as clients expect it; the
        DISCONNECT is left to `farewell`. It should go a moment later: python-socketio overlooks one that
        comes before its own `connect` has returned, and then comes back for ever. Where coming again
        helps, nothing is said: a client comes back by itself when the transport ends, and does not after
        a CONNECT_ERROR.
        """
        assert self._state is _State.DECIDING
        self._end()
        if error.code == "missing_parameter":
            self._is_inside = self._is_shown_out = True
            return packet_text_frame(PacketType.CONNECT, {"sid": sid}) + packet_text_frame(
                PacketType.EVENT, ["error", {"message": error.message}]
            )
        if error.status in _TEMPORARY:
            return b""
        return packet_text_frame(
            PacketType.CONNECT_ERROR, {"message": error.message, "data": {"code": error.code}}
        )

    def farewell(self, code: CloseCode, *, is_polling: bool = False) -> bytes:
        """What goes before the end of the transport for this reason. The session is over.

        A client that is told DISCONNECT does not come back by itself; any other does. Over polling the
        packet that closes the transport goes to those who stay away, too: python-socketio does not
        come back after it. The others find out by their next poll.
        """
        stays_away = self._is_shown_out or code in _STAY_AWAY
        frames = packet_text_frame(PacketType.DISCONNECT) if self._is_inside and stays_away else b""
        self._is_inside = False
        self._end()
        if is_polling and (stays_away or code == CloseCode.NORMAL):
            frames += CLOSE_FRAME
        return frames

    def _take(self, text: bytes) -> Action | None:
        kind, data = parse_packet(text)
        if kind is Kind.PONG and not data:
            return Pong()
        if kind is Kind.CLOSE:
            return self._left()
        if kind is not Kind.MESSAGE:
            raise InvalidPacket(f"A client sends no Engine.IO packet of kind {kind.name.lower()} here")
        if self._attachments:
            raise InvalidPacket("An attachment is missing")
        if self._state is not _State.CONNECTED:
            return self._take_before(data)
        if data[:1] == b"2":
            try:
                return Message(SOCKETIO.decode(text))
            except MessageError as error:
                return MessageFailed(error)
        if data and data[:1] not in b"0123456":
            return MessageFailed(InvalidMessage("packet: of an unknown type"))
        packet = read_packet(data)
        if packet.type is PacketType.CONNECT and packet.namespace != ROOT:
            return _no_such_namespace(packet)
        if packet.namespace != ROOT:
            raise InvalidPacket("The namespace is not connected")
        if packet.type is PacketType.DISCONNECT:
            return self._left()
        if packet.type is PacketType.ACK:
            # The service asks for none.
            return Reply(b"", is_error=True)
        if packet.attachments:
            self._attachments = packet.attachments
            self.is_ready = False
            reply_id = packet.reply_id if packet.type is PacketType.BINARY_EVENT else b""
            return MessageFailed(InvalidEvent("data: binary attachments are not taken", reply_id=reply_id))
        raise InvalidPacket(f"A client sends no Socket.IO packet of type {packet.type.name} here")

    def _take_before(self, data: bytes) -> Action | None:
        """Take a packet of one who is not connected (yet)."""
        packet = read_packet(data)
        if packet.type is PacketType.CONNECT and packet.namespace != ROOT:
            return _no_such_namespace(packet)
        if packet.type is PacketType.DISCONNECT and packet.namespace == ROOT:
            return self._left()
        if packet.type is not PacketType.CONNECT or self._state is not _State.WAITING:
            raise InvalidPacket(f"A client sends no Socket.IO packet of type {packet.type.name} here")
        self._state = _State.DECIDING
        return Connect(packet.data if isinstance(packet.data, dict) else {})

    def _left(self) -> Left:
        self._is_inside = False
        self._end()
        return Left()

    def _violated(self, close: Close) -> Violation:
        self._end()
        return Violation(close)

    def _end(self) -> None:
        self._state = _State.OVER
        self.is_ready = False


def _no_such_namespace(packet: SocketIoPacket) -> Reply:
    frame = packet_text_frame(
        PacketType.CONNECT_ERROR, {"message": "Invalid namespace"}, namespace=packet.namespace
    )
    return Reply(frame, is_error=True)
