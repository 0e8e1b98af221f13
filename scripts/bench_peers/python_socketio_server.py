"""Owns a peer for scripts/bench: the work of socketio_server.js on python-socketio and uvicorn.

usage: python python_socketio_server.py PORT
"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import parse_qs

import socketio
import uvicorn

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
sockets: dict[str, str] = {}
names: dict[str, str] = {}


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Register a user, welcome it, and tell the others."""
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    user_id, display_name = query["user_id"], query.get("display_name", "Unknown User")
    sockets[user_id] = sid
    names[sid] = user_id
    if query.get("presence") != "none":
        await server.enter_room(sid, "presence")
    welcome = {
        "user_id": user_id,
        "message": "Connected to collaboration service",
        "active_users": len(sockets),
    }
    await server.emit("connected", welcome, to=sid)
    online = {"user_id": user_id, "display_name": display_name}
    await server.emit("user_online", online, room="presence", skip_sid=sid)


@server.event
async def collab_event(sid: str, event: dict[str, Any]) -> None:
    """Route one event and acknowledge it."""
    relayed = {name: event[name] for name in ("type", "from_user", "to_users", "data")}
    delivered = 0
    for user_id in event["to_users"]:
        if (to := sockets.get(user_id)) is not None:
            await server.emit("collab_event", relayed, to=to)
            delivered += 1
    ack = {
        "event_type": event["type"],
        "delivered_to": delivered,
        "total_recipients": len(event["to_users"]),
    }
    await server.emit("event_ack", ack, to=sid)


@server.event
async def disconnect(sid: str, *reason: str) -> None:
    """Forget a user and tell the others."""
    user_id = names.pop(sid)
    if sockets.get(user_id) == sid:
        del sockets[user_id]
        await server.emit("user_offline", {"user_id": user_id}, room="presence")


if __name__ == "__main__":
    app = socketio.ASGIApp(server)
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", access_log=False, backlog=4096
    )
