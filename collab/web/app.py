"""Owns the Quart-Trio app: its errors, CORS, and what it answers while the service drains."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio
from quart import Response, g, request
from quart_cors import cors
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from collab.errors import Draining, InvalidToken, MessageError, Refused, Unauthenticated
from collab.observe.log import get_logger
from collab.policy.limits import network_of
from collab.policy.rate import Meters, Rate
from collab.web.admin import ADMIN_PATH, Operators
from collab.web.answers import json_response
from collab.web.api import Api
from collab.web.page import index
from collab.wire.engineio import ENGINE_PATHS
from collab.wire.headers import SECURITY_HEADERS
from collab.wire.identity import the_token

if TYPE_CHECKING:
    from collab.core.registry import Registry
    from collab.core.status import Status
    from collab.observe.audit import Audit
    from collab.policy.auth import Authenticator, Claims
    from collab.policy.sending import SendPolicy
    from collab.settings import Settings
    from collab.web.admin import AdminApi
    from collab.web.events import EventsApi
    from collab.web.polling import PollingApi

_log = get_logger()
# A token may ask as often as it likes; the audit log must not be its bearer's to fill.
_NOTED: Final = Rate(per_second=1 / 60, burst=1)
_ANY_METHOD = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Engine.IO has an error of its own for those that it does not take."""
_ANSWERED_WHILE_DRAINING = frozenset({"/health", "/ready"})


class _WholeConverter(BaseConverter):
    """Any text, with slashes anywhere: an id may begin with one, and its user must not be out of reach."""

    regex = ".+?"
    part_isolating = False


def create_app(
    settings: Settings,
    registry: Registry,
    status: Status,
    ws_url: str,
    authenticator: Authenticator,
    audit: Audit,
    send_policy: SendPolicy | None = None,
    *,
    events: EventsApi,
    admin: AdminApi,
    polling: PollingApi,
) -> QuartTrio:
    """The HTTP app of one service. `ws_url` is handed out where a request does not say its Host."""
    app = QuartTrio("collab", static_folder=None)
    # A path means what it says, as in the door: a user's id may hold slashes.
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = int(settings.limits.message_bytes)
    api = Api(settings, registry, status, ws_url, send_policy)
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/ws", view_func=upgrade_required)
    app.add_url_rule("/ws/<user_id>", view_func=upgrade_required)
    app.add_url_rule("/health", view_func=api.health)
    app.add_url_rule("/ready", view_func=api.ready)
    app.add_url_rule("/api/users/online", view_func=api.users_online)
    app.add_url_rule("/api/users/<path:user_id>", view_func=api.user)
    app.add_url_rule("/api/register", view_func=api.register, methods=["POST"])
    app.add_url_rule("/api/events", view_func=events.send, methods=["POST"])
    for path in ENGINE_PATHS:
        app.add_url_rule(path, view_func=polling.handle, methods=_ANY_METHOD, endpoint=f"polling{path}")
    operators = Operators(settings, authenticator)
    noted = Meters(_NOTED)
    if operators.are_possible:
        _add_admin(app, admin)

    # Async although nothing waits: Quart runs what is not in a thread.
    @app.before_request
    async def refuse_while_draining() -> None:
        # A session of Engine.IO may still be polled; nobody opens one (`Acceptor.check_comer`).
        if status.draining and request.path not in (*_ANSWERED_WHILE_DRAINING, *ENGINE_PATHS):
            raise Draining(settings.server.reconnect_spread)

    @app.before_request
    async def authenticate() -> None:
        # A preflight carries no token (Fetch standard, CORS-preflight fetch).
        if not request.path.startswith("/api/") or request.method == "OPTIONS":
            return
        fields = request.headers.getlist("authorization")
        if request.path.startswith(ADMIN_PATH):
            if operators.are_possible:
                g.operator = await operators.identify(fields, request.remote_addr or "")
            return
        if not authenticator.is_on:
            return
        token = the_token(fields, request.query_string.decode("latin-1"))
        try:
            g.claims = await authenticator.authenticate(token)
        except InvalidToken as error:
            raise Unauthenticated(str(error)) from None
        if audit.is_on and not noted.spend(_use_of(g.claims, request.remote_addr), 1, trio.current_time()):
            audit.authenticated(
                g.claims,
                by="request",
                address=request.remote_addr,
                connection_id=None,
                method=request.method,
                path=request.path,
            )

    @app.errorhandler(Refused)
    async def refused(error: Refused) -> Response:
        # Not found is an answer like any other.
        if error.status != 404:
            audit.refused(request.remote_addr, error, method=request.method, path=request.path)
        headers = dict(error.headers)
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(error.retry_after_seconds)
        return json_response(error.body, status=error.status, headers=headers)

    @app.errorhandler(MessageError)
    async def message_error(error: MessageError) -> Response:
        body: dict[str, object] = {"error": error.detail, "code": error.code}
        headers = {}
        if error.retry_after_ms is not None:
            body["retry_after_ms"] = error.retry_after_ms
            headers["retry-after"] = str(math.ceil(error.retry_after_ms / 1000))
        return json_response(body, status=error.status, headers=headers)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        status_code = error.code or 500
        headers = {name: value for name, value in error.get_headers() if name.lower() == "allow"}
        return json_response(
            {"error": _sentence(error), "code": error.name.lower().replace(" ", "_")},
            status=status_code,
            headers=headers,
        )

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        _log.error("HTTP request failed", method=request.method, path=request.path, exc_info=error)
        return json_response({"error": "internal error", "code": "internal"}, status=500)

    @app.after_request
    async def secure(response: Response) -> Response:
        for name, value in SECURITY_HEADERS:
            response.headers.setdefault(name, value)
        return response

    return cors(app, allow_origin=list(settings.http.cors_origins), expose_headers=["Retry-After"])


def _use_of(claims: Claims, address: str | None) -> str:
    """One token from one place. By what it says: an ECDSA signature can be written in two ways."""
    what = (claims.user_id, claims.expires_at, claims.token_id, claims.issuer, network_of(address or ""))
    return sha256(repr(what).encode()).hexdigest()


def _add_admin(app: QuartTrio, admin: AdminApi) -> None:
    app.url_map.converters["whole"] = _WholeConverter
    app.add_url_rule(ADMIN_PATH + "connections", view_func=admin.connections)
    app.add_url_rule(ADMIN_PATH + "limits", view_func=admin.limits)
    app.add_url_rule(ADMIN_PATH + "notice", view_func=admin.notice, methods=["POST"])
    disconnect = ADMIN_PATH + "users/<whole:user_id>/disconnect"
    app.add_url_rule(disconnect, view_func=admin.disconnect, methods=["POST"])


def _sentence(error: HTTPException) -> str:
    # Werkzeug's own words for an unknown path advise a person at a browser.
    return "there is nothing at this path" if error.code == 404 else error.description or error.name


async def upgrade_required(user_id: str | None = None) -> Response:
    """`/ws` without an upgrade."""
    raise Refused(
        426,
        "upgrade_required",
        "this is a WebSocket endpoint; connect with ws:// and the Upgrade header",
        headers=(("upgrade", "websocket"), ("connection", "upgrade")),
    )
