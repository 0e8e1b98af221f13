"""Owns what scripts/neighbours measures: each scene without and with the bad one, and the verdicts."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
from rich.console import Console
from rich.table import Table
from servers import COMMAND, LOAD_CPU, OURS, Failed, Server, pin, put_under_load, raise_file_limit, running

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_TIMES_P99 = 2.0
END_SECONDS = 60.0
SAMPLE_SECONDS = 0.1
LOAD = ("--workload=open-loop", "--pairs=24", "--rate=1000", "--warmup=1")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Wide enough for the table where the output is a file.
console = Console(width=None if sys.stdout.isatty() else 140)


@attrs.frozen
class Scene:
    """One bad neighbour: how much the service may grow with it, and settings that it needs."""

    name: str
    memory_mib: float
    environment: tuple[str, ...] = ()
    control: str = ""
    """What stands in the place of nobody: the same crowd and the same traffic, but none of them bad."""


SCENES = (
    # A mailbox, and what waits behind it: twice, as they may be in the middle of being joined.
    Scene("stalled", 16),
    # A frame of an event is shared; what a stopped one has of its own is what its writer took.
    # Half a mailbox, so that they are sent away while it is measured.
    Scene("stopped", 128, ("COLLAB_LIMITS__MAILBOX_BYTES=512KiB",), control="reading"),
    Scene("ping-flood", 16),
    Scene("pong-flood", 16),
    Scene("empty-fragments", 16),
    Scene("one-byte-fragments", 16),
    Scene("small-fragments", 16),
    Scene("one-byte-messages", 16),
    Scene("ping-messages", 16),
    Scene("offline-names", 16),
    Scene("slow-head", 16),
    Scene("killed", 16),
    Scene(
        "silent",
        16,
        ("COLLAB_TIMEOUTS__PING_INTERVAL=2s", "COLLAB_TIMEOUTS__PING_TIMEOUT=2s"),
    ),
)


@attrs.frozen
class Round:
    """What one round of a scene found; latencies in microseconds."""

    p50_without: float
    p99_without: float
    p50_with: float
    p99_with: float
    growth_mib: float
    ends: dict[str, int]
    slowest_seconds: float
    broken: tuple[str, ...]


def main() -> int:
    """Run what the arguments ask for. 1: a verdict is bad."""
    arguments = _parse()
    raise_file_limit()
    scenes = [scene for scene in SCENES if scene.name in arguments.scene]
    found: dict[str, list[Round]] = {scene.name: [] for scene in scenes}
    failures: dict[str, str] = {}
    # In turn, so that what else the machine does meets all scenes alike.
    for number in range(1, arguments.rounds + 1):
        for scene in scenes:
            try:
                outcome = _measure(scene, arguments.seconds)
            except (Failed, subprocess.TimeoutExpired) as error:
                failures[scene.name] = str(error)
                _say(f"round {number} of {arguments.rounds}, {scene.name}: failed, {error}")
                continue
            found[scene.name].append(outcome)
            _say(
                f"round {number} of {arguments.rounds}, {scene.name}: "
                f"p99 {_ms(outcome.p99_without)}, beside it {_ms(outcome.p99_with)}"
            )
    return _show(scenes, found, failures)


def _parse() -> argparse.Namespace:
    """The arguments. What they mean is said by `scripts/neighbours --help`."""
    parser = argparse.ArgumentParser(prog="scripts/neighbours", add_help=False, allow_abbrev=False)
    parser.add_argument("--scene")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    names = [scene.name for scene in SCENES]
    arguments.scene = arguments.scene.split(",") if arguments.scene else names
    for name in arguments.scene:
        if name not in names:
            parser.error(f"{name!r} is none of {', '.join(names)}")
    return arguments


def _measure(scene: Scene, seconds: float) -> Round:
    """One round: a service of its own, the load without the bad neighbour, and the same beside it."""
    serve = (COMMAND, "serve", "--host=127.0.0.1", "--port={port}", "--log-level=warning")
    server = Server(OURS, OURS, ("env", *scene.environment, *serve), "plain")
    load = (*LOAD, f"--seconds={seconds}")
    broken: list[str] = []
    if scene.control:
        # In a service of its own, which it may leave larger than it was.
        with running(server) as (url, pid):
            without, became = _put_beside(scene.control, url, pid, load)
            broken += became["broken"]
    with running(server) as (url, pid):
        if not scene.control:
            without = put_under_load(url, pid, load)
        before = _resident_bytes(pid)
        with _peak_of(pid) as peak:
            beside, became = _put_beside(scene.name, url, pid, load)
    broken += became["broken"]
    for when, report in (("alone", without), ("beside it", beside)):
        faults = {name: count for name, count in report["faults"].items() if count}
        if faults:
            broken.append(f"the others {when}: {faults} {report['first_end']}")
    growth_mib = (max(peak) - before) / 2**20
    if growth_mib > scene.memory_mib:
        broken.append(f"the service grew by {growth_mib:.0f} MiB")
    (p50_without, p99_without), (p50_with, p99_with) = _latency(without), _latency(beside)
    return Round(
        p50_without,
        p99_without,
        p50_with,
        p99_with,
        growth_mib,
        became["ends"],
        became["slowest_seconds"],
        tuple(broken),
    )


def _put_beside(
    name: str, url: str, pid: int, load: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of the load beside a neighbour, and what became of the neighbour."""
    neighbour = _begin(name, url)
    try:
        report = put_under_load(url, pid, load)
    finally:
        became = _end(neighbour)
    return report, became


def _latency(report: dict[str, Any]) -> tuple[float, float]:
    found = report["traffic"]["delivery_latency"]
    if found is None:
        raise Failed("nothing arrived")
    return found["p50_us"], found["p99_us"]


def _begin(name: str, url: str) -> subprocess.Popen[str]:
    """The neighbour, once it is bad."""
    neighbour = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("neighbour.py")), name, str(urlsplit(url).port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_give_way,
    )
    assert neighbour.stdout is not None
    line = neighbour.stdout.readline()
    if line != "ready\n":
        _end(neighbour)
        raise Failed(f"the neighbour did not begin: {line}")
    return neighbour


def _give_way() -> None:
    pin(LOAD_CPU)
    os.nice(10)


def _end(neighbour: subprocess.Popen[str]) -> dict[str, Any]:
    """Stop the neighbour: what became of it."""
    try:
        output, _ = neighbour.communicate(timeout=END_SECONDS)
    finally:
        neighbour.kill()
        neighbour.wait()
    try:
        became: dict[str, Any] = json.loads(output)
    except ValueError:
        raise Failed(f"the neighbour ended with {neighbour.returncode}") from None
    return became


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


@contextmanager
def _peak_of(pid: int) -> Iterator[list[int]]:
    """The resident memory of a process, ten times a second, from here to the end of the block."""
    samples = [_resident_bytes(pid)]
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            samples.append(_resident_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _show(scenes: list[Scene], found: dict[str, list[Round]], failures: dict[str, str]) -> int:
    table = Table(title="24 pairs, 1,000 events a second, without and beside a bad neighbour (medians)")
    table.add_column("neighbour")
    for heading in ("p50", "beside it", "p99", "beside it", "p99 ratio", "memory"):
        table.add_column(heading, justify="right")
    table.add_column("what became of it")
    table.add_column("verdict")
    complaints: list[str] = []
    for scene in scenes:
        rounds = found[scene.name]
        wrong = [f"{scene.name}: {text}" for one in rounds for text in one.broken]
        if scene.name in failures:
            wrong.append(f"{scene.name}: {failures[scene.name]}")
        cells: list[str] = []
        if rounds:
            p50_without, p99_without, p50_with, p99_with = (
                median(getattr(one, name) for one in rounds)
                for name in ("p50_without", "p99_without", "p50_with", "p99_with")
            )
            ratio = p99_with / p99_without
            if ratio > MOST_TIMES_P99:
                wrong.append(f"{scene.name}: the p99 of the others is {ratio:.2f} times what it was")
            growth = max(one.growth_mib for one in rounds)
            cells = [_ms(value) for value in (p50_without, p50_with, p99_without, p99_with)]
            cells += [f"{ratio:.2f}", f"+{growth:.1f} of {scene.memory_mib:g} MiB", _became(rounds)]
        cells += [""] * (7 - len(cells))
        table.add_row(scene.name, *cells, "bad" if wrong else "good", style="red" if wrong else None)
        complaints += wrong
    console.print(table)
    for text in dict.fromkeys(complaints):
        _say(text)
    return 1 if complaints else 0


def _became(rounds: list[Round]) -> str:
    ends: Counter[str] = Counter()
    for one in rounds:
        ends.update(one.ends)
    told = ", ".join(f"{end} x {count}" for end, count in ends.most_common())
    slowest = max(one.slowest_seconds for one in rounds)
    return f"{told or 'nothing'}; after {slowest:.2f} s at most" if slowest else told or "nothing"


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f} ms"


def _say(text: str) -> None:
    console.print(f"neighbours: {text}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
