"""Peers that say exactly the bytes that a test wants, over sockets or over memory streams."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import attrs
import h11
import trio

from collab.edge.peer import Ends

if TYPE_CHECKING:
    from collections.abc import Mapping

    from collab.testing import FakeBackend, LocalService

PATIENCE_SECONDS = 10.0

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0

UPGRADE: Mapping[str, str] = {
    "host": "localhost",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}
ADA = "/?user_id=ada&backend_url=http://localhost:8000"


@attrs.frozen
class Answer:
    """An HTTP response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, str]:
        """The status and the code of a refusal, whose body holds a sentence and the code alone."""
        body = self.json
        assert set(body) == {"error", "code"}
        assert isinstance(body["error"], str)
        assert body["error"]
        assert int(self.headers["content-length"]) == len(self.body)
        return self.status, body["code"]


def head(method: str, target: str, headers: Mapping[str, str | None] | None = None) -> bytes:
    """A request's head; a header with the value None is left out."""
    fields = {"host": "localhost", **(headers or {})}
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def read_answer(stream: trio.abc.Stream, method: str = "GET") -> Answer:
    """The next response on a connection; 1xx responses are passed over."""
    parser = h11.Connection(h11.CLIENT)
    asked = [("host", "x"), ("upgrade", "websocket"), ("connection", "upgrade")]
    parser.send(h11.Request(method=method, target="/", headers=asked))
    parser.send(h11.EndOfMessage())
    response: h11.Response | h11.InformationalResponse | None = None
    body = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                response = event
                break
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed | h11.PAUSED):
                break
    assert response is not None, "the connection ended without a response"
    headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
    return Answer(response.status_code, headers, body)


async def read_to_end(stream: trio.abc.Stream) -> bytes:
    """Everything until the far side closes; a reset counts as the end."""
    data = bytearray()
    with trio.fail_after(PATIENCE_SECONDS):
        try:
            while piece := await stream.receive_some(65536):
                data += piece
        except trio.BrokenResourceError:
            pass
    return bytes(data)


async def say(local: LocalService, data: bytes, method: str = "GET", *, address: str = "") -> Answer:
    """What the service answers to these bytes; in memory, also to those from another address."""
    stream, far_end = await local.open_stream()
    if address:
        assert far_end is not None
        far_end.socket = Ends((address, 50000), ("127.0.0.1", 9000))
    async with stream:
        await stream.send_all(data)
        return await read_answer(stream, method)


async def ask(
    local: LocalService,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str | None] | None = None,
    *,
    address: str = "",
) -> Answer:
    """One well-formed HTTP request and its answer."""
    fields = dict(headers or {})
    if body is not None:
        fields = {"content-length": str(len(body)), **fields}
    return await say(local, head(method, target, fields) + (body or b""), method, address=address)


async def upgrade(
    local: LocalService, target: str, headers: Mapping[str, str | None] | None = None
) -> Answer:
    """The answer to a WebSocket upgrade with some headers changed."""
    return await say(local, head("GET", target, {**UPGRADE, **(headers or {})}))


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, size: int | None = None, reserved: int = 0
) -> bytes:
    """A client's frame, masked; `size` is the length it claims where that is not the truth."""
    size = len(payload) if size is None else size
    mask = b"\x37\xfa\x21\x3d"
    first = (0x80 if fin else 0) | reserved | opcode
    if size < 126:
        lead = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        lead = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        lead = struct.pack("!BBQ", first, 0x80 | 127, size)
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
    return lead + mask + masked


def text(event: str, data: object = None, **members: object) -> bytes:
    """A whole message of a client as one frame."""
    message = {"event": event, **({} if data is None else {"data": data}), **members}
    return frame(TEXT, json.dumps(message).encode())


def event_text(to_users: list[str], data: object = None, **members: object) -> bytes:
    """A `collab_event` as one frame."""
    return text("collab_event", {"type": "comment_added", "to_users": to_users, "data": data}, **members)


async def small_receiver(local: LocalService) -> trio.abc.Stream:
    """A connection over TCP whose receive buffer is as small as it can be."""
    opened = trio.socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await opened.connect(local.service.addresses[0])
    return local.over_tls(trio.SocketStream(opened))


async def send_fin(stream: trio.abc.Stream) -> None:
    """Close the sending side of a connection over TCP; under TLS without close_notify."""
    plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(plain, trio.SocketStream)
    await plain.send_eof()


def reset(opened: socket.socket | trio.SocketStream | trio.SSLStream) -> None:
    """Close with RST instead of FIN."""
    if isinstance(opened, trio.SSLStream):
        opened = opened.transport_stream
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(opened, trio.SocketStream):
        opened.socket.close()
    else:
        opened.close()


async def until_end(backend: FakeBackend) -> tuple[list[dict[str, Any]], tuple[int, str]]:
    """Every message until the service ends the connection, and the close code with its reason."""
    from collab.testing import Closed

    messages = []
    while True:
        try:
            messages.append(await backend.receive())
        except Closed as closed:
            return messages, (closed.code, closed.reason)
