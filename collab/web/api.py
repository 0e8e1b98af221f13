"""Owns the JSON endpoints of the seed: health, readiness, who is online, how to connect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
from quart import Response, g, request

from collab.errors import Refused
from collab.web.answers import decode_body, json_response
from collab.wire.identity import IDENTITY_REQUIRED, check_identity, check_token_user

if TYPE_CHECKING:
    from collab.core.registry import OnlineUser, Registry
    from collab.core.status import Status
    from collab.policy.auth import Claims
    from collab.policy.sending import SendPolicy
    from collab.settings import Settings

_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")


@attrs.frozen(kw_only=True)
class Registration:
    """The body of `POST /api/register`."""

    user_id: str | None = None
    backend_url: str | None = None
    display_name: str | None = None


class Api:
    """The endpoints over one service's registry and status."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        status: Status,
        ws_url: str,
        send_policy: SendPolicy | None = None,
    ) -> None:
        self._send_policy = send_policy
        self._public_url = settings.server.public_url
        self._registry = registry
        self._status = status
        self._ws_url = ws_url

    async def health(self) -> Response:
        """`GET /health`: alive, and the counters."""
        return json_response(
            {
                "status": "healthy",
                "uptime": self._status.uptime_seconds(),
                "active_users": self._registry.user_count,
                "total_connections": self._status.total_connections,
                "total_events_routed": self._status.total_events_routed,
            }
        )

    async def ready(self) -> Response:
        """`GET /ready`: whether new connections are taken."""
        if self._status.draining:
            return json_response({"status": "draining"}, status=503)
        return json_response({"status": "ready"})

    async def users_online(self) -> Response:
        """`GET /api/users/online`: a row for each user."""
        users = [_row(user) for user in self._registry.online_users() if self._may_see(user.user_id)]
        return json_response({"users": users, "count": len(users)})

    async def user(self, user_id: str) -> Response:
        """`GET /api/users/{user_id}`: the user's row, 404 when offline."""
        user = self._registry.online_user(user_id)
        if user is None or not self._may_see(user_id):
            raise Refused(404, "not_found", "this user is not online")
        return json_response(_row(user))

    async def register(self) -> Response:
        """`POST /api/register`: how to connect. It registers nothing."""
        registration = decode_body(await request.get_data(), Registration)
        if not registration.user_id or not registration.backend_url:
            raise Refused(400, "missing_parameter", IDENTITY_REQUIRED)
        claims: Claims | None = g.get("claims")
        if claims is not None:
            check_token_user(registration.user_id, claims.user_id)
        check_identity(
            user_id=registration.user_id,
            backend_url=registration.backend_url,
            display_name=registration.display_name or "",
        )
        return json_response(
            {
                "success": True,
                "collab_ws_url": self._collab_ws_url(),
                "message": "Connect via WebSocket with the query parameters "
                "user_id, backend_url and display_name",
            }
        )

    def _may_see(self, user_id: str) -> bool:
        """Whether whoever asks may send to this user."""
        if self._send_policy is None:
            return True
        claims: Claims = g.claims
        return self._send_policy.allows(claims.user_id, claims.peers, user_id)

    def _collab_ws_url(self) -> str:
        if self._public_url:
            return websocket_url(self._public_url)
        host = request.headers.get("host", "")
        scheme = "wss" if request.scheme in ("https", "wss") else "ws"
        # The Host is the caller's own word: only what can be one is repeated.
        return f"{scheme}://{host}" if _HOST.fullmatch(host) else self._ws_url


def websocket_url(url: str) -> str:
    """The WebSocket form of an http, https, ws or wss URL, without a slash at its end."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return parts._replace(scheme=scheme).geturl().rstrip("/")


def _row(user: OnlineUser) -> dict[str, str]:
    return attrs.asdict(user)
