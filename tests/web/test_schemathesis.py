"""The HTTP API against its description in `openapi.py`: thousands of odd requests, sound answers alone."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager, suppress
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
from tokens import SECRET, token

from collab.settings import AdminSettings, AuthSettings, Settings
from collab.testing import Closed, open_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collab.testing import LocalService

ADMIN_TOKEN = "the-admin-token-of-the-description-0123"
OPERATORS = AdminSettings(token=ADMIN_TOKEN)
OPEN = Settings(admin=OPERATORS)
GUARDED = Settings(admin=OPERATORS, auth=AuthSettings(mode="jwt", secret=SECRET))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def bearing(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def stay(local: LocalService, user_id: str) -> None:
    """Be online, read everything, and come back after each disconnect."""
    while True:
        backend = await local.connect(user_id, headers=bearing(token(user_id)))
        with suppress(Closed):
            while True:
                await backend.receive_text()


@contextmanager
def served(service: Settings) -> Iterator[str]:
    """The URL of a service on a port of its own, in a thread: schemathesis asks with blocking sockets."""
    ready = threading.Event()
    found: list[str] = []
    stop: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def run() -> None:
        async with open_service(service, timeout_seconds=math.inf) as local, trio.open_nursery() as nursery:
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
        for loop, scope in stop:
            loop.run_sync_soon(scope.cancel)
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    with served(OPEN) as url:
        yield url


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    with served(GUARDED) as url:
        yield url


def examples(usual: int, full: int) -> settings:
    return settings(max_examples=count(usual, full), deadline=None, suppress_health_check=list(HealthCheck))


schema = schemathesis.openapi.from_dict(document())
guarded_schema = schemathesis.openapi.from_dict(document(guarded=True))


def is_for_operators(case: schemathesis.Case) -> bool:
    return "/admin/" in case.path


@schema.parametrize()
@examples(25, 300)
def test_every_answer_is_one_that_is_described(open_url, case):
    bearer = bearing(ADMIN_TOKEN) if is_for_operators(case) else {}
    case.call_and_validate(base_url=open_url, headers=bearer, checks=CHECKS, timeout=20)


@guarded_schema.parametrize()
@examples(8, 200)
def test_with_a_sound_token_every_answer_is_one_that_is_described_and_none_is_401(guarded_url, case):
    # An operator's token is one of a user with a scope.
    bearer = bearing(token("root", scope="admin") if is_for_operators(case) else token("ada"))
    answer = case.call_and_validate(base_url=guarded_url, headers=bearer, checks=CHECKS, timeout=20)
    assert answer.status_code != 401


def is_open_to_all(case: schemathesis.Case) -> bool:
    # A preflight carries no token. schemathesis also tries methods that are not described.
    return case.path in ("/health", "/ready") or case.method.upper() == "OPTIONS"


@guarded_schema.parametrize()
@examples(4, 100)
def test_without_a_token_everything_but_health_and_ready_is_401(guarded_url, case):
    answer = case.call_and_validate(base_url=guarded_url, checks=CHECKS, timeout=20)
    if is_open_to_all(case):
        assert answer.status_code in (200, 405)
    else:
        # Who fails too often where operators come in is told to wait.
        assert answer.status_code in ((401, 429) if is_for_operators(case) else (401,))


@guarded_schema.parametrize()
@examples(4, 100)
def test_a_users_token_is_no_operators_and_an_operators_no_users(guarded_url, case):
    bearer = bearing(token("ada") if is_for_operators(case) else ADMIN_TOKEN)
    answer = case.call_and_validate(base_url=guarded_url, headers=bearer, checks=CHECKS, timeout=20)
    if not is_open_to_all(case):
        assert answer.status_code in ((403, 429) if is_for_operators(case) else (401,))
