"""The end of `trio-collab serve` under load: notices, acks that stay true to the last, exit code 0."""

from __future__ import annotations

import re
import signal

from clients import Clients, open_files
from commands import Command
from counts import count
from sigterm import ENVIRON, SERVE, check_told_and_sent_away, drained_in_time, sigterm_under_load


def test_sigterm_under_load_tells_every_reader_and_keeps_every_ack_true(tmp_path):
    sigterm_under_load(tmp_path, count(200, 1000), count(500, 2000), live_seconds=count(1, 3))


def test_sigterm_in_a_storm_of_connects_ends_each_in_order(tmp_path):
    size = count(300, 1500)
    with (
        open_files(2 * size + 256),
        Command(tmp_path, *SERVE, environ=ENVIRON) as command,
        Clients(command.address()) as clients,
    ):
        for number in range(size):
            clients.begin(f"u{number}")
        clients.until(lambda: sum(client.is_connected for client in clients.all) > size // 3)
        command.signal(signal.SIGTERM)
        late = iter(range(size, 2 * size))

        def knock():
            for _ in range(5):
                if (number := next(late, None)) is not None:
                    clients.begin(f"u{number}")

        clients.until(lambda: knock() or command.has_ended)
        clients.until(lambda: all(client.ended is not None for client in clients.all))
        assert command.wait() == 0
        assert command.errors == ""
        assert "Traceback" not in command.output
        assert drained_in_time(command) == "true"
        let_in = [client for client in clients.all if client.is_upgraded]
        for client in let_in:
            check_told_and_sent_away(client)
        ends = {client.ended for client in clients.all if not client.is_upgraded}
        print(f"{len(let_in)} of {len(clients.all)} let in; the others: {ends}")
        for end in ends:
            assert re.match(
                r'HTTP/1\.1 503 .*"draining"|Connection re(fused|set)|ECONNREFUSED|ECONNRESET|closed without',
                end,
            )
