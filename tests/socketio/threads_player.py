"""Plays clients of python-socketio's `Client`; what it is told and says is as in player.js."""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from urllib.parse import urlencode

import requests
import socketio

CLIENTS: dict[str, socketio.Client] = {}


def say(client, event, *args):
    # In one write: handlers run in threads of their own.
    os.write(1, (json.dumps({"client": client, "event": event, "args": args}) + "\n").encode())


def connect(client, url, namespace, query, auth, transports, headers, ca, comes_back, events):
    options = {}
    if ca:
        options["http_session"] = requests.Session()
        options["http_session"].verify = ca
        # Else the environment's authorities would come before ours.
        options["http_session"].trust_env = False
        options["websocket_extra_options"] = {"sslopt": {"ca_certs": ca}}
    io = CLIENTS[client] = socketio.Client(
        reconnection=comes_back, reconnection_delay=0.05, reconnection_delay_max=0.2, **options
    )
    namespace = namespace or "/"
    for name in events:
        io.on(name, partial(say, client, name), namespace=namespace)
    io.on("connect", lambda: say(client, "<connect>", io.transport()), namespace=namespace)
    io.on("disconnect", partial(say, client, "<disconnect>"), namespace=namespace)
    io.on("connect_error", partial(say, client, "<connect_error>"), namespace=namespace)
    try:
        io.connect(
            f"{url}?{urlencode(query)}" if query else url,
            headers=headers or {},
            auth=auth,
            transports=transports,
            namespaces=[namespace],
        )
    except socketio.exceptions.ConnectionError as error:
        say(client, "<failed>", str(error))


def emit(client, event, data):
    CLIENTS[client].emit(event, data)


def emit_binary(client, event, data):
    emit(client, event, {**data, "data": {"blob": b"\1\2\3", "more": b"x"}})


def call(client, event, data):
    try:
        say(client, "<reply>", CLIENTS[client].call(event, data, timeout=10))
    except socketio.exceptions.TimeoutError as error:
        say(client, "<reply>", repr(error))


def state(client):
    io = CLIENTS[client]
    comes_back = io._reconnect_task is not None and io._reconnect_task.is_alive()
    transport = io.transport() if io.connected else None
    say(client, "<state>", {"connected": io.connected, "comes_back": comes_back, "transport": transport})


def disconnect(client):
    CLIENTS[client].disconnect()


ACTS = {act.__name__: act for act in (connect, emit, emit_binary, call, state, disconnect)}

for line in sys.stdin:
    told = json.loads(line)
    act = ACTS[told.pop("act")]
    # What takes its time must not hold up the others; emits stay in order.
    if act in (connect, call, disconnect):
        threading.Thread(target=act, kwargs=told, daemon=True).start()
    else:
        act(**told)
os._exit(0)
