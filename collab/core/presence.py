"""Owns the notices of who came and who went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.wire.messages import UserOffline, UserOnline

if TYPE_CHECKING:
    from collab.core.connection import Connection
    from collab.core.registry import Registry
    from collab.core.status import Status


class Presence:
    """Tells every connection that wants to know when another user comes online or goes offline."""

    def __init__(self, registry: Registry, status: Status) -> None:
        self._registry = registry
        self._status = status

    def came_online(self, connection: Connection) -> None:
        """A user's first connection was registered."""
        identity = connection.identity
        self._tell_others(
            connection.user_id, UserOnline(user_id=identity.user_id, display_name=identity.display_name)
        )

    def went_offline(self, connection: Connection) -> None:
        """A user's last connection was dropped. Said by nobody while the whole service goes down."""
        if not self._status.draining:
            self._tell_others(connection.user_id, UserOffline(user_id=connection.user_id))

    def _tell_others(self, user_id: str, notice: UserOnline | UserOffline) -> None:
        frames: dict[str, bytes] = {}
        for connection in self._registry.connections():
            if not connection.identity.wants_presence or connection.user_id == user_id:
                continue
            frame = frames.get(connection.dialect.name)
            if frame is None:
                frame = frames[connection.dialect.name] = connection.dialect.frame(notice)
            connection.mailbox.put_or_wait(frame)
