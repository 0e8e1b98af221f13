"""Owns the JSON: text to message and back. No other module knows how a message is spelt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs
import msgspec
from msgspec import UNSET, Raw

from collab.errors import InvalidEvent, InvalidJson, InvalidMessage, MessageError, UnknownEvent
from collab.wire.messages import (
    ClientMessage,
    CollabEvent,
    ErrorReply,
    PingRequest,
    RefreshRequest,
    RouteRequest,
    ServerMessage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ID_CHARACTERS = 64

MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What msgspec raises on a text that is not JSON; the last one is its complaint about UTF-8."""

_encode = msgspec.json.encode


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    event: str
    id: Raw = Raw(b"")
    data: Raw = Raw(b"")


class _Refresh(msgspec.Struct, frozen=True, gc=False):
    token: str


class _EventEnvelope(msgspec.Struct, frozen=True, gc=False):
    event: str
    data: CollabEvent
    id: Raw = Raw(b"")


_decode_event_envelope = msgspec.json.Decoder(_EventEnvelope).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_event = msgspec.json.Decoder(CollabEvent).decode
_decode_refresh = msgspec.json.Decoder(_Refresh).decode
_decode_id = msgspec.json.Decoder(str | int).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


def decode(text: bytes) -> ClientMessage:
    """The client's message in one text frame. `text` must be valid UTF-8: raw parts are not checked for it.

    Raises:
        MessageError: `InvalidJson`, `InvalidMessage`, `UnknownEvent` or `InvalidEvent`, with the
            message's id where one could be read.
    """
    try:
        # Nearly every message is a sound event: one pass takes it whole.
        whole = _decode_event_envelope(text)
    except MALFORMED:
        pass
    else:
        if whole.event == "collab_event":
            reply_id = bytes(whole.id)
            if reply_id:
                _check_id(reply_id)
            return RouteRequest(whole.data, reply_id)
    return _decode_step_by_step(text)


def decode_event(data: bytes | Raw, reply_id: bytes = b"") -> CollabEvent:
    """The data of a `collab_event`: what is to be routed.

    Raises:
        InvalidEvent: with the field at fault.
    """
    if not bytes(data):
        raise InvalidEvent("data: required", reply_id=reply_id)
    try:
        return _decode_event(data)
    except msgspec.ValidationError as error:
        raise InvalidEvent(field_at_fault(error, "data"), reply_id=reply_id) from None
    except MALFORMED as error:
        raise InvalidEvent(f"data: {parse_fault(error)}", reply_id=reply_id) from None


def decode_event_text(text: bytes) -> CollabEvent:
    """The data of a `collab_event` that came by itself, as a whole text.

    Raises:
        MessageError: `InvalidJson`, or `InvalidEvent` with the field at fault.
    """
    try:
        if not text.isascii():
            # What stays raw is not looked at by msgspec.
            text.decode()
        return _decode_event(text)
    except msgspec.ValidationError as error:
        raise InvalidEvent(field_at_fault(error, "data")) from None
    except MALFORMED as error:
        raise InvalidJson(f"data: {parse_fault(error)}") from None


def decode_refresh(data: Raw, reply_id: bytes) -> str:
    """The token in the data of a `refresh`.

    Raises:
        MessageError: `InvalidMessage` or `InvalidJson`.
    """
    try:
        return _decode_refresh(data if bytes(data) else b"{}").token
    except msgspec.ValidationError as error:
        raise InvalidMessage(field_at_fault(error, "data"), reply_id=reply_id) from None
    except MALFORMED as error:
        raise InvalidJson(parse_fault(error), reply_id=reply_id) from None


def error_reply(error: MessageError) -> ErrorReply:
    """The `error` that answers a message."""
    return ErrorReply(
        message=error.message,
        error=error.detail,
        code=error.code,
        retry_after_ms=UNSET if error.retry_after_ms is None else error.retry_after_ms,
    )


def encode_data(message: ServerMessage) -> bytes:
    """The data of a message of the service by itself."""
    return _encode(attrs.asdict(message, recurse=False, filter=_is_set))


def encode(message: ServerMessage, reply_id: bytes = b"") -> bytes:
    """The JSON text of a message of the service; `reply_id` is the id's JSON text (empty: none)."""
    return _envelope(message.event, encode_data(message), reply_id)


def encode_ack_data(event_type: str, recipients: int, undelivered: Sequence[str]) -> bytes:
    """What `encode_data` gives for an `EventAck`; written out, because there is one for every event."""
    data = b'{"event_type":%b,"delivered_to":%d,"total_recipients":%d' % (
        _encode(event_type),
        recipients - len(undelivered),
        recipients,
    )
    if undelivered:
        return b'%b,"undelivered":%b}' % (data, _encode(undelivered))
    return data + b"}"


def encode_ack(event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes) -> bytes:
    """What `encode` gives for an `EventAck`."""
    data = encode_ack_data(event_type, recipients, undelivered)
    if reply_id:
        return b'{"event":"event_ack","id":%b,"data":%b}' % (reply_id, data)
    return b'{"event":"event_ack","data":%b}' % data


def encode_event(
    event: CollabEvent,
    from_user: str,
    before: bytes = b'{"event":"collab_event","data":{"type":',
    after: bytes = b"}}",
) -> bytes:
    """The JSON text that recipients get: the checked members anew, around the data as it was sent.

    `before` and `after` are what a dialect writes up to the type, and behind the sender's data.
    """
    return b"".join(
        (
            before,
            _encode(event.type),
            b',"from_user":',
            _encode(from_user),
            b',"to_users":',
            _encode(event.to_users),
            b',"data":',
            event.data,
            after,
        )
    )


def _decode_step_by_step(text: bytes) -> ClientMessage:
    try:
        envelope = _decode_envelope(text)
    except msgspec.ValidationError as error:
        raise InvalidMessage(field_at_fault(error), reply_id=_salvaged_id(text)) from None
    except MALFORMED as error:
        raise InvalidJson(parse_fault(error)) from None
    reply_id = bytes(envelope.id)
    if reply_id:
        _check_id(reply_id)
    if envelope.event == "collab_event":
        return RouteRequest(decode_event(envelope.data, reply_id), reply_id)
    if envelope.event == "ping":
        return PingRequest(reply_id)
    if envelope.event == "refresh":
        return RefreshRequest(decode_refresh(envelope.data, reply_id), reply_id)
    raise UnknownEvent(f"event: {shown(envelope.event)} is not an event that clients send", reply_id=reply_id)


def _envelope(event: str, data: bytes, reply_id: bytes) -> bytes:
    if reply_id:
        return b'{"event":"%b","id":%b,"data":%b}' % (event.encode(), reply_id, data)
    return b'{"event":"%b","data":%b}' % (event.encode(), data)


def _check_id(raw: bytes) -> None:
    if len(raw) <= 16 and raw.isdigit():
        return
    try:
        value = _decode_id(raw)
    except MALFORMED:
        raise InvalidMessage("id: expected str or int") from None
    # The bound on an integer's digits keeps what we echo as small as a string's.
    characters = len(value) if isinstance(value, str) else len(raw)
    if characters > MAX_ID_CHARACTERS:
        raise InvalidMessage(f"id: longer than {MAX_ID_CHARACTERS} characters")


def _salvaged_id(text: bytes) -> bytes:
    """The id of a message whose envelope is wrong elsewhere, so that its sender can tell which it was."""
    try:
        raw = bytes(_decode_object(text).get("id", Raw(b"")))
        if raw:
            _check_id(raw)
    except (*MALFORMED, MessageError):
        return b""
    return raw


_AT = re.compile(r"^(?P<fault>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>\w+)`$")


def field_at_fault(error: msgspec.ValidationError, prefix: str = "", *, whole: str = "message") -> str:
    """msgspec's complaint in the protocol's words, such as ``data.to_users[1]: expected str, got int``.

    `prefix` is the path of what was decoded; without one, `whole` names it where no field is at fault.
    """
    match = _AT.match(str(error))
    assert match is not None  # the pattern matches any text
    path = prefix + (match["path"] or "$").removeprefix("$")
    fault = match["fault"]
    if missing := _MISSING.match(fault):
        path, fault = f"{path}.{missing['name']}", "required"
    fault = fault.replace("`", "")
    return f"{path.lstrip('.') or whole}: {fault[:1].lower()}{fault[1:]}"


def parse_fault(error: Exception) -> str:
    """msgspec's complaint about a text that is not JSON, in the protocol's words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    # msgspec says so of half a surrogate pair as well, wherever it stands.
    return str(error).replace("truncated", "truncated, or an escape is half of a surrogate pair")


def shown(name: str) -> str:
    """A name of the peer's, no longer than an answer should be."""
    return name[:64]


def _is_set(_: attrs.Attribute[object], value: object) -> bool:
    return value is not UNSET
