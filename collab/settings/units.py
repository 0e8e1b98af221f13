"""Owns the two units that people write in settings: sizes in bytes and durations in seconds."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Final, Self, TypeGuard

_NUMBER_AND_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")

_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_BYTES_SHOWN: Final = {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}

_SECONDS: Final = {
    "": Fraction(1),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "m": Fraction(60),
    "h": Fraction(3600),
}


class Size(int):
    """A number of bytes, written `64KiB`, `1MiB`, `10MB` or as a bare number.

    `KiB`, `MiB` and `GiB` are powers of 1024, `kB`, `MB` and `GB` powers of 1000. `str()` gives
    the text back. Raises ValueError for a negative number, a part of a byte or another text.
    """

    def __new__(cls, value: str | int) -> Self:
        if isinstance(value, str):
            amount = _parse(value, {unit: Fraction(size) for unit, size in _BYTES.items()})
            if amount.denominator != 1:
                raise ValueError(f"not a whole number of bytes: {value!r}")
            return super().__new__(cls, amount.numerator)
        if not (is_number(value) and isinstance(value, int) and value >= 0):
            raise ValueError(f"not a size: {value!r}")
        return super().__new__(cls, value)

    def __str__(self) -> str:
        for unit, size in _BYTES_SHOWN.items():
            if self >= size and self % size == 0:
                return f"{self // size}{unit}"
        return f"{int(self)}B"

    def __repr__(self) -> str:
        return f"Size('{self}')"


class Duration(float):
    """A time in seconds, written `30s`, `500ms`, `2m`, `1h` or as a bare number of seconds.

    `str()` gives the text back. Raises ValueError for a number that is negative or not
    finite, or for another text.
    """

    def __new__(cls, value: str | float) -> Self:
        try:
            if isinstance(value, str):
                seconds = float(_parse(value, _SECONDS))
            elif is_number(value):
                seconds = float(value)
            else:
                raise ValueError(f"not a duration: {value!r}")
        except OverflowError:
            raise ValueError("longer than any number can say") from None
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"not a duration: {value!r}")
        return super().__new__(cls, seconds)

    def __str__(self) -> str:
        exact = Fraction(Decimal(float.__repr__(self)))
        for unit in ("h", "m", "s", "ms"):
            count = exact / _SECONDS[unit]
            if count.denominator == 1 and (count >= 1 or unit == "s"):
                return f"{count.numerator}{unit}"
        return f"{Decimal(float.__repr__(self)):f}s"

    def __repr__(self) -> str:
        return f"Duration('{self}')"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number to people, to whom True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse(text: str, units: dict[str, Fraction]) -> Fraction:
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"not a number with one of the units {', '.join(filter(None, units))}: {text!r}")
    return Fraction(match[1]) * units[match[2].lower()]
