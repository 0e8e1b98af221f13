"""Owns `trio-collab bench`: its flags, its progress bar, and the table of what a run found."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from collab.bench import Options, Report, run_bench
from collab.bench.dialects import DIALECTS
from collab.bench.options import MAX_CONNECTIONS, MAX_SECONDS, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from collab.bench.latency import Percentiles

F = TypeVar("F", bound="Callable[..., Any]")


_FLAGS: tuple[tuple[str, type | click.Choice[str], str], ...] = (
    ("workload", click.Choice(WORKLOADS), "What the users do."),
    ("pairs", int, "Senders, each with one recipient (pairs, open-loop)."),
    ("recipients", int, "Recipients of each event (fanout)."),
    ("connections", int, f"Users (idle, storm); at most {MAX_CONNECTIONS - 1:,}."),
    ("in_flight", int, "Unacknowledged events of each sender (pairs, fanout)."),
    ("rate", float, "Events a second, all senders together (open-loop)."),
    ("payload_bytes", int, "Bytes of an event's data."),
    ("seconds", float, f"How long to measure; at most {MAX_SECONDS:g}."),
    ("events", int, "Stop after so many events, without a warm-up. 0: only the time counts."),
    ("warmup_seconds", float, "Seconds of load before measuring."),
    ("dialect", click.Choice(list(DIALECTS)), "How to speak to the service."),
    (
        "secret",
        str,
        "Its auth.secret, for a token of each user; also from COLLAB_AUTH__SECRET.",
    ),
    ("pid", int, "Process of the service on this machine: its CPU time and memory are measured."),
)


def _option_flags(command: F) -> F:
    defaults = attrs.fields_dict(Options)
    for name, kind, text in reversed(_FLAGS):
        command = click.option(
            "--" + name.removesuffix("_bytes").removesuffix("_seconds").replace("_", "-"),
            name,
            type=kind,
            default=defaults[name].default,
            show_default=defaults[name].default not in (None, ""),
            envvar="COLLAB_AUTH__SECRET" if name == "secret" else None,
            help=text,
        )(command)
    return command


@click.command()
@click.argument("url")
@_option_flags
@click.option(
    "--presence/--no-presence",
    "wants_presence",
    default=True,
    help="Whether the users want user_online and user_offline.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def bench(as_json: bool, **given: object) -> int:
    """Put load on the service at URL (ws://host:port), measure it, and check what arrives.

    Of wss:// the certificate must be for the host, and of an authority that is known here, or that stands
    in the file of the variable SSL_CERT_FILE.

    \b
    pairs      each sender keeps some events in flight to its own recipient
    fanout     one sender, every event to many recipients
    open-loop  events at a fixed rate; latency counts from when each was due
    idle       connections that only stay open
    storm      users who connect all at once, vanish, and return

    Exit code 1 where anything was lost, came twice or out of order, or the service is down.
    """
    try:
        # click has converted each value to the type of its field.
        options = Options(**given)  # type: ignore[arg-type] # mypy knows no types of keywords
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    report = _run(options)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        from rich.console import Console

        Console().print(_table(report))
    return 1 if report.has_faults else 0


def _run(options: Options) -> Report:
    if not sys.stderr.isatty():
        return run_bench(options)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), TimeElapsedColumn())
    # Drawn by us alone: a thread that draws would take time from the load.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    with bar:
        task = bar.add_task("starting", total=1.0)

        def show(doing: str, part: float) -> None:
            bar.update(task, description=doing, completed=part, refresh=True)

        return run_bench(options, show)


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table(title=f"{report.workload}, {report.dialect} dialect", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _rows(report):
        table.add_row(name, value)
    faults = report.faults
    for name, count in faults.items():
        table.add_row(name, f"{count:,}", style="red" if count else "green")
    for text in _explanations(report):
        table.add_row("", text, style="red")
    return table


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "connections", f"{report.connections:,}"
    yield "measured", f"{report.seconds:.1f} s"
    if traffic := report.traffic:
        yield "sent in all", f"{traffic.sent:,}"
        yield "events", f"{traffic.events:,}"
        yield "events a second", f"{traffic.events / report.seconds:,.0f}"
        if traffic.deliveries != traffic.events:
            yield "deliveries", f"{traffic.deliveries:,}"
            yield "deliveries a second", f"{traffic.deliveries / report.seconds:,.0f}"
        yield "sender to recipient, p50 / p99 / p99.9", _latency(traffic.delivery_latency)
        yield "sender to ack, p50 / p99 / p99.9", _latency(traffic.ack_latency)
    if memory := report.memory:
        for count, size in (
            (memory.half_connections, memory.half_bytes),
            (memory.all_connections, memory.all_bytes),
        ):
            if size is not None:
                yield f"memory of the server at {count:,}", f"{size / 2**20:,.1f} MiB"
        if memory.bytes_per_connection is not None:
            yield "memory per connection (slope)", f"{memory.bytes_per_connection / 1024:.1f} KiB"
    for phase in report.phases:
        yield f"{phase.name}: {phase.users:,} users", f"{phase.seconds:.2f} s"
        if phase.server_seconds is not None:
            cost_ms = phase.server_seconds / phase.users * 1000
            yield f"{phase.name}: CPU of the server", f"{cost_ms:.2f} ms a user"
        yield f"{phase.name}: notices", f"{phase.notices:,} of {phase.expected_notices:,}"
    if report.server_us_per_event is not None:
        yield "CPU of the server", f"{report.server_us_per_event:.1f} µs an event"
    elif report.cost.server_seconds is not None:
        yield "CPU of the server", f"{report.cost.server_seconds:.2f} s"
    if report.own_us_per_event is not None:
        yield "CPU of this load generator", f"{report.own_us_per_event:.1f} µs an event"


def _explanations(report: Report) -> Iterator[str]:
    if report.first_end:
        yield f"first end: {report.first_end}"
    if report.traffic and report.traffic.undelivered:
        yield f"{report.traffic.undelivered:,} losses were named as undelivered"
    if report.traffic and report.traffic.first_error:
        yield f"first error: {report.traffic.first_error}"


def _latency(found: Percentiles | None) -> str:
    if found is None:
        return "none"
    return " / ".join(_time(value) for value in (found.p50_us, found.p99_us, found.p999_us))


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 10_000 else f"{microseconds / 1000:.1f} ms"
