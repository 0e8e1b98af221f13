"""Owns the fuzzing of frames: a client's streams, right and wrong, read by the scanner in pieces of any size.

`read` is a second reader of the same rules, for a stream that is whole. It shares no code with the scanner.
"""

from __future__ import annotations

import codecs
import struct
from typing import TYPE_CHECKING

import attrs
import peer_frames as peer
from oracle import Oracle

from collab.wire.frames import FrameScanner
from fuzz.draw import bytewise, cut, damage, dice

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

AREA = "frames"
LIMITS = (1, 20, 125, 126, 1000, 65_536, 65_536, 65_536, 1 << 20)
_BYTEWISE_BYTES = 400

_WORDS = ("", "a", "grüße", "x" * 125, "x" * 126, "\U0001f600" * 9, '{"event":"ping"}', "\x00", "\u2028")
_NOT_UTF8 = (b"\xff", b"\xc3", b"ok\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80", b"x" * 130 + b"\xe2\x82")
_CODES = (0, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1014, 1015, 1016, 2999, 3000, 4999, 5000)
_SPICE = (
    b"\x81\x80\x00\x00\x00\x00",
    b"\x81\xfe",
    b"\x01\xff\x00",
    b"\xff" * 10,
    b"\x00" * 6,
    b"\x88\x80abcd",
    b"\x89\x00",
    b"\x80",
    b"\xfe",
    b"\x7f",
    b"GET / HTTP/1.1\r\n\r\n",
)


@attrs.frozen
class Reading:
    """What a client's stream says by the rules."""

    texts: list[bytes]
    pongs: bytes
    """The answers to its pings."""
    controls: int
    code: int | None
    """The close code that the stream deserves."""
    close: bytes | None
    """The payload of the client's close frame, if it was read."""
    last_whole: int = attrs.field(eq=False, default=0)
    """Where the last whole frame ends."""


# What goes out


def stream(draw: random.Random, payloads: Iterable[bytes] = ()) -> bytes:
    """Frames of every kind, some damaged; `payloads` are texts to be among them."""
    wanted = list(payloads)
    frames = [_any_frames(draw, wanted) for _ in range(1 + int(draw.random() * 7))]
    whole = b"".join([*frames, *(_text(draw, payload) for payload in wanted)])
    return damage(draw, whole, _SPICE) if draw.random() < 0.25 else whole


def right_stream(draw: random.Random, payloads: Iterable[bytes]) -> bytes:
    """These texts, whole or in fragments, with control frames between them, and nothing wrong."""
    in_one = 1.0 if draw.random() < 0.5 else 0.6
    frames = []
    for payload in payloads:
        whole = draw.random() < in_one
        frames.append(_text(draw, payload) if whole else _fragmented(draw, payload, peer.TEXT))
        if draw.random() < 0.2:
            frames.append(_control(draw))
    return b"".join(frames)


def _any_frames(draw: random.Random, wanted: list[bytes]) -> bytes:
    kind = draw.random()
    if kind < 0.35:
        return _text(draw, wanted.pop() if wanted else _word(draw))
    if kind < 0.5:
        return _fragmented(draw, wanted.pop() if wanted else _word(draw), peer.TEXT)
    if kind < 0.6:
        return _control(draw)
    if kind < 0.63:
        return peer.frame(peer.BINARY, draw.randbytes(int(draw.random() * 200)), mask=_mask(draw))
    if kind < 0.66:
        return _fragmented(draw, draw.randbytes(int(draw.random() * 60)), peer.BINARY)
    if kind < 0.69:
        return _text(draw, draw.choice(_NOT_UTF8))
    if kind < 0.76:
        return _close(draw)
    if kind < 0.80:
        return _lying(draw)
    if kind < 0.81:
        return _crumbs(draw)
    if kind < 0.82:
        # Each form of the length, and the sizes at which the form changes.
        return _text(draw, b"x" * draw.choice((125, 126, 127, 999, 1000, 1001, 65_535, 65_536)))
    if kind < 0.84:
        return draw.randbytes(int(draw.random() * 30))
    return _wild(draw)


def _mask(draw: random.Random) -> bytes:
    return draw.randbytes(4)


def _word(draw: random.Random) -> bytes:
    return draw.choice(_WORDS).encode()


def _text(draw: random.Random, payload: bytes) -> bytes:
    return peer.frame(peer.TEXT, payload, mask=_mask(draw))


def _control(draw: random.Random) -> bytes:
    payload = draw.randbytes(draw.choice((0, 0, 1, 4, 125)))
    return peer.frame(draw.choice((peer.PING, peer.PONG)), payload, mask=_mask(draw))


def _fragmented(draw: random.Random, payload: bytes, opcode: int) -> bytes:
    parts = cut(draw, payload, 6) or [b""]
    if draw.random() < 0.3:
        parts.insert(int(draw.random() * (len(parts) + 1)), b"")
    frames = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        frames.append(peer.frame(peer.CONTINUATION if number else opcode, part, fin=last, mask=_mask(draw)))
        if not last and draw.random() < 0.2:
            frames.append(_control(draw))
    return b"".join(frames)


def _close(draw: random.Random) -> bytes:
    how = draw.random()
    if how < 0.2:
        payload = b""
    elif how < 0.3:
        payload = b"\x03"
    elif how < 0.4:
        payload = struct.pack("!H", 1000) + draw.choice(_NOT_UTF8)[:100]
    else:
        payload = struct.pack("!H", draw.choice(_CODES)) + b"bye"[: int(draw.random() * 4)]
    return peer.frame(peer.CLOSE, payload, mask=_mask(draw))


def _lying(draw: random.Random) -> bytes:
    """A head that claims another length than what follows has."""
    first = draw.choice((0x81, 0x01, 0x82, 0x00, 0x89, 0x88))
    claimed = draw.choice((0, 1, 5, 125, 126, 300, 65_535, 65_536, 2**31, 2**62, 2**63, 2**64 - 1))
    form = draw.choice((2, 8)) if claimed < 65_536 else 8
    if claimed < 126 and draw.random() < 0.5:
        head = bytes((first, 0x80 | claimed))
    elif form == 2:
        head = bytes((first, 0x80 | 126)) + claimed.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + claimed.to_bytes(8, "big")
    return head + draw.randbytes(4 + int(draw.random() * 20))


def _crumbs(draw: random.Random) -> bytes:
    """A message in hundreds of fragments of next to nothing."""
    size = draw.choice((0, 1, 16))
    crumb = peer.frame(peer.CONTINUATION, b"x" * size, fin=False)
    return peer.text("x", fin=False) + crumb * draw.choice((200, 254, 255, 256, 300))


def _wild(draw: random.Random) -> bytes:
    return peer.frame(
        int(draw.random() * 16),
        draw.choice((b"", b"x", b"\x03\xe8", _word(draw), draw.randbytes(int(draw.random() * 130)))),
        fin=draw.random() < 0.7,
        reserved=draw.choice((0, 0, 0, 0, 1, 2, 4, 7)),
        mask=_mask(draw) if draw.random() < 0.8 else None,
        length_bytes=draw.choice((None, None, None, 2, 8)),
    )


# What must come of it


def read(data: bytes, limit: int) -> Reading:
    """The whole stream by RFC 6455 section 5 and the limits."""
    texts: list[bytes] = []
    pongs = message = b""
    controls = at = fragments = 0
    in_message = False

    def ended(code: int | None, *, close: bytes | None = None) -> Reading:
        return Reading(texts, pongs, controls, code, close, at)

    while True:
        rest = data[at:]
        if len(rest) < 2:
            return ended(None)
        fin, reserved, opcode = rest[0] >> 7, rest[0] >> 4 & 7, rest[0] & 15
        masked, size = rest[1] >> 7, rest[1] & 127
        if reserved or not masked:
            return ended(1002)
        extended = {126: 2, 127: 8}.get(size, 0)
        start = 2 + extended + 4
        if len(rest) < start:
            return ended(None)
        if extended:
            size = int.from_bytes(rest[2 : 2 + extended], "big")
            if size < (126 if extended == 2 else 65_536) or size >= 2**63:
                return ended(1002)
        if opcode not in (0, 1, 2, 8, 9, 10):
            return ended(1002)
        payload = peer.masked(rest[start : start + size], rest[start - 4 : start])
        is_whole = len(payload) == size
        if opcode >= 8:
            if not fin or size > 125:
                return ended(1002)
            if not is_whole:
                return ended(None)
            if opcode == 8:
                if code := _wrong_close(payload):
                    return ended(code)
                at += start + size
                return ended(None, close=payload)
            controls += 1
            if opcode == 9:
                pongs += bytes((0x8A, size)) + payload
        else:
            if (opcode == 0) != in_message:
                return ended(1002)
            if opcode == 2:
                return ended(1003)
            if len(message) + size > limit:
                return ended(1009)
            # 256 fragments of any size, and one more for each 16 bytes.
            if fragments + 1 > 256 + (len(message) + size) // 16:
                return ended(1008)
            if not is_whole and fin and opcode == 1:
                return ended(None)
            # Of a fragment the text is judged as it comes.
            in_message, message, fragments = not fin, message + payload, fragments + 1
            if not _is_utf8(message, is_whole=bool(fin) and is_whole):
                return ended(1007)
            if not is_whole:
                return ended(None)
            if fin:
                texts.append(message)
                message, fragments = b"", 0
        at += start + size


def _wrong_close(payload: bytes) -> int | None:
    if not payload:
        return None
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000):
        return 1002
    return None if _is_utf8(payload[2:]) else 1007


def _is_utf8(payload: bytes, *, is_whole: bool = True) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(payload, is_whole)
    except UnicodeDecodeError:
        return False
    return True


def scan(pieces: Iterable[bytes], limit: int) -> Reading:
    """What the scanner makes of the pieces."""
    scanner = FrameScanner(limit)
    texts: list[bytes] = []
    pongs = b""
    controls = 0
    code = None
    for piece in pieces:
        found = scanner.feed(piece)
        texts += found.texts
        pongs += found.pongs
        controls += found.controls
        if found.violation is not None:
            assert code is None, "a second violation"
            code = int(found.violation.code)
    assert scanner.failed == (code is not None)
    if scanner.failed or scanner.peer_closed:
        after = scanner.feed(peer.text("after the end"))
        assert not after.texts
        assert not after.pongs
        assert after.violation is None
    close = scanner.peer_close
    # A control frame is short: its head is two bytes, and the mask follows.
    return Reading(texts, pongs, controls, code, peer.masked(close[6:], close[2:6]) if close else None)


def run(seed: int, index: int) -> None:
    """One stream: every split gives what the rules give, and wsproto reads the same messages."""
    draw = dice(AREA, seed, index)
    data, limit = stream(draw), draw.choice(LIMITS)
    expected = read(data, limit)
    splits = [[data], cut(draw, data), cut(draw, data, 40)]
    if len(data) <= _BYTEWISE_BYTES:
        splits.append(bytewise(data))
    for pieces in splits:
        heard = scan(pieces, limit)
        assert heard == expected, f"{limit=} {pieces=} {heard=} {expected=}"
    if expected.code in (None, 1002, 1007):
        _check_with_wsproto(data, expected)


def _check_with_wsproto(data: bytes, expected: Reading) -> None:
    """wsproto reads the same messages, and finds the same streams broken."""
    # It judges half a frame's payload already, which the scanner has no reason to.
    judged = data if expected.code is not None else data[: expected.last_whole]
    direct = Oracle()
    # And it judges a head once it is whole, which a stream that is cut off may not let it be.
    messages = direct.messages(judged + bytes(14) if expected.code else judged)
    assert [text.decode() for text in expected.texts] == messages, f"{expected.texts=} {messages=}"
    if expected.close is not None:
        # It does not know the code 1014.
        assert direct.closed or direct.failed
    else:
        assert (expected.code is not None) == direct.failed, f"{expected.code=} {direct.failed=}"
        assert not direct.closed
