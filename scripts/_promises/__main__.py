"""Owns the run: one promise after the other, a line for each figure, the verdict."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _promises.descriptors import descriptors
from _promises.ends import reload, signals, sigterm
from _promises.floods import floods
from _promises.memory import abandoned
from _promises.neighbours import handshakes, keys
from _promises.rate import rate
from _promises.registry import killed, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _promises.figure import Figure

PROMISES: dict[str, Callable[[Path], Iterator[Figure]]] = {
    play.__name__: play
    for play in (
        killed,
        silent,
        floods,
        descriptors,
        sigterm,
        signals,
        reload,
        rate,
        keys,
        handshakes,
        abandoned,
    )
}


def main() -> int:
    """Hold the service to what was asked for; the exit code."""
    arguments = _parse()
    if arguments.list:
        for name in PROMISES:
            print(f"{name:12} {_first_line(name)}")
        return 0
    begin = time.monotonic()
    broken = [name for name in PROMISES if name in arguments.only and not _is_kept(name)]
    kept = len(arguments.only) - len(broken)
    print(f"{kept} of {len(arguments.only)} promises kept, in {time.monotonic() - begin:.0f} s")
    if broken:
        print(f"FALLS SHORT: {', '.join(broken)}")
    return 1 if broken else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/promises", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", type=partial(str.split, sep=","), default=list(PROMISES))
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(PROMISES):
        parser.error(f"no such promise: {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}")
    return arguments


def _first_line(name: str) -> str:
    return (PROMISES[name].__doc__ or "").partition("\n")[0]


def _is_kept(name: str) -> bool:
    """Play it, and print each figure as it is found."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="trio-collab-promises-") as directory:
        try:
            for figure in PROMISES[name](Path(directory)):
                print(f"{name:12} {figure}", flush=True)
                figures.append(figure)
        # A scene of the tests fails as tests do.
        except (Exception, pytest.fail.Exception):
            traceback.print_exc()
            print(f"{name:12} could not be played to its end", flush=True)
            return False
    return bool(figures) and all(figure.is_kept for figure in figures)


if __name__ == "__main__":
    sys.exit(main())
