"""The client for backends, on asyncio and on Trio: docs/client.md.

async with connect("ws://localhost:9000", user_id="ada", backend_url="http://localhost:8000") as collab:
    ack = await collab.send("comment_added", ["bob"], {"text": "Great setup!"})
    async for event in collab.events():
        ...
"""

from __future__ import annotations

from importlib.util import find_spec

for _name in ("anyio", "httpx", "httpx_ws"):
    if find_spec(_name) is None:
        raise ImportError(
            f"collab.client needs {_name}: install it with pip install 'trio-collab[client]'", name=_name
        )

from collab.client.collab import Collab  # noqa: E402 - what is missing had to be said first
from collab.client.connecting import connect  # noqa: E402 - likewise
from collab.client.errors import (  # noqa: E402 - likewise
    AckTimeout,
    CollabClientError,
    ConnectionLost,
    InvalidEvent,
    MaybeDelivered,
    NotAllowed,
    NotConnected,
    NotSent,
    RateLimited,
    Stopped,
)
from collab.client.events import (  # noqa: E402 - likewise
    Ack,
    Comment,
    CommentAdded,
    Event,
    OnlineUser,
    PositionShared,
    PositionUpdated,
    PresenceChange,
    ShareRevoked,
    State,
)
from collab.client.limits import Limits  # noqa: E402 - likewise

__all__ = [
    "Ack",
    "AckTimeout",
    "Collab",
    "CollabClientError",
    "Comment",
    "CommentAdded",
    "ConnectionLost",
    "Event",
    "InvalidEvent",
    "Limits",
    "MaybeDelivered",
    "NotAllowed",
    "NotConnected",
    "NotSent",
    "OnlineUser",
    "PositionShared",
    "PositionUpdated",
    "PresenceChange",
    "RateLimited",
    "ShareRevoked",
    "State",
    "Stopped",
    "connect",
]
