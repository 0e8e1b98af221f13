"""Owns the operator API: who an operator is, what operators can see and do, and the note of each act."""

from __future__ import annotations

import hmac
import math
from typing import TYPE_CHECKING, Final

import attrs
import trio
from quart import Response, g, request

from collab.errors import Forbidden, InvalidToken, Refused, Unauthenticated
from collab.observe.log import get_logger
from collab.policy.limits import network_of
from collab.policy.rate import Meters, Rate
from collab.web.answers import decode_body, json_response
from collab.wire.close import Close, CloseCode
from collab.wire.identity import bearer_token
from collab.wire.messages import Notice
from collab.wire.text import has_control

if TYPE_CHECKING:
    from collab.core.connection import Connection
    from collab.core.outbox import Outbox
    from collab.core.registry import Registry
    from collab.observe.audit import Audit
    from collab.policy.auth import Authenticator
    from collab.settings import Settings

ADMIN_PATH: Final = "/api/admin/"
_SCOPE: Final = "admin"
_BY_TOKEN: Final = "admin.token"
_MOST_NOTICE_CHARACTERS: Final = 1000
_ROWS_A_TURN: Final = 256
_FAILURES: Final = Rate(per_second=1, burst=10)
_DISCONNECTED = Close(CloseCode.DISCONNECTED_BY_OPERATOR, "Disconnected by an operator")
_log = get_logger()


@attrs.frozen
class Operator:
    """Whoever a request of the operator API was found to come from."""

    name: str
    """The user of the token with the scope `admin`, or `admin.token`."""


@attrs.frozen(kw_only=True)
class NoticeBody:
    """The body of `POST /api/admin/notice`."""

    message: str


class Operators:
    """Tells operators from everybody else: by the scope of their token, or by `admin.token`.

    Who fails ten times, from one address, may then try once a second. Beyond that `admin.token` is not
    even looked at, so that nobody finds it by trying. A token with the scope cannot be guessed, and is taken:
    so nobody who shares their address keeps all operators out.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        self._token = str(settings.admin.token).encode()
        self._authenticator = authenticator
        self._failures = Meters(_FAILURES)

    @property
    def are_possible(self) -> bool:
        """Whether anybody at all can be an operator."""
        return bool(self._token) or self._authenticator.is_on

    async def identify(self, fields: list[str], address: str) -> Operator:
        """The operator that the values of a request's Authorization headers name.

        A token in the query is not looked at: addresses end up in logs and histories.

        Raises:
            Refused: `Unauthenticated`, `Forbidden`, 429 `rate_limited`, or 503 `unavailable`.
        """
        network = network_of(address)
        wait_seconds = self._failures.wait_seconds(network, trio.current_time())
        try:
            return await self._identify(bearer_token(fields), may_guess=not wait_seconds)
        except (Unauthenticated, Forbidden):
            if wait_seconds := self._failures.spend(network, 1, trio.current_time()):
                raise Refused(
                    429,
                    "rate_limited",
                    "too many failed attempts from this address",
                    retry_after_seconds=math.ceil(wait_seconds),
                ) from None
            raise

    async def _identify(self, token: str, *, may_guess: bool) -> Operator:
        if not token:
            raise Unauthenticated("an operator's token is required in the Authorization header")
        if may_guess and self._is_admin_token(token):
            return Operator(_BY_TOKEN)
        if not self._authenticator.is_on:
            raise Unauthenticated("the token is not that of an operator")
        try:
            claims = await self._authenticator.authenticate(token)
        except InvalidToken as error:
            raise Unauthenticated(str(error)) from None
        if _SCOPE not in claims.scopes:
            raise Forbidden(f"the token has not the scope {_SCOPE}")
        return Operator(claims.user_id)

    def _is_admin_token(self, token: str) -> bool:
        # In constant time: how long it takes must not tell how much of a guess is right.
        return bool(self._token) and hmac.compare_digest(token.encode(), self._token)


class AdminApi:
    """What operators can see and do. Each view wants the `g.operator` that `Operators` found."""

    def __init__(self, settings: Settings, registry: Registry, outbox: Outbox, audit: Audit) -> None:
        self._settings = settings
        self._audit = audit
        self._registry = registry
        self._outbox = outbox

    async def connections(self) -> Response:
        """`GET /api/admin/connections`: a row for each connection."""
        self._note_act("list connections")
        rows = []
        for number, connection in enumerate(list(self._registry.connections()), 1):
            rows.append(_row(connection))
            if not number % _ROWS_A_TURN:
                await trio.lowlevel.checkpoint()
        return json_response({"connections": rows, "count": len(rows)})

    async def disconnect(self, user_id: str) -> Response:
        """`POST /api/admin/users/{user_id}/disconnect`: close all connections of a user."""
        of_user = self._registry.of_user(user_id)
        self._note_act("disconnect", user_id=user_id, connections=len(of_user))
        if not of_user:
            raise Refused(404, "not_found", "this user is not online")
        for connection in of_user:
            connection.end(_DISCONNECTED)
        return json_response({"user_id": user_id, "disconnected": len(of_user)})

    async def notice(self) -> Response:
        """`POST /api/admin/notice`: tell every connection something."""
        text = decode_body(await request.get_data(), NoticeBody).message
        if not text:
            raise Refused(400, "missing_parameter", "message is required")
        if len(text) > _MOST_NOTICE_CHARACTERS:
            raise _invalid(f"message is longer than {_MOST_NOTICE_CHARACTERS:,} characters")
        if has_control(text.replace("\n", "").replace("\t", "")):
            raise _invalid("message holds a control character other than a line's end or a tab")
        connections = list(self._registry.connections())
        self._note_act("notice", message=text, connections=len(connections))
        frames: dict[str, bytes] = {}
        with self._outbox:
            for connection in connections:
                dialect = connection.dialect
                if dialect.name not in frames:
                    frames[dialect.name] = dialect.frame(Notice(message=text))
                connection.mailbox.put_or_wait(frames[dialect.name])
        return json_response({"connections": len(connections)})

    async def limits(self) -> Response:
        """`GET /api/admin/limits`: the limits in force."""
        self._note_act("show limits")
        return json_response(
            {
                "limits": _numbers(self._settings.limits),
                "timeouts": _numbers(self._settings.timeouts),
            }
        )

    def _note_act(self, act: str, **whom: str | int) -> None:
        """Every act of an operator passes here before it takes effect. Never give it a token."""
        operator: Operator = g.operator
        _log.info("Operator act", act=act, operator=operator.name, address=request.remote_addr, **whom)
        self._audit.administered(act, request.remote_addr, operator=operator.name, **whom)


def _row(connection: Connection) -> dict[str, object]:
    return {
        "id": connection.connection_id,
        "user_id": connection.user_id,
        "display_name": connection.identity.display_name,
        "address": connection.address,
        "connected_at": connection.connected_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "dialect": connection.dialect.name,
        "queued_messages": connection.mailbox.messages,
        "queued_bytes": connection.mailbox.bytes,
        "in_flight": connection.in_flight,
    }


def _numbers(group: attrs.AttrsInstance) -> dict[str, float]:
    """A group's values as plain numbers: bytes and seconds."""
    values = attrs.asdict(group)
    return {name: int(value) if isinstance(value, int) else float(value) for name, value in values.items()}


def _invalid(message: str) -> Refused:
    return Refused(400, "invalid_parameter", message)
