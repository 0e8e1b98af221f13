"""A service that a test plays, on loopback, on either loop. Built on wsproto, like `collab.testing`."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import anyio
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from collab.client import Limits

# Short waits for what the tests see end; ping_seconds stays out of the way.
QUICK = Limits(first_delay_seconds=0.001, longest_delay_seconds=0.01, close_seconds=0.05)


class Peer:
    """One upgrade, and the WebSocket that a test makes of it."""

    def __init__(self, stream, request, protocol):
        self.stream = stream
        self.request = request
        self.headers = {name.decode().lower(): value.decode() for name, value in request.extra_headers}
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(request.target).query).items()}
        self.finished = anyio.Event()
        self._protocol = protocol
        self._events = []

    async def refuse(self, status, code="", headers=(), sentence="no"):
        body = json.dumps({"error": sentence, "code": code}).encode()
        lines = [f"HTTP/1.1 {status} No", f"content-length: {len(body)}", "connection: close", *headers]
        await self.stream.send("\r\n".join([*lines, "", ""]).encode() + body)
        self.finished.set()

    async def accept(self):
        await self.write(ws.AcceptConnection())

    async def welcome(self, **members):
        """Accept, and say `connected`."""
        await self.accept()
        user_id = self.query.get("user_id", "ada")
        data = {"user_id": user_id, "message": "", "active_users": 1, **members}
        await self.send("connected", data)
        return self

    async def send(self, event, data, id=None):
        await self.write(ws.TextMessage(json.dumps({"event": event, "data": data, "id": id})))

    async def send_event(self, type="note", data=None, from_user="bob"):
        event = {"type": type, "from_user": from_user, "to_users": ["ada"], "data": data}
        await self.send("collab_event", event)

    async def ack(self, message, **members):
        data = {"event_type": message["data"]["type"], "delivered_to": 1, "total_recipients": 1, **members}
        await self.send("event_ack", data, message["id"])

    async def write(self, event):
        await self.stream.send(self._protocol.send(event))

    async def receive(self):
        """The next text message, parsed; the close event; None for an end without one."""
        text = ""
        while True:
            event = await self.next_event()
            if event is None or isinstance(event, ws.CloseConnection):
                return event
            if isinstance(event, ws.TextMessage):
                text += event.data
                if event.message_finished:
                    return json.loads(text)

    async def next_event(self):
        while not self._events:
            try:
                data = await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return None
            self._protocol.receive_data(data)
            self._events += self._protocol.events()
        return self._events.pop(0)

    async def answer_close(self):
        """Read on to the client's close frame, answer it, and give its code."""
        while not isinstance(event := await self.receive(), ws.CloseConnection):
            assert event is not None, "the client ended without a close frame"
        await self.write(event.response())
        self.finished.set()
        return event.code

    async def close(self, code, reason=""):
        """Send a close frame and wait for the answer."""
        await self.write(ws.CloseConnection(code, reason))
        while not isinstance(event := await self.receive(), ws.CloseConnection):
            assert event is not None, "the client did not answer the close frame"
        self.finished.set()
        return event.code

    def vanish(self):
        """End without a word."""
        self.finished.set()


class FakeService:
    """What clients connect to. `online` is what its HTTP API says."""

    def __init__(self, port):
        self.url = f"ws://127.0.0.1:{port}"
        self.online = []
        self.online_status = 200
        self.asked = []
        self.before_online = None
        self._send, self._receive = anyio.create_memory_object_stream(100)

    async def upgrade(self):
        """The next upgrade that a client asks for."""
        return await self._receive.receive()

    async def welcome(self, **members):
        """The next client, let in."""
        return await (await self.upgrade()).welcome(**members)

    async def serve(self, stream):
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                try:
                    head += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
            if b"/api/users/online" in head.split(b"\r\n")[0]:
                await self._answer(stream, head)
                return
            protocol = WSConnection(ConnectionType.SERVER)
            protocol.receive_data(head)
            peer = Peer(stream, next(protocol.events()), protocol)
            await self._send.send(peer)
            await peer.finished.wait()

    async def _answer(self, stream, head):
        self.asked.append(head.decode())
        if self.before_online is not None:
            await self.before_online()
        body = json.dumps({"users": [row(user) for user in self.online], "count": len(self.online)})
        await stream.send(
            f"HTTP/1.1 {self.online_status} OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )


def row(user_id):
    return {
        "user_id": user_id,
        "display_name": user_id.title(),
        "backend_url": f"http://{user_id}",
        "connected_at": "2025-11-01T10:00:00Z",
        "status": "online",
    }


@asynccontextmanager
async def fake_service():
    """A `FakeService` for the length of the block."""
    listeners = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listeners, anyio.create_task_group() as tasks:
        service = FakeService(listeners.extra(anyio.abc.SocketAttribute.local_port))
        tasks.start_soon(listeners.serve, service.serve)
        with service._send, service._receive:
            yield service
            tasks.cancel_scope.cancel()
