"""The HTTP API against its description in `openapi.py`: thousands of odd requests, sound answers alone."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import schemathesis
import trio
from counts import count
from hypothesis import HealthCheck, settings
from openapi import document
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from collab.settings import AdminSettings, Settings
from collab.testing import Closed, open_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collab.testing import LocalService

ADMIN_TOKEN = "the-admin-token-of-the-description-0123"
SERVICE = Settings(admin=AdminSettings(token=ADMIN_TOKEN))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


async def stay(local: LocalService, user_id: str) -> None:
    """Be online, read everything, and come back after each disconnect."""
    while True:
        backend = await local.connect(user_id)
        with suppress(Closed):
            while True:
                await backend.receive_text()


schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A service on a port of its own, in a thread: schemathesis asks with blocking sockets."""
    ready = threading.Event()
    found: list[str] = []
    stop: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def run() -> None:
        async with open_service(SERVICE, timeout_seconds=math.inf) as local, trio.open_nursery() as nursery:
            nursery.start_soon(stay, local, "ada")
            nursery.start_soon(stay, local, "bob")
            found.append(local.http_url)
            stop.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        for token, scope in stop:
            token.run_sync_soon(scope.cancel)
        thread.join(20)
    assert not thread.is_alive()


@schema.parametrize()
@settings(max_examples=count(25, 300), deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(base_url, case):
    bearer = {"authorization": f"Bearer {ADMIN_TOKEN}"} if "/admin/" in case.path else {}
    case.call_and_validate(base_url=base_url, headers=bearer, checks=CHECKS, timeout=20)
