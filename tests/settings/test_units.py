"""Sizes and durations: what people write, and that it survives being shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.settings import Duration, Size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64KiB", 65536),
        ("1MiB", 1048576),
        ("2GiB", 2 * 1024**3),
        ("10MB", 10_000_000),
        ("3kB", 3000),
        ("1.5KiB", 1536),
        ("7B", 7),
        ("7 kib", 7168),
        ("0", 0),
        (" 512 ", 512),
        (512, 512),
    ],
)
def test_a_size_is_a_number_of_bytes(text, size_bytes):
    assert Size(text) == size_bytes
    assert isinstance(Size(text), Size)


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1", "1.5B", "1e3", "64 K", "nan", "inf", "\u0661", "1_000", "9" * 5000]
)
def test_other_texts_are_no_size(text):
    with pytest.raises(ValueError, match=r".+"):
        Size(text)


@pytest.mark.parametrize("value", [-1, True, 1.0, None, [1]])
def test_other_values_are_no_size(value):
    with pytest.raises(ValueError, match="not a size"):
        Size(value)


@given(st.integers(min_value=0, max_value=2**70))
def test_a_size_survives_being_shown(size_bytes):
    size = Size(size_bytes)
    assert Size(str(size)) == size == size_bytes
    assert eval(repr(size)) == size


def test_sizes_are_shown_in_the_largest_unit_that_fits():
    assert [str(Size(text)) for text in ("65536", "1MiB", "1000", "1536", "0")] == [
        "64KiB",
        "1MiB",
        "1000B",
        "1536B",
        "0B",
    ]
    assert f"{Size('1KiB')} {Size('1KiB'):d}" == "1KiB 1024"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("0.1h", 360.0),
        ("2.5", 2.5),
        ("1 s", 1.0),
        ("0", 0.0),
        (3, 3.0),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_a_number_of_seconds(text, seconds):
    assert Duration(text) == seconds
    assert isinstance(Duration(text), Duration)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1h30m", "nan", "inf", "1e3", "\u0663s", "9" * 400])
def test_other_texts_are_no_duration(text):
    with pytest.raises(ValueError, match=r".+"):
        Duration(text)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, True, None, [1], 10**400])
def test_other_values_are_no_duration(value):
    with pytest.raises(ValueError, match=r".+"):
        Duration(value)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_a_duration_survives_being_shown(seconds):
    duration = Duration(seconds)
    assert Duration(str(duration)) == duration == seconds
    assert eval(repr(duration)) == duration


def test_durations_are_shown_in_the_largest_unit_that_fits():
    texts = ("30", "0.5", "120", "3600", "90", "0", "0.0005")
    assert [str(Duration(text)) for text in texts] == ["30s", "500ms", "2m", "1h", "90s", "0s", "0.0005s"]
