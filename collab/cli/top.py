"""Owns `trio-collab top`: what a service does right now, and for whom it has to wait."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import click

from collab.cli.far import Declined, Unreachable, far_flags, run_until_interrupted
from collab.cli.screen import count, duration, is_number, live, note, plain, say_json, screen, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from collab.cli.far import Far

_MOST_ROWS = 20
_TEXTS = ("user_id", "address", "connected_at")
_NUMBERS = ("id", "queued_messages", "queued_bytes", "in_flight")


@attrs.frozen(kw_only=True)
class Look:
    """What one look found."""

    at: float
    counters: dict[str, Any]
    connections: list[dict[str, Any]] | None
    """None where they may not be seen; `why_not` says why."""
    why_not: str
    slow: frozenset[int] = frozenset()
    """Connections for whom messages waited at the look before, too."""
    events_per_second: float | None = None
    connects_per_second: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`. A rate is null at the first look, and after a restart of the service."""
        connections = self.connections
        return {
            **self.counters,
            "events_per_second": self.events_per_second,
            "connects_per_second": self.connects_per_second,
            "connections": None if connections is None else len(connections),
            "queued_messages": None if connections is None else _sum(connections, "queued_messages"),
            "queued_bytes": None if connections is None else _sum(connections, "queued_bytes"),
            "in_flight": None if connections is None else _sum(connections, "in_flight"),
            "slow_consumers": None
            if connections is None
            else [row for row in connections if row["id"] in self.slow],
        }


@click.command()
@far_flags
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Two looks, for the rates, and an end.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each look.")
def top(far: Far, interval: float, once: bool, as_json: bool) -> int:
    """Show what the service does right now: rates, users, queues, slow consumers. Until Ctrl-C.

    Queues and slow consumers are for operators: --token is then admin.token, or a token with the scope
    admin. The service notes each look of an operator in its log.

    Exit code 0, 1 if the service cannot be asked, 2 for wrong usage.
    """
    return run_until_interrupted(partial(_top, far, interval, once, as_json))


async def _top(far: Far, interval: float, once: bool, as_json: bool) -> int:
    import trio

    before: Look | None = None
    console = screen()
    trouble = ""
    with live(wanted=not as_json and not once) as show:
        while True:
            try:
                now = _compared(await _look(far), before)
                trouble = ""
            except (Unreachable, Declined) as error:
                if before is None or once:
                    raise
                if not trouble and show is None:
                    note(str(error))
                trouble, now = str(error), before
            is_last = once and before is not None
            if as_json and not trouble and (is_last or not once):
                say_json(now.as_dict())
            elif show is not None:
                show(_page(far, now, trouble))
            elif not as_json and not trouble and (is_last or not once):
                console.print(_page(far, now, ""))
            if is_last:
                return 0
            before = now
            await trio.sleep(interval)


async def _look(far: Far) -> Look:
    from collab.cli.asking import ask_json, strange
    from collab.cli.health import look

    counters = await look(far.without_token(), 10.0)
    at = time.monotonic()
    connections, why_not = None, ""
    if not far.has_token:
        why_not = "queues and slow consumers: for operators, with --token or COLLAB_TOKEN"
    else:
        try:
            rows = (await ask_json(far, "GET", "/api/admin/connections")).get("connections")
        except Declined as error:
            if error.status not in (401, 403, 404):
                raise
            why_not = (
                "queues and slow consumers: this service knows no operators; set its admin.token"
                if error.status == 404
                else f"queues and slow consumers: not for this token; {error}"
            )
        else:
            if not isinstance(rows, list) or not all(map(_is_row, rows)):
                raise strange(far)
            connections = rows
    return Look(at=at, counters=counters, connections=connections, why_not=why_not)


def _compared(now: Look, before: Look | None) -> Look:
    """What two looks tell together."""
    if before is None or now.counters["uptime"] < before.counters["uptime"]:
        return now
    # Rates of what has been looked at once and again; the uptime is too coarse for that.
    seconds = max(now.at - before.at, 1e-9)

    def rate(counter: str) -> float:
        return round(max(0.0, float(now.counters[counter] - before.counters[counter])) / seconds, 1)

    waiting = [
        {row["id"] for row in look.connections or () if row["queued_messages"]} for look in (before, now)
    ]
    return attrs.evolve(
        now,
        slow=frozenset(waiting[0] & waiting[1]),
        events_per_second=rate("total_events_routed"),
        connects_per_second=rate("total_connections"),
    )


def _page(far: Far, look: Look, trouble: str) -> RenderableType:
    from rich.console import Group

    counters = look.counters
    lines: list[RenderableType] = [
        plain(
            f"{far.websocket_url}, up {duration(counters['uptime'])}"
            + (", going down" if counters["draining"] else ""),
            "bold",
        ),
        _rate_line("events", look.events_per_second, counters["total_events_routed"]),
        _rate_line("connects", look.connects_per_second, counters["total_connections"]),
        plain(f"users    {counters['active_users']:>12,} online"),
    ]
    if look.connections is None:
        lines.append(plain(look.why_not, "yellow"))
    else:
        lines += _queues(look, look.connections)
    if trouble:
        lines.append(plain(f"not current: {trouble}", "red"))
    return Group(*lines)


def _queues(look: Look, connections: list[dict[str, Any]]) -> list[RenderableType]:
    from rich.table import Table

    lines: list[RenderableType] = [
        plain(
            f"queued   {_sum(connections, 'queued_messages'):>12,} messages   "
            f"{size(_sum(connections, 'queued_bytes'))}"
        ),
        plain(f"unacked  {_sum(connections, 'in_flight'):>12,} events"),
        plain(
            f"slow     {len(look.slow):>12,} of {count(len(connections), 'connection')}",
            "red" if look.slow else "",
        ),
    ]
    busiest = sorted(connections, key=lambda row: (-row["queued_bytes"], -row["in_flight"], row["id"]))
    table = Table(box=None, pad_edge=False)
    for title in ("user", "address", "since"):
        table.add_column(title, overflow="fold")
    for title in ("queued", "bytes", "in flight"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in busiest[:_MOST_ROWS]:
        is_slow = row["id"] in look.slow
        table.add_row(
            plain(row["user_id"]),
            plain(row["address"]),
            plain(row["connected_at"]),
            f"{row['queued_messages']:,}",
            size(row["queued_bytes"]),
            f"{row['in_flight']:,}",
            "slow" if is_slow else "",
            style="red" if is_slow else "",
        )
    if busiest:
        lines.append(table)
    if len(busiest) > _MOST_ROWS:
        lines.append(plain(f"and {count(len(busiest) - _MOST_ROWS, 'connection')} more", "dim"))
    return lines


def _rate_line(what: str, rate: float | None, total: int) -> Text:
    shown = "-" if rate is None else f"{rate:,.1f}"
    return plain(f"{what:8} {shown:>12} a second   {total:,} in all")


def _sum(rows: list[dict[str, Any]], cell: str) -> int:
    return sum(int(row[cell]) for row in rows)


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in _TEXTS)
        and all(is_number(row.get(name)) for name in _NUMBERS)
    )
