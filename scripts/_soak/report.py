"""Owns the verdicts of a soak, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import attrs
from rich.table import Table

from _soak.reading import MIB, Reading, percentile
from _soak.verdict import PER_SECONDS, growth

if TYPE_CHECKING:
    from rich.console import Console

    from _soak.reading import Run
    from _soak.server import Holdings
    from _soak.verdict import Growth

# A machine that others use as well gives the load less than it wants. Half of it tells as much of growth.
_MOST_SKIPPED = 0.5
_MOST_HEAP_LEFT_BYTES = MIB
"""Caches and tables keep their size after the first crowd; found: 0.3 to 0.6 MiB, however long it lasts."""
_MOST_BLOCKS_LEFT = 5_000
"""The same; found: some 300."""
_PROMISES = ("I1", "I2", "I3", "I4", "I6", "I7")


@attrs.frozen
class Flat:
    """A figure that must not grow: where it is read, and how much it may all the same."""

    name: str
    unit: str
    read: Callable[[Reading], float]
    per_ten_minutes: float
    """What a service that runs for days could not afford more of."""
    once: float
    """What may settle during a run, however long it is: heaps and caches reach their size late."""

    def allowed(self, seconds: float) -> float:
        """The growth in ten minutes that passes, when looked at for so long."""
        return self.per_ten_minutes + self.once * PER_SECONDS / seconds

    def verdict(self, whole: Growth, halves: Sequence[Growth], seconds: float) -> str:
        """`flat`; or that it grows by more than is allowed and than chance explains.

        A leak grows all the time. A moment in which the machine was busy elsewhere fills queues once, and
        the heap keeps its size after that: both halves have to grow.
        """
        least = min(growth.value for growth in (whole, *halves))
        return "GROWS" if least > self.allowed(seconds) and whole.low > 0 else "flat"


# RSS is what an operator sees, but a leak can hide for minutes in the holes that a busy moment left in
# the heap: what is in use of it has no holes, and tells. It swings by what the mailboxes hold.
# Tasks and descriptors count beyond those of the connections that are open: the crowd's size varies.
FLATS = (
    Flat("memory (RSS)", "MiB", lambda r: r.holdings.rss_bytes / MIB, 1.0, 0.5),
    Flat("heap in use", "MiB", lambda r: r.holdings.heap_bytes / MIB, 1.0, 1.0),
    Flat("Python objects", "", lambda r: r.holdings.blocks, 2000.0, 1000.0),
    Flat("tasks", "", lambda r: r.holdings.tasks - 2 * r.connections, 2.0, 4.0),
    Flat("descriptors", "", lambda r: r.holdings.descriptors - r.connections, 2.0, 4.0),
    Flat("threads", "", lambda r: r.holdings.threads, 0.0, 0.5),
)


def print_report(run: Run, console: Console) -> bool:
    """Print the verdicts; whether all are good."""
    settled = run.settled
    seconds = settled[-1].at - settled[0].at
    is_sound = _print_growth(settled, seconds, console)
    is_sound &= _print_promises(run, console)
    book = run.book
    p99 = [reading.p99_ms for reading in settled]
    ways = ", ".join(f"{name} {times}" for name, times in sorted(run.ways.items()))
    console.print(
        f"{book.sent} events sent, {book.acked} acknowledged, {book.delivered} delivered, "
        f"{book.undelivered} named undelivered; {ways}"
    )
    console.print(f"with nobody there, before and after: {_emptied(run.before)}; {_emptied(run.after)}")
    console.print(
        f"p99 of a second: median {median(p99):.1f} ms, worst {max(p99):.1f} ms, "
        f"9 in 10 below {percentile(p99, 0.9):.1f} ms; "
        f"CPU: service {run.cpu[0]:.0%}, load {run.cpu[1]:.0%}; "
        f"{run.skipped:.1%} of the load left out because the machine was busy"
    )
    console.print("SOUND" if is_sound else "FALLS SHORT")
    return is_sound


def _emptied(held: Holdings | None) -> str:
    if held is None:
        return "not read"
    return (
        f"{held.tasks} tasks, {held.descriptors} descriptors, {held.threads} threads, "
        f"{held.heap_bytes / MIB:.1f} MiB of heap, {held.blocks:,} objects, "
        f"RSS {held.rss_bytes / MIB:.1f} MiB"
    )


def _print_growth(settled: list[Reading], seconds: float, console: Console) -> bool:
    table = Table(
        f"over {seconds:.0f} s",
        "from",
        "to",
        "in 10 minutes",
        "by halves",
        "95 % interval",
        "allowed",
        "",
        title_justify="left",
    )
    is_sound = True
    times = [reading.at for reading in settled]
    for flat in FLATS:
        values = [flat.read(reading) for reading in settled]
        found = growth(times, values)
        middle = len(times) // 2
        halves = growth(times[:middle], values[:middle]), growth(times[middle:], values[middle:])
        verdict = flat.verdict(found, halves, seconds)
        is_sound &= verdict == "flat"
        table.add_row(
            flat.name,
            f"{found.start:,.1f} {flat.unit}",
            f"{found.end:,.1f} {flat.unit}",
            f"{found.value:+,.1f}",
            " and ".join(f"{half.value:+,.1f}" for half in halves),
            f"{found.low:+,.1f} to {found.high:+,.1f}",
            f"{flat.allowed(seconds):,.1f}",
            verdict,
        )
    console.print(table)
    return is_sound


def look_for_leftovers(run: Run) -> None:
    """I7 for memory: with nobody there any more, what is in use of it is what it was before anybody came.

    The sharpest of all: neither holes nor full mailboxes nor a busy machine blur it.
    """
    before, after = run.before, run.after
    if after is None:
        return
    heap, blocks = after.heap_bytes - before.heap_bytes, after.blocks - before.blocks
    if heap > _MOST_HEAP_LEFT_BYTES or blocks > _MOST_BLOCKS_LEFT:
        run.book.fault("I7", f"memory left in use: {heap / MIB:.1f} MiB of heap, {blocks:,} Python objects")


def _print_promises(run: Run, console: Console) -> bool:
    book = run.book
    look_for_leftovers(run)
    if run.exit_code != 0:
        book.fault("exit", f"the service ended with {run.exit_code}")
    for line in run.complaints:
        book.fault("log", line)
    if run.skipped > _MOST_SKIPPED:
        book.fault("load", "the load could not keep its rate: the machine is too busy to judge by this run")
    table = Table("promise", "broken", "first")
    for promise in dict.fromkeys((*_PROMISES, *book.faults)):
        table.add_row(promise, f"{book.faults[promise]:,}", book.first.get(promise, ""))
    console.print(table)
    return not book.faults.total()
