"""Owns the service that the client's tests share: a process, with defaults."""

from __future__ import annotations

import pytest
from commands import Command


@pytest.fixture(scope="module")
def service_url(tmp_path_factory):
    """The URL of a real service."""
    directory = tmp_path_factory.mktemp("service")
    with Command(directory, "serve", "--port", "0", "--log-file", "") as command:
        host, port = command.address()
        yield f"ws://{host}:{port}"
