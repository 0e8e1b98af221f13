"""Runs a test on asyncio and on Trio, within a time, and sees that it leaves no task behind."""

from __future__ import annotations

import asyncio
import functools
import inspect

import anyio
import pytest

PATIENCE_SECONDS = 30.0


def on_both_loops(test, seconds=PATIENCE_SECONDS):
    """Makes an asynchronous test two tests, `[asyncio]` and `[trio]`."""
    signature = inspect.signature(test)

    def run(loop, **fixtures):
        async def main():
            with anyio.fail_after(seconds):
                await test(**fixtures)
            if loop == "asyncio":
                assert asyncio.all_tasks() == {asyncio.current_task()}

        anyio.run(main, backend=loop)

    functools.update_wrapper(run, test)
    del run.__wrapped__
    loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[loop, *signature.parameters.values()])
    return pytest.mark.parametrize("loop", ["asyncio", "trio"])(run)


def on_both_loops_for(seconds):
    """The same for a test that may take so long."""
    return functools.partial(on_both_loops, seconds=seconds)
