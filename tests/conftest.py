"""Puts this directory on the import path, for the modules in it; owns the profiles of Hypothesis.

`HYPOTHESIS_PROFILE=fuzz` tries 10,000 examples of each property instead of 100; `ci`, taken where
`CI` is set, tries the same examples every time.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from certificates import Certificates
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
FIXTURES = {"open_anyhow": ["pump", "tap", "memory"], "open_over_sockets": ["pump", "tap"]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    over_tls = ["tls"] if metafunc.definition.get_closest_marker("also_over_tls") else []
    for name, ways in FIXTURES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, ways + over_tls, indirect=True)


@pytest.fixture
def open_anyhow(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[LocalService]]:
    """`open_service` over sockets read by the pump, over sockets that read for themselves, in memory.

    With the marker `also_over_tls`, over TLS as well.
    """
    if request.param == "tls":
        certificates: Certificates = request.getfixturevalue("certificates")
        return certificates.open_service
    return partial(open_service, **WAYS[request.param])


@pytest.fixture
def open_over_sockets(
    request: pytest.FixtureRequest,
) -> Callable[..., AbstractAsyncContextManager[LocalService]]:
    """`open_service` over sockets read by the pump, and over sockets that read for themselves.

    With the marker `also_over_tls`, over TLS as well.
    """
    if request.param == "tls":
        certificates: Certificates = request.getfixturevalue("certificates")
        return certificates.open_service
    return partial(open_service, **WAYS[request.param])


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority of the tests' own, and a certificate of the service in files that stay as they are."""
    return Certificates(tmp_path_factory.mktemp("certificates"))
