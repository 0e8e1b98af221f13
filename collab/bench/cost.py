"""Owns what a run costs: the CPU time and the memory of a process, read from the kernel."""

from __future__ import annotations

import os
import time
from pathlib import Path

from collab.errors import CollabError

_CPU_CLOCK = 2  # CPUCLOCK_SCHED, of a whole process: what clock_getcpuclockid(3) answers on Linux


class NoSuchProcess(CollabError):
    """The process that was to be measured is not there, or this system does not tell."""


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used so far, all threads, also those that ended.

    Raises:
        NoSuchProcess: it is not there, or not Linux.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPU_CLOCK)
    except OSError:
        raise NoSuchProcess(f"cannot read the CPU time of process {pid}") from None


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM.

    Raises:
        NoSuchProcess: it is not there, or not Linux.
    """
    try:
        # Exact, where statm may be off by a few hundred KiB on kernels with a counter for each CPU.
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Rss:"))
    except (OSError, StopIteration):
        pass
    try:
        statm = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        raise NoSuchProcess(f"cannot read the memory of process {pid}") from None
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
