"""The life of a client is cancelled after each number of steps, and leaves nothing behind."""

from __future__ import annotations

import os

import anyio
from anyio.lowlevel import checkpoint
from fake_service import QUICK
from loops import on_both_loops_for

from collab.client import connect

STEPS = 150


async def live(url):
    """Everything that a client does, once."""
    async with connect(url, user_id="brief", backend_url="http://a", limits=QUICK) as collab:
        events = collab.events()
        collab.on("note", lambda event: None)
        await collab.send("note", ["brief"], 1)
        assert (await anext(events)).data == 1
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(collab.send, "note", ["brief"], number)


async def live_for(url, steps):
    """Whether it came to its end before it was cancelled."""

    async def count_down():
        for number in range(steps):
            # Some of the steps last, so that the far side answers.
            await (anyio.sleep(0.0003) if number % 2 else checkpoint())
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_down)
        await live(url)
        tasks.cancel_scope.cancel()
        return True
    return False


@on_both_loops_for(120.0)
async def test_a_client_that_is_cancelled_at_any_step_leaves_nothing_behind(service_url):
    await live(service_url)
    before = len(anyio.get_running_tasks()), len(os.listdir("/proc/self/fd"))
    lives = [await live_for(service_url, steps) for steps in range(STEPS)]
    assert not lives[0]
    await anyio.wait_all_tasks_blocked()
    assert (len(anyio.get_running_tasks()), len(os.listdir("/proc/self/fd"))) == before
