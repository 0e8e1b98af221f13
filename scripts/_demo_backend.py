"""Owns the two backends of the demo: each plays its part and checks every message that it sees.

usage: _demo_backend.py ada|bob WS_URL

Every line on standard output is the backend's name, a tab, and what it did or saw.
"""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, open_websocket_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECTED = "is connected"
WAITS = "waits for the end of the service"

_PATIENCE_SECONDS = 10.0
_GOING_AWAY = 1001

_ADA = {"user_id": "ada", "backend_url": "http://localhost:8000", "display_name": "Ada"}
_BOB = {"user_id": "bob", "backend_url": "http://localhost:8001", "display_name": "Bob"}

_POSITION = "5f3c1d52-8c0f-4a57-9a53-0d7f6a1b2c3d"
_SHARED = {
    "position_id": _POSITION,
    "share_url": f"http://localhost:8000/api/v1/positions/ideas/{_POSITION}",
    "shared_at": "2025-11-01T10:00:00Z",
}
_COMMENTED = {
    "position_id": _POSITION,
    "comment": {
        "id": "0b9a7c1e-64f2-4c0d-8b21-5a8de1f0c9b7",
        "text": "Great setup!",
        "user": {"id": "bob", "display_name": "Bob"},
        "created_at": "2025-11-01T10:05:00Z",
    },
}
_UPDATED = {
    "position_id": _POSITION,
    "updates": {"tags": ["bullish", "momentum"], "notes": "Updated analysis"},
}
_REVOKED = {"position_id": _POSITION}


class Unexpected(Exception):
    """What came is not what should have come."""


class Backend:
    """One connected backend. It reads only while one of its methods runs."""

    def __init__(self, websocket: WebSocketConnection, user_id: str) -> None:
        self._websocket = websocket
        self._user_id = user_id

    async def send_event(self, type: str, to_user: str, data: dict[str, Any]) -> None:
        """Send an event to one user and wait for its ack, which must say that it was delivered."""
        event = {"type": type, "from_user": self._user_id, "to_users": [to_user], "data": data}
        self.say(f"→ {type} to {to_user}")
        await self._websocket.send_message(json.dumps({"event": "collab_event", "data": event}))
        await self.expect("event_ack", {"event_type": type, "delivered_to": 1, "total_recipients": 1})

    async def expect_event(self, type: str, from_user: str, data: dict[str, Any]) -> None:
        """Wait for the next message: it must be this event, for this backend alone."""
        event = {"type": type, "from_user": from_user, "to_users": [self._user_id], "data": data}
        await self.expect("collab_event", event)

    async def expect(self, event: str, data: dict[str, Any] | None = None) -> None:
        """Wait for the next message: it must be `event`, with exactly `data` where that is given.

        Raises:
            Unexpected: it is another one, or none comes.
        """
        try:
            with trio.fail_after(_PATIENCE_SECONDS):
                message = json.loads(await self._websocket.get_message())
        except trio.TooSlowError:
            raise Unexpected(f"expected {event}, nothing came") from None
        except ConnectionClosed as closed:
            raise Unexpected(f"expected {event}, but the connection ended: {closed.reason}") from None
        self.say("← " + _described(message))
        if message["event"] != event or (data is not None and message["data"] != data):
            raise Unexpected(f"expected {event} {json.dumps(data)}, got {json.dumps(message)}")

    async def expect_end_of_service(self) -> None:
        """Wait until the service goes down: the notice, then the close code 1001, and nothing between."""
        self.say(WAITS)
        await self.expect("service_shutdown")
        try:
            with trio.fail_after(_PATIENCE_SECONDS):
                message = await self._websocket.get_message()
        except trio.TooSlowError:
            raise Unexpected("the service does not close the connection") from None
        except ConnectionClosed as closed:
            if closed.reason is None or closed.reason.code != _GOING_AWAY:
                raise Unexpected(f"expected close code 1001, got {closed.reason}") from None
            self.say(f"← closed with {closed.reason.code}: {closed.reason.reason}")
        else:
            raise Unexpected(f"expected the end, got {message}")

    def say(self, text: str) -> None:
        """Report what this backend does or sees."""
        say(self._user_id, text)


@asynccontextmanager
async def connected(url: str, identity: dict[str, str], *, active_users: int) -> AsyncIterator[Backend]:
    """A backend that speaks for this user, for the length of the block."""
    user_id = identity["user_id"]
    async with open_websocket_url(f"{url}/?{urlencode(identity)}") as websocket:
        backend = Backend(websocket, user_id)
        greeting = {
            "user_id": user_id,
            "message": "Connected to collaboration service",
            "active_users": active_users,
        }
        await backend.expect("connected", greeting)
        backend.say(CONNECTED)
        yield backend


async def ada(url: str) -> None:
    """Ada shares a position with Bob, updates it and revokes the share."""
    async with connected(url, _ADA, active_users=1) as backend:
        await backend.expect("user_online", {"user_id": "bob", "display_name": "Bob"})
        await backend.send_event("position_shared", "bob", _SHARED)
        await backend.expect_event("comment_added", "bob", _COMMENTED)
        await backend.send_event("position_updated", "bob", _UPDATED)
        await backend.send_event("share_revoked", "bob", _REVOKED)
        await backend.expect("user_offline", {"user_id": "bob"})
        await backend.expect("user_online", {"user_id": "bob", "display_name": "Bob"})
        await backend.expect_end_of_service()


async def bob(url: str) -> None:
    """Bob comments on what Ada shares, then his backend restarts."""
    async with connected(url, _BOB, active_users=2) as backend:
        await backend.expect_event("position_shared", "ada", _SHARED)
        await backend.send_event("comment_added", "ada", _COMMENTED)
        await backend.expect_event("position_updated", "ada", _UPDATED)
        await backend.expect_event("share_revoked", "ada", _REVOKED)
        backend.say("closes its connection and comes back")
    async with connected(url, _BOB, active_users=2) as backend:
        await backend.expect_end_of_service()


def say(name: str, text: str) -> None:
    """Print lines under a name, in one write: both backends share one pipe."""
    sys.stdout.write("".join(f"{name}\t{line}\n" for line in text.splitlines()))
    sys.stdout.flush()


def _described(message: dict[str, Any]) -> str:
    event, data = message["event"], message["data"]
    if event == "collab_event":
        width = max(map(len, data["data"]), default=0)
        rows = [f"\n      {name:{width}}  {_value(value)}" for name, value in data["data"].items()]
        return f"{data['type']} from {data['from_user']}{''.join(rows)}"
    if event == "event_ack":
        return f"event_ack {data['event_type']}: {data['delivered_to']} of {data['total_recipients']}"
    return event + "".join(f" {name}={_value(value)}" for name, value in data.items() if name != "message")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _main() -> int:
    name, url = sys.argv[1:]
    part = {"ada": ada, "bob": bob}[name]
    try:
        trio.run(part, url)
    except (Unexpected, HandshakeError, ExceptionGroup) as error:
        cause = _deepest(error)
        if not isinstance(cause, (Unexpected, HandshakeError, OSError)):
            raise
        say(name, f"✗ {str(cause) or repr(cause)}")
        return 1
    return 0


def _deepest(error: Exception) -> Exception:
    return _deepest(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


if __name__ == "__main__":
    sys.exit(_main())
