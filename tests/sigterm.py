"""SIGTERM under load: readers, one that stalls, an HTTP response that nobody reads."""

from __future__ import annotations

import re
import signal
import socket
import time

from clients import Clients, Traffic, open_files
from commands import Command
from peers import UPGRADE, head

GOING_AWAY = "1001 The service is going down"
SERVE = ["serve", "--host=127.0.0.1", "--port=0", "--log-file="]
SPREAD_MS = 3000
DRAIN_SECONDS = 6
ENVIRON = {
    "COLLAB_SERVER__DRAIN": f"{DRAIN_SECONDS}s",
    "COLLAB_SERVER__RECONNECT_SPREAD": f"{SPREAD_MS}ms",
    "COLLAB_TIMEOUTS__WRITE": "60s",
    "COLLAB_LIMITS__SLOW_CONSUMER": "60s",
    "COLLAB_LIMITS__MAILBOX_MESSAGES": "64",
}
STUFFING_BYTES = 20_000


def small_receiver(address, request):
    """A client that sent this request over a socket that takes next to nothing."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.settimeout(30)
    opened.connect(address)
    opened.sendall(request)
    return opened


def rest_of(stalled):
    """How many bytes are left to read of what was never read."""
    size = 0
    try:
        while data := stalled.recv(65536):
            size += len(data)
    except ConnectionResetError:
        pass
    return size


def check_told_and_sent_away(client):
    """It was told once when to come back, and then closed in good order."""
    assert client.ended == GOING_AWAY, client.ended
    (notice,) = [message for message in client.heard if message["event"] == "service_shutdown"]
    assert 500 <= notice["data"]["reconnect_in_ms"] <= SPREAD_MS


def drained_in_time(command):
    return re.search(r"Drained.*\"in_time\":(\w+)", command.output)[1]


def sigterm_under_load(directory, size, events_per_second, live_seconds):
    """Play it, and hold every promise that is none of time; how long it took, in seconds."""
    with (
        open_files(size + 256),
        Command(directory, *SERVE, environ=ENVIRON) as command,
        Clients(command.address()) as clients,
    ):
        address = clients.address
        readers = clients.connect(
            (f"u{number}" for number in range(size)), stays=True, backend_url="http://x/" + "y" * 2000
        )
        stuffers = clients.connect(["stuffer-0", "stuffer-1"], stays=True)
        request = "/?user_id=stalled&backend_url=http://x&presence=none"
        with (
            small_receiver(address, head("GET", request, UPGRADE)) as stalled,
            small_receiver(address, head("GET", "/api/users/online")) as http,
        ):
            assert stalled.recv(12) == b"HTTP/1.1 101"
            assert http.recv(12) == b"HTTP/1.1 200"
            traffic = Traffic(readers, events_per_second)
            stuff_until_held_up(clients, stuffers, traffic)
            clients.live_for(live_seconds, traffic.send_due)

            command.signal(signal.SIGTERM)
            asked = time.monotonic()
            clients.until(lambda: traffic.send_due() or command.has_ended)
            took = time.monotonic() - asked
            clients.until(lambda: all(client.ended is not None for client in clients.all))

            assert command.wait() == 0
            assert command.errors == ""
            # Both stalled to the end: neither could be served.
            assert drained_in_time(command) == "false"
            assert rest_of(http) < size * 2000
        for client in clients.all:
            check_told_and_sent_away(client)
        check_acks_to_the_end(clients)
        for stuffer in stuffers:
            assert stuffer.acknowledged[-1].undelivered == ["stalled"]
    return took


def stuff_until_held_up(clients, stuffers, traffic):
    """Fill what the stalled client has for buffers, until acks wait for it."""

    def is_held_up():
        traffic.send_due()
        for stuffer in stuffers:
            if stuffer.in_flight < 32:
                for _ in range(32):
                    stuffer.send_event(["stalled", "u0"], padding=STUFFING_BYTES)
        acked = sum(len(stuffer.acknowledged) for stuffer in stuffers)
        progress.append((time.monotonic(), acked))
        while progress[0][0] < time.monotonic() - 1:
            quiet.append(progress.pop(0)[1])
        return bool(quiet) and quiet[-1] == acked > 0

    progress, quiet = [], []
    clients.until(is_held_up)


def check_acks_to_the_end(clients):
    """All of I1 to I3 and I6; and an event without an ack reached nobody, however late it was."""
    clients.ledger.check()
    events = clients.ledger.events.values()
    without_ack = [event for event in events if event.undelivered is None]
    assert not [event.number for event in without_ack if event.received_by]
    print(f"{len(events)} events, {len(without_ack)} of them too late")
