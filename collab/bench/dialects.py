"""Owns how the same work is said in each dialect: the upgrade, the greeting, an event."""

from __future__ import annotations

import json
from typing import Final, Protocol
from urllib.parse import urlencode

EVENT_TYPE: Final = "position_shared"


class Dialect(Protocol):
    """What the load generator needs to know of one."""

    def target(self, path: str, user_id: str, *, wants_presence: bool) -> str:
        """The request target of the upgrade."""
        ...

    def event(self, from_user: str, to_users: list[str], data: dict[str, str]) -> bytes:
        """The text of an event."""
        ...

    def answer(self, text: bytes) -> bytes:
        """What a client answers to this text by itself; empty: nothing."""
        ...


class PlainDialect:
    """JSON messages over a plain WebSocket (docs/protocol.md)."""

    def target(self, path: str, user_id: str, *, wants_presence: bool) -> str:
        """See `Dialect`."""
        return f"{path}?{_identity(user_id, wants_presence)}"

    def event(self, from_user: str, to_users: list[str], data: dict[str, str]) -> bytes:
        """See `Dialect`."""
        return _json({"event": "collab_event", "data": _event(from_user, to_users, data)})

    def answer(self, text: bytes) -> bytes:
        """See `Dialect`."""
        return b""


class SocketIoDialect:
    """Socket.IO 5 over Engine.IO 4, on the WebSocket transport from the start."""

    def target(self, path: str, user_id: str, *, wants_presence: bool) -> str:
        """See `Dialect`."""
        base = "/socket.io/" if path == "/" else path
        return f"{base}?EIO=4&transport=websocket&{_identity(user_id, wants_presence)}"

    def event(self, from_user: str, to_users: list[str], data: dict[str, str]) -> bytes:
        """See `Dialect`."""
        return b"42" + _json(["collab_event", _event(from_user, to_users, data)])

    def answer(self, text: bytes) -> bytes:
        """See `Dialect`: CONNECT after the Engine.IO handshake, pong after ping."""
        if text[:1] == b"0":
            return b"40"
        return b"3" if text == b"2" else b""


DIALECTS: Final[dict[str, Dialect]] = {"plain": PlainDialect(), "socketio": SocketIoDialect()}


def _identity(user_id: str, wants_presence: bool) -> str:
    query = {"user_id": user_id, "backend_url": "http://localhost:8000", "display_name": "Load"}
    if not wants_presence:
        query["presence"] = "none"
    return urlencode(query)


def _event(from_user: str, to_users: list[str], data: dict[str, str]) -> dict[str, object]:
    return {"type": EVENT_TYPE, "from_user": from_user, "to_users": to_users, "data": data}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
