"""Owns one socket of the crowd: a WebSocket client, or one HTTP request, without waiting anywhere."""

from __future__ import annotations

import select
import socket
import struct
from base64 import b64encode
from os import urandom
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

import msgspec

from collab.bench.frames import CLOSE, PING, PONG, TEXT, client_frame

if TYPE_CHECKING:
    from collections.abc import Callable

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_READ_BYTES = 65536
_MAX_HEAD_BYTES = 65536
_TEXT_BEGUN: Final = 0x01
_TEXT_ENDED: Final = 0x80
_decode = msgspec.json.Decoder().decode


class Owner(Protocol):
    """Whom a client tells what happens to it."""

    def opened(self, client: Client) -> None:
        """The service said `connected`."""
        ...

    def took(self, client: Client, message: dict[str, Any]) -> None:
        """A message came."""
        ...

    def ended(self, client: Client, reason: str) -> None:
        """The service ended the connection: its close code, or words where it sent none."""
        ...


class Sockets:
    """The sockets of one loop, by descriptor. Each says itself what it waits for."""

    def __init__(self) -> None:
        # Before any other socket: select() takes no descriptor above 1,023.
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}

    def add(self, opened: socket.socket, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready` with what is the matter, whenever one of these events is."""
        self._ready[opened.fileno()] = ready
        self._epoll.register(opened.fileno(), events)

    def change(self, opened: socket.socket, events: int) -> None:
        """Wait for these from now on."""
        self._epoll.modify(opened.fileno(), events)

    def close(self, opened: socket.socket) -> None:
        """Wait for nothing of it any more, and close it."""
        self._epoll.unregister(opened.fileno())
        del self._ready[opened.fileno()]
        opened.close()

    def turn(self, timeout_seconds: float) -> None:
        """Wait at most so long for something to happen, and handle what did."""
        if timeout_seconds > 0:
            # epoll rounds up to milliseconds, which would be seen in an open loop's latency.
            select.select([self._epoll.fileno()], [], [], timeout_seconds)
        for descriptor, events in self._epoll.poll(0):
            # It may have been closed by one that came before it.
            if ready := self._ready.get(descriptor):
                ready(events)


class Client:
    """One connection of a user. Owns its socket until it has `gone`."""

    __slots__ = (
        "_close_reason",
        "_is_upgraded",
        "_owner",
        "_rest",
        "_socket",
        "_sockets",
        "_unsent",
        "acked",
        "deadline",
        "gone",
        "is_open",
        "last",
        "leaving",
        "lies",
        "number",
        "sent",
        "stays",
        "user_id",
    )

    def __init__(
        self,
        number: int,
        user_id: str,
        port: int,
        *,
        owner: Owner,
        sockets: Sockets,
        stays: bool,
        wants_presence: bool,
        buffer_bytes: int = 0,
    ) -> None:
        self.number = number
        self.user_id = user_id
        self.stays = stays
        self.is_open = False
        """Whether the service has greeted it, and it is not on its way out."""
        self.leaving = ""
        """How it leaves, once it does."""
        self.deadline = 0.0
        """When it must have gone, once it leaves."""
        self.gone = False
        self.sent = 0
        self.acked = 0
        self.lies = 0
        self.last: dict[int, int] = {}
        """The last event of each sender that came here."""
        self._owner = owner
        self._sockets = sockets
        self._is_upgraded = False
        self._rest = b""
        self._close_reason = ""
        self._unsent = _upgrade(user_id, port, wants_presence=wants_presence)
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._socket.connect_ex(("127.0.0.1", port))
        sockets.add(self._socket, select.EPOLLIN | select.EPOLLOUT, self._ready)

    def send(self, frames: bytes) -> None:
        """Send; what the socket does not take now goes out as soon as it does."""
        if self.gone or self.leaving:
            return
        if self._unsent:
            self._unsent += frames
            return
        try:
            sent = self._socket.send(frames)
        except BlockingIOError:
            sent = 0
        except OSError:
            # What the service had to say about its end may still be read.
            return
        if sent < len(frames):
            self._unsent = frames[sent:]
            self._sockets.change(self._socket, select.EPOLLIN | select.EPOLLOUT)

    def close(self) -> None:
        """Begin to close in good order."""
        self.send(client_frame(b"\x03\xe8", CLOSE))
        self._leave("close")

    def half_close(self) -> None:
        """End our side without a word, and read on."""
        self._leave("half-close")
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error.strerror or "lost")

    def reset(self) -> None:
        """Vanish without a word; also in the middle of the handshake."""
        self._leave("reset")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._release()

    def stall(self) -> None:
        """Read nothing more, until the service has enough of it."""
        self._leave("stall")
        self.pause()

    def pause(self) -> None:
        """Read nothing for a while."""
        if not self.gone:
            self._sockets.change(self._socket, 0)

    def resume(self) -> None:
        """Read again."""
        if not self.gone:
            self._sockets.change(self._socket, select.EPOLLIN)

    def drop(self) -> None:
        """Close the socket, whatever is under way."""
        if not self.gone:
            self._release()

    def _leave(self, how: str) -> None:
        self.leaving = how
        self.is_open = False

    def _release(self) -> None:
        self.gone = True
        self.is_open = False
        self._sockets.close(self._socket)

    def _end(self, reason: str) -> None:
        if not self.gone:
            self._release()
            self._owner.ended(self, reason)

    def _ready(self, events: int) -> None:
        if self.leaving == "stall" and not events & select.EPOLLIN:
            # The socket is dead, and epoll says so although nobody asked.
            self._end("lost while it stalled")
            return
        if events & select.EPOLLOUT and self._unsent:
            self._flush()
        if events & ~select.EPOLLOUT and not self.gone:
            self._read()

    def _flush(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""
        if not self._unsent:
            self._sockets.change(self._socket, select.EPOLLIN)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error.strerror or "lost")
            return
        if not data:
            self._end(self._close_reason or "no close frame")
            return
        data = self._rest + data
        if not self._is_upgraded:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found and len(data) < _MAX_HEAD_BYTES:
                self._rest = data
                return
            if head.split(b" ")[1:2] != [b"101"]:
                self._end(f"not let in: {head[:100]!r}")
                return
            self._is_upgraded = True
            data = rest
        self._rest = b""
        self._rest = data[self._take_frames(data) :]

    def _take_frames(self, data: bytes) -> int:
        """Handle the whole frames (RFC 6455 section 5.2); where the unfinished one begins."""
        position, end = 0, len(data)
        while end - position >= 2 and not self.gone:
            size, start = data[position + 1], position + 2
            if size > 125:
                start += 2 if size == 126 else 8
                if start > end:
                    break
                size = int.from_bytes(data[position + 2 : start], "big")
            if start + size > end:
                break
            self._take_frame(data[position], data[start : start + size])
            position = start + size
        return position

    def _take_frame(self, first: int, payload: bytes) -> None:
        if first == TEXT:
            message = _decode(payload)
            if message["event"] == "connected":
                self.is_open = True
                self._owner.opened(self)
            else:
                self._owner.took(self, message)
        elif first == PING:
            self.send(client_frame(payload, PONG))
        elif first == CLOSE:
            self._close_reason = str(int.from_bytes(payload[:2], "big"))
            if not self.leaving:
                self.send(client_frame(payload, CLOSE))
                self._leave("sent away")
        elif first != PONG:
            self._end(f"a frame of another kind: {first:#x}")


def text_frames(payload: bytes, *, is_split: bool) -> bytes:
    """A text message in one frame, or in two fragments."""
    if not is_split:
        return client_frame(payload)
    middle = len(payload) // 2
    return client_frame(payload[:middle], _TEXT_BEGUN) + client_frame(payload[middle:], _TEXT_ENDED)


class Request:
    """One HTTP request and its answer. Owns its socket."""

    def __init__(
        self,
        port: int,
        method: str,
        target: str,
        body: bytes,
        done: Callable[[int, bytes], None],
        sockets: Sockets,
    ) -> None:
        self._done = done
        self._sockets = sockets
        self._answer = b""
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._unsent = head.encode() + body
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.connect_ex(("127.0.0.1", port))
        sockets.add(self._socket, select.EPOLLOUT, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent:
                    self._sockets.change(self._socket, select.EPOLLIN)
                return
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, self._answer = b"", b""
        self._answer += data
        if not data:
            self._sockets.close(self._socket)
            head, _, body = self._answer.partition(b"\r\n\r\n")
            status = head[9:12]
            self._done(int(status) if status.isdigit() else 0, body)


def _upgrade(user_id: str, port: int, *, wants_presence: bool) -> bytes:
    query = {"user_id": user_id, "backend_url": "http://localhost:8000", "display_name": "Soak"}
    if not wants_presence:
        query["presence"] = "none"
    key = b64encode(urandom(16)).decode()
    return (
        f"GET /?{urlencode(query)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
