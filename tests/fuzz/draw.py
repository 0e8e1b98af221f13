"""Owns the dice: what makes an input out of its seed and index, and ways to damage and to cut bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Found(AssertionError):
    """An input that did what it must not. Its cause says what that was."""

    def __init__(self, area: str, seed: int, index: int | str) -> None:
        again = f"scripts/fuzz --only {area} --seed {seed} --index {index}"
        super().__init__(f"{area}: seed {seed}, index {index}; to run it again: {again}")


def dice(area: str, seed: int, index: int) -> random.Random:
    """The source of everything in one input. The same three give the same input everywhere."""
    return random.Random(f"{area}/{seed}/{index}")


def cut(draw: random.Random, data: bytes, pieces: int = 12) -> list[bytes]:
    """The data in at most so many pieces, cut at random bytes; empty pieces are left out."""
    size = len(data)
    places = sorted(int(draw.random() * (size + 1)) for _ in range(int(draw.random() * pieces)))
    return [data[a:b] for a, b in zip([0, *places], [*places, size], strict=True) if b > a]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def damage(draw: random.Random, data: bytes, spice: Sequence[bytes], times: int = 3) -> bytes:
    """The data with a few bytes flipped, dropped, doubled, overwritten by spice, or its end cut off."""
    damaged = bytearray(data)
    for _ in range(1 + int(draw.random() * times)):
        size = len(damaged)
        at = int(draw.random() * (size + 1))
        how = draw.random()
        if how < 0.25 and at < size:
            damaged[at] ^= 1 << int(draw.random() * 8)
        elif how < 0.4:
            del damaged[at : at + 1 + int(draw.random() * 8)]
        elif how < 0.55:
            damaged[at:at] = damaged[at : at + 1 + int(draw.random() * 40)]
        elif how < 0.9:
            damaged[at : at + int(draw.random() * 4)] = draw.choice(spice)
        else:
            del damaged[at:]
    return bytes(damaged)


def run_each(area: str, run: Callable[[int, int], None], seed: int, indexes: Iterable[int]) -> None:
    """Run these inputs one after the other. Raises `Found` at the first that fails."""
    for index in indexes:
        try:
            run(seed, index)
        except Exception as error:
            raise Found(area, seed, index) from error
