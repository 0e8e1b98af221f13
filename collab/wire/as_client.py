"""Owns the JSON as a client has it: the message that it sends, and those that it reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct

from collab.wire.messages import (
    Connected,
    ErrorReply,
    EventAck,
    Notice,
    ServiceShutdown,
    UserOffline,
    UserOnline,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ReceivedEvent(Struct, frozen=True):
    """A `collab_event` for this user. `data` is parsed."""

    type: str
    from_user: str
    to_users: tuple[str, ...]
    data: object


class OnlineRow(Struct, frozen=True):
    """One user in the answer of `GET /api/users/online`."""

    user_id: str
    display_name: str
    backend_url: str
    connected_at: str


ServiceMessage = (
    ReceivedEvent | Connected | EventAck | ErrorReply | UserOnline | UserOffline | ServiceShutdown | Notice
)


class Unreadable(ValueError):
    """What came from the service is none of its messages. The text says why, and quotes nothing."""


class _Envelope(Struct, frozen=True):
    event: str
    id: Raw = Raw(b"null")
    data: Raw = Raw(b"{}")


class _Online(Struct, frozen=True):
    users: list[OnlineRow]


class _Refusal(Struct, frozen=True):
    error: str = ""
    code: str = ""


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_event = msgspec.json.Decoder(ReceivedEvent).decode
_decode_id = msgspec.json.Decoder(int | str | None).decode


def _number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        # More digits than Python converts.
        return float(digits)


def _received(raw: Raw) -> ReceivedEvent:
    try:
        return _decode_event(raw)
    except msgspec.ValidationError:
        # Maybe for a number that no double holds. The service relays such a one, and acknowledges it.
        return msgspec.convert(json.loads(bytes(raw), parse_int=_number), ReceivedEvent)


_decoders: dict[str, Callable[[Raw], ServiceMessage]] = {
    "collab_event": _received,
    Connected.event: msgspec.json.Decoder(Connected).decode,
    EventAck.event: msgspec.json.Decoder(EventAck).decode,
    ErrorReply.event: msgspec.json.Decoder(ErrorReply).decode,
    UserOnline.event: msgspec.json.Decoder(UserOnline).decode,
    UserOffline.event: msgspec.json.Decoder(UserOffline).decode,
    ServiceShutdown.event: msgspec.json.Decoder(ServiceShutdown).decode,
    Notice.event: msgspec.json.Decoder(Notice).decode,
}
_MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decode(text: str) -> tuple[ServiceMessage | None, int | str | None]:
    """A message of the service and its id; None for an event that this client does not know.

    Raises:
        Unreadable: it is none.
    """
    try:
        envelope = _decode_envelope(text)
        decoder = _decoders.get(envelope.event)
        if decoder is None:
            return None, None
        return decoder(envelope.data), _decode_id(envelope.id)
    except _MALFORMED as error:
        raise Unreadable(str(error)) from None


def encode_send(id: int, type: str, to_users: Sequence[str], data: object) -> str:
    """A `collab_event` to send.

    Raises:
        TypeError, ValueError, RecursionError: `data` cannot be JSON.
    """
    event = {"type": type, "to_users": to_users, "data": data}
    return msgspec.json.encode({"event": "collab_event", "id": id, "data": event}).decode()


def decode_online(body: bytes) -> list[OnlineRow]:
    """The rows of `GET /api/users/online`.

    Raises:
        Unreadable: the body is none of that.
    """
    try:
        return msgspec.json.decode(body, type=_Online).users
    except _MALFORMED as error:
        raise Unreadable(str(error)) from None


def decode_refusal(body: bytes) -> tuple[str, str]:
    """The sentence and the code of a refusal; empty where the body has none, as a proxy's."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except _MALFORMED:
        return "", ""
    return refusal.error, refusal.code
