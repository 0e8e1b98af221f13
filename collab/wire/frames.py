"""Owns RFC 6455 frames: building the service's, and finding text messages in a client's bytes."""

from __future__ import annotations

import codecs
import contextlib
import struct
from typing import TYPE_CHECKING

import attrs

from collab.wire.close import Close, CloseCode, is_valid_received_code

if TYPE_CHECKING:
    from collections.abc import Callable

# Opcodes, RFC 6455 section 5.2.
_CONTINUATION, _BINARY = 0, 2
_CLOSE, _PING, _PONG = 8, 9, 10
_TEXT_FIN = 0x81
_FIN = 0x80
_MASKED = 0x80
_RESERVED_BITS = 0x70
_SMALL, _MEDIUM = 126, 127
_SMALLEST_HEADER = 2
_FREE_FRAGMENTS = 256
_BYTES_PER_FRAGMENT = 16
_SMALL_HEADS = tuple(bytes((_TEXT_FIN, size)) for size in range(_SMALL))


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

    `texts` are the payloads of whole text messages, in order, checked for UTF-8. `pongs` are frames,
    the answers to its pings; `controls` is the number of pings and pongs, `fragments` that of the frames
    that ended no message. `violation` is why the connection must end, if it must; the texts of the
    same scan came before it.
    """

    texts: list[bytes]
    pongs: bytes = b""
    violation: Close | None = None
    controls: int = 0
    fragments: int = 0


_NOTHING = Scan([])


class _Breach(Exception):
    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.close = Close(code, reason)


class FrameScanner:
    """Finds the frames in a client's bytes: text messages, pings, and the close frame.

    Every rule of framing (RFC 6455 section 5) and both limits are checked here. A frame is judged by
    its head as soon as that is there, the text of a fragment as it comes, that of a whole message once
    it is whole. A binary message breaks a rule, unless there is a text that it is to be lifted as.
    """

    def __init__(self, max_message_bytes: int, *, binary_as: bytes | None = None) -> None:
        self._binary_as = binary_as
        self._is_binary = False
        self._max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._needed = _SMALLEST_HEADER
        # The fragments so far of a message; None between messages.
        self._message: bytearray | None = None
        self._message_frames = 0
        # Of the fragment that is coming in: how many bytes are still to come, and with which mask.
        self._missing = 0
        self._mask = b""
        self._is_last = False
        # The beginning of a character that goes on in the next fragment.
        self._cut_off = b""
        self._controls = 0
        self._fragments = 0
        self._finished = False
        self.peer_close = b""
        """The peer's close frame, as it came; empty until then."""
        self.failed = False
        """Whether a rule was broken, or we gave up: the peer's close frame may never be found."""

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's close frame was seen."""
        return bool(self.peer_close)

    def give_up(self) -> None:
        """Look at nothing any more: what comes is a flood."""
        self.failed = True
        self._finish()

    def feed(self, data: bytes) -> Scan:
        """Take the next bytes. After a close frame or a violation everything is ignored."""
        if self._finished:
            return _NOTHING
        texts: list[bytes] = []
        if not self._buffer and self._message is None:
            try:
                used = self._lift(data, texts)
            except _Breach as error:
                self.give_up()
                return Scan(texts, violation=error.close)
            if used == len(data):
                return Scan(texts)
            self._needed = _SMALLEST_HEADER
            data = data[used:]
        self._buffer += data
        if len(self._buffer) < self._needed:
            return Scan(texts) if texts else _NOTHING
        pongs: list[bytes] = []
        violation = None
        position = 0
        try:
            with memoryview(self._buffer) as view:
                while used := (
                    self._fragment(view, position, texts)
                    if self._missing
                    else self._frame(view, position, texts, pongs)
                ):
                    position += used
        except _Breach as error:
            violation = error.close
            self.give_up()
        if not self._finished:
            del self._buffer[:position]
        controls, self._controls = self._controls, 0
        fragments, self._fragments = self._fragments, 0
        return Scan(texts, b"".join(pongs), violation, controls, fragments)

    def _finish(self) -> None:
        self._finished = True
        self._buffer = bytearray()
        self._message = None

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

    def _frame(self, view: memoryview, position: int, texts: list[bytes], pongs: list[bytes]) -> int:
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
        if first & 0x08:
            return self._control(view, position, first, head, size, pongs)
        return self._data(view, position, first, head, size, texts)

    def _need(self, size: int) -> int:
        self._needed = size
        return 0

    def _data(
        self, view: memoryview, position: int, first: int, head: int, size: int, texts: list[bytes]
    ) -> int:
        """Take a frame of a message, once it is whole (RFC 6455 sections 5.4 and 5.6)."""
        opcode = first & 0x0F
        if opcode > _BINARY:
            raise _Breach(CloseCode.PROTOCOL_ERROR, "Unknown opcode")
        message = self._message
        if (opcode == _CONTINUATION) != (message is not None):
            raise _Breach(
                CloseCode.PROTOCOL_ERROR, "A message is continued that was not begun, or begun twice"
            )
        self._check_kind(opcode)
        message_bytes = size if message is None else size + len(message)
        if message_bytes > self._max_message_bytes:
            raise _Breach(CloseCode.TOO_BIG, f"A message may have at most {self._max_message_bytes} bytes")
        # Fragments may be small, but a message of almost nothing else is an attack on memory and time.
        if self._message_frames >= _FREE_FRAGMENTS + message_bytes // _BYTES_PER_FRAGMENT:
            raise _Breach(CloseCode.POLICY, "A message has too many small fragments")
        start = position + head
        is_last = bool(first & _FIN)
        if is_last and message is None:
            end = start + size
            if len(view) < end:
                return self._need(head + size)
            self._needed = _SMALLEST_HEADER
            payload = unmask(bytes(view[start:end]), bytes(view[start - 4 : start]))
            self._check_text(payload, is_last=True)
            texts.append(self._lifted(payload))
            return head + size
        if message is None:
            self._message = bytearray()
        self._message_frames += 1
        self._missing = size
        self._mask = bytes(view[start - 4 : start])
        self._is_last = is_last
        return head + self._fragment(view, start, texts)

    def _fragment(self, view: memoryview, position: int, texts: list[bytes]) -> int:
        """Take what there is of a fragment, so that a text fails with the first byte that is wrong."""
        message = self._message
        assert message is not None
        part = unmask(bytes(view[position : position + self._missing]), self._mask)
        used = len(part)
        if self._missing and not used:
            return self._need(1)
        self._missing -= used
        is_last = self._is_last and not self._missing
        self._check_text(part, is_last=is_last)
        message += part
        self._needed = _SMALLEST_HEADER
        if self._missing:
            turn = used % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        elif is_last:
            texts.append(self._lifted(bytes(message)))
            self._message = None
            self._message_frames = 0
        else:
            self._fragments += 1
        return used

    def _lifted(self, message: bytes) -> bytes:
        return self._binary_as if self._is_binary and self._binary_as is not None else message

    def _check_kind(self, opcode: int) -> None:
        """Take no message but of text; called again for a frame that comes in pieces."""
        if opcode == _BINARY and self._binary_as is None:
            raise _Breach(CloseCode.BINARY_MESSAGE, "Messages are text frames")
        if opcode != _CONTINUATION:
            self._is_binary = opcode == _BINARY

    def _check_text(self, payload: bytes, *, is_last: bool) -> None:
        """Check a part of a text, and that its last one ends no character halfway."""
        if self._is_binary or (not self._cut_off and payload.isascii()):
            return
        text = self._cut_off + payload
        try:
            _, used = codecs.utf_8_decode(text, "strict", is_last)
        except UnicodeDecodeError:
            raise _Breach(CloseCode.INVALID_UTF8, "A text message is not UTF-8") from None
        self._cut_off = text[used:]

    def _control(
        self, view: memoryview, position: int, first: int, head: int, size: int, pongs: list[bytes]
    ) -> int:
        """Take a control frame, once it is whole (RFC 6455 section 5.5); nothing follows a close frame."""
        opcode = first & 0x0F
        if opcode not in (_CLOSE, _PING, _PONG):
            raise _Breach(CloseCode.PROTOCOL_ERROR, "Unknown opcode")
        if not first & _FIN or size > 125:
            raise _Breach(CloseCode.PROTOCOL_ERROR, "A control frame is fragmented or too long")
        start = position + head
        end = start + size
        if len(view) < end:
            return self._need(head + size)
        self._needed = _SMALLEST_HEADER
        if opcode == _PONG:
            self._controls += 1
            return head + size
        payload = unmask(bytes(view[start:end]), bytes(view[start - 4 : start]))
        if opcode == _CLOSE:
            _check_close(payload)
            self.peer_close = bytes(view[position:end])
            self._finish()
            return 0
        self._controls += 1
        pongs.append(b"\x8a%c%b" % (size, payload))
        return head + size


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
