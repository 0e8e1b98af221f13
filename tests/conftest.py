"""Puts this directory on the import path, for the modules in it; owns the profiles of Hypothesis.

`HYPOTHESIS_PROFILE=fuzz` tries 10,000 examples of each property instead of 100; `ci`, taken where
`CI` is set, tries the same examples every time.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from collab.testing import open_service

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from collab.testing import LocalService

# No deadline: on a shared core the time of one example says nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

WAYS = {"pump": {}, "tap": {"pumped": False}, "memory": {"in_memory": True}}


@pytest.fixture(params=["pump", "tap", "memory"])
def open_anyhow(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[LocalService]]:
    """`open_service` over sockets read by the pump, over sockets that read for themselves, in memory."""
    return partial(open_service, **WAYS[request.param])


@pytest.fixture(params=["pump", "tap"])
def open_over_sockets(
    request: pytest.FixtureRequest,
) -> Callable[..., AbstractAsyncContextManager[LocalService]]:
    """`open_service` over sockets read by the pump, and over sockets that read for themselves."""
    return partial(open_service, **WAYS[request.param])
