"""Owns what scripts/bench writes into docs/: the tables of performance.md, and performance.svg."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import attrs
from servers import OURS, ROOT, versions

PAGE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "performance.svg"


@attrs.frozen(kw_only=True)
class Figure:
    """What one server took for one kind of work, over all rounds."""

    workload: str
    unit: str
    server: str
    title: str
    value: float
    """The median."""
    lowest: float
    highest: float
    ratio: float | None
    """To the median of Node with socket.io in the same run."""
    target: float | None
    target_text: str
    is_met: bool | None

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """The row of a table."""
        target = self.target_text
        if self.is_met is not None:
            target += ", met" if self.is_met else ", missed"
        return (
            self.workload,
            self.title,
            f"{self.value:,.1f} {self.unit}",
            f"{self.lowest:,.1f} to {self.highest:,.1f}",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            target,
        )


@attrs.frozen(kw_only=True)
class Scale:
    """CPU time of trio-collab for an event, by the size of one thing."""

    title: str
    us_by_size: dict[int, float]


def write_comparison(figures: list[Figure], *, command: str, rounds: int, seconds: float) -> None:
    """Put the comparison into the page and draw it."""
    lines = [
        _circumstances(command, rounds, seconds),
        "",
        "| work | server | median | lowest to highest | against socket.io | target |",
        "|---|---|--:|--:|--:|--:|",
    ]
    lines += [_row(*figure.cells()) for figure in figures]
    _replace("comparison", "\n".join(lines))
    _draw(figures)


def write_variants(
    name: str, what: str, figures: list[Figure], *, command: str, rounds: int, seconds: float
) -> None:
    """Put what variants of trio-collab cost into the page, under this marker; `what` tells them apart."""
    lines = [
        _circumstances(command, rounds, seconds),
        "",
        f"| work | {what} | median | lowest to highest | against the defaults | target |",
        "|---|---|--:|--:|--:|--:|",
    ]
    lines += [_row(*figure.cells()) for figure in figures]
    _replace(name, "\n".join(lines))


def write_scaling(scales: list[Scale], *, command: str, rounds: int, seconds: float) -> None:
    """Put the tables of how cost grows into the page."""
    lines = [_circumstances(command, rounds, seconds)]
    for scale in scales:
        lines += [
            "",
            f"| {scale.title.lower()} | " + " | ".join(f"{size:,}" for size in scale.us_by_size) + " |",
        ]
        lines += ["|---|" + "--:|" * len(scale.us_by_size)]
        lines += [
            "| CPU an event | " + " | ".join(f"{us:,.1f} µs" for us in scale.us_by_size.values()) + " |"
        ]
    _replace("scaling", "\n".join(lines))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _circumstances(command: str, rounds: int, seconds: float) -> str:
    there = "; ".join(f"{name} {found}" for name, found in versions().items())
    return (
        f"`{command}` on {datetime.now(UTC):%d %B %Y}, at commit "
        f"{_output('git', 'describe', '--always', '--dirty')}; "
        f"{rounds} round{'s' if rounds > 1 else ''} of {seconds:g} s each.\n"
        f"Machine: {_processor()}, {os.cpu_count()} CPUs, Linux {platform.release()}; "
        f"CPython {platform.python_version()}, Node {_output('node', '--version').removeprefix('v')}.\n"
        f"Servers: {there}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _output(*command: str) -> str:
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _replace(name: str, text: str) -> None:
    """Put the text between the page's two markers of this name."""
    begin, end = f"<!-- scripts/bench: {name} -->\n", f"\n<!-- scripts/bench: end of {name} -->"
    before, found, rest = PAGE.read_text().partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        sys.exit(f"{PAGE.name} has no markers for {name}")
    PAGE.write_text(before + begin + "\n" + text + "\n" + end + after)


def _draw(figures: list[Figure]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "trio-collab"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    works = list(dict.fromkeys(figure.workload for figure in figures))
    canvas, panels = pyplot.subplots(len(works), 1, figsize=(7.5, 1.6 * len(works)), squeeze=False)
    for panel, work in zip(panels[:, 0], works, strict=True):
        shown = [figure for figure in reversed(figures) if figure.workload == work]
        bars = panel.barh(
            [figure.title for figure in shown],
            [figure.value for figure in shown],
            color=["#2f6fab" if figure.server == OURS else "#b8bec6" for figure in shown],
        )
        room = _room([figure.value for figure in shown])
        panel.set_xlim(0, room)
        for bar, figure in zip(bars, shown, strict=True):
            is_cut = figure.value > room
            text = f"{figure.value:,.1f} {figure.unit}"
            panel.annotate(
                f"{text}, cut off" if is_cut else text,
                (min(figure.value, room), bar.get_y() + bar.get_height() / 2),
                xytext=(-4 if is_cut else 4, 0),
                textcoords="offset points",
                ha="right" if is_cut else "left",
                va="center",
                fontsize=8,
            )
        kind = "memory" if shown[0].unit == "KiB" else "CPU time of the server"
        panel.set_title(f"{work}: {kind}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    canvas.tight_layout()
    canvas.savefig(CHART, format="svg", metadata={"Date": None})
    # Lines without spaces at their ends, as everything else in the repository.
    CHART.write_text("".join(line.rstrip() + "\n" for line in CHART.read_text().splitlines()))


def _room(values: list[float]) -> float:
    """How far the axis goes: one bar far above the others is cut off, so that they can be told apart."""
    *others, largest = sorted(values)
    return 1.6 * others[-1] if others and largest > 3 * others[-1] else 1.25 * largest
