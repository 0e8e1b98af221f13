"""Owns the drawing of a soak: memory, tasks, descriptors and p99 over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from _soak.reading import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from _soak.reading import Run

_BLUE, _GREY = "#2f6fab", "#b8bec6"


def draw(run: Run, path: Path) -> None:
    """Draw the run into this file; its name says whether SVG or PNG."""
    mpl.use("svg" if path.suffix == ".svg" else "agg")
    mpl.rcParams["svg.hashsalt"] = "trio-collab"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    times = [reading.at for reading in run.readings]
    held = [reading.holdings for reading in run.readings]
    rows = (
        ("memory of the service (RSS), MiB", [one.rss_bytes / MIB for one in held]),
        ("tasks", [one.tasks for one in held]),
        ("descriptors", [one.descriptors for one in held]),
        ("p99 of each second, ms", [reading.p99_ms for reading in run.readings]),
    )
    canvas, panels = pyplot.subplots(len(rows), 1, figsize=(7.5, 7.5), sharex=True)
    for panel, (title, values) in zip(panels, rows, strict=True):
        panel.axvspan(0, run.warm_up_seconds, color=_GREY, alpha=0.3, linewidth=0)
        panel.plot(times, values, color=_BLUE, linewidth=1)
        panel.set_title(title, fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        if title.startswith("p99"):
            panel.set_ylim(0)
    panels[-1].set_xlabel("seconds; grey: the warm-up, which is not judged", fontsize=8)
    canvas.tight_layout()
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
