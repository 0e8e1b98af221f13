"""Owns the run: a service, a crowd, a reading each second, and the verdicts."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from _bench.servers import LOAD_CPU, Failed, pin, raise_file_limit
from rich.console import Console

from _soak.crowd import LIFE_SECONDS, STAYING, Crowd
from _soak.reading import Reading, Run, percentile
from _soak.report import print_report
from _soak.server import Holdings, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from _soak.server import Server

LEAST_MINUTES = 2.0
_WARM_UP_PART = 0.2
_LEAST_WARM_UP_SECONDS = 20.0
_MOST_BEHIND_SECONDS = 1.0
_SENDS_AT_ONCE = 64
_QUIET_SECONDS = 2.5
_BACK_SECONDS = 30.0
_TOUCH_CLIENTS = 24
_TOUCH_SECONDS = 3.0


def main() -> int:
    """Soak, and print what came of it; the exit code."""
    arguments = _parse()
    console = Console(width=None if sys.stdout.isatty() else 120)
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    console.print(
        f"{arguments.clients} clients, {arguments.rate:g} events a second, {arguments.minutes:g} minutes; "
        f"seed {seed}"
    )
    raise_file_limit()
    try:
        with running() as server:
            pin(LOAD_CPU)
            run = _soak(server, arguments, random.Random(seed), console)
            server.end()
            run.exit_code = server.exit_code
            run.complaints = server.complaints()
    except (Failed, ChildProcessError) as error:
        console.print(f"soak: {error}", markup=False)
        return 1
    is_sound = print_report(run, console)
    if arguments.plot:
        from _soak.plot import draw

        draw(run, arguments.plot)
        console.print(f"drawn into {arguments.plot}", markup=False)
    return 0 if is_sound else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", add_help=False, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"))
    parser.add_argument("--no-plot", dest="plot", action="store_const", const=None)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.minutes < LEAST_MINUTES:
        parser.error(f"--minutes: {LEAST_MINUTES:g} at least; shorter tells nothing of growth")
    if arguments.clients < 20 or arguments.rate < 10:
        parser.error("--clients: 20 at least; --rate: 10 at least")
    if arguments.plot and arguments.plot.suffix not in (".svg", ".png"):
        parser.error("--plot: a file that ends in .svg or .png")
    return arguments


def _soak(server: Server, arguments: argparse.Namespace, draw: random.Random, console: Console) -> Run:
    """Touch everything once, take the baseline, let the crowd in, read each second, let it out."""
    # What the first client of its kind leaves behind for good (imports, caches) is no leak.
    touching = Crowd(server.port, draw)
    touching.let_stayers_in(_TOUCH_CLIENTS)
    _drive(touching, _TOUCH_SECONDS, rate=200.0, others=_TOUCH_CLIENTS, tick=lambda: None)
    touching.wait_for_all()
    touching.leave_all()
    touching.settle(lambda: False, _QUIET_SECONDS)
    before = _now(server)

    crowd = Crowd(server.port, draw)
    crowd.let_stayers_in(int(arguments.clients * STAYING))
    crowd.block_each_stayer_once()
    seconds = arguments.minutes * 60
    run = Run(
        book=crowd.book,
        ways=crowd.ways,
        before=before,
        warm_up_seconds=max(seconds * _WARM_UP_PART, _LEAST_WARM_UP_SECONDS),
        rate=arguments.rate,
    )
    for promise, times in touching.book.faults.items():
        run.book.fault(promise, f"{touching.book.first[promise]} ({times} before the soak itself)")
    begin = time.monotonic()
    cpu = [server.cpu_seconds, time.process_time()]

    def tick() -> None:
        holdings = server.holdings()
        if holdings is None:
            return
        late, crowd.book.late = crowd.book.late, []
        reading = Reading(
            at=time.monotonic() - begin,
            holdings=holdings,
            connections=crowd.connections,
            p99_ms=percentile(late, 0.99) * 1000,
            routed=crowd.health.get("total_events_routed", 0),
        )
        run.readings.append(reading)
        if len(run.readings) % 30 == 0:
            console.print(reading.line())

    others = arguments.clients - int(arguments.clients * STAYING)
    run.skipped = _drive(crowd, seconds, rate=arguments.rate, others=others, tick=tick) / seconds
    run.cpu = (server.cpu_seconds - cpu[0]) / seconds, (time.process_time() - cpu[1]) / seconds
    crowd.wait_for_all()
    crowd.leave_all()
    _wait_until_back(server, crowd, run)
    return run


def _drive(crowd: Crowd, seconds: float, *, rate: float, others: int, tick: Callable[[], None]) -> float:
    """Keep the crowd busy for so long, in an open loop; how many seconds of events had to be left out.

    A machine that is busy elsewhere for more than a second is not made to catch up: that would be
    another load than the one asked for, and would fill queues that say nothing of the service.
    """
    begin = now = time.monotonic()
    sends_from = begin
    sends = leaves = ticks = 0
    churn = others / LIFE_SECONDS
    skipped = 0.0
    while now < begin + seconds:
        due = sends_from + sends / rate
        if now - due > _MOST_BEHIND_SECONDS:
            skipped += now - due
            sends_from += now - due
            due = now
        # Now and then the sockets must be looked at, however much is due.
        for _ in range(_SENDS_AT_ONCE):
            if due > now:
                break
            crowd.send(due)
            sends += 1
            due = sends_from + sends / rate
        if begin + leaves / churn <= now:
            leaves += 1
            crowd.leave()
            while crowd.passing < others:
                crowd.come()
        if begin + ticks <= now:
            ticks += 1
            tick()
            crowd.call()
            crowd.look_after()
        crowd.turn(max(min(due, begin + leaves / churn, begin + ticks) - time.monotonic(), 0.0))
        now = time.monotonic()
    return skipped


def _wait_until_back(server: Server, crowd: Crowd, run: Run) -> None:
    """I7 and I4: nobody is there, and nothing is left."""
    crowd.settle(lambda: _now(server).is_back_at(run.before), _BACK_SECONDS)
    # What was told a moment ago may be older than the last of them.
    crowd.settle(lambda: False, _QUIET_SECONDS)
    run.after = _now(server)
    if not run.after.is_back_at(run.before):
        run.book.fault("I7", f"{run.before} before, {run.after} after")
    crowd.call()
    crowd.wait_for_all()
    if crowd.health.get("active_users") != 0:
        run.book.fault("I4", f"everybody left, and /health says {crowd.health}")


def _now(server: Server) -> Holdings:
    while (holdings := server.holdings()) is None:
        time.sleep(0.1)
    return holdings


if __name__ == "__main__":
    sys.exit(main())
