"""`trio-collab serve` that runs out of something: descriptors, disk, a console that reads, time to run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import time

import pytest
from clients import Clients, Traffic, answer_of, open_files
from commands import Command
from counts import count
from descriptors import CLIENTS, FILES, without_a_descriptor
from peers import UPGRADE, head

SERVE = ["serve", "--host=127.0.0.1", "--port=0"]


def stop(command, clients):
    """End the service in good order, with clients that read on."""
    command.signal(signal.SIGTERM)
    clients.until(lambda: command.has_ended)
    assert command.wait() == 0


def test_without_a_descriptor_the_connected_go_on_and_newcomers_are_let_in_as_soon_as_some_leave(tmp_path):
    with (
        open_files(2 * CLIENTS + 256),
        Command(tmp_path, *SERVE, "--log-file=", files=FILES) as command,
        Clients(command.address()) as clients,
    ):
        with without_a_descriptor(command, clients) as (observer, let_in):
            assert len(let_in) > FILES // 2
            for client in let_in:
                clients.exchange(client, observer)
            clients.drop(let_in[:100])
        newcomers = [clients.begin(f"n{number}") for number in range(50)]
        clients.until(lambda: all(client.is_connected for client in newcomers))
        for client in newcomers:
            clients.exchange(client, observer)
        assert all(client.is_connected for client in let_in[100:])
        clients.ledger.check()
        assert answer_of(clients.address, "/health")[0] == 200
        stop(command, clients)
        assert command.errors == ""
        assert "Traceback" not in command.output
        assert 1 <= command.output.count("Connections have to wait") <= 2


def test_a_drain_without_a_descriptor_tells_everybody(tmp_path):
    with (
        open_files(2 * CLIENTS + 256),
        Command(tmp_path, *SERVE, "--log-file=", files=FILES) as command,
        Clients(command.address()) as clients,
        without_a_descriptor(command, clients) as (observer, let_in),
    ):
        command.signal(signal.SIGTERM)
        clients.until(lambda: all(client.ended is not None for client in [observer, *let_in]))
        assert {client.ended for client in [observer, *let_in]} == {"1001 The service is going down"}
        assert all("service_shutdown" in client.events_heard for client in [observer, *let_in])
        assert command.wait() == 0
        assert command.errors == ""
        assert "Traceback" not in command.output


def test_a_full_disk_costs_log_lines_which_are_counted_and_told(tmp_path):
    log = tmp_path / "service.log"
    log.symlink_to("/dev/full")
    arguments = [*SERVE, "--log-file=service.log"]
    with Command(tmp_path, *arguments) as command, Clients(command.address()) as clients:
        command.line('Log output failed.*"file".*No space left')
        pair = clients.connect(["ada", "bob"], stays=True)
        for _ in range(20):
            clients.exchange(*pair)
        command.line('Backend connected.*"bob"')
        log.unlink()
        command.signal(signal.SIGHUP)
        command.line("Log reopened")
        clients.exchange(*pair)
        stop(command, clients)
        assert command.errors == ""
    # As many are missing as the console has and the file has not.
    told, *others = command.output.splitlines(), *log.read_text().splitlines()
    missed = re.search(
        r'Log lines dropped {"count":(\d+),"output":"file","error":"No space', log.read_text()
    )[1]
    written = [line for line in others if "Log lines dropped" not in line]
    assert int(missed) == len([line for line in told if "Log output failed" not in line]) - len(written)
    assert "Stopped" in others[-1]


@pytest.fixture
def stuck_console():
    """A pipe that is as small as can be, and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def until_listening(log):
    """The address that the log file says."""
    deadline = time.monotonic() + 15
    while not (
        found := re.search(r'Listening.*"ws://([\d.]+):(\d+)"', log.read_text() if log.exists() else "")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[1], int(found[2])


def serve_through(command, log):
    """Assert that a service with a bad console serves, logs to its file, and stops."""
    with Clients(until_listening(log)) as clients:
        pair = clients.connect(["ada", "bob"], stays=True)
        for _ in range(100):
            clients.exchange(*pair)
        clients.live_for(0.2, lambda: pair[0].in_flight or pair[0].send_event(["bob"]))
        stop(command, clients)
    assert command.errors == ""
    assert "Stopped" in log.read_text().splitlines()[-1]


def test_a_console_that_nobody_reads_holds_up_nothing(tmp_path, stuck_console):
    log = tmp_path / "service.log"
    with Command(tmp_path, *SERVE, "--log-file=service.log", stdout=stuck_console[1]) as command:
        serve_through(command, log)
    assert "Log output failed" in log.read_text()


def test_a_console_whose_reader_is_gone_holds_up_nothing(tmp_path):
    reader, writer = os.pipe()
    log = tmp_path / "service.log"
    try:
        with Command(tmp_path, *SERVE, "--log-file=service.log", stdout=writer) as command:
            until_listening(log)
            os.close(reader)
            serve_through(command, log)
    finally:
        os.close(writer)
    assert 'Log output failed {"output":"console","error":"Broken pipe"}' in log.read_text()


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_a_console_that_takes_nothing_holds_up_nothing(tmp_path, redirect):
    log = tmp_path / "service.log"
    with Command(tmp_path, *SERVE, "--log-file=service.log", redirect=redirect) as command:
        serve_through(command, log)


def test_a_log_whose_directory_is_gone_goes_on_where_it_was_and_serving_with_it(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    arguments = [*SERVE, "--log-file=logs/service.log"]
    with Command(tmp_path, *arguments) as command, Clients(command.address()) as clients:
        pair = clients.connect(["ada", "bob"], stays=True)
        shutil.rmtree(directory)
        clients.exchange(*pair)
        for _ in range(50):
            command.signal(signal.SIGHUP)
        command.line("Log file not reopened")
        clients.exchange(*pair)
        directory.mkdir()
        command.signal(signal.SIGHUP)
        clients.exchange(*pair)
        stop(command, clients)
        assert command.errors == ""
    assert "Stopped" in (directory / "service.log").read_text()


def test_a_service_that_was_stopped_for_longer_than_any_timeout_throws_nobody_out(tmp_path):
    environ = {
        "COLLAB_TIMEOUTS__PING_INTERVAL": "300ms",
        "COLLAB_TIMEOUTS__PING_TIMEOUT": "300ms",
        "COLLAB_TIMEOUTS__WRITE": "500ms",
        "COLLAB_LIMITS__SLOW_CONSUMER": "300ms",
        "COLLAB_LIMITS__MAILBOX_MESSAGES": "8",
    }
    arguments = [*SERVE, "--log-file="]
    with Command(tmp_path, *arguments, environ=environ) as command, Clients(command.address()) as clients:
        crowd = clients.connect((f"u{number}" for number in range(50)), stays=True)
        traffic = Traffic(crowd, 500)
        clients.live_for(1, traffic.send_due)
        for _ in range(count(1, 10)):
            command.signal(signal.SIGSTOP)
            clients.live_for(1.5, traffic.send_due)
            command.signal(signal.SIGCONT)
            clients.live_for(0.7, traffic.send_due)
        clients.until(clients.acknowledged)
        assert [client.ended for client in crowd] == [None] * len(crowd)
        clients.ledger.check()
        assert not [event for event in clients.ledger.events.values() if event.undelivered]
        stop(command, clients)


def test_a_reader_that_catches_up_while_the_service_is_stopped_is_not_taken_for_a_slow_one(tmp_path):
    environ = {"COLLAB_LIMITS__SLOW_CONSUMER": "2s"}
    arguments = [*SERVE, "--log-file="]
    with (
        Command(tmp_path, *arguments, environ=environ) as command,
        Clients(command.address()) as clients,
        socket.socket() as slow,
    ):
        (ada,) = clients.connect(["ada"], stays=True)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
        slow.connect(clients.address)
        slow.sendall(head("GET", "/?user_id=slow&backend_url=http://x&presence=none", UPGRADE))
        assert slow.recv(12) == b"HTTP/1.1 101"
        command.line('Backend connected.*"slow"')
        events = 0
        while not ada.in_flight:
            for _ in range(40):
                ada.send_event(["slow"], padding=60_000)
            events += 40
            clients.live_for(0.3)
        # What waits for room waits too long, but only while the service is stopped.
        command.signal(signal.SIGSTOP)
        taken = 0
        slow.setblocking(False)

        def read():
            nonlocal taken
            with contextlib.suppress(BlockingIOError):
                while data := slow.recv(1 << 20):
                    taken += len(data)

        clients.live_for(2.5, read)
        command.signal(signal.SIGCONT)
        clients.until(lambda: read() or (taken > events * 60_000 and clients.acknowledged()))
        slow.close()
        assert not [event.number for event in ada.sent if event.undelivered != []]
        stop(command, clients)
