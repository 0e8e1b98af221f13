"""Owns the values that a client hands out: events, acks, users."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

import attrs
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.wire.as_client import ReceivedEvent


class State(Enum):
    """Where a client is."""

    CONNECTING = "connecting"
    """There is no connection; it is tried, or waits for its next try."""
    CONNECTED = "connected"
    STOPPED = "stopped"
    """The service has said no for good."""
    CLOSED = "closed"
    """The block was left."""


@attrs.frozen(kw_only=True)
class Ack:
    """What became of an event: how many users it is on its way to, of how many, and who is left out."""

    event_type: str
    delivered_to: int
    total_recipients: int
    undelivered: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Event:
    """An event of another user, of any type. `data` is its JSON, parsed."""

    type: str
    from_user: str
    to_users: tuple[str, ...]
    data: object


@attrs.frozen(kw_only=True)
class PositionShared(Event):
    """A position was shared with this user."""

    position_id: str
    share_url: str | None = None
    shared_at: str | None = None


@attrs.frozen(kw_only=True)
class Comment:
    """A comment, as its writer's backend keeps it."""

    id: str
    text: str
    user_id: str
    display_name: str | None = None
    created_at: str | None = None


@attrs.frozen(kw_only=True)
class CommentAdded(Event):
    """Somebody commented on a shared position."""

    position_id: str
    comment: Comment


@attrs.frozen(kw_only=True)
class PositionUpdated(Event):
    """Tags, notes or status of a shared position changed."""

    position_id: str
    updates: Mapping[str, object]


@attrs.frozen(kw_only=True)
class ShareRevoked(Event):
    """A position is no longer shared."""

    position_id: str


@attrs.frozen(kw_only=True)
class OnlineUser:
    """A user who is online. Of one who came after this client, the service tells the name alone."""

    user_id: str
    display_name: str
    backend_url: str | None = None
    connected_at: str | None = None


@attrs.frozen(kw_only=True)
class PresenceChange:
    """A user came (`online`) or went."""

    user_id: str
    online: bool
    display_name: str


class _Shared(msgspec.Struct):
    position_id: str
    share_url: str | None = None
    shared_at: str | None = None


class _CommentUser(msgspec.Struct):
    id: str
    display_name: str | None = None


class _Comment(msgspec.Struct):
    id: str
    text: str
    user: _CommentUser
    created_at: str | None = None


class _Commented(msgspec.Struct):
    position_id: str
    comment: _Comment


class _Updated(msgspec.Struct):
    position_id: str
    updates: dict[str, object]


class _Revoked(msgspec.Struct):
    position_id: str


def event_from(received: ReceivedEvent) -> Event:
    """The event in its own class. One of a known type whose data is not as its type says is an `Event`."""
    make = _MAKERS.get(received.type)
    if make is not None:
        try:
            return make(received)
        except msgspec.ValidationError:
            pass
    return Event(
        type=received.type, from_user=received.from_user, to_users=received.to_users, data=received.data
    )


def _shared(received: ReceivedEvent) -> Event:
    data = msgspec.convert(received.data, _Shared)
    return PositionShared(
        type=received.type,
        from_user=received.from_user,
        to_users=received.to_users,
        data=received.data,
        position_id=data.position_id,
        share_url=data.share_url,
        shared_at=data.shared_at,
    )


def _commented(received: ReceivedEvent) -> Event:
    data = msgspec.convert(received.data, _Commented)
    comment = data.comment
    return CommentAdded(
        type=received.type,
        from_user=received.from_user,
        to_users=received.to_users,
        data=received.data,
        position_id=data.position_id,
        comment=Comment(
            id=comment.id,
            text=comment.text,
            user_id=comment.user.id,
            display_name=comment.user.display_name,
            created_at=comment.created_at,
        ),
    )


def _updated(received: ReceivedEvent) -> Event:
    data = msgspec.convert(received.data, _Updated)
    return PositionUpdated(
        type=received.type,
        from_user=received.from_user,
        to_users=received.to_users,
        data=received.data,
        position_id=data.position_id,
        updates=data.updates,
    )


def _revoked(received: ReceivedEvent) -> Event:
    data = msgspec.convert(received.data, _Revoked)
    return ShareRevoked(
        type=received.type,
        from_user=received.from_user,
        to_users=received.to_users,
        data=received.data,
        position_id=data.position_id,
    )


_MAKERS: dict[str, Callable[[ReceivedEvent], Event]] = {
    "position_shared": _shared,
    "comment_added": _commented,
    "position_updated": _updated,
    "share_revoked": _revoked,
}
