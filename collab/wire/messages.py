"""Owns the messages: one class for each (docs/protocol.md, Messages)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import attrs
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

EventType = Annotated[str, Meta(min_length=1, max_length=64)]
UserId = Annotated[str, Meta(min_length=1, max_length=128)]


# What a client sends is a msgspec struct, made for every message: an attrs class takes three times as long.
class CollabEvent(Struct, frozen=True, gc=False):
    """An event to route. `data` is the JSON text as the sender wrote it, never parsed."""

    type: EventType
    to_users: list[UserId]
    from_user: str | UnsetType = UNSET
    data: Raw = Raw(b"{}")


class RouteRequest(Struct, frozen=True, gc=False):
    """A client's `collab_event`, with the id that its ack carries back (empty: none)."""

    event: CollabEvent
    reply_id: bytes = b""


class PingRequest(Struct, frozen=True, gc=False):
    """A client's `ping`, with the id that its pong carries back (empty: none)."""

    reply_id: bytes = b""


class RefreshRequest(Struct, frozen=True, gc=False):
    """A client's `refresh`: its new token, and the id that the answer carries back (empty: none)."""

    token: str
    reply_id: bytes = b""

    def __repr__(self) -> str:
        return "RefreshRequest(...)"


ClientMessage = RouteRequest | PingRequest | RefreshRequest


@attrs.frozen(kw_only=True)
class Connected:
    """The first message on every connection. `active_users` counts distinct users, oneself included."""

    event: ClassVar[str] = "connected"
    user_id: str
    message: str = "Connected to collaboration service"
    active_users: int


@attrs.frozen(kw_only=True)
class EventAck:
    """What became of one event: distinct recipients, and the ids of those it did not reach."""

    event: ClassVar[str] = "event_ack"
    event_type: str
    delivered_to: int
    total_recipients: int
    undelivered: list[str] | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class UserOnline:
    """Another user's first connection came up."""

    event: ClassVar[str] = "user_online"
    user_id: str
    display_name: str


@attrs.frozen(kw_only=True)
class UserOffline:
    """Another user's last connection ended."""

    event: ClassVar[str] = "user_offline"
    user_id: str


@attrs.frozen(kw_only=True)
class Pong:
    """The answer to `ping`. `timestamp` is in milliseconds since the epoch."""

    event: ClassVar[str] = "pong"
    timestamp: int


@attrs.frozen(kw_only=True)
class Refreshed:
    """The new token counts from now on. `expires_at` is UTC ISO 8601."""

    event: ClassVar[str] = "refreshed"
    expires_at: str


@attrs.frozen(kw_only=True)
class ErrorReply:
    """A message could not be handled. `error` holds the details, `code` the machine word.

    `retry_after_ms` is there only where the same message may be taken later.
    """

    event: ClassVar[str] = "error"
    message: str
    error: str
    code: str
    retry_after_ms: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class ServiceShutdown:
    """The service is going down. `timestamp` is UTC ISO 8601; come back after `reconnect_in_ms`."""

    event: ClassVar[str] = "service_shutdown"
    message: str = "Collaboration service is shutting down"
    timestamp: str
    reconnect_in_ms: int


@attrs.frozen(kw_only=True)
class Notice:
    """What an operator has to say to everybody."""

    event: ClassVar[str] = "notice"
    message: str


ServerMessage = (
    Connected | EventAck | UserOnline | UserOffline | Pong | Refreshed | ErrorReply | ServiceShutdown | Notice
)
