"""Owns one connection of the load generator: a non-blocking socket from connect to close."""

from __future__ import annotations

import errno
import re
import selectors
import socket
import struct
from base64 import b64encode
from collections.abc import Callable
from os import urandom
from typing import TYPE_CHECKING, Protocol

from collab.bench.encrypted import encrypted
from collab.bench.frames import CLOSE, PING, PONG, TEXT, client_frame
from collab.errors import CollabError

if TYPE_CHECKING:
    import ssl

    from collab.bench.dialects import Dialect

Buffer = bytes | bytearray
Take = Callable[[Buffer, int, int], object]
"""Called with a buffer, which is reused afterwards, the end of its last whole frame, and their number."""

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CONNECTED = re.compile(rb'"connected"')
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CONNECT_SECONDS = 10.0
_MAX_HEAD_BYTES = 64 * 1024
_NO_CODE = 1005


class Unreachable(CollabError):
    """The service cannot be reached, or does not let the load generator in."""


class Owner(Protocol):
    """What a connection tells whoever opened it."""

    def connected(self, connection: Connection) -> None:
        """The service said `connected`."""
        ...

    def ended(self, connection: Connection, reason: str) -> None:
        """The other side ended it, or it could not be opened."""
        ...


class Connection:
    """One user's connection. Owns the socket; `drop` or `close` ends it."""

    __slots__ = (
        "_close_reason",
        "_dialect",
        "_is_upgraded",
        "_owner",
        "_rest",
        "_scratch",
        "_selector",
        "_socket",
        "_take",
        "_unsent",
        "_watched",
        "is_connected",
        "user_id",
    )

    def __init__(
        self,
        user_id: str,
        *,
        address: tuple[socket.AddressFamily, tuple[str, int]],
        host: str,
        target: str,
        dialect: Dialect,
        take: Take,
        owner: Owner,
        selector: selectors.BaseSelector,
        scratch: bytearray,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.user_id = user_id
        self.is_connected = False
        self._dialect = dialect
        self._take = take
        self._owner = owner
        self._selector = selector
        self._scratch = scratch
        self._is_upgraded = False
        self._rest = b""
        self._close_reason = ""
        self._unsent = _upgrade(host, target)
        family, ends = address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watched = _READ | _WRITE
        if tls is None:
            error = self._socket.connect_ex(ends)
        else:
            # The standard library wraps no socket that is still connecting.
            self._socket.settimeout(_CONNECT_SECONDS)
            error = self._socket.connect_ex(ends)
            if not error:
                self._socket = encrypted(self._socket, tls, host.rpartition(":")[0])
            self._socket.setblocking(False)
        selector.register(self._socket, self._watched, self.ready)
        if error not in (0, errno.EINPROGRESS):
            self._end(errno.errorcode.get(error, str(error)))

    @property
    def unsent_bytes(self) -> int:
        """What the socket did not take yet."""
        return len(self._unsent)

    def ready(self, events: int) -> None:
        """The socket is ready for these events of the selector."""
        if events & _WRITE:
            self._flush()
        if events & _READ and self._watched:
            self._read()

    def send(self, frames: bytes) -> None:
        """Send; what the socket does not take now goes out as soon as it does."""
        if not self._watched:
            return
        if self._unsent:
            self._unsent += frames
            return
        try:
            sent = self._socket.send(frames)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(_name(error))
            return
        if sent < len(frames):
            self._unsent = frames[sent:]
            self._watch(_READ | _WRITE)

    def close(self) -> None:
        """Close in good order, without waiting for the answer."""
        if self._watched and self.is_connected:
            self.send(client_frame(b"\x03\xe8", CLOSE))
        self._release()

    def drop(self) -> None:
        """Vanish without a word: a reset."""
        if self._watched:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._release()

    def _release(self) -> None:
        if self._watched:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._watched = 0

    def _end(self, reason: str) -> None:
        if self._watched:
            self._release()
            self._owner.ended(self, reason)

    def _watch(self, events: int) -> None:
        if self._watched and events != self._watched:
            self._watched = events
            self._selector.modify(self._socket, events, self.ready)

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            return
        except OSError as error:
            self._end(_name(error))
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._watch(_READ)

    def _read(self) -> None:
        buffer: Buffer = self._scratch
        try:
            end = self._socket.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(_name(error))
            return
        if not end:
            self._end("closed without a close frame")
            return
        if self._rest:
            buffer = self._rest + self._scratch[:end]
            end = len(buffer)
        start = 0 if self._is_upgraded else self._read_head(buffer, end)
        if self._is_upgraded and self._watched:
            if start:
                buffer, end = bytes(buffer[start:end]), end - start
            self._read_frames(buffer, end)

    def _read_head(self, buffer: Buffer, end: int) -> int:
        """Where the frames begin, once the answer to the upgrade is there."""
        head_end = buffer.find(b"\r\n\r\n", 0, end)
        if head_end < 0 and end < _MAX_HEAD_BYTES:
            self._rest = bytes(buffer[:end])
            return 0
        head = bytes(buffer[: max(head_end, 0)])
        if head.split(b" ")[1:2] != [b"101"]:
            status = head.split(b"\r\n")[0].decode("latin-1")
            body = bytes(buffer[head_end + 4 : end]).decode(errors="replace")
            self._end(f"{status} {body}".strip())
            return 0
        self._is_upgraded = True
        self._rest = b""
        return head_end + 4

    def _read_frames(self, buffer: Buffer, end: int) -> None:
        """Walk over the whole frames; an unfinished one at the end waits for the rest of it."""
        position = frames = 0
        is_connected = self.is_connected
        while end - position >= 2:
            size = buffer[position + 1]
            start = position + 2
            if size > 125:
                start += 2 if size == 126 else 8
                if size > 127:
                    self._end("sent a masked frame")
                    return
                if start > end:
                    break
                size = int.from_bytes(buffer[position + 2 : start], "big")
            if start + size > end:
                break
            if size < 2 or buffer[position] != TEXT or not is_connected:
                self._answer(buffer[position], bytes(buffer[start : start + size]))
            else:
                frames += 1
            position = start + size
        if not is_connected and _CONNECTED.search(buffer, 0, position):
            self.is_connected = True
            self._owner.connected(self)
            frames = 1  # and what came along with it
        if frames and self._watched:
            self._take(buffer, position, frames)
        self._rest = bytes(buffer[position:end])
        if self._close_reason:
            self._end(self._close_reason)

    def _answer(self, first: int, payload: bytes) -> None:
        if first == PING:
            self.send(client_frame(payload, PONG))
        elif first == CLOSE:
            code = int.from_bytes(payload[:2], "big") or _NO_CODE
            self._close_reason = f"{code} {payload[2:].decode(errors='replace')}".strip()
            self.send(client_frame(payload, CLOSE))
        elif first == TEXT and (answer := self._dialect.answer(payload)):
            self.send(client_frame(answer))


def _upgrade(host: str, target: str) -> bytes:
    key = b64encode(urandom(16)).decode()
    return (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


def _name(error: OSError) -> str:
    return error.strerror or errno.errorcode.get(error.errno or 0, "failed")
