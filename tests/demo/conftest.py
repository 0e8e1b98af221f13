"""Owns a service, and the backends of Ada and Bob, for all tests that end none of them."""

from __future__ import annotations

import pytest
from commands import Command
from demo_backends import Backend, is_connected


@pytest.fixture(scope="session")
def collab_url(tmp_path_factory):
    """The URL of a real service."""
    with Command(tmp_path_factory.mktemp("service"), "serve", "--port", "0", "--log-file", "") as command:
        host, port = command.address()
        yield f"ws://{host}:{port}"


@pytest.fixture(scope="session")
def two(tmp_path_factory, collab_url):
    """The backends of Ada and Bob, connected."""
    directory = tmp_path_factory.mktemp("databases")
    with Backend(directory, "ada", collab_url) as ada, Backend(directory, "bob", collab_url) as bob:
        for backend in (ada, bob):
            backend.until(is_connected)
        yield ada, bob
