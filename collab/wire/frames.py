"""Owns RFC 6455 frames: building the service's, and finding whole text frames in a client's bytes."""

from __future__ import annotations

import contextlib
import struct
from enum import IntEnum
from typing import TYPE_CHECKING

import attrs

from collab.wire.close import Close, CloseCode, is_valid_received_code

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT_FIN = 0x81
_MASKED = 0x80
_RESERVED_BITS = 0x70
_SMALL, _MEDIUM = 126, 127
_SMALLEST_HEADER = 2
_SMALL_HEADS = tuple(bytes((_TEXT_FIN, size)) for size in range(_SMALL))


class Opcode(IntEnum):
    """Frame opcodes, RFC 6455 section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


def text_frame(payload: bytes) -> bytes:
    """A whole, unmasked text frame as a server sends it (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < _SMALL:
        return _SMALL_HEADS[size] + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def close_frame(close: Close) -> bytes:
    """A close frame as a server sends it; a reason over 123 bytes of UTF-8 is cut."""
    reason = close.reason.encode()[:123].decode(errors="ignore").encode()
    return b"\x88%c%b%b" % (2 + len(reason), struct.pack("!H", close.code), reason)


PING_FRAME = b"\x89\x00"
EMPTY_CLOSE_FRAME = b"\x88\x00"


def is_close_frame(data: bytes) -> bool:
    """Whether these bytes of the service begin with a close frame."""
    return data[:1] == b"\x88"


def unmask_in_python(payload: bytes, mask: bytes) -> bytes:
    """The payload with its masking undone (RFC 6455 section 5.3). Linear in its length."""
    size = len(payload)
    repeated = mask * (size // 4) + mask[: size % 4]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


unmask: Callable[[bytes, bytes], bytes] = unmask_in_python
with contextlib.suppress(ImportError):
    # A tenth of the time; the wheels of `websockets` have it for the usual machines.
    from websockets.speedups import apply_mask as unmask


@attrs.frozen
class Scan:
    """What one piece of a client's bytes held.

    `texts` are the payloads of whole text frames, in order, checked for UTF-8. `odd` is what goes
    on to trio-websocket untouched, `odd_frames` the number of frames that begin in it, `controls` that
    of the pings and pongs among them. `violation` is why the connection must end, if it must; the
    texts of the same scan came before it.
    """

    texts: list[bytes]
    odd: bytes
    violation: Close | None = None
    controls: int = 0
    odd_frames: int = 0


_NOTHING = Scan([], b"")


class _Breach(Exception):
    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.close = Close(code, reason)


class FrameScanner:
    """Finds frames in a client's bytes, lifts whole text frames out and lets the rest through.

    A text frame is lifted when it is whole, unfragmented and nothing that went the other way is
    still under way: `odd_taken` tells the scanner that a message which it let through has been
    handed on, and until it has been, later messages go the same way so that order holds.
    Every rule of framing (RFC 6455 section 5) and both limits are checked here.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._needed = _SMALLEST_HEADER
        self._passing = 0
        self._passing_ends_message = False
        self._in_message = False
        self._message_bytes = 0
        self._fragments = 0
        self._odd_under_way = 0
        self._controls = 0
        self._odd_frames = 0
        self._finished = False
        self.peer_closed = False
        """Whether the peer's close frame was seen."""
        self.failed = False
        """Whether a rule was broken, or we gave up: the peer's close frame may never be found."""

    def odd_taken(self) -> None:
        """One message that was let through has been handed on."""
        self._odd_under_way -= 1

    def odd_refused(self) -> None:
        """What was let through broke a rule that is not checked here: only a close frame counts now."""
        self.failed = True

    def give_up(self) -> None:
        """Look at nothing any more: what comes is a flood."""
        self._finished = self.failed = True
        self._buffer.clear()

    def feed(self, data: bytes) -> Scan:
        """Take the next bytes. After a close frame or a violation everything is ignored."""
        if self._finished:
            return _NOTHING
        texts: list[bytes] = []
        if not (self._buffer or self._passing or self._in_message or self._odd_under_way):
            try:
                used = self._lift(data, texts)
            except _Breach as error:
                self._finished = self.failed = True
                return Scan(texts, b"", error.close)
            if used == len(data):
                return Scan(texts, b"")
            self._needed = _SMALLEST_HEADER
            data = data[used:]
        self._buffer += data
        if len(self._buffer) < self._needed and not self._passing:
            return Scan(texts, b"") if texts else _NOTHING
        odd: list[bytes] = []
        violation = None
        position = 0
        try:
            with memoryview(self._buffer) as view:
                while not self._finished:
                    used = (
                        self._pass(view, position, odd)
                        if self._passing
                        else self._frame(view, position, texts, odd)
                    )
                    if not used:
                        break
                    position += used
        except _Breach as error:
            violation = error.close
            self._finished = self.failed = True
        if self._finished:
            self._buffer.clear()
        else:
            del self._buffer[:position]
        controls, self._controls = self._controls, 0
        odd_frames, self._odd_frames = self._odd_frames, 0
        return Scan(texts, b"".join(odd), violation, controls, odd_frames)

    def _lift(self, data: bytes, texts: list[bytes]) -> int:
        """Lift whole text frames of at most 65,535 bytes off the front: the number of bytes used.

        The way of nearly all frames, kept short; whatever is not one is left to `_frame`.
        """
        position, end = 0, len(data)
        while end - position >= 6 and data[position] == _TEXT_FIN:
            size = data[position + 1] - _MASKED
            start = position + 6
            if size >= _SMALL:
                if size > _SMALL or end - position < 8:
                    break
                size = data[position + 2] << 8 | data[position + 3]
                start = position + 8
                if size < _SMALL:
                    break
            stop = start + size
            if size < 0 or stop > end or size > self._max_message_bytes:
                break
            payload = unmask(data[start:stop], data[start - 4 : start])
            if not payload.isascii():
                _check_utf8(payload)
            texts.append(payload)
            position = stop
        return position

    def _pass(self, view: memoryview, position: int, odd: list[bytes]) -> int:
        piece = bytes(view[position : position + self._passing])
        odd.append(piece)
        self._passing -= len(piece)
        if piece and not self._passing:
            self._end_passing()
        return len(piece)

    def _end_passing(self) -> None:
        if self._passing_ends_message:
            self._passing_ends_message = False
            self._odd_under_way += 1

    def _frame(self, view: memoryview, position: int, texts: list[bytes], odd: list[bytes]) -> int:
        """Take the frame that starts at `position`: the number of bytes used, 0 where more are needed."""
        available = len(view) - position
        if available < _SMALLEST_HEADER:
            return self._need(_SMALLEST_HEADER)
        first, second = view[position], view[position + 1]
        if first & _RESERVED_BITS:
            raise _Breach(CloseCode.PROTOCOL_ERROR, "A reserved bit is set")
        if not second & _MASKED:
            raise _Breach(CloseCode.PROTOCOL_ERROR, "A client's frames must be masked")
        size = second & 0x7F
        head = 6
        if size == _SMALL:
            head = 8
        elif size == _MEDIUM:
            head = 14
        if available < head:
            return self._need(head)
        if size == _SMALL:
            size = int.from_bytes(view[position + 2 : position + 4], "big")
            if size < _SMALL:
                raise _Breach(CloseCode.PROTOCOL_ERROR, "A length is not in its shortest form")
        elif size == _MEDIUM:
            size = int.from_bytes(view[position + 2 : position + 10], "big")
            if size < 65536 or size >> 63:
                raise _Breach(CloseCode.PROTOCOL_ERROR, "A length is not in its shortest form")
        if first == _TEXT_FIN and not self._in_message and not self._odd_under_way:
            self._check_size(size)
            if available < head + size:
                return self._need(head + size)
            texts.append(self._text(view, position + head, size))
            self._needed = _SMALLEST_HEADER
            return head + size
        if first & 0x08:
            return self._control(view, position, first, head, size, odd)
        self._check_data(first, size)
        self._odd_frames += 1
        odd.append(bytes(view[position : position + head]))
        self._passing = size
        self._passing_ends_message = bool(first & 0x80)
        if not size:
            self._end_passing()
        self._needed = _SMALLEST_HEADER
        return head

    def _need(self, size: int) -> int:
        self._needed = size
        return 0

    def _text(self, view: memoryview, start: int, size: int) -> bytes:
        payload = unmask(bytes(view[start : start + size]), bytes(view[start - 4 : start]))
        if not payload.isascii():
            _check_utf8(payload)
        return payload

    def _control(
        self, view: memoryview, position: int, first: int, head: int, size: int, odd: list[bytes]
    ) -> int:
        """Let a control frame through, whole (RFC 6455 section 5.5)."""
        opcode = first & 0x0F
        if opcode not in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            raise _Breach(CloseCode.PROTOCOL_ERROR, "Unknown opcode")
        if not first & 0x80 or size > 125:
            raise _Breach(CloseCode.PROTOCOL_ERROR, "A control frame is fragmented or too long")
        end = position + head + size
        if len(view) < end:
            return self._need(head + size)
        if opcode == Opcode.CLOSE:
            start = position + head
            _check_close(unmask(bytes(view[start:end]), bytes(view[start - 4 : start])))
            self._finished = True
            self.peer_closed = True
        else:
            self._controls += 1
        self._odd_frames += 1
        odd.append(bytes(view[position:end]))
        self._needed = _SMALLEST_HEADER
        return head + size

    def _check_data(self, first: int, size: int) -> None:
        """Check a data frame that is let through against the message that it belongs to."""
        opcode = first & 0x0F
        if opcode not in (Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY):
            raise _Breach(CloseCode.PROTOCOL_ERROR, "Unknown opcode")
        if (opcode == Opcode.CONTINUATION) != self._in_message:
            raise _Breach(
                CloseCode.PROTOCOL_ERROR, "A message is continued that was not begun, or begun twice"
            )
        if not self._in_message:
            self._message_bytes = 0
            self._fragments = 0
        self._message_bytes += size
        self._fragments += 1
        self._check_size(self._message_bytes)
        # Fragments may be small, but a message of almost nothing else is an attack on memory and time.
        if self._fragments > _FREE_FRAGMENTS + self._message_bytes // _BYTES_PER_FRAGMENT:
            raise _Breach(CloseCode.POLICY, "A message has too many small fragments")
        self._in_message = not first & 0x80

    def _check_size(self, size: int) -> None:
        if size > self._max_message_bytes:
            raise _Breach(CloseCode.TOO_BIG, f"A message may have at most {self._max_message_bytes} bytes")


_FREE_FRAGMENTS = 256
_BYTES_PER_FRAGMENT = 16


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise _Breach(CloseCode.INVALID_UTF8, "A text message is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    """Check the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4)."""
    if not payload:
        return
    if len(payload) < 2 or not is_valid_received_code(int.from_bytes(payload[:2], "big")):
        raise _Breach(CloseCode.PROTOCOL_ERROR, "A close frame has no valid code")
    _check_utf8(payload[2:])
