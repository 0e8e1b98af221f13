"""A service whose descriptors are all taken."""

from __future__ import annotations

import contextlib
import os
import socket

FILES = 256
"""How many the service may open."""
CLIENTS = 400
OVERLOADED = 'HTTP/1.1 503 Service Unavailable {"error":"too many connections in total","code":"overloaded"}'


@contextlib.contextmanager
def without_a_descriptor(command, clients):
    """400 clients of whom some were let in, and enough that only knock: the service has none left."""
    (observer,) = clients.connect(["observer"], stays=True)
    crowd = [clients.begin(f"u{number}") for number in range(CLIENTS - 1)]
    clients.until(lambda: all(client.is_connected or client.ended is not None for client in crowd))
    assert {client.ended for client in crowd if client.ended is not None} == {OVERLOADED}
    let_in = [client for client in crowd if client.is_connected]
    with contextlib.ExitStack() as knocking:
        for _ in range(FILES):
            knocking.enter_context(socket.create_connection(clients.address))
        clients.until(lambda: len(os.listdir(f"/proc/{command.pid}/fd")) == FILES)
        yield observer, let_in
