"""Owns what a Socket.IO client has to say: its way in, its packets, its keepalive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from collab.core.connection import Connection
from collab.edge.intake import Intake
from collab.edge.stops import FloodMeter
from collab.errors import InvalidToken, Refused, Unauthenticated
from collab.wire.close import Close, CloseCode
from collab.wire.engineio import PING_FRAME, new_sid
from collab.wire.identity import Identity, identity_from_auth, token_from_auth
from collab.wire.session import (
    Connect,
    Left,
    Message,
    MessageFailed,
    Pong,
    Reply,
    SocketIoSession,
    Violation,
)
from collab.wire.socketio import SOCKETIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.core.mailbox import Mailbox
    from collab.edge.intake import Rules
    from collab.policy.auth import Claims
    from collab.wire.messages import ClientMessage
    from collab.wire.session import Action

_LEFT = Close(CloseCode.NORMAL, "The client has disconnected")
_NOT_LET_IN = Close(CloseCode.NORMAL, "The client was not let in")
_COME_AGAIN = Close(CloseCode.OVERLOADED, "The client is to come again later")
_NO_CONNECT = Close(CloseCode.POLICY, "No CONNECT packet came in time")
_TOO_MANY_PONGS = Close(CloseCode.POLICY, "Too many pongs")
_NOBODY = Identity(user_id="", backend_url="", wants_presence=False)
_COME_AGAIN_STATUS = frozenset({408, 429, 503})
_MOMENT_SECONDS = 2.0
"""Between the words that say why and the end: python-socketio comes back where both are there at once."""


@attrs.frozen
class Handshake:
    """What the request said that opened a session of Engine.IO."""

    connection_id: int
    address: str
    query: str = attrs.field(repr=False)
    """It may hold a token."""
    authorization: tuple[str, ...] = attrs.field(repr=False)
    """The values of its Authorization header fields."""


def connection_of(handshake: Handshake, mailbox: Mailbox, *, max_in_flight: int) -> Connection:
    """The connection of a session: nobody's, until its CONNECT was accepted."""
    return Connection(
        connection_id=handshake.connection_id,
        identity=_NOBODY,
        address=handshake.address,
        dialect=SOCKETIO,
        connected_at=datetime.now(UTC),
        mailbox=mailbox,
        max_in_flight=max_in_flight,
    )


class SocketIoIntake(Intake):
    """That of one Socket.IO client, over polling and WebSocket alike.

    The transport is there first; who comes on it says so in a CONNECT packet, or has said so in the
    query of its first request. `check_user` raises `Refused` for a user who connects too often.
    """

    __slots__ = (
        "_check_user",
        "_connect_by",
        "_controls",
        "_handshake",
        "_on_refused",
        "_open_frame",
        "_ping_at",
        "_session",
        "is_polling",
    )

    def __init__(
        self,
        connection: Connection,
        rules: Rules,
        handshake: Handshake,
        open_frame: bytes,
        *,
        check_user: Callable[[str], None],
        on_refused: Callable[[Handshake, str, Refused], None],
    ) -> None:
        super().__init__(connection, rules)
        self._decode = self._read
        self._handshake = handshake
        self._open_frame = open_frame
        self._check_user = check_user
        self._on_refused = on_refused
        self._session = SocketIoSession()
        self._controls = FloodMeter(rules.controls, rules.stops)
        now = trio.current_time()
        self._connect_by = now + rules.timeouts.handshake
        self._ping_at = now + rules.timeouts.ping_interval
        self.is_polling = False

    def begin(self) -> None:
        """The first transport is up: its first packet is the handshake's answer."""
        if self._open_frame:
            self.connection.mailbox.put_or_wait(self._open_frame)
            self._open_frame = b""

    def last_words(self, close: Close) -> bytes:
        """Whether to come back, for those who know themselves connected; over polling the end itself."""
        return self._session.farewell(close.code, is_polling=self.is_polling)

    def check_alive(self, now: float, heard_at: float | None) -> None:
        """As of any connection; and end one that has not said in time who it is."""
        super().check_alive(now, heard_at)
        is_waited_for = self.connection.identity is _NOBODY and not self._session.is_over
        if is_waited_for and now >= self._connect_by:
            self.connection.end(_NO_CONNECT)

    def _ping(self, now: float, heard_at: float) -> bool:
        # The client counts on a ping in each interval, whatever else it hears from us.
        if now < self._ping_at:
            return False
        self._ping_at = now + self._rules.timeouts.ping_interval
        return self.connection.mailbox.put(PING_FRAME)

    def _read(self, text: bytes) -> ClientMessage | None:
        if self._session.is_ready and text.startswith(b"42"):
            return SOCKETIO.decode(text)
        return self._carry_out(self._session.receive(text))

    def _carry_out(self, action: Action | None) -> ClientMessage | None:
        """What a packet asks for: the message that it holds, if any; raises the error of one that failed."""
        match action:
            case Message(message):
                return message
            case MessageFailed(error):
                raise error
            case Pong():
                if self._controls.is_flood(1, trio.current_time()):
                    self.connection.end(_TOO_MANY_PONGS)
            case Reply(frame, is_error):
                if frame:
                    self.connection.mailbox.put_or_wait(frame)
                if is_error:
                    self._count_error()
            case Connect(auth):
                self._connect(auth)
            case Left():
                self.connection.end(_LEFT)
            case Violation(close):
                self.connection.end(close)
        return None

    def _connect(self, auth: dict[str, object]) -> None:
        authenticator = self._rules.authenticator
        if not authenticator.is_on:
            self._decide(auth, None)
        elif self.nursery is not None:
            # Its key may have to be fetched.
            self.nursery.start_soon(self._authenticate, auth)

    async def _authenticate(self, auth: dict[str, object]) -> None:
        handshake = self._handshake
        try:
            token = token_from_auth(auth, handshake.authorization, handshake.query)
            claims = await self._rules.authenticator.authenticate(token)
        except InvalidToken as error:
            self._refuse(auth, Unauthenticated(str(error)))
        except Refused as error:
            self._refuse(auth, error)
        else:
            self._rules.audit.authenticated(
                claims, by="connect", address=handshake.address, connection_id=handshake.connection_id
            )
            self._decide(auth, claims)

    def _decide(self, auth: dict[str, object], claims: Claims | None) -> None:
        """Let the client in, or not; synchronous from here to the registry."""
        connection = self.connection
        if connection.close is not None:
            return
        try:
            identity = identity_from_auth(
                self._handshake.query, auth, token_user_id="" if claims is None else claims.user_id
            )
            self._check_user(identity.user_id)
        except Refused as error:
            self._refuse(auth, error)
            return
        connection.identity = identity
        if claims is not None:
            connection.expires_at = trio.current_time() + claims.seconds_left
            connection.peers = claims.peers
        connection.mailbox.put_or_wait(self._session.accept(new_sid()))
        self._rules.membership.join(connection)

    def _refuse(self, auth: dict[str, object], error: Refused) -> None:
        connection = self.connection
        if connection.close is not None:
            return
        said = auth.get("user_id")
        self._on_refused(self._handshake, said if isinstance(said, str) else "", error)
        if frames := self._session.refuse(error, new_sid()):
            connection.mailbox.put_or_wait(frames)
        if frames and self.nursery is not None:
            self.nursery.start_soon(self._show_out)
        else:
            connection.end(_COME_AGAIN if error.status in _COME_AGAIN_STATUS else _NOT_LET_IN)

    async def _show_out(self) -> None:
        await trio.sleep(_MOMENT_SECONDS)
        self.connection.end(_NOT_LET_IN)
