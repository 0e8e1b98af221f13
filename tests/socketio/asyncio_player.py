"""Plays clients of python-socketio's `AsyncClient`; what it is told and says is as in player.js."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from functools import partial
from urllib.parse import urlencode

import aiohttp
import socketio

CLIENTS: dict[str, socketio.AsyncClient] = {}
TASKS = set()


def say(client, event, *args):
    print(json.dumps({"client": client, "event": event, "args": args}), flush=True)


async def connect(client, url, namespace, query, auth, transports, headers, ca, comes_back, events):
    options = {}
    if ca:
        context = ssl.create_default_context(cafile=ca)
        options["http_session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
    io = CLIENTS[client] = socketio.AsyncClient(
        reconnection=comes_back, reconnection_delay=0.05, reconnection_delay_max=0.2, **options
    )
    namespace = namespace or "/"
    for name in events:
        io.on(name, partial(say, client, name), namespace=namespace)
    io.on("connect", lambda: say(client, "<connect>", io.transport()), namespace=namespace)
    io.on("disconnect", partial(say, client, "<disconnect>"), namespace=namespace)
    io.on("connect_error", partial(say, client, "<connect_error>"), namespace=namespace)
    try:
        await io.connect(
            f"{url}?{urlencode(query)}" if query else url,
            headers=headers or {},
            auth=auth,
            transports=transports,
            namespaces=[namespace],
        )
    except socketio.exceptions.ConnectionError as error:
        say(client, "<failed>", str(error))


async def emit(client, event, data):
    await CLIENTS[client].emit(event, data)


async def emit_binary(client, event, data):
    await emit(client, event, {**data, "data": {"blob": b"\1\2\3", "more": b"x"}})


async def call(client, event, data):
    try:
        say(client, "<reply>", await CLIENTS[client].call(event, data, timeout=10))
    except socketio.exceptions.TimeoutError as error:
        say(client, "<reply>", repr(error))


async def state(client):
    io = CLIENTS[client]
    comes_back = io._reconnect_task is not None and not io._reconnect_task.done()
    transport = io.transport() if io.connected else None
    say(client, "<state>", {"connected": io.connected, "comes_back": comes_back, "transport": transport})


async def disconnect(client):
    await CLIENTS[client].disconnect()


ACTS = {act.__name__: act for act in (connect, emit, emit_binary, call, state, disconnect)}


async def main():
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async for line in lines:
        told = json.loads(line)
        # What takes its time must not hold up the others; emits stay in order.
        coroutine = ACTS[told.pop("act")](**told)
        if coroutine.__name__ in ("connect", "call", "disconnect"):
            task = asyncio.create_task(coroutine)
            TASKS.add(task)
            task.add_done_callback(TASKS.discard)
        else:
            await coroutine


asyncio.run(main())
