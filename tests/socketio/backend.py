"""A backend as the existing ones of Portfolio Planner are, as far as the service sees them.

`USER_ID=ada COLLAB_URL=http://localhost:9000 python backend.py` serves its positions by HTTP on a free port,
which it prints, and speaks to the service with python-socketio. A share is only told of by event: who hears
of one fetches it from the backend of its owner. `GET /seen` is for the tests: what it heard, and fetched.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import aiohttp
import socketio
from aiohttp import web

USER_ID = os.environ["USER_ID"]
COLLAB_URL = os.environ["COLLAB_URL"]
PATH = "/api/v1/positions/ideas/{id}"

positions: dict[str, dict] = {}
shared: dict[str, dict] = {}
seen: dict[str, list] = {"online": [], "offline": [], "acks": [], "errors": [], "life": []}
collab = socketio.AsyncClient(reconnection=True, reconnection_delay=0.1, reconnection_delay_max=0.5)
routes = web.RouteTableDef()


@collab.event
async def connect():
    seen["life"].append("connect")


@collab.event
async def disconnect():
    seen["life"].append("disconnect")


@collab.on("connected")
async def on_connected(data):
    seen["life"].append("connected")


@collab.on("user_online")
async def on_user_online(data):
    seen["online"].append(data["user_id"])


@collab.on("user_offline")
async def on_user_offline(data):
    seen["offline"].append(data["user_id"])


@collab.on("event_ack")
async def on_event_ack(data):
    seen["acks"].append([data["event_type"], data["delivered_to"], data["total_recipients"]])


@collab.on("pong")
async def on_pong(data):
    seen["life"].append("pong")


@collab.on("service_shutdown")
async def on_service_shutdown(data):
    seen["life"].append("service_shutdown")


@collab.on("error")
async def on_error(data):
    seen["errors"].append(data)


@collab.on("collab_event")
async def on_collab_event(event):
    data = event["data"]
    match event["type"]:
        case "position_shared":
            async with aiohttp.ClientSession() as http, http.get(data["share_url"]) as answer:
                shared[data["position_id"]] = {**await answer.json(), "comments": []}
        case "comment_added":
            (positions | shared)[data["position_id"]]["comments"].append(data["comment"]["text"])
        case "position_updated":
            shared[data["position_id"]] |= data["updates"]
        case "share_revoked":
            del shared[data["position_id"]]


async def tell(type, to, **data):
    event = {"type": type, "from_user": USER_ID, "to_users": [to], "data": data}
    await collab.emit("collab_event", event)
    return web.json_response({})


def now():
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@routes.get(PATH)
async def fetch(request):
    return web.json_response(positions[request.match_info["id"]])


@routes.get("/seen")
async def show(request):
    return web.json_response({**seen, "positions": positions, "shared": shared})


@routes.post("/ping")
async def ping(request):
    await collab.emit("ping", {})
    return web.json_response({})


@routes.post(PATH + "/share/{to}")
async def share(request):
    id = request.match_info["id"]
    positions[id] = {**await request.json(), "comments": []}
    url = f"http://{request.host}{PATH.format(id=id)}"
    return await tell(
        "position_shared", request.match_info["to"], position_id=id, share_url=url, shared_at=now()
    )


@routes.post(PATH + "/comment/{to}")
async def comment(request):
    id, text = request.match_info["id"], (await request.json())["text"]
    said = {
        "id": "c-1",
        "text": text,
        "user": {"id": USER_ID, "display_name": USER_ID.title()},
        "created_at": now(),
    }
    return await tell("comment_added", request.match_info["to"], position_id=id, comment=said)


@routes.post(PATH + "/update/{to}")
async def update(request):
    id, updates = request.match_info["id"], await request.json()
    positions[id] |= updates
    return await tell("position_updated", request.match_info["to"], position_id=id, updates=updates)


@routes.post(PATH + "/revoke/{to}")
async def revoke(request):
    return await tell("share_revoked", request.match_info["to"], position_id=request.match_info["id"])


async def main():
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    url = f"http://127.0.0.1:{port}"
    await collab.connect(
        COLLAB_URL,
        auth={"user_id": USER_ID, "backend_url": url, "display_name": USER_ID.title()},
        transports=["websocket"],
    )
    print(port, flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
