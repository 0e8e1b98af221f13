"""The time in which the process did not run."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from collab.edge.stops import Stops


@pytest.mark.trio
async def test_a_stop_counts_also_before_the_sleeper_comes_to_notice_it(mock_clock):
    stops = Stops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stops.sleep_until, 1.0)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(61)
        for _ in range(2):
            assert stops.seconds(trio.current_time()) == 60
            assert stops.running_time() == 1
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.trio
async def test_to_be_a_little_late_is_no_stop(mock_clock):
    stops = Stops()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stops.sleep_until, 1.0)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.5)
        for _ in range(2):
            assert stops.running_time() == trio.current_time() == 1.5
            await trio.testing.wait_all_tasks_blocked()
