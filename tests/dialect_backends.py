"""Backends of every dialect and transport, moved alike: each sends, reads, leaves and vanishes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import h11
import trio
from engine_peers import (
    WEBSOCKET,
    PollingClient,
    SocketClient,
    begin_upgrade,
    collab_packet,
    connect_packet,
    event_of,
    event_packet,
    identity,
)
from peers import send_fin, small_receiver

from collab.testing import Closed, FakeBackend, LocalService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from invariants import SentEvent

_CLOSE_FRAME = b"\x88\x82\0\0\0\0\x03\xe8"
_BODY_BYTES = 60_000
_POLLS_BEFORE_UPGRADE = 3
_GONE = Closed(1006)


class Backend(Protocol):
    """One connection. What is received has the shape of the plain dialect's messages."""

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, *, reads_little: bool) -> Backend: ...

    async def send_events(self, events: Sequence[tuple[SentEvent, str]]) -> None: ...

    async def ping(self) -> None: ...

    async def receive(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...

    async def fin(self) -> None: ...

    async def drop(self) -> None: ...


async def _fake_backend(local: LocalService, target: str, *, reads_little: bool) -> FakeBackend:
    """A WebSocket; the kernel takes little for one that reads little."""
    if not reads_little:
        return await local.open(target)
    backend = FakeBackend(await small_receiver(local), far_end=None, timeout_seconds=20)
    await backend.open("localhost", target)
    return backend


@attrs.define(eq=False)
class PlainBackend:
    """One that speaks the plain dialect."""

    backend: FakeBackend

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, *, reads_little: bool) -> PlainBackend:
        target = f"/?user_id={user_id}&backend_url=http://x&presence=none"
        backend = await _fake_backend(local, target, reads_little=reads_little)
        await backend.receive("connected")
        return cls(backend)

    async def send_events(self, events: Sequence[tuple[SentEvent, str]]) -> None:
        for event, data in events:
            await self.backend.send_event("t", event.to_users, data, id=event.number)

    async def ping(self) -> None:
        await self.backend.send("ping")

    async def receive(self) -> dict[str, Any]:
        return await self.backend.receive()

    async def close(self) -> None:
        await self.backend.stream.send_all(_CLOSE_FRAME)

    async def fin(self) -> None:
        await send_fin(self.backend.stream)

    async def drop(self) -> None:
        await trio.aclose_forcefully(self.backend.stream)


@attrs.define
class _Replies:
    """Makes messages of packets: a reply comes as an event and, right behind it, to its callback."""

    _ack: object = None

    def message(self, packet: str) -> dict[str, Any] | None:
        if packet.startswith("43"):
            reply_id, _, data = packet[2:].partition("[")
            (ack,) = json.loads("[" + data)
            assert self._ack == ack, "the callback hears something else than the handlers"
            self._ack = None
            return {"event": "event_ack", "id": int(reply_id), "data": ack}
        assert self._ack is None, "the callback of an event was not called back"
        name, data = event_of(packet)
        if name == "event_ack":
            self._ack = data
            return None
        return {"event": name, "data": data}


@attrs.define(eq=False)
class SocketBackend:
    """One that speaks Socket.IO over a WebSocket from its beginning."""

    socket: SocketClient
    _replies: _Replies = attrs.field(factory=_Replies)

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, *, reads_little: bool) -> SocketBackend:
        socket = SocketClient(await _fake_backend(local, WEBSOCKET, reads_little=reads_little))
        assert (await socket.next()).startswith("0{")
        await socket.say(connect_packet(identity(user_id)))
        assert (await socket.next()).startswith('40{"sid"')
        assert event_of(await socket.next())[0] == "connected"
        return cls(socket)

    async def send_events(self, events: Sequence[tuple[SentEvent, str]]) -> None:
        await self.socket.say(*_packets_of(events))

    async def ping(self) -> None:
        await self.socket.say(event_packet("ping"))

    async def receive(self) -> dict[str, Any]:
        while (message := self._replies.message(await self.socket.next())) is None:
            pass
        return message

    async def close(self) -> None:
        await self.socket.say("41")

    async def fin(self) -> None:
        await send_fin(self.socket.backend.stream)

    async def drop(self) -> None:
        await trio.aclose_forcefully(self.socket.backend.stream)


@attrs.define(eq=False)
class PollingBackend:
    """One that speaks Socket.IO by polling. It has one GET and one POST under way at most, as it must."""

    client: PollingClient
    _replies: _Replies = attrs.field(factory=_Replies)
    _posting: trio.Lock = attrs.field(factory=trio.Lock)
    _heard: list[str] = attrs.field(factory=list)

    @classmethod
    async def connect(cls, local: LocalService, user_id: str, *, reads_little: bool) -> PollingBackend:
        return cls(await PollingClient.connect(local, user_id))

    async def send_events(self, events: Sequence[tuple[SentEvent, str]]) -> None:
        body: list[str] = []
        for packet in _packets_of(events):
            if sum(map(len, body)) + len(body) + len(packet) > _BODY_BYTES:
                await self._say(*body)
                body = []
            body.append(packet)
        await self._say(*body)

    async def ping(self) -> None:
        await self._say(event_packet("ping"))

    async def receive(self) -> dict[str, Any]:
        while True:
            packet = await self._next()
            if packet == "2":
                await self._say("3")
            elif packet in ("1", "41"):
                raise _GONE
            elif packet != "6" and (message := self._replies.message(packet)) is not None:
                return message

    async def close(self) -> None:
        await self._say("41")

    async def fin(self) -> None:
        await self._say("1")

    async def drop(self) -> None:
        """No request comes any more: whoever has one under way gives it up."""

    async def _next(self) -> str:
        if not self._heard:
            self._heard = [*self.client.heard, *await self._poll()]
            self.client.heard = []
        return self._heard.pop(0)

    async def _poll(self) -> list[str]:
        return (await self._request("GET")).decode().split("\x1e")

    async def _say(self, *packets: str) -> None:
        async with self._posting:
            assert await self._request("POST", "\x1e".join(packets).encode()) == b"ok"

    async def _request(self, method: str, body: bytes | None = None) -> bytes:
        try:
            answer = await self.client.request(method, self.client.target, body)
        except h11.RemoteProtocolError:
            raise _GONE from None
        if answer.status == 400 and answer.json["code"] == 1:
            raise _GONE
        assert answer.status == 200, answer
        return answer.body


@attrs.define(eq=False)
class UpgradingBackend(PollingBackend):
    """One that begins with polling, and changes to a WebSocket after some polls."""

    _polls: int = 0
    _socket: SocketClient | None = None

    async def fin(self) -> None:
        await (self._say("1") if self._socket is None else send_fin(self._socket.backend.stream))

    async def drop(self) -> None:
        if self._socket is not None:
            await trio.aclose_forcefully(self._socket.backend.stream)

    async def _poll(self) -> list[str]:
        if self._socket is not None:
            return [await self._socket.backend.receive_text()]
        self._polls += 1
        if self._polls < _POLLS_BEFORE_UPGRADE:
            return await super()._poll()
        packets: list[str] = []

        async def last_poll() -> None:
            packets.extend(await PollingBackend._poll(self))

        # No POST may be on its way when the transport changes, and a poll hangs until the probe.
        async with self._posting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(last_poll)
                socket = await begin_upgrade(self.client)
            await socket.say("5")
            self._socket = socket
        return packets

    async def _say(self, *packets: str) -> None:
        async with self._posting:
            if self._socket is not None:
                await self._socket.say(*packets)
                return
        await super()._say(*packets)


ALL: list[type[Backend]] = [PlainBackend, SocketBackend, PollingBackend, UpgradingBackend]


def _packets_of(events: Sequence[tuple[SentEvent, str]]) -> list[str]:
    return [collab_packet(event.to_users, data, reply_id=event.number) for event, data in events]
