"""Owns the promise to newcomers who found no descriptor left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from clients import Clients, open_files
from commands import Command
from descriptors import CLIENTS, FILES, without_a_descriptor

from _promises.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEAVE, _COME = 100, 50


def descriptors(directory: Path) -> Iterator[Figure]:
    """256 descriptors for 400 clients: newcomers are let in within 1 s of others leaving; no spinning."""
    serve = ["serve", "--host=127.0.0.1", "--port=0", "--log-file="]
    with (
        open_files(2 * CLIENTS + 256),
        Command(directory, *serve, files=FILES) as command,
        Clients(command.address()) as clients,
    ):
        with without_a_descriptor(command, clients) as (observer, let_in):
            before = command.cpu_seconds()
            clients.live_for(1)
            yield Figure("work in a second without a descriptor", command.cpu_seconds() - before, 0.5)
            clients.drop(let_in[:_LEAVE])
        asked = time.monotonic()
        newcomers = [clients.begin(f"n{number}") for number in range(_COME)]
        clients.until(lambda: all(client.is_connected for client in newcomers))
        yield Figure(f"{_COME} let in after {_LEAVE} left", time.monotonic() - asked, 1.0)
        for client in newcomers:
            clients.exchange(client, observer)
