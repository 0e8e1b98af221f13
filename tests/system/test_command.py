"""`trio-collab serve` as a real process: what it prints, its signals, its exit codes, `--reload`."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from urllib.parse import urlsplit

import pytest
from certificates import Certificates
from commands import PACKAGE, PATIENCE_SECONDS, Command

# Whoever waits for a peer here waits for longer than `PATIENCE_SECONDS`.
ENDLESS = {
    "COLLAB_SERVER__DRAIN": "120s",
    "COLLAB_TIMEOUTS__CLOSE": "120s",
    "COLLAB_TIMEOUTS__WRITE": "120s",
}


def connect_and_stall(address):
    """A WebSocket client that never reads or answers again."""
    client = socket.create_connection(address, timeout=PATIENCE_SECONDS)
    client.sendall(
        b"GET /?user_id=ada&backend_url=http://localhost:8000 HTTP/1.1\r\nHost: localhost\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


def is_listening(address):
    try:
        socket.create_connection(address, timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def stops_listening(address):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_listening(address):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_a_signal_ends_it_with_0(tmp_path, number):
    with Command(tmp_path, "serve", "--port", "0") as command:
        address = command.address()
        assert is_listening(address)
        command.signal(number)
        assert command.wait() == 0
        assert command.errors == ""
        assert not is_listening(address)
    assert "Listening" in (tmp_path / "collaboration-service.log").read_text()


def test_the_log_can_be_json_on_the_console_alone(tmp_path):
    with Command(tmp_path, "serve", "--port=0", "--log-format=json", "--log-file=") as command:
        command.address()
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    lines = [json.loads(line) for line in command.output.splitlines()]
    assert "Stopping" in [line["event"] for line in lines]
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_the_file_and_the_environment(tmp_path):
    (tmp_path / "collab.toml").write_text("[server]\nport = 1\n[log]\nfile = ''\nformat = 'json'\n")
    environ = {"COLLAB_SERVER__PORT": "0"}
    with Command(tmp_path, "serve", "--config", "collab.toml", environ=environ) as command:
        assert command.address()[1] > 1
        assert command.output.startswith("{")


def test_a_second_signal_ends_it_at_once_with_1(tmp_path):
    with Command(tmp_path, "serve", "--port=0", environ=ENDLESS) as command:
        with connect_and_stall(command.address()):
            command.signal(signal.SIGTERM)
            command.line("Stopping")
            command.signal(signal.SIGTERM)
            assert command.wait() == 1
        assert "Stopped at once" in command.output
        assert command.errors == ""


def test_a_stalled_client_does_not_hold_up_the_end_past_the_drain(tmp_path):
    environ = {**ENDLESS, "COLLAB_SERVER__DRAIN": "1s"}
    with (
        Command(tmp_path, "serve", "--port=0", environ=environ) as command,
        connect_and_stall(command.address()),
    ):
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


def test_a_hangup_opens_the_log_file_anew(tmp_path):
    log = tmp_path / "service.log"
    with Command(tmp_path, "serve", "--port=0", "--log-file=service.log") as command:
        address = command.address()
        log.rename(tmp_path / "service.log.old")
        command.signal(signal.SIGHUP)
        command.line("Log reopened")
        assert is_listening(address)
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    assert "Log reopened" in log.read_text()


@pytest.fixture
def served(tmp_path):
    """Certificates that a test may change, and the environment of a service that uses them."""
    certificates = Certificates(tmp_path)
    environ = {
        "COLLAB_TLS__CERT_FILE": str(certificates.cert_file),
        "COLLAB_TLS__KEY_FILE": str(certificates.key_file),
    }
    return certificates, environ


def shown_certificate(certificates, address):
    """The serial number of the certificate that a newcomer is shown."""
    with (
        socket.create_connection(address, timeout=PATIENCE_SECONDS) as plain,
        certificates.client().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        return client.getpeercert()["serialNumber"]


def test_with_a_certificate_it_listens_at_wss_and_a_hangup_renews_it(tmp_path, served):
    certificates, environ = served
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        told = command.line(r'Listening.*"(wss://[^"]+)".*"https://[^"]+"')
        url = urlsplit(told[1])
        address = url.hostname, url.port
        first = shown_certificate(certificates, address)
        certificates.renew()
        command.signal(signal.SIGHUP)
        command.line("TLS certificate renewed")
        second = shown_certificate(certificates, address)
        assert second != first
        certificates.key_file.write_bytes(b"")
        command.signal(signal.SIGHUP)
        command.line("TLS certificate not renewed, the old one goes on")
        assert shown_certificate(certificates, address) == second
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    assert command.errors == ""


def test_a_certificate_whose_files_change_is_renewed_without_a_signal(tmp_path, served):
    certificates, environ = served
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        command.line("Listening")
        certificates.renew()
        command.line("TLS certificate renewed")


def test_a_key_that_does_not_fit_is_one_line_and_exit_code_2(tmp_path, served):
    certificates, environ = served
    pem = certificates.authority.issue_cert("localhost").private_key_pem
    certificates.key_file.write_bytes(pem.bytes())
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        assert command.wait() == 2
    assert command.errors == (
        "trio-collab: tls.cert_file, tls.key_file: the key does not fit the certificate\n"
    )


def test_a_start_without_authentication_on_a_public_address_logs_one_warning(tmp_path):
    arguments = ["serve", "--host=0.0.0.0", "--port=0", "--log-file=", "--log-format=json"]
    with Command(tmp_path, *arguments) as command:
        command.line("Listening")
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    lines = [json.loads(line) for line in command.output.splitlines()]
    (warning,) = [line["event"] for line in lines if line["level"] == "warning"]
    assert "auth.mode" in warning


def test_a_port_in_use_is_one_line_and_exit_code_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = ["serve", "--host=127.0.0.1", f"--port={port}", "--log-file="]
        with Command(tmp_path, *arguments) as command:
            assert command.wait() == 1
    assert re.fullmatch(rf"trio-collab: .*{port}.*\n", command.errors)
    assert "Traceback" not in command.output


def test_an_address_of_another_machine_is_one_line_and_exit_code_1(tmp_path):
    with Command(tmp_path, "serve", "--host=192.0.2.1", "--port=0", "--log-file=") as command:
        assert command.wait() == 1
    assert re.fullmatch(r"trio-collab: .*192\.0\.2\.1.*\n", command.errors)


def test_a_log_file_that_cannot_be_opened_is_one_line_and_exit_code_1(tmp_path):
    with Command(tmp_path, "serve", "--port=0", "--log-file=missing/service.log") as command:
        assert command.wait() == 1
    assert re.fullmatch(r"trio-collab: .*missing/service\.log.*\n", command.errors)


def test_a_wrong_setting_is_one_line_and_exit_code_2(tmp_path):
    with Command(tmp_path, "serve", environ={"COLLAB_LIMITS__MESSAGE_BYTES": "huge"}) as command:
        assert command.wait() == 2
    assert command.output == ""
    assert re.fullmatch(
        r"trio-collab: limits\.message_bytes .*COLLAB_LIMITS__MESSAGE_BYTES.*\n", command.errors
    )


def test_an_event_schema_that_is_none_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "price_alert.json").write_text("{")
    environ = {"COLLAB_EVENTS__VALIDATION": "known", "COLLAB_EVENTS__SCHEMA_DIR": "schemas"}
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        assert command.wait() == 2
    assert command.errors == "trio-collab: events.schema_dir: schemas/price_alert.json: not JSON\n"


@pytest.fixture
def reloading(tmp_path):
    """A service under `--reload`, started from a copy of the package, and its config file."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "collab", ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "collab.toml"
    config.write_text("server.port = 0\n")
    arguments = ["serve", "--reload", "--config=collab.toml", "--log-file="]
    with Command(tmp_path, *arguments, environ=ENDLESS, python_path=copy) as command:
        yield command, config, copy / "collab"


def test_reload_restarts_on_a_change_of_config_or_code(reloading):
    command, config, package = reloading
    first = command.address()
    config.write_text("server.port = 0\nserver.drain = '3s'\n")
    second = command.address()
    assert not is_listening(first)
    with (package / "_version.py").open("a") as module:
        module.write("# changed\n")
    third = command.address()
    assert not is_listening(second)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    assert not is_listening(third)


def test_reload_does_not_wait_for_a_stalled_client(reloading):
    command, config, _ = reloading
    with connect_and_stall(command.address()):
        config.write_text("server.port = 0\nserver.drain = '3s'\n")
        command.address()


def test_reload_survives_a_mistake_in_the_config_file(reloading):
    command, config, _ = reloading
    first = command.address()
    config.write_text("server.prot = 0\n")
    command.line(r"^trio-collab: server\.prot .*did you mean server\.port\?$")
    assert not is_listening(first)
    config.write_text("server.port = 0\n")
    assert is_listening(command.address())
    assert "Traceback" not in command.errors


def test_reload_ends_with_the_exit_code_of_its_child(reloading):
    command, _, _ = reloading
    with connect_and_stall(command.address()):
        command.signal(signal.SIGINT)
        command.line("Stopping")
        command.signal(signal.SIGINT)
        assert command.wait() == 1


def test_reload_leaves_no_child_behind_when_it_is_killed(reloading):
    command, _, _ = reloading
    address = command.address()
    command.signal(signal.SIGKILL)
    assert stops_listening(address)
    assert command.wait() == -signal.SIGKILL
