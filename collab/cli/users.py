"""Owns `trio-collab users`: who is online, once or for as long as one looks."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from collab.cli.far import Declined, Unreachable, far_flags, run, run_until_interrupted
from collab.cli.screen import count, live, note, plain, say, say_json, screen
from collab.settings.loading import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from collab.cli.far import Far

_CELLS = ("user_id", "display_name", "backend_url", "connected_at")


@click.command()
@far_flags
@click.option("--watch", is_flag=True, help="Go on looking, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks, with --watch.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print lines of JSON; with --watch one whenever something changed.",
)
def users(far: Far, watch: bool, interval: float, as_json: bool) -> int:
    """Show who is online, as GET /api/users/online tells it.

    It connects as nobody, so that nobody is told. With --watch the table is kept current; where the output is
    no terminal, there is a line for each one who comes (+) or goes (-).

    Exit code 0, 1 if the service cannot be asked, 2 for wrong usage.
    """
    if watch:
        return run_until_interrupted(partial(_watch, far, interval, as_json))
    rows = run(partial(online, far))
    with suppress(BrokenPipeError):
        if as_json:
            say_json(_as_json(rows))
        else:
            screen().print(table(rows))
    return 0


async def online(far: Far, seconds: float = 10.0) -> list[dict[str, str]]:
    """The rows of all who are online, by their ids.

    Raises:
        Unreachable: there is no answer, or it is none of the service.
        Declined: the service says no.
    """
    from collab.cli.asking import ask_json, strange

    rows = (await ask_json(far, "GET", "/api/users/online", seconds=seconds)).get("users")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise strange(far)
    return sorted(rows, key=lambda row: str(row["user_id"]))


def table(rows: list[dict[str, str]], remark: str = "") -> RenderableType:
    """The rows for people."""
    from rich.console import Group
    from rich.table import Table

    found = Table(box=None, pad_edge=False)
    for title, style in (("user", "bold"), ("name", ""), ("backend", "cyan"), ("since", "dim")):
        found.add_column(title, style=style, overflow="fold")
    for row in rows:
        found.add_row(*(plain(row[cell]) for cell in _CELLS))
    total = count(len(rows), "user") + " online"
    return Group(found, plain(f"{total}; {remark}" if remark else total, "dim"))


async def _watch(far: Far, interval: float, as_json: bool) -> int:
    import trio

    before: list[dict[str, str]] | None = None
    trouble = ""
    with live(wanted=not as_json) as show:
        while True:
            try:
                rows = await online(far)
                trouble = ""
            except (Unreachable, Declined) as error:
                if before is None:
                    raise
                # It may come back: who looks on is told once.
                if not trouble and show is None:
                    note(str(error))
                rows, trouble = before, str(error)
            if show is not None:
                show(table(rows, f"not current: {trouble}" if trouble else "Ctrl-C ends it"))
            elif as_json:
                if rows != before:
                    say_json(_as_json(rows))
            else:
                _say_changes(before or [], rows)
            before = rows
            await trio.sleep(interval)


def _say_changes(before: list[dict[str, str]], now: list[dict[str, str]]) -> None:
    old, new = ({row["user_id"]: row for row in rows} for rows in (before, now))
    for sign, ids, rows in (("-", old.keys() - new.keys(), old), ("+", new.keys() - old.keys(), new)):
        for user_id in sorted(ids):
            say(f"{sign} " + "  ".join(printable(rows[user_id][cell]) for cell in _CELLS))


def _as_json(rows: list[dict[str, str]]) -> dict[str, object]:
    return {"users": rows, "count": len(rows)}


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(cell), str) for cell in _CELLS)
