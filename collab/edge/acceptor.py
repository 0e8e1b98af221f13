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
from collab.edge.engine import EngineSessions
from collab.edge.intake import Intake, Rules
from collab.edge.life import Life
from collab.edge.polling import PollingSession
from collab.edge.socketio import Handshake
from collab.edge.stops import FloodMeter, Stops
from collab.edge.tap import Tap
from collab.errors import Draining, InvalidToken, Refused, Unauthenticated
from collab.policy.limits import Admission, network_of
from collab.policy.origins import OriginPolicy
from collab.policy.rate import Meters, Rate
from collab.policy.validation import EventRules
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import BINARY_PACKET, ENGINE_PATHS, check_request, forbidden, new_sid
from collab.wire.identity import Identity, claimed_in, identity_from_query, the_token
from collab.wire.plain import PLAIN

if TYPE_CHECKING:
    from collab.core.membership import Membership
    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.core.status import Status
    from collab.edge.engine import Inherited
    from collab.edge.peer import Ends
    from collab.edge.pump import Pump
    from collab.edge.refusals import Refusals
    from collab.observe.audit import Audit
    from collab.policy.auth import Authenticator, Claims
    from collab.settings import Settings
    from collab.wire.head import Head

_GOING_AWAY = Close(CloseCode.GOING_AWAY, "The service is going down")
_NO_UPGRADE = Close(CloseCode.PROTOCOL_ERROR, "The upgrade was not gone through with")
_SECONDS_AT_ONCE = 10
"""A client may use at once what the limits on floods allow it in this time."""

# What trio-websocket needs; what else a head holds could make it fail, or answer without a body.
_HANDSHAKE_HEADERS = frozenset(
    {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"}
)


@attrs.frozen
class Comer:
    """Who comes in in the plain dialect."""

    identity: Identity
    expires_at: float
    """When, on Trio's clock, its token ends."""
    peers: frozenset[str] | None
    """Whom its token names as peers."""


@attrs.frozen
class Arrival:
    """An upgrade request that may come in, without its head: a connection may live for days."""

    connection_id: int
    address: str
    comer: Comer | Handshake | PollingSession
    """Who comes in, in the plain dialect or in that of Socket.IO, or a session that is to be taken over."""
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
        refusals: Refusals,
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
        self.stops = Stops()
        """When the process did not run, as the sweeper notices."""
        self._intake_rules = Rules(
            events=self.rules,
            authenticator=authenticator,
            audit=audit,
            membership=membership,
            errors=Rate.with_seconds_at_once(settings.limits.errors, _SECONDS_AT_ONCE),
            controls=self._controls,
            stops=self.stops,
            timeouts=settings.timeouts,
        )
        self.sessions = EngineSessions(
            settings, self._intake_rules, router, outbox, refusals, check_user=self._check_user
        )
        """The sessions of Engine.IO whose transport is polling."""
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
        comer: Comer | Handshake | PollingSession
        if head.path in ENGINE_PATHS:
            asked = check_request(head.query, method=head.method, is_upgrade=True)
            if asked.sid:
                comer = self.sessions.find(asked.sid)
                self._origins.check(head.get_all("origin"))
                connection_id = comer.connection.connection_id
            else:
                connection_id = self.check_comer(head.get_all("origin"), ends.address)
                comer = Handshake(
                    connection_id, ends.address, head.query, tuple(head.get_all("authorization"))
                )
        else:
            connection_id = self.check_comer(head.get_all("origin"), ends.address)
            comer = await self._plain_comer(head, ends.address, connection_id)
        return Arrival(
            connection_id,
            ends.address,
            comer,
            Tap(
                stream,
                head.only(_HANDSHAKE_HEADERS).to_bytes(),
                rest,
                max_message_bytes=int(self._settings.limits.message_bytes),
                write_seconds=self._settings.timeouts.write,
                controls=FloodMeter(self._controls, self.stops),
                binary_as=None if isinstance(comer, Comer) else BINARY_PACKET,
            ),
        )

    def check_comer(self, origins: list[str], address: str) -> int:
        """Whether somebody may come in from there at all: the id of the connection that it will be.

        Raises:
            Refused: they may not.
        """
        if self._status.draining:
            raise Draining(self._settings.server.reconnect_spread)
        self._origins.check(origins)
        self._meter_connect(self._connects_by_address, network_of(address), "from this address")
        return next(self._ids)

    def open_session(
        self, *, origins: list[str], address: str, query: str, authorization: list[str]
    ) -> PollingSession:
        """A session of Engine.IO that begins with polling.

        Raises:
            Refused: it may not, or there are too many connections.
        """
        try:
            connection_id = self.check_comer(origins, address)
        except Refused as refusal:
            if refusal.code == "origin_not_allowed":
                raise forbidden() from None
            raise
        handshake = Handshake(connection_id, address, query, tuple(authorization))
        return self.sessions.open(handshake, self._admission.admit(address))

    def find_session(self, sid: str) -> PollingSession:
        """The session of this id whose transport is polling; raises `EngineRefused` where there is none."""
        return self.sessions.find(sid)

    async def _plain_comer(self, head: Head, address: str, connection_id: int) -> Comer:
        claims = await self._claims(head)
        if claims is not None:
            self._audit.authenticated(claims, by="connect", address=address, connection_id=connection_id)
        identity = identity_from_query(
            head.query,
            path_user_id=_user_id_in(head.path),
            token_user_id="" if claims is None else claims.user_id,
        )
        self._check_user(identity.user_id)
        return Comer(
            identity,
            math.inf if claims is None else trio.current_time() + claims.seconds_left,
            None if claims is None else claims.peers,
        )

    def _check_user(self, user_id: str) -> None:
        self._meter_connect(self._connects_by_user, user_id, "of this user")

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
        comer = arrival.comer
        if isinstance(comer, PollingSession):
            comer.upgrade.begin()
            await self._take_over(comer, arrival.tap)
            return
        try:
            place = self._admission.admit(arrival.address)
        except Refused as refusal:
            if isinstance(comer, Comer):
                refusal.claimed_user_id = comer.identity.user_id
            raise
        with place:
            async with trio.open_nursery() as nursery:
                websocket = await self._shake_hands(nursery, arrival.tap)
                if websocket is not None:
                    await self._live(
                        self._life(self._intake(arrival, comer), arrival.tap, websocket), nursery
                    )
                nursery.cancel_scope.cancel()

    async def _take_over(self, session: PollingSession, tap: Tap) -> None:
        """Have this WebSocket go on with a session of Engine.IO, if its client goes through with it."""
        try:
            async with trio.open_nursery() as nursery:
                websocket = await self._shake_hands(nursery, tap)
                if websocket is not None:
                    tap.open_by_hand()
                    inherited = await self.sessions.take_over(session, tap)
                    if inherited is None:
                        await tap.send_close(session.connection.close or _NO_UPGRADE)
                    else:
                        with session.place:
                            await self._live(
                                self._life(session.intake, tap, websocket), nursery, inherited=inherited
                            )
                nursery.cancel_scope.cancel()
        finally:
            session.upgrade.abort()

    async def _live(self, life: Life, nursery: trio.Nursery, *, inherited: Inherited | None = None) -> None:
        self._lives.add(life)
        if inherited is not None and self._status.draining:
            # While it moved nobody else could tell it.
            life.stop_reading()
        if self._gone_by is not None:
            life.be_gone_by(self._gone_by)
            if inherited is not None:
                life.connection.end(_GOING_AWAY)
        try:
            await life.run(nursery, inherited)
        finally:
            self._lives.discard(life)

    def lives(self) -> list[Life | PollingSession]:
        """The connections that are alive, or saying goodbye, at this moment."""
        return [*self._lives, *self.sessions.sessions()]

    def stop_reading(self) -> None:
        """Take no further messages from anybody."""
        for life in self.lives():
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

    def _intake(self, arrival: Arrival, comer: Comer | Handshake) -> Intake:
        if isinstance(comer, Handshake):
            return self.sessions.intake(comer, new_sid(), is_polling=False)
        limits = self._settings.limits
        connection = Connection(
            connection_id=arrival.connection_id,
            identity=comer.identity,
            address=arrival.address,
            dialect=PLAIN,
            connected_at=datetime.now(UTC),
            mailbox=Mailbox.from_limits(self._outbox, limits),
            max_in_flight=limits.in_flight,
            expires_at=comer.expires_at,
            peers=comer.peers,
        )
        return Intake(connection, self._intake_rules)

    def _life(self, intake: Intake, tap: Tap, websocket: WebSocketConnection) -> Life:
        return Life(
            intake,
            tap,
            websocket,
            router=self._router,
            outbox=self._outbox,
            pump=self._pump,
            audit=self._audit,
            timeouts=self._settings.timeouts,
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
    if not (is_websocket_path(head.path) or head.path in ENGINE_PATHS):
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
