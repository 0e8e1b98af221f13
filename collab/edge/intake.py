"""Owns what becomes of a client's messages: answered here, or handed on to be routed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import trio

from collab.core.membership import Membership
from collab.edge.stops import FloodMeter, Stops
from collab.errors import InvalidToken, MessageError, RateLimited, RefreshRefused, Refused, UnknownEvent
from collab.observe.audit import Audit
from collab.observe.log import get_logger
from collab.policy.auth import Authenticator
from collab.policy.rate import Meter, Rate
from collab.policy.validation import EventRules
from collab.settings import TimeoutSettings
from collab.wire.close import Close, CloseCode
from collab.wire.frames import PING_FRAME
from collab.wire.messages import Pong, Refreshed, RefreshRequest, RouteRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.core.connection import Connection
    from collab.wire.messages import ClientMessage

_log = get_logger()
_NO_PONG = Close(CloseCode.NO_PONG, "No answer to the keepalive ping")
_TOKEN_EXPIRED = Close(CloseCode.TOKEN_EXPIRED, "The token has expired")
_INTERNAL = Close(CloseCode.INTERNAL_ERROR, "Internal error")
_TOO_MANY_ERRORS = Close(CloseCode.POLICY, "Too many messages with errors")
_REFRESHES = Rate(per_second=1, burst=10)


@attrs.frozen
class Rules:
    """What the messages of every connection are held against."""

    events: EventRules
    authenticator: Authenticator
    audit: Audit
    membership: Membership
    errors: Rate
    """How many messages of a connection may get an error."""
    controls: Rate
    """How many packets or frames of a connection may be of use to its transport alone."""
    stops: Stops
    timeouts: TimeoutSettings


class Intake:
    """What one connection has to say, whatever carries it: who it is, its messages, and that it is alive.

    This is that of the plain dialect. `nursery` is the connection's own, set by its owner for as long as
    something may be started in it.
    """

    __slots__ = (
        "_check",
        "_decode",
        "_errors",
        "_is_refreshing",
        "_pinged_at",
        "_refreshes",
        "_rules",
        "connection",
        "nursery",
    )

    def __init__(self, connection: Connection, rules: Rules) -> None:
        self.connection = connection
        self.nursery: trio.Nursery | None = None
        self._rules = rules
        self._decode: Callable[[bytes], ClientMessage | None] = connection.dialect.decode
        self._pinged_at: float | None = None
        self._check = rules.events.check
        self._errors = FloodMeter(rules.errors, rules.stops)
        self._is_refreshing = False
        self._refreshes: Meter | None = None

    def begin(self) -> None:
        """The transport is up: whoever came in is greeted."""
        self._rules.membership.join(self.connection)

    def leave(self) -> None:
        """Nothing more is delivered to or taken from it. Idempotent."""
        self._rules.membership.leave(self.connection)

    def last_words(self, close: Close) -> bytes:
        """What goes out before our own end of the transport, behind all that is owed."""
        return b""

    def check_alive(self, now: float, heard_at: float | None) -> None:
        """End the connection where its token has expired, ping a peer that has been silent, end one that
        did not answer.

        `heard_at` is when the last byte was received; None while nothing is read, and then the clock stands
        still.
        """
        connection = self.connection
        if now >= connection.expires_at:
            connection.end(_TOKEN_EXPIRED)
        if heard_at is None or connection.close is not None:
            self._pinged_at = None
        elif self._pinged_at is None or heard_at >= self._pinged_at:
            self._pinged_at = now if self._ping(now, heard_at) else None
        elif now - self._pinged_at >= self._rules.timeouts.ping_timeout:
            connection.end(_NO_PONG)

    def take(self, texts: list[bytes]) -> list[RouteRequest]:
        """Answer what is answered here; give back what is to be routed."""
        connection, decode, check = self.connection, self._decode, self._check
        # What came together is of one time.
        now = trio.current_time() if self._rules.events.is_metered else None
        requests: list[RouteRequest] = []
        try:
            for text in texts:
                try:
                    message = decode(text)
                    if isinstance(message, RouteRequest):
                        check(message, connection.user_id, now)
                        requests.append(message)
                        continue
                    if message is not None:
                        self._answer(message)
                    if connection.close is not None:
                        # Its end was not the last that it said.
                        break
                except MessageError as error:
                    self._answer_error(error)
                    if connection.close is not None:
                        break
        except Exception:
            # The boundary of this connection: a fault of ours in handling one peer ends that peer only.
            _log.exception("Connection failed", user_id=connection.user_id)
            connection.end(_INTERNAL)
        return requests

    def _ping(self, now: float, heard_at: float) -> bool:
        """Ping the peer if it is time to: whether a ping went out."""
        if now - heard_at < self._rules.timeouts.ping_interval:
            return False
        return self.connection.mailbox.put(PING_FRAME)

    def _answer(self, message: ClientMessage) -> None:
        if isinstance(message, RefreshRequest):
            self._begin_refresh(message)
        else:
            self.connection.send(Pong(timestamp=_milliseconds_since_epoch()), message.reply_id)

    def _answer_error(self, error: MessageError) -> None:
        connection = self.connection
        connection.mailbox.put_or_wait(connection.dialect.error_frame(error))
        if isinstance(error, RateLimited):
            self._rules.audit.limited(connection, "limits.events_per_second", error.retry_after_ms)
        self._count_error()

    def _count_error(self) -> None:
        if self._errors.is_flood(1, trio.current_time()):
            self.connection.end(_TOO_MANY_ERRORS)

    def _begin_refresh(self, request: RefreshRequest) -> None:
        """Verify a new token beside everything else: its key may have to be fetched."""
        if not self._rules.authenticator.is_on:
            raise UnknownEvent(
                "event: refresh is for services with authentication", reply_id=request.reply_id
            )
        # Each costs the check of a signature, and a line of the audit.
        if self._refreshes is None:
            self._refreshes = Meter(_REFRESHES)
        if self._refreshes.spend(1, trio.current_time()):
            raise RefreshRefused("too many: one a second will do", reply_id=request.reply_id)
        if self._is_refreshing:
            raise RefreshRefused(
                "data.token: an earlier refresh is still under way", reply_id=request.reply_id
            )
        if self.nursery is not None:
            self._is_refreshing = True
            self.nursery.start_soon(self._refresh, request)

    async def _refresh(self, request: RefreshRequest) -> None:
        connection = self.connection
        try:
            claims = await self._rules.authenticator.authenticate(request.token)
            if claims.user_id != connection.user_id:
                raise InvalidToken("the token is another user's")
        except (InvalidToken, Refused) as error:
            self._rules.audit.refresh_refused(connection, str(error))
            self._answer_error(RefreshRefused(f"data.token: {error}", reply_id=request.reply_id))
        else:
            connection.expires_at = trio.current_time() + claims.seconds_left
            connection.peers = claims.peers
            self._rules.audit.authenticated(
                claims,
                by="refresh",
                address=connection.address,
                connection_id=connection.connection_id,
            )
            connection.send(Refreshed(expires_at=claims.expires_at_text), request.reply_id)
        finally:
            self._is_refreshing = False


def _milliseconds_since_epoch() -> int:
    return time.time_ns() // 1_000_000
