"""Owns the frames that the load generator sends: built and masked once, their digits patched in."""

from __future__ import annotations

import os
import struct
from itertools import cycle
from typing import Final

MARK: Final = b"@bench:"
SENDER_DIGITS: Final = 6
_SEQUENCE_DIGITS, _TIME_DIGITS = 10, 16
_DIGITS: Final = _SEQUENCE_DIGITS + _TIME_DIGITS
MARK_BYTES: Final = len(MARK) + SENDER_DIGITS + _DIGITS
MARK_PATTERN: Final = rb"%b(\d{%d})(\d{%d})(\d{%d})" % (MARK, SENDER_DIGITS, _SEQUENCE_DIGITS, _TIME_DIGITS)
"""Finds a mark and its three numbers: sender, sequence, time in nanoseconds."""

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
_FEW_VARIANTS, _MANY_VARIANTS = 2, 16
_VARIANTS_BYTES = 64 * 1024


def mark(sender: int) -> bytes:
    """A mark with its sequence and its time at zero: the text that `EventFrames` looks for."""
    return b"%b%0*d%b" % (MARK, SENDER_DIGITS, sender, b"0" * _DIGITS)


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """A whole frame as a client sends it, with a random mask (RFC 6455 section 5.2)."""
    mask = os.urandom(4)
    return _head(first, len(payload), mask) + _masked(payload, mask)


class EventFrames:
    """The frames of one sender's events, from a text that holds a `mark`.

    There are several variants, each with a mask of its own. Only the digits of the sequence and of the time
    differ from frame to frame; they are masked like the rest.
    """

    def __init__(self, text: bytes) -> None:
        start = text.index(MARK) + len(MARK) + SENDER_DIGITS
        end = start + _DIGITS
        variants = []
        for _ in range(_MANY_VARIANTS if len(text) * _MANY_VARIANTS <= _VARIANTS_BYTES else _FEW_VARIANTS):
            mask = os.urandom(4)
            masked = _masked(text, mask)
            turned = (mask * 2)[start % 4 : start % 4 + 4]
            over_digits = (turned * (_DIGITS // 4 + 1))[:_DIGITS]
            before = _head(TEXT, len(text), mask) + masked[:start]
            variants.append((before, int.from_bytes(over_digits, "big"), masked[end:]))
        self._variants = cycle(variants)

    def frame(self, sequence: int, time_ns: int) -> bytes:
        """The event with this number, sent at this time."""
        before, mask, after = next(self._variants)
        digits = int.from_bytes(b"%010d%016d" % (sequence, time_ns), "big") ^ mask
        return before + digits.to_bytes(_DIGITS, "big") + after


def _head(first: int, size: int, mask: bytes) -> bytes:
    if size < 126:
        return struct.pack("!BB4s", first, 0x80 | size, mask)
    if size < 65536:
        return struct.pack("!BBH4s", first, 0x80 | 126, size, mask)
    return struct.pack("!BBQ4s", first, 0x80 | 127, size, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    over = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(over, "big")).to_bytes(size, "big")
