"""Owns the plain WebSocket acceptor: who may come in, the handshake, one nursery for each connection."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.edge.life import Life
from collab.edge.stops import FloodMeter, Stops
from collab.edge.tap import Tap
from collab.errors import Draining, InvalidToken, Refused, Unauthenticated
from collab.policy.limits import Admission
from collab.policy.origins import OriginPolicy
from collab.policy.rate import Meters, Rate
from collab.policy.validation import EventRules
from collab.wire.close import Close, CloseCode
from collab.wire.identity import Identity, claimed_in, identity_from_query, the_token
from collab.wire.plain import PLAIN

if TYPE_CHECKING:
    from collab.core.membership import Membership
    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.core.status import Status
    from collab.edge.peer import Ends
    from collab.edge.pump import Pump
    from collab.observe.audit import Audit
    from collab.policy.auth import Authenticator, Claims
    from collab.settings import Settings
    from collab.wire.head import Head

_GOING_AWAY = Close(CloseCode.GOING_AWAY, "The service is going down")
_SECONDS_AT_ONCE = 10
"""A client may use at once what the limits on floods allow it in this time."""

# What trio-websocket needs; what else a head holds could make it fail, or answer without a body.
_HANDSHAKE_HEADERS = frozenset(
    {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"}
)


@attrs.frozen
class Arrival:
    """An upgrade request that may come in, without its head: a connection may live for days."""

    connection_id: int
    identity: Identity
    address: str
    expires_at: float
    """When, on Trio's clock, its token ends."""
    peers: frozenset[str] | None
    """Whom its token names as peers."""
    tap: Tap


class Acceptor:
    """Takes WebSocket upgrades in and runs each connection to its end."""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        router: Router,
        outbox: Outbox,
        status: Status,
        pump: Pump | None,
        authenticator: Authenticator,
        audit: Audit,
    ) -> None:
        self._settings = settings
        self._audit = audit
        self._authenticator = authenticator
        self._membership = membership
        self._router = router
        self._outbox = outbox
        self._status = status
        self._pump = pump
        self._admission = Admission(settings.limits)
        self._origins = OriginPolicy(settings.origins)
        self.rules = EventRules.from_settings(settings)
        """What every event is held against. Who else takes events shares it: it knows the users' rates."""
        connects = Rate.with_seconds_at_once(settings.limits.connects_per_second, _SECONDS_AT_ONCE)
        self._connects_by_user, self._connects_by_address = Meters(connects), Meters(connects)
        self._controls = Rate.with_seconds_at_once(settings.limits.control_frames, _SECONDS_AT_ONCE)
        self._errors = Rate.with_seconds_at_once(settings.limits.errors, _SECONDS_AT_ONCE)
        self.stops = Stops()
        """When the process did not run, as the sweeper notices."""
        self._ids = itertools.count(1)
        self._lives: set[Life] = set()
        self._gone_by: float | None = None

    async def check(self, stream: trio.abc.Stream, head: Head, rest: bytes, ends: Ends) -> Arrival:
        """Whether an upgrade request may come in; `rest` is what came after its head.

        Waits only where the keys for its token must be fetched first, and not for long.

        Raises:
            Refused: it may not; nothing was sent.
        """
        _check_upgrade(head)
        if self._status.draining:
            raise Draining(self._settings.server.reconnect_spread)
        self._origins.check(head.get_all("origin"))
        self._meter_connect(self._connects_by_address, ends.address, "from this address")
        connection_id = next(self._ids)
        claims = await self._claims(head)
        if claims is not None:
            self._audit.authenticated(claims, by="connect", address=ends.address, connection_id=connection_id)
        identity = identity_from_query(
            head.query,
            path_user_id=_user_id_in(head.path),
            token_user_id="" if claims is None else claims.user_id,
        )
        self._meter_connect(self._connects_by_user, identity.user_id, "of this user")
        return Arrival(
            connection_id,
            identity,
            ends.address,
            math.inf if claims is None else trio.current_time() + claims.seconds_left,
            None if claims is None else claims.peers,
            Tap(
                stream,
                head.only(_HANDSHAKE_HEADERS).to_bytes(),
                rest,
                max_message_bytes=int(self._settings.limits.message_bytes),
                write_seconds=self._settings.timeouts.write,
                controls=FloodMeter(self._controls, self.stops),
            ),
        )

    def _meter_connect(self, meters: Meters, key: str, whose: str) -> None:
        if wait_seconds := meters.spend(key, 1, trio.current_time()):
            raise Refused(
                429,
                "rate_limited",
                f"too many connects {whose}",
                retry_after_seconds=math.ceil(wait_seconds),
            )

    async def _claims(self, head: Head) -> Claims | None:
        """What the token of a request says; None where none is needed."""
        if not self._authenticator.is_on:
            return None
        token = the_token(head.get_all("authorization"), head.query)
        try:
            return await self._authenticator.authenticate(token)
        except InvalidToken as error:
            raise Unauthenticated(str(error)) from None

    async def serve(self, arrival: Arrival) -> None:
        """The connection that comes of an upgrade, to its end. The caller closes the stream.

        Raises:
            Refused: there are too many connections; nothing was sent.
        """
        try:
            place = self._admission.admit(arrival.address)
        except Refused as refusal:
            refusal.claimed_user_id = arrival.identity.user_id
            raise
        with place:
            async with trio.open_nursery() as nursery:
                websocket = await self._shake_hands(nursery, arrival.tap)
                if websocket is not None:
                    life = self._life(arrival, websocket)
                    self._lives.add(life)
                    if self._gone_by is not None:
                        life.be_gone_by(self._gone_by)
                    try:
                        await life.run(nursery)
                    finally:
                        self._lives.discard(life)
                nursery.cancel_scope.cancel()

    def lives(self) -> list[Life]:
        """The connections that are alive, or saying goodbye, at this moment."""
        return list(self._lives)

    def stop_reading(self) -> None:
        """Take no further messages from anybody."""
        for life in self._lives:
            life.stop_reading()

    def send_away(self, deadline: float) -> None:
        """End every connection with 1001, its mailbox flushed, by `deadline` on Trio's clock."""
        self._gone_by = deadline
        for life in self.lives():
            life.be_gone_by(deadline)
            life.connection.end(_GOING_AWAY)

    async def _shake_hands(self, nursery: trio.Nursery, tap: Tap) -> WebSocketConnection | None:
        """The opening handshake; None where the peer does not go through with it in time."""
        try:
            with trio.fail_after(self._settings.timeouts.handshake):
                request = await wrap_server_stream(nursery, tap)
                return await request.accept()
        except (trio.TooSlowError, ConnectionClosed):
            return None

    def _life(self, arrival: Arrival, websocket: WebSocketConnection) -> Life:
        settings = self._settings
        connection = Connection(
            connection_id=arrival.connection_id,
            identity=arrival.identity,
            address=arrival.address,
            dialect=PLAIN,
            connected_at=datetime.now(UTC),
            mailbox=Mailbox.from_limits(self._outbox, settings.limits),
            max_in_flight=settings.limits.in_flight,
            expires_at=arrival.expires_at,
            peers=arrival.peers,
        )
        return Life(
            connection,
            arrival.tap,
            websocket,
            membership=self._membership,
            router=self._router,
            outbox=self._outbox,
            pump=self._pump,
            rules=self.rules,
            authenticator=self._authenticator,
            audit=self._audit,
            errors=FloodMeter(self._errors, self.stops),
            timeouts=settings.timeouts,
        )


def is_websocket_path(path: str) -> bool:
    """Whether a path, still percent-encoded, is that of the plain WebSocket: `/`, `/ws`, `/ws/{user_id}`."""
    return path in ("/", "/ws") or (path.startswith("/ws/") and "/" not in path[4:])


def claimed_user_id(head: Head) -> str | None:
    """The user that an upgrade request says it is, as far as it can be read; nothing is checked."""
    return claimed_in(head.query, path_user_id=_user_id_in(head.path))


def _user_id_in(path: str) -> str:
    return path.removeprefix("/ws/") if path.startswith("/ws/") else ""


def _check_upgrade(head: Head) -> None:
    """Check what RFC 6455 section 4.2.1 asks of an opening handshake."""
    if not is_websocket_path(head.path):
        raise Refused(404, "not_found", "WebSocket connections are taken at /, /ws and /ws/{user_id}")
    if head.method != "GET" or head.version != "1.1":
        raise Refused(400, "bad_request", "a WebSocket upgrade is a GET request of HTTP/1.1")
    wishes = head.tokens("connection")
    if "upgrade" not in wishes or "close" in wishes:
        raise Refused(400, "bad_request", "the Connection header must say upgrade, and not close")
    if head.tokens("transfer-encoding") or (head.get("content-length") or "0").strip("0"):
        raise Refused(400, "bad_request", "a WebSocket upgrade has no body")
    if head.get_all("sec-websocket-version") != ["13"]:
        raise Refused(
            426,
            "upgrade_required",
            "the WebSocket version spoken here is 13",
            headers=(("sec-websocket-version", "13"), ("upgrade", "websocket")),
        )
    keys = head.get_all("sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise Refused(400, "bad_request", "Sec-WebSocket-Key must be 16 bytes in base64")


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
