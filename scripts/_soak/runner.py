"""Runs the command `trio-collab` as it is, and tells what only its own process knows, once a second.

Each line is a JSON object, written to the descriptor that the variable `SOAK_DESCRIPTOR` names.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from collab.cli import main

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DESCRIPTOR = "SOAK_DESCRIPTOR"
_TICK_SECONDS = 1.0
_TICKS_BETWEEN_COLLECTIONS = 5
_FEW_TASKS = 100
_run = trio.run


class _MallocFigures(ctypes.Structure):
    """What mallinfo2(3) of glibc 2.33 gives back."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _allocated_bytes() -> int:
    """What is allocated and not freed of the C heap, where everything above 512 bytes is; 0: not told."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallocFigures
    figures = mallinfo()
    return int(figures.uordblks + figures.hblkhd)


async def _tell(descriptor: int) -> None:
    """Tell, and count objects only when what is garbage already is gone.

    The collector comes to the oldest of them by a rhythm of its own, minutes apart: until then cycles of
    connections that have ended count as objects, more with each, and look like a leak. A collection takes
    tens of milliseconds with 500 clients, so it is made every few seconds while they are there, and never
    looks at what was there from the start.
    """
    gc.collect()
    gc.freeze()
    ticks = blocks = 0
    while True:
        tasks = trio.lowlevel.current_statistics().tasks_living
        if ticks % _TICKS_BETWEEN_COLLECTIONS == 0 or tasks < _FEW_TASKS:
            gc.collect()
            blocks = sys.getallocatedblocks()
        ticks += 1
        line = {"tasks": tasks, "blocks": blocks, "heap_bytes": _allocated_bytes()}
        # Nobody reads any more: the service has to go on all the same.
        with suppress(OSError):
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        await trio.sleep(_TICK_SECONDS)


def _run_and_tell(
    run_service: Callable[..., Awaitable[Any]], *arguments: object, **options: object
) -> object:
    async def watched() -> object:
        trio.lowlevel.spawn_system_task(_tell, int(os.environ[DESCRIPTOR]))
        return await run_service(*arguments)

    return _run(watched, **options)


if __name__ == "__main__":
    # The command opens its own run; a task beside it is the least that differs from the real thing.
    trio.run = _run_and_tell
    main()
