"""Owns what the tools show: lines, tables, quantities in words, and the end of whoever reads them."""

from __future__ import annotations

import json
import os
import stat
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import click

from collab.settings.loading import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType
    from rich.text import Text

_WIDE = 100_000
_HUGE = 2**53


def say(text: str) -> None:
    """One line on standard output, at once.

    Raises:
        BrokenPipeError: nobody reads it; nothing more can be written.
    """
    _tolerant()
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        raise


def say_json(value: object) -> None:
    """The same as one line of JSON. ASCII alone, so that no name in it can move a cursor."""
    try:
        text = json.dumps(value)
    except RecursionError:
        # Nested as deeply as a message may be.
        import msgspec

        text = msgspec.json.encode(value).decode()
    say(text)


def note(text: str) -> None:
    """One line on standard error, for the person who looks on."""
    click.echo(f"trio-collab: {printable(text)}", err=True)


def screen() -> Console:
    """A console on standard output. Where that is no terminal, nothing is cut off or coloured.

    Its `print` raises what `say` raises.
    """
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            _drop_output()
            raise BrokenPipeError

    _tolerant()
    width = None if sys.stdout.isatty() else _WIDE
    return Screen(highlight=False, markup=False, emoji=False, width=width)


@contextmanager
def live(*, wanted: bool = True) -> Iterator[Callable[[RenderableType], None] | None]:
    """A part of the terminal that is drawn anew by the function given; None where there is no terminal."""
    if not (wanted and sys.stdout.isatty()):
        yield None
        return
    from rich.live import Live

    # Drawn by us alone: no thread besides.
    with Live(console=screen(), auto_refresh=False, screen=True, vertical_overflow="crop") as drawing:

        def show(what: RenderableType) -> None:
            drawing.update(what, refresh=True)

        yield show


def plain(text: object, style: str = "") -> Text:
    """What came from elsewhere, as a part of what is shown: no markup in it, no control character."""
    from rich.text import Text

    return Text(printable(text), style=style)


async def reader_gone() -> None:
    """Until whoever reads our standard output has left. For ever, where it is no pipe."""
    import trio

    try:
        number = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    if not is_pipe:
        await trio.sleep_forever()
    # The writing end of a pipe is never readable, but for the error that it has no reader.
    await trio.lowlevel.wait_readable(number)
    _drop_output()


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a number of another's is one to reckon with: JSON has some that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_HUGE < value < _HUGE


def count(number: int, noun: str) -> str:
    """`1 user`, `1,250 users`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def duration(seconds: float) -> str:
    """`12 s`, `5 min 3 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = int(seconds)
    for small, unit, large, larger in ((60, "s", 3600, "min"), (3600, "min", 86400, "h")):
        if whole < small:
            break
        if whole < large:
            rest = whole % small // (small // 60)
            return f"{whole // small} {larger}" + (f" {rest} {unit}" if rest else "")
    if whole < 60:
        return f"{whole} s"
    hours = whole % 86400 // 3600
    return f"{whole // 86400} d" + (f" {hours} h" if hours else "")


def size(number: int) -> str:
    """`512 B`, `1.5 KiB`, `2.0 MiB`."""
    if number < 1024:
        return f"{number} B"
    return f"{number / 1024:.1f} KiB" if number < 1024**2 else f"{number / 1024**2:,.1f} MiB"


def _tolerant() -> None:
    # A terminal without UTF-8 must not end a tool because of somebody's name.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    # What Python still holds would fail again when the process ends.
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
