"""Owns what tests of a backend need: a service in this process, and backends that are played.

async with open_service() as service:
    ada = await service.connect("ada")
    bob = await service.connect("bob")
    await ada.send_event("comment_added", ["bob"], {"text": "Great setup!"})
    event = await bob.receive("collab_event")
"""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import msgspec
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.utilities import LocalProtocolError

from collab.edge.peer import Ends
from collab.errors import CollabError
from collab.server import Service, serve
from collab.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_ENDS_IN_MEMORY = Ends(("127.0.0.1", 50000), ("127.0.0.1", 9000))


class Rejected(CollabError):
    """The service answered the upgrade with an HTTP status instead of 101."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')}")
        self.status = status
        self.headers = dict(headers)
        self.body = body

    @property
    def code(self) -> str:
        """The machine word of the JSON body."""
        return str(msgspec.json.decode(self.body)["code"])


class Closed(CollabError):
    """The service ended the connection: with a close frame, or without one (`code` is 1006 then)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory, with the `socket` that a service expects of a stream.

    `hold` makes what is sent to it wait, as a full socket does; `release` lets it go on.
    """

    def __init__(self, inner: trio.StapledStream[Any, Any]) -> None:
        self.socket = _ENDS_IN_MEMORY
        self._inner = inner
        self._flowing = trio.Event()
        self._flowing.set()

    def hold(self) -> None:
        """Let nothing more be sent."""
        self._flowing = trio.Event()

    def release(self) -> None:
        """Let sends go on."""
        self._flowing.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self._flowing.wait()
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._flowing.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        return bytes(await self._inner.receive_some(max_bytes))

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._inner.aclose()


class FakeBackend:
    """A backend's WebSocket, played by a test. It reads only while `receive` runs.

    Built on wsproto, so that it shares no code with the service. Made by `LocalService.connect`.
    """

    def __init__(
        self, stream: trio.abc.Stream, *, far_end: MemoryStream | None, timeout_seconds: float
    ) -> None:
        self.stream = stream
        """The raw bytes: for what a well-behaved backend would not do."""
        self._far_end = far_end
        self._timeout_seconds = timeout_seconds
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[ws.Event] = []
        self._text = ""

    async def open(self, host: str, target: str, headers: Mapping[str, str] | None = None) -> None:
        """Do the opening handshake.

        Raises:
            Rejected: the service answered with another status than 101.
            Closed: it answered nothing.
        """
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await self._send(ws.Request(host=host, target=target, extra_headers=extra))
        event = await self._next_event()
        if isinstance(event, ws.RejectConnection):
            body = b""
            while isinstance(data := await self._next_event(), ws.RejectData):
                body += data.data
                if data.body_finished:
                    break
            await trio.aclose_forcefully(self.stream)
            answer = {name.decode().lower(): value.decode() for name, value in event.headers}
            raise Rejected(event.status_code, answer, body)
        if not isinstance(event, ws.AcceptConnection):
            raise Closed(1006)

    async def send(self, event: str, data: object = None, *, id: str | int | None = None) -> None:
        """Send one message."""
        message: dict[str, object] = {"event": event}
        if data is not None:
            message["data"] = data
        if id is not None:
            message["id"] = id
        await self.send_text(msgspec.json.encode(message).decode())

    async def send_event(
        self, type: str, to_users: list[str], data: object = None, *, id: str | int | None = None
    ) -> None:
        """Send a `collab_event`."""
        event = {"type": type, "to_users": to_users, "data": {} if data is None else data}
        await self.send("collab_event", event, id=id)

    async def send_text(self, text: str) -> None:
        """Send one text message as it is."""
        await self._send(ws.TextMessage(text))

    async def receive(self, event: str | None = None) -> dict[str, Any]:
        """The next message; where `event` is given, the next of that name, with the others dropped.

        Raises:
            Closed: the connection ended.
            trio.TooSlowError: nothing came in time.
        """
        while True:
            message: dict[str, Any] = msgspec.json.decode(await self.receive_text())
            if event is None or message["event"] == event:
                return message

    async def receive_text(self) -> str:
        """The next text message as it is. Raises what `receive` raises."""
        while True:
            event = await self._next_event()
            if isinstance(event, ws.TextMessage):
                self._text += event.data
                if event.message_finished:
                    text, self._text = self._text, ""
                    return text
            elif isinstance(event, ws.Ping):
                await self._send(event.response())
            elif isinstance(event, ws.CloseConnection):
                await self._answer_close(event)
                raise Closed(event.code, event.reason or "")

    async def wait_closed(self) -> Closed:
        """Read on until the service ends the connection, and give back how."""
        while True:
            try:
                await self.receive_text()
            except Closed as closed:
                return closed

    async def echoes(self) -> bool:
        """Whether a `ping` is still answered."""
        await self.send("ping", id="echoes")
        while True:
            message = await self.receive("pong")
            if message.get("id") == "echoes":
                return True

    async def close(self, code: int = 1000) -> None:
        """Close in good order."""
        await self._send(ws.CloseConnection(code))
        await self.wait_closed()

    async def drop(self) -> None:
        """Vanish without a word: a reset on a real socket."""
        plain = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        if isinstance(plain, trio.SocketStream):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(self.stream)

    def stall(self) -> None:
        """Take nothing more. On a real socket its buffers fill first; in memory it is at once."""
        if self._far_end is not None:
            self._far_end.hold()

    def resume(self) -> None:
        """Take everything again."""
        if self._far_end is not None:
            self._far_end.release()

    async def _answer_close(self, event: ws.CloseConnection) -> None:
        # Busy: the test is in the middle of a send, which this close ends.
        with suppress(
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, LocalProtocolError
        ):
            await self._send(event.response())
        await trio.aclose_forcefully(self.stream)

    async def _send(self, event: ws.Event) -> None:
        await self.stream.send_all(self._protocol.send(event))

    async def _next_event(self) -> ws.Event:
        with trio.fail_after(self._timeout_seconds):
            while not self._events:
                try:
                    data = bytes(await self.stream.receive_some(65536))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not data:
                    raise Closed(1006)
                self._protocol.receive_data(data)
                self._events += self._protocol.events()
            return self._events.pop(0)


@attrs.frozen
class LocalService:
    """A service in this process, and the way to connect to it."""

    service: Service
    _nursery: trio.Nursery
    _in_memory: bool
    _timeout_seconds: float
    ssl_context: ssl.SSLContext | None = None
    """How clients speak TLS to it; None: they do not."""
    _backends: list[FakeBackend] = attrs.field(factory=list)

    @property
    def ws_url(self) -> str:
        """The URL that backends connect to."""
        return self.service.ws_url

    @property
    def http_url(self) -> str:
        """The base URL of the HTTP API."""
        return self.service.http_url

    async def connect(
        self,
        user_id: str,
        *,
        backend_url: str = "http://localhost:8000",
        display_name: str = "",
        presence: str = "none",
        path: str = "/",
        token: str = "",
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> FakeBackend:
        """A connected backend that has read `connected`. Raises what `open` raises."""
        query = {"user_id": user_id, "backend_url": backend_url, "presence": presence}
        if display_name:
            query["display_name"] = display_name
        if token:
            query["token"] = token
        backend = await self.open(f"{path}?{urlencode(query)}", headers, ssl_context=ssl_context)
        await backend.receive("connected")
        return backend

    async def open(
        self,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> FakeBackend:
        """A backend after the opening handshake with this request target; nothing is read yet.

        `ssl_context` is for this backend alone, in place of the service's.

        Raises:
            Rejected: the service answered with another status than 101.
            Closed: it answered nothing.
            trio.BrokenResourceError: the two could not agree on TLS.
        """
        stream, far_end = await self.open_stream(ssl_context=ssl_context)
        backend = FakeBackend(stream, far_end=far_end, timeout_seconds=self._timeout_seconds)
        self._backends.append(backend)
        await backend.open("localhost", target, headers)
        return backend

    async def open_stream(
        self, *, ssl_context: ssl.SSLContext | None = None
    ) -> tuple[trio.abc.Stream, MemoryStream | None]:
        """A raw connection to the port; in memory, with the service's end of it."""
        near: trio.abc.Stream
        far_end = None
        if self._in_memory:
            near, far = trio.testing.memory_stream_pair()
            far_end = MemoryStream(far)
            self._nursery.start_soon(self.service.serve_stream, far_end)
        else:
            host, port = self.service.addresses[0]
            near = await trio.open_tcp_stream(host, port)
        return self.over_tls(near, ssl_context), far_end

    def over_tls(self, stream: trio.abc.Stream, ssl_context: ssl.SSLContext | None = None) -> trio.abc.Stream:
        """The stream as a client uses it: wrapped, where there is TLS."""
        context = ssl_context or self.ssl_context
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)

    def online(self) -> set[str]:
        """The ids of the users who are online."""
        return {user.user_id for user in self.service.registry.online_users()}


@asynccontextmanager
async def open_service(
    settings: Settings | None = None,
    *,
    in_memory: bool = False,
    pumped: bool = True,
    timeout_seconds: float = 5.0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[LocalService]:
    """A running service: on a free loopback port, or over memory streams alone (for mock clocks).

    Without `pumped` every connection reads for itself, as in memory.
    `timeout_seconds` is how long a backend's `receive` waits at most. Where the settings turn TLS on,
    `ssl_context` is how backends speak it; the certificate must be for `localhost`. Everything is
    cancelled at the end of the block.
    """
    settings = settings or Settings()
    if not in_memory:
        server = attrs.evolve(settings.server, host="127.0.0.1", port=0)
        settings = attrs.evolve(settings, server=server)
    async with trio.open_nursery() as nursery:
        if in_memory:
            unlistening = Service(settings, [], pumped=pumped)
            service = await nursery.start(unlistening.run, [])
        else:
            service = await nursery.start(partial(serve, settings, pumped=pumped))
        local = LocalService(service, nursery, in_memory, timeout_seconds, ssl_context)
        try:
            yield local
        finally:
            for backend in local._backends:
                await trio.aclose_forcefully(backend.stream)
            nursery.cancel_scope.cancel()
