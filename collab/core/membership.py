"""Owns what happens when a connection joins or leaves: each in one synchronous step."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from collab.observe.log import get_logger
from collab.wire.close import Close, CloseCode
from collab.wire.messages import Connected, ServiceShutdown

if TYPE_CHECKING:
    from collab.core.connection import Connection, MaySend
    from collab.core.outbox import Outbox
    from collab.core.presence import Presence
    from collab.core.registry import Registry
    from collab.core.router import Router
    from collab.core.status import Status
    from collab.observe.audit import Audit

_log = get_logger()
_SHORTEST_RECONNECT_MS = 500
_REPLACED = Close(CloseCode.REPLACED, "Replaced by a newer connection of the same user")
_GOING_AWAY = Close(CloseCode.GOING_AWAY, "The service is going down")


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Membership:
    """Lets connections in and out of the registry and tells whom it concerns."""

    def __init__(
        self,
        registry: Registry,
        router: Router,
        presence: Presence,
        status: Status,
        outbox: Outbox,
        audit: Audit,
        *,
        connections_per_user: int,
        reconnect_spread_seconds: float,
        may_send: MaySend | None = None,
    ) -> None:
        self._registry = registry
        self._router = router
        self._presence = presence
        self._status = status
        self._outbox = outbox
        self._audit = audit
        self._connections_per_user = connections_per_user
        self._longest_reconnect_ms = int(reconnect_spread_seconds * 1000)
        self._may_send = may_send

    def join(self, connection: Connection) -> None:
        """Register a connection and greet it; over the user's limit the oldest ones are replaced."""
        with self._outbox:
            self._join(connection)

    def leave(self, connection: Connection) -> None:
        """Drop this connection, and only this one, from the registry. Idempotent."""
        before = self._registry.connection_count
        last = self._registry.remove(connection)
        if self._registry.connection_count == before:
            return
        code = int(connection.close.code) if connection.close else connection.peer_close_code
        reason = connection.close.reason if connection.close else "left"
        self._audit.disconnected(connection, code, reason)
        _log.info(
            "Backend disconnected",
            user_id=connection.user_id,
            code=code,
            reason=reason,
            total_active=self._registry.user_count,
        )
        self._presence.left(connection, last=last)

    def announce_shutdown(self) -> None:
        """Tell everyone that the service goes down, and when to come back."""
        with self._outbox:
            for connection in self._registry.connections():
                self._announce_shutdown_to(connection)

    def _join(self, connection: Connection) -> None:
        first = self._registry.add(connection)
        self._status.total_connections += 1
        self._router.watch(connection)
        connection.send(Connected(user_id=connection.user_id, active_users=self._users_seen_by(connection)))
        backend_url = _without_credentials(connection.identity.backend_url)
        self._audit.connected(
            connection,
            dialect=connection.dialect.name,
            backend_url=backend_url,
            display_name=connection.identity.display_name,
        )
        _log.info(
            "Backend connected",
            user_id=connection.user_id,
            backend_url=backend_url,
            display_name=connection.identity.display_name,
            total_active=self._registry.user_count,
        )
        self._presence.joined(connection, first=first)
        self._replace_oldest(connection)
        if self._status.draining:
            # Its handshake was under way when the others were told.
            self._announce_shutdown_to(connection)
            connection.end(_GOING_AWAY)

    def _users_seen_by(self, connection: Connection) -> int:
        """How many users are online, as far as the connection's user may know of them; itself included."""
        may_send = self._may_send
        if may_send is None:
            return self._registry.user_count
        return sum(may_send(connection, user_id) for user_id in self._registry.user_ids())

    def _replace_oldest(self, newcomer: Connection) -> None:
        of_user = list(self._registry.of_user(newcomer.user_id))
        if self._connections_per_user:
            for connection in of_user[: -self._connections_per_user]:
                connection.end(_REPLACED)

    def _announce_shutdown_to(self, connection: Connection) -> None:
        # Not a secret: the spread only keeps the clients from returning all at once.
        delay_ms = random.randint(_SHORTEST_RECONNECT_MS, self._longest_reconnect_ms)
        timestamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        connection.send(ServiceShutdown(timestamp=timestamp, reconnect_in_ms=delay_ms))
