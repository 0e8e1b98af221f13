from __future__ import annotations

import sys
import unicodedata

import pytest

from collab.wire.text import has_control, has_control_or_bidi

EVERY_CHARACTER = [chr(code) for code in range(sys.maxunicode + 1)]
LINE_ENDS = {"\u2028", "\u2029"}


def test_controls_surrogates_and_line_separators_are_what_a_name_may_not_hold() -> None:
    expected = {c for c in EVERY_CHARACTER if unicodedata.category(c) in ("Cc", "Cs")} | LINE_ENDS
    assert {c for c in EVERY_CHARACTER if has_control(c)} == expected


def test_an_identifier_may_not_hold_a_bidi_control_either() -> None:
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"\u061c", "\u200e", "\u200f"}
    expected = {c for c in EVERY_CHARACTER if unicodedata.bidirectional(c) in bidi} | marks
    assert {c for c in EVERY_CHARACTER if has_control_or_bidi(c) and not has_control(c)} == expected


@pytest.mark.parametrize("text", ["", "Ada Lovelace", "Żółć", "张伟", "😀", "zero\u200dwidth", "a\u00a0b"])
def test_an_ordinary_text_holds_neither(text: str) -> None:
    assert not has_control(text)
    assert not has_control_or_bidi(text)


@pytest.mark.parametrize("text", ["\nabc", "abc\n", "a\x00c", "a\x7f", "\u202eabc", "ab\u2066c"])
def test_one_bad_character_anywhere_is_enough(text: str) -> None:
    assert has_control_or_bidi(text)
