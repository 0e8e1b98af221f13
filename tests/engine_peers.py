"""Clients of Engine.IO and Socket.IO that a test moves by hand; they share no code with the service."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import h11
import trio
from peers import Answer, frame, head, read_answer

from collab.testing import Closed, FakeBackend, LocalService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POLLING = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
PATIENCE_SECONDS = 1000.0
"""For mock clocks; a test over sockets has its own limit."""


def identity(user_id: str, **more: str) -> dict[str, str]:
    """Who one is, as it goes into a query or an `auth`."""
    return {"user_id": user_id, "backend_url": "http://localhost:8000", "presence": "none", **more}


def connect_packet(auth: Mapping[str, object] | None = None) -> str:
    """A CONNECT to the main namespace."""
    return "40" if auth is None else f"40{json.dumps(auth)}"


def event_packet(name: str, *arguments: object, reply_id: int | str = "") -> str:
    """An EVENT."""
    return f"42{reply_id}{json.dumps([name, *arguments])}"


def collab_packet(
    to_users: Sequence[str], data: object = None, *, reply_id: int | str = "", type: str = "t"
) -> str:
    """An EVENT that is a `collab_event`."""
    return event_packet(
        "collab_event", {"type": type, "to_users": list(to_users), "data": data}, reply_id=reply_id
    )


def event_of(packet: str) -> tuple[str, Any]:
    """The name and the data of an EVENT without an id."""
    assert packet.startswith("42["), packet
    name, data = json.loads(packet[2:])
    return name, data


def events_of(packets: Sequence[str], *names: str) -> list[Any]:
    """The data of the EVENTs of these names, in order."""
    found = [event_of(packet) for packet in packets if packet.startswith("42[")]
    return [data for name, data in found if name in names]


class SessionOver(Exception):
    """There is no session of this `sid` any more."""


@attrs.define(eq=False)
class PollingClient:
    """One session whose transport is polling. Each request is a connection of its own."""

    local: LocalService
    sid: str = ""
    handshake: dict[str, Any] = attrs.field(factory=dict)
    headers: dict[str, str] = attrs.field(factory=dict)
    heard: list[str] = attrs.field(factory=list)
    """Packets of a poll that nobody has taken yet."""

    @classmethod
    async def open(
        cls, local: LocalService, query: str = "", headers: dict[str, str] | None = None
    ) -> PollingClient:
        """A session after its handshake."""
        client = cls(local, headers=headers or {})
        answer = await client.request("GET", POLLING + query)
        assert answer.status == 200, answer
        first, *client.heard = answer.body.decode().split("\x1e")
        assert first[0] == "0"
        client.handshake = json.loads(first[1:])
        client.sid = client.handshake["sid"]
        return client

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, **auth: str) -> PollingClient:
        """A session whose user is let in and has heard `connected`."""
        client = await cls.open(local)
        await client.say(connect_packet(identity(user_id, **auth)))
        accepted = await client.next()
        assert accepted.startswith('40{"sid"'), accepted
        assert event_of(await client.next())[0] == "connected"
        return client

    @property
    def target(self) -> str:
        return f"{POLLING}&sid={self.sid}"

    async def request(self, method: str, target: str, body: bytes | None = None) -> Answer:
        """One request and its answer, however long it takes."""
        fields: dict[str, str | None] = dict(self.headers)
        if body is not None:
            fields["content-length"] = str(len(body))
        stream, _ = await self.local.open_stream()
        async with stream:
            await stream.send_all(head(method, target, fields) + (body or b""))
            return await read_late_answer(stream, method)

    async def get(self) -> Answer:
        """The answer to a poll."""
        return await self.request("GET", self.target)

    async def poll(self) -> list[str]:
        """The packets of one poll. Raises `SessionOver`."""
        try:
            answer = await self.get()
        except h11.RemoteProtocolError:
            # The service has gone, with the last of its sessions.
            raise SessionOver from None
        if answer.status == 400 and answer.json["code"] == 1:
            raise SessionOver
        assert answer.status == 200, answer
        return answer.body.decode().split("\x1e")

    async def post(self, *packets: str) -> Answer:
        """The answer to a POST of these packets."""
        return await self.request("POST", self.target, "\x1e".join(packets).encode())

    async def say(self, *packets: str) -> None:
        """POST these packets, which must be taken."""
        answer = await self.post(*packets)
        assert (answer.status, answer.body) == (200, b"ok"), answer

    async def next(self) -> str:
        """The next packet; a ping is answered and passed over, a noop passed over."""
        while True:
            while not self.heard:
                self.heard += await self.poll()
            packet = self.heard.pop(0)
            if packet == "2":
                await self.say("3")
            elif packet != "6":
                return packet

    async def receive(self, name: str) -> Any:
        """The data of the next EVENT of this name; others are dropped."""
        while True:
            packet = await self.next()
            assert packet != "1", "the session has ended"
            if packet.startswith("42[") and event_of(packet)[0] == name:
                return event_of(packet)[1]

    async def until_end(self) -> list[str]:
        """Every packet up to the end of the session, whether it is told of or found out."""
        packets = []
        with suppress(SessionOver):
            while (packet := await self.next()) != "1":
                packets.append(packet)
        return packets


@attrs.define(eq=False)
class SocketClient:
    """One session over a WebSocket."""

    backend: FakeBackend
    handshake: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    async def open(
        cls, local: LocalService, query: str = "", headers: dict[str, str] | None = None
    ) -> SocketClient:
        """A session after its handshake."""
        client = cls(await local.open(WEBSOCKET + query, headers))
        first = await client.backend.receive_text()
        assert first[0] == "0"
        client.handshake = json.loads(first[1:])
        return client

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, **auth: str) -> SocketClient:
        """A session whose user is let in and has heard `connected`."""
        client = await cls.open(local)
        await client.say(connect_packet(identity(user_id, **auth)))
        accepted = await client.next()
        assert accepted.startswith('40{"sid"'), accepted
        assert event_of(await client.next())[0] == "connected"
        return client

    async def say(self, *packets: str) -> None:
        """Send these packets in one piece."""
        await self.backend.stream.send_all(b"".join(frame(1, packet.encode()) for packet in packets))

    async def next(self) -> str:
        """The next packet; a ping is answered and passed over. Raises `Closed`."""
        while (packet := await self.backend.receive_text()) == "2":
            await self.say("3")
        return packet

    async def receive(self, name: str) -> Any:
        """The data of the next EVENT of this name; others are dropped."""
        while True:
            packet = await self.next()
            if packet.startswith("42[") and event_of(packet)[0] == name:
                return event_of(packet)[1]

    async def until_end(self) -> tuple[list[str], tuple[int, str]]:
        """Every packet up to the end of the session, and how the WebSocket was closed."""
        packets = []
        while True:
            try:
                packets.append(await self.next())
            except Closed as closed:
                return packets, (closed.code, closed.reason)


async def begin_upgrade(client: PollingClient, *, probe: bool = True) -> SocketClient:
    """A WebSocket beside the polls of a session, after its probe."""
    socket = SocketClient(await client.local.open(f"{WEBSOCKET}&sid={client.sid}"))
    if probe:
        await socket.say("2probe")
        assert await socket.backend.receive_text() == "3probe"
    return socket


async def upgrade(client: PollingClient) -> SocketClient:
    """The session moved to a WebSocket."""
    socket = await begin_upgrade(client)
    await socket.say("5")
    return socket


async def read_late_answer(stream: trio.abc.Stream, method: str = "GET") -> Answer:
    """The response on a connection, of whose coming nothing is expected but that it comes."""
    first = b""
    with trio.fail_after(PATIENCE_SECONDS):
        first = bytes(await stream.receive_some(65536))
    return await read_answer(_Begun(stream, first), method)


class _Begun(trio.abc.ReceiveStream):
    """A stream of which something was read already."""

    def __init__(self, stream: trio.abc.ReceiveStream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        first, self._first = self._first, b""
        return first or bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


def with_query(user_id: str, **more: str) -> str:
    """The identity as the tail of a request target."""
    return "&" + urlencode(identity(user_id, **more))
