"""Owns what the terminal shows: panels where a person looks, lines elsewhere."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

_COLOURS = {"ada": "cyan", "bob": "yellow", "service": "magenta"}
_TITLES = {"ada": "Ada's backend", "bob": "Bob's backend", "service": "trio-collab"}


class View(Protocol):
    """Where the demo tells what happens."""

    def say(self, name: str, text: str) -> None:
        """One of the processes said this."""

    def step(self, text: str) -> None:
        """The next part of the conversation begins."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...


class Plain:
    """One line after the other."""

    def say(self, name: str, text: str) -> None:
        """One of the processes said this."""
        print(f"{name:<7} │ {text}", flush=True)

    def step(self, text: str) -> None:
        """The next part of the conversation begins."""
        print(f"\n{text}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class Panels:
    """A panel for each process. The last picture stays in the terminal."""

    def __init__(self) -> None:
        self._console = Console()
        self._said = {name: deque[str](maxlen=200) for name in _TITLES}
        self._step = ""
        self._live = Live(self, console=self._console, auto_refresh=False, vertical_overflow="crop")

    def say(self, name: str, text: str) -> None:
        """One of the processes said this."""
        self._said[name].append(text)
        self._live.refresh()

    def step(self, text: str) -> None:
        """The next part of the conversation begins."""
        self._step = text
        self._live.refresh()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(12, min(console.height - 1, 32))
        layout = Layout()
        layout.split_column(
            Layout(Text(f" {self._step}", style="bold", no_wrap=True, overflow="ellipsis"), size=1),
            Layout(name="backends", ratio=3),
            Layout(self._panel("service", (height - 1) * 2 // 5), ratio=2),
        )
        rows = (height - 1) * 3 // 5
        layout["backends"].split_row(self._panel("ada", rows), self._panel("bob", rows))
        yield from console.render(layout, options.update(height=height))

    def _panel(self, name: str, rows: int) -> Panel:
        lines = [
            Text(line, style=_style(line), no_wrap=True, overflow="ellipsis")
            for line in list(self._said[name])[-max(1, rows - 2) :]
        ]
        return Panel(
            Group(*lines),
            title=_TITLES[name],
            title_align="left",
            border_style=_COLOURS[name],
            padding=(0, 1),
        )


def _style(line: str) -> str:
    if line.startswith("→"):
        return "green"
    if line.startswith("←"):
        return "bold"
    if line.startswith(("?", "Not connected", "cannot")):
        return "red"
    return ""
