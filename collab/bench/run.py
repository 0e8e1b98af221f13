"""Owns one run: which workload it is, who connects, and what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.bench.crowd import Crowd
from collab.bench.standing import run_idle, run_storm
from collab.bench.traffic import TrafficRun, new_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.bench.options import Options
    from collab.bench.report import Report


def run_bench(options: Options, progress: Callable[[str, float], None] | None = None) -> Report:
    """Do the run that `options` describe, in this thread, and say what it found.

    `progress` is told what goes on and how much of it is done, from 0 to 1.

    Raises:
        Unreachable: the service is down, or does not let a connection in.
        NoSuchProcess: the process to measure is not there.
    """
    tell = progress or _tell_nobody
    token = new_token()
    with Crowd(options, options.connection_count) as crowd:
        if options.workload == "idle":
            return run_idle(crowd, token, tell)
        if options.workload == "storm":
            return run_storm(crowd, token, tell)
        tell("connecting", 0.0)
        groups = [options.recipients] if options.workload == "fanout" else [1] * options.pairs
        return TrafficRun(crowd, groups, token).run(tell)


def _tell_nobody(doing: str, part: float) -> None:
    pass
