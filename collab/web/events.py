"""Owns `POST /api/events`: one event of somebody who has no connection, and its acknowledgement."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

import trio
from msgspec import UNSET
from quart import Response, g, request

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.core.router import Batch
from collab.errors import Draining, RateLimited, Refused
from collab.policy.origins import OriginPolicy
from collab.wire.answer import ANSWER
from collab.wire.codec import decode_event_text
from collab.wire.identity import Identity, check_user_id
from collab.wire.messages import RouteRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.core.status import Status
    from collab.observe.audit import Audit
    from collab.policy.auth import Claims
    from collab.policy.validation import EventRules
    from collab.settings import Settings
    from collab.wire.close import Close
    from collab.wire.messages import CollabEvent

MOST_UNDER_WAY: Final = 256
"""Events that may wait for their acks at once, whoever sends them."""
_PATIENCE_SECONDS: Final = 5.0
_RETRY_AFTER_SECONDS: Final = 1


class EventsApi:
    """Takes events over HTTP.

    The router sees a connection like any other, but for that it is in no registry: so the same rules,
    the same order and the same truth of the ack hold, and nothing is ever sent to it but the ack.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        outbox: Outbox,
        status: Status,
        rules: EventRules,
        audit: Audit,
    ) -> None:
        self._audit = audit
        self._router = router
        self._outbox = outbox
        self._status = status
        self._rules = rules
        self._origins = OriginPolicy(settings.origins)
        self._most_of_user = settings.limits.in_flight
        self._reconnect_spread = settings.server.reconnect_spread
        # A recipient that does not read is decided within the first; the rest is for a service under load.
        self._ack_seconds = settings.limits.slow_consumer + _PATIENCE_SECONDS
        self._under_way: Counter[str] = Counter()

    async def send(self) -> Response:
        """`POST /api/events`: route one event, answer with the data of its ack."""
        # A page's script could send here what it may not send over a WebSocket: no preflight is needed
        # for a body of plain text (Fetch standard, CORS-safelisted request-header).
        self._origins.check(request.headers.getlist("origin"))
        event = decode_event_text(cast("bytes", await request.get_data()))
        claims: Claims | None = g.get("claims")
        user_id = claims.user_id if claims is not None else _said_user(event)
        check_user_id(user_id)
        with self._place(user_id):
            route = RouteRequest(event)
            sender = self._sender(user_id, None if claims is None else claims.peers)
            try:
                self._rules.check(route, user_id)
            except RateLimited as error:
                self._audit.limited(sender, "limits.events_per_second", error.retry_after_ms)
                raise
            return Response(await self._acknowledged(sender, route), 200, content_type="application/json")

    async def _acknowledged(self, sender: Connection, route: RouteRequest) -> bytes:
        if self._status.draining:
            raise Draining(self._reconnect_spread)
        try:
            with trio.fail_after(self._ack_seconds):
                await self._router.submit([Batch(sender, [route])])
                return await sender.mailbox.take()
        except trio.TooSlowError:
            raise Refused(
                504, "not_acknowledged", "the event was not acknowledged in time; it may have been delivered"
            ) from None
        finally:
            # What is still owed to it is dropped from here on.
            sender.release()

    def _sender(self, user_id: str, peers: frozenset[str] | None) -> Connection:
        mailbox = Mailbox(self._outbox, max_messages=1, max_bytes=1)

        def end(_: Close) -> None:
            mailbox.close(discard=False)

        return Connection(
            connection_id=0,
            identity=Identity(user_id=user_id, backend_url="", wants_presence=False),
            address=request.remote_addr or "",
            dialect=ANSWER,
            connected_at=datetime.now(UTC),
            mailbox=mailbox,
            max_in_flight=1,
            on_end=end,
            peers=peers,
        )

    @contextmanager
    def _place(self, user_id: str) -> Iterator[None]:
        """A place among the events under way.

        Raises:
            Refused: 503 `overloaded`, or 429 `rate_limited` where this user alone has too many.
        """
        under_way = self._under_way
        if under_way.total() >= MOST_UNDER_WAY:
            raise Refused(
                503,
                "overloaded",
                "too many events wait for their acks",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        if under_way[user_id] >= self._most_of_user:
            raise Refused(
                429,
                "rate_limited",
                "too many events of this user wait for their acks",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        under_way[user_id] += 1
        try:
            yield
        finally:
            under_way[user_id] -= 1
            if not under_way[user_id]:
                del under_way[user_id]


def _said_user(event: CollabEvent) -> str:
    if event.from_user is UNSET or not event.from_user:
        raise Refused(400, "missing_parameter", "data.from_user: required where no token says who sends")
    return event.from_user
