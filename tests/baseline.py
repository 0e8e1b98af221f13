"""What a run holds at one moment, and the proof that it holds no more than that later."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from collab.testing import LocalService

_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.01


@attrs.frozen
class Holdings:
    """The tasks of this Trio run by name, the process's open files, its threads."""

    tasks: Counter[str]
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Holdings:
        tasks: Counter[str] = Counter()
        waiting = [trio.lowlevel.current_root_task()]
        while waiting:
            task = waiting.pop()
            if task is not None:
                tasks[task.name] += 1
                waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return cls(tasks, len(os.listdir("/proc/self/fd")), threading.active_count())


async def settles_at(before: Holdings) -> None:
    """Assert that tasks and descriptors are back at what they were, within 5 s."""
    deadline = trio.current_time() + _PATIENCE_SECONDS
    while (now := Holdings.now()).tasks != before.tasks or now.descriptors > before.descriptors:
        assert trio.current_time() < deadline, (
            f"left: {now.tasks - before.tasks}, {now.descriptors=}, {before=}"
        )
        await trio.sleep(_POLL_SECONDS)


async def serves_a_healthy_pair(local: LocalService) -> None:
    """Assert that two newcomers can exchange events both ways, and that the API answers."""
    cyd, dan = await local.connect("healthy-cyd"), await local.connect("healthy-dan")
    try:
        await exchange(cyd, dan)
    finally:
        await cyd.close()
        await dan.close()


async def exchange(cyd, dan) -> None:
    """Assert that two connected backends reach each other."""
    for sender, recipient, user_id in ((cyd, dan, "healthy-dan"), (dan, cyd, "healthy-cyd")):
        await sender.send_event("comment_added", [user_id], {"text": "still here?"}, id="healthy")
        ack = await sender.receive("event_ack")
        assert ack["data"] == {"event_type": "comment_added", "delivered_to": 1, "total_recipients": 1}
        assert (await recipient.receive("collab_event"))["data"]["data"] == {"text": "still here?"}


@asynccontextmanager
async def unharmed(local: LocalService) -> AsyncIterator[None]:
    """Asserts that what happens in the block leaves the service whole.

    A pair of backends that was connected before it goes on, newcomers are served, and tasks,
    descriptors and registry are back at where they were within 5 s.
    """
    cyd, dan = await local.connect("healthy-cyd"), await local.connect("healthy-dan")
    before = Holdings.now()
    connections = local.service.registry.connection_count
    yield
    await exchange(cyd, dan)
    await settles_at(before)
    assert local.service.registry.connection_count == connections
    assert local.online() == {"healthy-cyd", "healthy-dan"}
    await cyd.close()
    await dan.close()
    await serves_a_healthy_pair(local)
