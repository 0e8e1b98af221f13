"""Owns the live connections by user. Synchronous: every caller sees one consistent picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from collab.core.connection import Connection


@attrs.frozen
class OnlineUser:
    """One user's row: the first connection's time, everything else from the newest connection."""

    user_id: str
    display_name: str
    backend_url: str
    connected_at: str
    """UTC, ISO 8601 with `Z`."""
    status: str = "online"


class Registry:
    """Who is here. A user is online while at least one connection of theirs is registered."""

    def __init__(self) -> None:
        # Tuples, oldest first: most users have one connection, and every event looks here.
        self._users: dict[str, tuple[Connection, ...]] = {}
        self._connection_count = 0

    def add(self, connection: Connection) -> bool:
        """Register a connection: whether it is its user's first."""
        of_user = self._users.get(connection.user_id, ())
        self._users[connection.user_id] = (*of_user, connection)
        self._connection_count += 1
        return not of_user

    def remove(self, connection: Connection) -> bool:
        """Drop this one connection: whether it was its user's last. Unknown or dropped before: False."""
        of_user = self._users.get(connection.user_id, ())
        if connection not in of_user:
            return False
        self._connection_count -= 1
        remaining = tuple(other for other in of_user if other is not connection)
        if remaining:
            self._users[connection.user_id] = remaining
            return False
        del self._users[connection.user_id]
        return True

    def of_user(self, user_id: str) -> tuple[Connection, ...]:
        """The user's connections, oldest first; empty when offline."""
        return self._users.get(user_id, ())

    def connections(self) -> Iterator[Connection]:
        """Every connection. Collect before changing the registry."""
        for of_user in self._users.values():
            yield from of_user

    def user_ids(self) -> Iterable[str]:
        """Every user online. Collect before changing the registry."""
        return self._users.keys()

    @property
    def user_count(self) -> int:
        """Distinct users online."""
        return len(self._users)

    @property
    def connection_count(self) -> int:
        """Connections registered."""
        return self._connection_count

    def online_user(self, user_id: str) -> OnlineUser | None:
        """The user's row, None when offline."""
        of_user = self._users.get(user_id)
        return _row(of_user) if of_user else None

    def online_users(self) -> list[OnlineUser]:
        """A row for each user, in the order in which they came online."""
        return [_row(of_user) for of_user in self._users.values()]


def _row(of_user: tuple[Connection, ...]) -> OnlineUser:
    oldest, newest = of_user[0], of_user[-1]
    return OnlineUser(
        user_id=newest.user_id,
        display_name=newest.identity.display_name,
        backend_url=newest.identity.backend_url,
        connected_at=oldest.connected_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
