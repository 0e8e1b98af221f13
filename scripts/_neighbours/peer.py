"""Owns a client of a few lines that costs little: a blocking socket, frames ready to send."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10
_SECONDS = 10.0
_LINE_END = "\r\n"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame (RFC 6455 section 5.2), masked with zeros, which leave the payload as it is."""
    first, size = (0x80 if fin else 0) | opcode, len(payload)
    if size < 126:
        lead = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        lead = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        lead = struct.pack("!BBQ", first, 0x80 | 127, size)
    return lead + bytes(4) + payload


def fragments(payload: bytes, size: int) -> bytes:
    """A whole text message in fragments of so many bytes."""
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    last = len(pieces) - 1
    return b"".join(
        frame(CONTINUATION if number else TEXT, piece, fin=number == last)
        for number, piece in enumerate(pieces)
    )


def head(user_id: str, presence: str = "none", token: str = "") -> bytes:
    """The upgrade request of a user, who may have a token."""
    target = f"/?user_id={user_id}&backend_url=http://localhost&presence={presence}"
    return (
        f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"{f'Authorization: Bearer {token}{_LINE_END}' if token else ''}\r\n"
    ).encode()


class Gone(Exception):
    """The service ended the connection. The text says how."""


class Peer:
    """One connected client. Owns its socket."""

    def __init__(
        self,
        port: int,
        user_id: str,
        *,
        presence: str = "none",
        receive_bytes: int = 0,
        segment_bytes: int = 0,
        token: str = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.user_id = user_id
        self.socket = socket.socket()
        self.socket.settimeout(_SECONDS)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if segment_bytes:
            # Over loopback, whose segments have 64 KiB, the kernel keeps 2.5 MB for one who does not read.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.socket.sendall(head(user_id, presence, token))
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            if not (data := self.socket.recv(4096)):
                raise Gone("nothing was answered")
            self._buffer += data
        answer, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101"):
            raise Gone(answer.partition(b"\r\n")[0].decode())
        self.close_code: int | None = None
        # Only with the first message, `connected`, is it in the registry.
        while not (self._buffer and self._take()):
            if not (data := self.socket.recv(4096)):
                raise Gone("it was closed before it began")
            self._buffer += data

    def receive(self) -> list[tuple[int, bytes]]:
        """What the next read brings: opcodes and payloads. Pings are answered.

        Raises:
            Gone: there will be no more.
            TimeoutError, BlockingIOError: the socket has nothing.
        """
        try:
            data = self.socket.recv(1 << 18)
        except (ConnectionResetError, BrokenPipeError):
            raise Gone("reset") from None
        if not data:
            raise Gone("closed")
        self._buffer += data
        found = []
        while taken := self._take():
            found.append(taken)
            opcode, payload = taken
            if opcode == PING:
                self.socket.sendall(frame(PONG, payload))
            elif opcode == CLOSE and self.close_code is None:
                self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
        return found

    def read_to_end(self) -> tuple[list[bytes], int]:
        """Every text until the service ends the connection, and its close code: 1006 where it sent none."""
        texts: list[bytes] = []
        try:
            while self.close_code is None:
                texts += [payload for opcode, payload in self.receive() if opcode == TEXT]
        except (Gone, TimeoutError):
            pass
        self.socket.close()
        return texts, self.close_code or 1006

    def _take(self) -> tuple[int, bytes] | None:
        """The next frame of the service (RFC 6455 section 5.2), if it is whole; it is not masked."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return None
        self._buffer = buffer[start + size :]
        return buffer[0] & 0x0F, buffer[start : start + size]
