"""Owns the run: a copy of the checkout for each fault, the tests in it, the table."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from _mutants.faults import FAULTS, ROOT, Stale

TESTS = (
    "tests/core",
    "tests/edge/test_life.py",
    "tests/faults/test_model.py",
    "tests/faults/test_conservation.py",
)
LIMIT_SECONDS = 180.0
_COPIED = ("collab", "tests", "pyproject.toml")
_AT_ONCE = min(2, os.cpu_count() or 1)
_TESTS_FAILED = 1  # pytest's exit code; 2 and above: it could not run them
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_TAIL_CHARACTERS = 3000


@attrs.frozen
class Outcome:
    """What became of one run of the tests."""

    code: int | None
    """pytest's exit code; None where it was not done in time."""
    output: str
    seconds: float

    @property
    def is_caught(self) -> bool:
        """Whether a test failed, and not only pytest."""
        return self.code == _TESTS_FAILED and bool(self.caught_by)

    @property
    def caught_by(self) -> str:
        """The first test that failed."""
        found = _FAILED.search(self.output)
        return found[1] if found else ""

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.is_caught:
            return self.caught_by
        if self.code is None:
            return f"not caught: the tests hung for {LIMIT_SECONDS:g} s"
        return "NOT CAUGHT" if self.code == 0 else f"not caught: pytest ended with {self.code}"


def main() -> int:
    """Plant what was asked for; the exit code."""
    arguments = _parse()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.list:
        _print_list(console)
        return 0
    faults = [fault for fault in FAULTS if fault.name in arguments.only]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trio-collab-mutants-") as directory:
        place = Path(directory)
        try:
            # Before the long part: a fault that does not fit any more is told at once.
            for fault in faults:
                fault.apply(_copy(place / fault.name))
        except Stale as stale:
            print(f"mutants: {stale}", file=sys.stderr)
            return 1
        if not arguments.passed and not _pass_without_a_fault(place / "whole", console):
            return 1
        console.print(f"now with one of {len(faults)} faults each")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            outcomes = list(pool.map(_run_tests, (place / fault.name for fault in faults)))
    table = Table("fault", "caught by", "seconds")
    for fault, outcome in zip(faults, outcomes, strict=True):
        table.add_row(fault.name, outcome.verdict, f"{outcome.seconds:.1f}")
    console.print(table)
    survivors = [(f, o) for f, o in zip(faults, outcomes, strict=True) if not o.is_caught]
    for fault, outcome in survivors:
        console.print(f"\n{fault.name}: {fault.harm}\n{outcome.output[-_TAIL_CHARACTERS:]}", markup=False)
    caught = len(faults) - len(survivors)
    console.print(f"{caught} of {len(faults)} caught, in {time.monotonic() - begin:.0f} s")
    return 1 if survivors else 0


def _pass_without_a_fault(place: Path, console: Console) -> bool:
    console.print(f"without a fault: {' '.join(_tests())}")
    whole = _run_tests(_copy(place))
    if whole.code != 0:
        print(whole.output[-_TAIL_CHARACTERS:])
        print("mutants: the tests do not even pass without a fault", file=sys.stderr)
        return False
    console.print(f"passed in {whole.seconds:.0f} s")
    return True


def _parse() -> argparse.Namespace:
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog="scripts/mutants", add_help=False, allow_abbrev=False)
    parser.add_argument("--only", type=partial(str.split, sep=","), default=names)
    parser.add_argument("--passed", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(names):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return arguments


def _print_list(console: Console) -> None:
    table = Table("fault", "what a user would suffer")
    for fault in FAULTS:
        table.add_row(fault.name, fault.harm)
    console.print(table)


def _tests() -> list[str]:
    return [path for path in TESTS if (ROOT / path).exists()]


def _copy(place: Path) -> Path:
    """What the tests need of the checkout, in a directory of its own."""
    place.mkdir()
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


def _run_tests(place: Path) -> Outcome:
    """The tests in this copy, to the first that fails, against the code of this copy.

    Examples are the same each time, so that a fault that was caught once is caught again.
    """
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "CI": "true"}
    environment.pop("TRIO_COLLAB_TESTS", None)
    begin = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", "import collab; print(collab.__file__)"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    if not Path(found.stdout.strip()).is_relative_to(place.resolve()):
        return Outcome(-1, f"the tests would run against {found.stdout}", 0.0)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *_tests()]
    try:
        run = subprocess.run(
            command,
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return Outcome(None, text, time.monotonic() - begin)
    return Outcome(run.returncode, run.stdout, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
