"""What `scripts/fuzz` runs: the fuzzing of tests/fuzz, by the clock instead of by number."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import trio

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

from fuzz import frames, heads, packets, sockets, texts  # noqa: E402 - the path had to be set first
from fuzz.draw import Found, run_each  # noqa: E402 - likewise

RUNS = {area.AREA: area.run for area in (frames, heads, texts, packets)}
AREAS = [*RUNS, sockets.AREA]
# A turn of each takes about a second, and one of the sockets gets through a service.
INPUTS_A_TURN = {
    frames.AREA: 1_000,
    heads.AREA: 1_000,
    texts.AREA: 10_000,
    packets.AREA: 3_000,
    sockets.AREA: 500,
}


class Progress:
    """How many inputs were run, said once a second."""

    def __init__(self, seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self._start = time.monotonic()
        self._end = self._start + seconds
        self._next_line = self._start + 1

    def goes_on(self) -> bool:
        return time.monotonic() < self._end

    def note(self, area: str, end: str = "") -> None:
        self.counts[area] += 1
        if end:
            self.ends[end] += 1
        if time.monotonic() >= self._next_line:
            self._next_line += 1
            print(f"{time.monotonic() - self._start:6.0f} s  {self}", flush=True)

    def __str__(self) -> str:
        return "  ".join(f"{area} {number:,}" for area, number in sorted(self.counts.items()))


def turn(area: str, seed: int, indexes: range, progress: Progress) -> None:
    """Run these inputs of an area, or as many as there is time for."""
    if area == sockets.AREA:

        def note(end: str) -> None:
            progress.note(area, end)

        async def play() -> None:
            await sockets.run(seed, indexes, note=note, goes_on=progress.goes_on)

        trio.run(play)
        return
    for index in indexes:
        if not progress.goes_on():
            return
        run_each(area, RUNS[area], seed, [index])
        progress.note(area)


def indexes_of(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def areas_of(text: str) -> list[str]:
    areas = text.split(",")
    if unknown := set(areas) - set(AREAS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(AREAS)}")
    return areas


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", add_help=False)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", type=areas_of, default=AREAS)
    parser.add_argument("--index", type=indexes_of)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    progress = Progress(float("inf") if options.index else options.seconds)
    turns = [0] if options.index else itertools.count()
    try:
        for number in turns:
            if not progress.goes_on():
                break
            for area in options.only:
                size = INPUTS_A_TURN[area]
                indexes = options.index or range(number * size, (number + 1) * size)
                turn(area, options.seed, indexes, progress)
    except Found as found:
        traceback.print_exception(found)
        print(f"FAILED after {progress}\n{found}")
        return 1
    for end, number in progress.ends.most_common():
        print(f"sockets: {number:8,}  {end}")
    print(f"PASSED  seed {options.seed}  {progress}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
