"""Owns the comparison behind scripts/bench: which work, how often, and what came out."""

from __future__ import annotations

import argparse
import shlex
import sys
from statistics import median
from typing import TYPE_CHECKING, Any

import attrs
from page import Figure, Scale, write_comparison, write_scaling, write_variants
from rich.console import Console
from rich.table import Table
from servers import (
    OURS,
    OURS_BY_SOCKETIO,
    PRODUCTION,
    REFERENCE,
    SERVERS,
    SOCKETIO,
    Failed,
    Server,
    over_tls,
    raise_file_limit,
    run_load,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# Wide enough for the table where the output is a file.
_MOST_IN_PRODUCTION = 1.15
_MOST_BY_SOCKETIO = 1.35
_MOST_OVER_TLS = 2.5
_MOST_KIB_OVER_TLS = 56
console = Console(width=None if sys.stdout.isatty() else 110)


@attrs.frozen(kw_only=True)
class Workload:
    """Work for a server: arguments of `trio-collab bench`, the unit of what counts, and the target.

    The target is a ratio to the reference server, or for `is_absolute` the figure itself.
    """

    name: str
    title: str
    unit: str
    arguments: tuple[str, ...]
    target: float
    is_absolute: bool = False
    target_of: str = OURS
    """The server whose figure the target is for."""
    left_out: tuple[str, ...] = ()
    """Servers for which it makes no sense, or which would need minutes for their presence notices alone."""

    def in_production(self) -> Workload:
        """The same work, held against trio-collab by its defaults."""
        return attrs.evolve(self, target=_MOST_IN_PRODUCTION, target_of="guarded", left_out=())

    def by_socketio(self) -> Workload:
        """The same work by Socket.IO, held against the plain dialect."""
        return attrs.evolve(self, target=_MOST_BY_SOCKETIO, target_of=OURS_BY_SOCKETIO.name, left_out=())

    def over_tls(self) -> Workload:
        """The same work over TLS, held against the same without."""
        target = _MOST_KIB_OVER_TLS if self.is_absolute else _MOST_OVER_TLS
        return attrs.evolve(self, target=target, target_of="tls", left_out=())


WORKLOADS = (
    Workload(
        name="pairs1",
        title="10 pairs, 1 in flight",
        unit="µs",
        arguments=("--in-flight=1",),
        target=0.80,
    ),
    Workload(
        name="pairs16",
        title="10 pairs, 16 in flight",
        unit="µs",
        arguments=("--in-flight=16",),
        target=0.31,
    ),
    Workload(
        name="fanout",
        title="one event to 100 recipients",
        unit="µs",
        arguments=("--workload=fanout", "--recipients=100"),
        target=0.13,
    ),
    Workload(
        name="idle",
        title="an idle connection",
        unit="KiB",
        arguments=("--workload=idle", "--connections=2000"),
        target=24,
        is_absolute=True,
        left_out=("python-socketio", "floor"),
    ),
    Workload(
        name="storm",
        title="a user of 2,000 who come at once",
        unit="ms",
        arguments=("--workload=storm", "--connections=2000"),
        target=2,
        is_absolute=True,
        left_out=("socketio", "ws", "python-socketio", "floor"),
    ),
)

SCALING = (
    ("Recipients of an event", "--workload=fanout --recipients={}", (1, 10, 100, 1000)),
    ("Pairs, each with 1 in flight", "--pairs={}", (1, 10, 100, 1000)),
    ("Bytes of an event's data", "--payload={}", (100, 1000, 10_000, 60_000)),
)


def main() -> int:
    """Run what the arguments ask for. 1: a run failed, or lost something."""
    arguments = _parse()
    raise_file_limit()
    if arguments.scaling:
        return _measure_scaling(arguments)
    with over_tls() as with_tls:
        return _compare(arguments, with_tls)


def _compare(arguments: argparse.Namespace, with_tls: tuple[Server, Server]) -> int:
    wanted = [workload for workload in WORKLOADS if workload.name in arguments.workload]
    if arguments.tls:
        # The users of a storm shake hands as well, for more than they cost else.
        servers, reference = list(with_tls), OURS
        workloads = [workload.over_tls() for workload in wanted if workload.name != "storm"]
    elif arguments.production:
        servers, reference = list(PRODUCTION), OURS
        workloads = [workload.in_production() for workload in wanted if not workload.is_absolute]
    elif arguments.dialect == "socketio":
        servers, reference = [server for server in SOCKETIO if _is_there(server)], OURS
        workloads = [workload.by_socketio() for workload in wanted if not workload.is_absolute]
    else:
        servers = [server for server in SERVERS if server.name in arguments.only and _is_there(server)]
        reference = REFERENCE
        workloads = wanted
    found: dict[tuple[str, str], list[float]] = {}
    has_failed = False
    # Interleaved, so that what else the machine does meets all servers alike.
    for number in range(1, arguments.rounds + 1):
        for workload in workloads:
            for server in servers:
                if server.name in workload.left_out:
                    continue
                what = f"round {number} of {arguments.rounds}, {workload.name}, {server.name}"
                value = _measure(server, workload.arguments, arguments.seconds, what)
                has_failed = has_failed or value is None
                if value is not None:
                    found.setdefault((workload.name, server.name), []).append(value)
    figures = _figures(workloads, servers, found, reference)
    if arguments.dialect == "socketio":
        figures = [_held_against_ours(figure, figures) for figure in figures]
    _show(figures, reference)
    circumstances = {"command": _command(), "rounds": arguments.rounds, "seconds": arguments.seconds}
    if arguments.write and arguments.production:
        write_variants("production", "settings", figures, **circumstances)
    elif arguments.write and arguments.tls:
        write_variants("tls", "server", figures, **circumstances)
    elif arguments.write and arguments.dialect == "socketio":
        write_variants("socketio", "server", figures, **circumstances)
    elif arguments.write:
        write_comparison(figures, **circumstances)
    return 1 if has_failed else 0


def _parse() -> argparse.Namespace:
    """The arguments. What they mean is said by `scripts/bench --help`."""
    parser = argparse.ArgumentParser(prog="scripts/bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--production", action="store_true")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--dialect", choices=("plain", "socketio"), default="plain")
    parser.add_argument("--no-write", dest="write", action="store_false")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only")
    parser.add_argument("--workload")
    arguments = parser.parse_args()
    if arguments.quick or arguments.only or arguments.workload:
        arguments.write = False
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.seconds = arguments.seconds or (1.0 if arguments.quick else 4.0)
    names = [server.name for server in SERVERS]
    arguments.only = _chosen(parser, arguments.only, names, names)
    names = [workload.name for workload in WORKLOADS]
    arguments.workload = _chosen(parser, arguments.workload, names, names)
    return arguments


def _chosen(
    parser: argparse.ArgumentParser, given: str | None, known: Iterable[str], usual: Iterable[str]
) -> list[str]:
    names = given.split(",") if given else list(usual)
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    return names


def _is_there(server: Server) -> bool:
    if not server.is_installed:
        _say(f"{server.name} is left out: there is no Node")
    return server.is_installed


def _measure(server: Server, arguments: tuple[str, ...], seconds: float, what: str) -> float | None:
    """What counts of one run, or None where it failed."""
    try:
        value = _value(run_load(server, (*arguments, f"--seconds={seconds}", f"--warmup={seconds / 2}")))
    except Failed as error:
        _say(f"{what}: failed, {error}")
        return None
    _say(f"{what}: {value:.1f}")
    return value


def _value(report: dict[str, Any]) -> float:
    if report["memory"]:
        return float(report["bytes_per_connection"]) / 1024
    if report["phases"]:
        # The dearest of coming, going and coming back.
        return max(phase["server_seconds"] / phase["users"] * 1000 for phase in report["phases"])
    return float(report["server_us_per_event"])


def _figures(
    workloads: list[Workload],
    servers: list[Server],
    found: dict[tuple[str, str], list[float]],
    against: str,
) -> list[Figure]:
    figures = []
    for workload in workloads:
        reference = found.get((workload.name, against))
        for server in servers:
            if values := found.get((workload.name, server.name)):
                value = median(values)
                # Memory that a garbage collector gave back in between is no measure to hold others against.
                ratio = value / median(reference) if reference and min(reference) > 0 else None
                target = workload.target if server.name == workload.target_of else None
                held_against = value if workload.is_absolute else ratio
                figures.append(
                    Figure(
                        workload=workload.title,
                        unit=workload.unit,
                        server=server.name,
                        title=server.title,
                        value=value,
                        lowest=min(values),
                        highest=max(values),
                        ratio=ratio,
                        target=target,
                        target_text=_target_text(workload) if target is not None else "",
                        is_met=None if target is None or held_against is None else held_against <= target,
                    )
                )
    return figures


def _held_against_ours(figure: Figure, figures: list[Figure]) -> Figure:
    """Node's figure with its own target: to be above ours by the same dialect."""
    if figure.server != REFERENCE:
        return figure
    ours = next(
        (
            other.value
            for other in figures
            if (other.workload, other.server) == (figure.workload, OURS_BY_SOCKETIO.name)
        ),
        None,
    )
    if ours is None:
        return figure
    return attrs.evolve(
        figure, target=ours, target_text=f"above {ours:,.1f} {figure.unit}", is_met=figure.value > ours
    )


def _target_text(workload: Workload) -> str:
    return f"{workload.target:g} {workload.unit}" if workload.is_absolute else f"{workload.target:.2f}"


def _show(figures: list[Figure], against: str) -> None:
    table = Table(title="CPU time of the server for each event; memory for each connection")
    for heading in ("work", "server"):
        table.add_column(heading)
    for heading in ("median", "lowest to highest", f"against {against}", "target"):
        table.add_column(heading, justify="right")
    before = None
    for figure in figures:
        work, *others = figure.cells()
        if figure.workload == before:
            work = ""
        elif before is not None:
            table.add_section()
        table.add_row(work, *others, style="red" if figure.is_met is False else None)
        before = figure.workload
    console.print(table)


def _measure_scaling(arguments: argparse.Namespace) -> int:
    scales: list[Scale] = []
    has_failed = False
    for title, template, sizes in SCALING:
        found: dict[int, list[float]] = {}
        for number in range(1, arguments.rounds + 1):
            for size in sizes:
                given = tuple(template.format(size).split())
                what = f"round {number} of {arguments.rounds}, {title.lower()}: {size:,}"
                value = _measure(SERVERS[0], given, arguments.seconds, what)
                has_failed = has_failed or value is None
                if value is not None:
                    found.setdefault(size, []).append(value)
        scales.append(Scale(title=title, us_by_size={size: median(found[size]) for size in found}))
    for scale in scales:
        table = Table(title=scale.title)
        table.add_column("size", justify="right")
        table.add_column("CPU an event", justify="right")
        for size, microseconds in scale.us_by_size.items():
            table.add_row(f"{size:,}", f"{microseconds:,.1f} µs")
        console.print(table)
    if arguments.write:
        write_scaling(scales, command=_command(), rounds=arguments.rounds, seconds=arguments.seconds)
    return 1 if has_failed else 0


def _command() -> str:
    return shlex.join(["scripts/bench", *sys.argv[1:]])


def _say(text: str) -> None:
    console.print(f"bench: {text}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
