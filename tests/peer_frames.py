"""Owns the bytes of a WebSocket client, right and wrong, made without any code of the service."""

from __future__ import annotations

import struct

MASK = b"\x37\xfa\x21\x3d"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length_bytes: int | None = None,
) -> bytes:
    """One frame; `length_bytes` (0, 2 or 8) forces a form of the length, `mask` None leaves it unmasked."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    small = {0: size, 2: 126, 8: 127}[length_bytes]
    extended = {0: b"", 2: struct.pack("!H", size & 0xFFFF), 8: struct.pack("!Q", size)}[length_bytes]
    head = bytes([fin << 7 | reserved << 4 | opcode, (mask is not None) << 7 | small]) + extended
    if mask is None:
        return head + payload
    return head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    """RFC 6455 section 5.3, word for word."""
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def text(content: str | bytes, **rest: object) -> bytes:
    """A whole text message in one frame, or with `fin=False` its first fragment."""
    payload = content.encode() if isinstance(content, str) else content
    return frame(TEXT, payload, **rest)


def fragments(*contents: str | bytes, opcode: int = TEXT) -> list[bytes]:
    """One message, a frame for each part."""
    parts = [content.encode() if isinstance(content, str) else content for content in contents]
    last = len(parts) - 1
    return [frame(CONTINUATION if i else opcode, part, fin=i == last) for i, part in enumerate(parts)]


def close(code: int | None = 1000, reason: str | bytes = b"") -> bytes:
    """A close frame; without a code its payload is empty."""
    if code is None:
        return frame(CLOSE)
    return frame(CLOSE, struct.pack("!H", code) + (reason.encode() if isinstance(reason, str) else reason))
