"""Owns the rule for which characters an identifier or a name may hold."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_OR_BIDI = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def has_control(text: str) -> bool:
    """Whether the text holds a control character, a line separator or a lone surrogate."""
    return not text.isprintable() and _CONTROL.search(text) is not None


def has_control_or_bidi(text: str) -> bool:
    """Whether the text holds a control character or a bidi control (Unicode UAX 9)."""
    return not text.isprintable() and _CONTROL_OR_BIDI.search(text) is not None
