"""Owns one WebSocket on httpx-ws, with what its sessions lack.

httpx-ws 0.9 reads in a task of its own that hands over one message at a time, ends with a KeyError at
a pong that nobody asked for, joins the fragments of a message without a bound, and waits for its close
frame to be written for ever; its upgrade does not look at `Sec-WebSocket-Accept`, and the body of a
refusal is gone when one could read it. So a `Session` reads in its caller's task, whole reads at a
time, and every end has a deadline.

It stands apart because httpcore, below httpx-ws, imports Trio wherever that is installed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import httpcore
import httpx
from httpx_ws import AsyncWebSocketSession
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from collab.client.redial import NO_CLOSE_FRAME, Declined, Ended
from collab.wire.as_client import decode_online, decode_refusal
from collab.wire.close import CloseCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from collab.wire.as_client import OnlineRow

_READ_BYTES = 65536
_REFUSAL_BYTES = 65536
_ONLINE_BYTES = 64 * 1024 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Session(AsyncWebSocketSession):
    """A WebSocket after its handshake. One task reads, one writes. Made by `open_session`."""

    def __init__(
        self, response: httpx.Response, *, longest_message: int, write_seconds: float, close_seconds: float
    ) -> None:
        super().__init__(response.extensions["network_stream"], response=response)
        self._longest_message = longest_message
        self._write_seconds = write_seconds
        self._close_seconds = close_seconds
        self._parts: list[str] = []
        self._characters = 0
        self._pong: ws.Pong | None = None
        self._end: Ended | None = None
        self._half_written = False
        self._writing: anyio.CancelScope | None = None

    async def receive_texts(self) -> list[str]:
        """The messages that one read completes; there may be none.

        Raises:
            Ended: by the peer, the network, or a breach of the protocol.
        """
        self._raise_end([])
        try:
            data = await self.stream.read(_READ_BYTES)
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
            raise self._ends(NO_CLOSE_FRAME, f"the connection broke: {type(error).__name__}") from error
        if not data:
            raise self._ends(NO_CLOSE_FRAME, "the service went away")
        texts: list[str] = []
        try:
            self.connection.receive_data(data)
            for event in self.connection.events():
                self._take(event, texts)
        except RemoteProtocolError as error:
            self._ends(CloseCode.PROTOCOL_ERROR, f"the service broke the protocol: {error}")
        self._raise_end(texts)
        return texts

    def _raise_end(self, texts: list[str]) -> None:
        # What came before the end comes first.
        if self._end is not None and not texts:
            raise self._end

    def _take(self, event: ws.Event, texts: list[str]) -> None:
        if isinstance(event, ws.TextMessage):
            self._parts.append(event.data)
            self._characters += len(event.data)
            if self._characters > self._longest_message:
                self._ends(CloseCode.TOO_BIG, "the service sent a message that is too large")
                self._parts.clear()
            elif event.message_finished:
                texts.append("".join(self._parts))
                self._parts.clear()
                self._characters = 0
        elif isinstance(event, ws.Ping):
            # The last one is enough (RFC 6455 section 5.5.3).
            self._pong = event.response()
        elif isinstance(event, ws.CloseConnection):
            self._ends(int(event.code), event.reason or "the service closed the connection")
        elif isinstance(event, ws.BytesMessage):
            self._ends(CloseCode.BINARY_MESSAGE, "the service sent a binary message")

    @property
    def owes_a_pong(self) -> bool:
        """Whether a ping waits for its answer."""
        return self._pong is not None

    def frames_of(self, texts: Iterable[str]) -> bytes:
        """These messages, behind the pong that is owed, as bytes to write. Nothing once the end has begun."""
        out: list[bytes] = []
        try:
            if self._pong is not None:
                out.append(self.connection.send(self._pong))
                self._pong = None
            out += [self.connection.send(ws.TextMessage(data=text)) for text in texts]
        except LocalProtocolError:
            self._pong = None
        return b"".join(out)

    def ping_frame(self) -> bytes:
        """A ping. Any byte that comes is its answer."""
        try:
            return self.connection.send(ws.Ping(b"collab"))
        except LocalProtocolError:
            return b""

    async def write(self, data: bytes, seconds: float | None = None) -> None:
        """Write these bytes whole, cancelled or not: half a frame would be the end of the connection.

        Raises:
            Ended: they could not be written in time, or at all.
        """
        deadline = anyio.current_time() + (self._write_seconds if seconds is None else seconds)
        with anyio.CancelScope(shield=True, deadline=deadline) as self._writing:
            self._half_written = True
            try:
                await self.stream.write(data)
            except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
                raise self._ends(NO_CLOSE_FRAME, f"the connection broke: {type(error).__name__}") from error
            self._half_written = False
        self._writing = None
        if self._half_written:
            raise self._ends(NO_CLOSE_FRAME, "the service takes nothing")

    def hurry(self) -> None:
        """Give a write that is under way no longer than the end of a connection may take."""
        if self._writing is not None:
            soon = anyio.current_time() + self._close_seconds
            self._writing.deadline = min(self._writing.deadline, soon)

    async def finish(self) -> None:
        """Close in good order, with 1000 or by the answer to the service's close frame; then the socket.

        Shielded, and within three times the limit for closing.
        """
        with anyio.move_on_after(self._close_seconds, shield=True):
            with suppress(Ended):
                await self._say_goodbye()
        with anyio.move_on_after(self._close_seconds, shield=True):
            await self.stream.aclose()

    async def _say_goodbye(self) -> None:
        state = self.connection.state
        if self._half_written or (self._end is not None and self._end.code == NO_CLOSE_FRAME):
            return
        if state is ConnectionState.REMOTE_CLOSING and self._end is not None:
            code = 1000 if self._end.code == 1005 else self._end.code
            await self.write(self.connection.send(ws.CloseConnection(code)), self._close_seconds)
        elif state is ConnectionState.OPEN:
            code = 1000 if self._end is None else self._end.code
            await self.write(self.connection.send(ws.CloseConnection(code)), self._close_seconds)
            self._end = None
            while True:
                await self.receive_texts()

    def _ends(self, code: int, reason: str) -> Ended:
        if self._end is None:
            self._end = Ended(code, reason)
        return self._end


@asynccontextmanager
async def open_session(
    client: httpx.AsyncClient,
    url: str,
    token: str,
    *,
    longest_message: int,
    write_seconds: float,
    close_seconds: float,
) -> AsyncIterator[Session]:
    """A session with the service at this URL. It is closed at the end of the block, whatever happens.

    Raises:
        Declined: the service said no, or is none.
        httpx.TransportError: it cannot be reached.
    """
    key = base64.b64encode(secrets.token_bytes(16))
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": key.decode(),
        "sec-websocket-version": "13",
    }
    async with client.stream("GET", url, headers={**upgrade, **_bearer(token)}) as response:
        if response.status_code != 101:
            raise await _declined(response)
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if response.headers.get("sec-websocket-accept") != accept:
            raise Declined(101, "the answer to the upgrade is not that of a WebSocket server", "", None)
        session = Session(
            response,
            longest_message=longest_message,
            write_seconds=write_seconds,
            close_seconds=close_seconds,
        )
        try:
            yield session
        finally:
            await session.finish()


def open_client(ssl_context: ssl.SSLContext | None, *, encrypted: bool, seconds: float) -> httpx.AsyncClient:
    """What requests are made with. It takes no proxy from the environment: httpx has none for `ws://`."""
    context: ssl.SSLContext | bool = False
    if encrypted:
        context = ssl_context or ssl.create_default_context()
    return httpx.AsyncClient(verify=context, trust_env=False, timeout=seconds)


async def fetch_online(client: httpx.AsyncClient, url: str, token: str) -> list[OnlineRow]:
    """Who is online.

    Raises:
        Declined: the service said no.
        httpx.HTTPError: it cannot be reached.
        Unreadable: the answer is none of its.
    """
    async with client.stream("GET", url, headers=_bearer(token)) as response:
        if response.status_code != 200:
            raise await _declined(response)
        return decode_online(await _body(response, _ONLINE_BYTES))


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


async def _declined(response: httpx.Response) -> Declined:
    sentence, word = decode_refusal(await _body(response, _REFUSAL_BYTES))
    reason = f"{response.status_code}: {sentence or response.reason_phrase}"
    seconds = response.headers.get("retry-after", "")
    retry_after = float(seconds) if seconds.isascii() and seconds.isdigit() else None
    return Declined(response.status_code, reason, word, retry_after)


async def _body(response: httpx.Response, most: int) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most:
            raise Declined(response.status_code, "the answer is too large", "", None)
    return bytes(body)
