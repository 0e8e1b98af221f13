"""Owns the servers that scripts/bench measures: how each is started, ended, and put under load."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "scripts" / "bench_peers"
COMMAND = str(Path(sys.executable).parent / "trio-collab")

START_SECONDS = 20.0
END_SECONDS = 15.0
RUN_SECONDS = 600.0
OPEN_FILES = 16384
SERVER_CPU, LOAD_CPU = 0, 1


@attrs.frozen
class Server:
    """A server to measure: what it is, what starts it, given a port, and how to speak to it."""

    name: str
    title: str
    command: tuple[str, ...]
    dialect: str
    environ: Mapping[str, str] = {}
    """Settings of trio-collab."""
    load: tuple[str, ...] = ()
    """Arguments that the load generator needs with them."""
    scheme: str = "ws"

    @property
    def is_installed(self) -> bool:
        """Whether what it runs on is there."""
        return self.command[0] != "node" or (
            shutil.which("node") is not None and (PEERS / "node_modules").is_dir()
        )


OURS, REFERENCE = "trio-collab", "socketio"
SERVERS = (
    Server(OURS, "trio-collab", (COMMAND, "serve", "--host=127.0.0.1", "--port={port}"), "plain"),
    Server(REFERENCE, "Node, socket.io", ("node", str(PEERS / "socketio_server.js"), "{port}"), "socketio"),
    Server("ws", "Node, ws", ("node", str(PEERS / "ws_server.js"), "{port}"), "plain"),
    Server(
        "python-socketio",
        "python-socketio, uvicorn",
        (sys.executable, str(PEERS / "python_socketio_server.py"), "{port}"),
        "socketio",
    ),
    Server(
        "floor",
        "receiving and sending alone",
        (sys.executable, str(PEERS / "bare_relay.py"), "{port}"),
        "plain",
    ),
)


_SECRET = "a secret for a measurement, and for nothing else"
_GUARDED = {
    "COLLAB_AUTH__MODE": "jwt",
    "COLLAB_AUTH__SECRET": _SECRET,
    "COLLAB_POLICY__SEND": "token",
    "COLLAB_LIMITS__EVENTS_PER_SECOND": "1000000",
    "COLLAB_LIMITS__CONNECTS_PER_SECOND": "100000",
    "COLLAB_AUDIT__FILE": "audit.jsonl",
    "COLLAB_AUDIT__ROUTES": "false",
}
_WITH_TOKENS = (f"--secret={_SECRET}",)
PRODUCTION = (
    SERVERS[0],
    attrs.evolve(
        SERVERS[0],
        name="guarded",
        title="tokens, permissions, limits, audit",
        environ=_GUARDED,
        load=_WITH_TOKENS,
    ),
    attrs.evolve(
        SERVERS[0],
        name="audited",
        title="the same, each event in the audit",
        environ={**_GUARDED, "COLLAB_AUDIT__ROUTES": "true"},
        load=_WITH_TOKENS,
    ),
)
"""trio-collab by its defaults, and as it runs in production, without TLS."""

OURS_BY_SOCKETIO = attrs.evolve(
    SERVERS[0], name="ours-by-socketio", title="trio-collab, Socket.IO", dialect="socketio"
)
SOCKETIO = (SERVERS[0], OURS_BY_SOCKETIO, SERVERS[1])
"""trio-collab in both dialects, and Node with socket.io."""


@contextmanager
def over_tls() -> Iterator[tuple[Server, Server]]:
    """trio-collab without TLS and with it, and with a certificate that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="trio-collab-bench-") as directory:
        cert_file, key_file = Path(directory, "cert.pem"), Path(directory, "key.pem")
        write_certificate(cert_file, key_file)
        environ = {
            "COLLAB_TLS__CERT_FILE": str(cert_file),
            "COLLAB_TLS__KEY_FILE": str(key_file),
            # For the load generator, which must trust it.
            "SSL_CERT_FILE": str(cert_file),
        }
        title = "trio-collab over TLS"
        yield SERVERS[0], attrs.evolve(SERVERS[0], name="tls", title=title, environ=environ, scheme="wss")


def write_certificate(cert_file: Path, key_file: Path) -> None:
    """A certificate of its own for 127.0.0.1, with an ECDSA key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trio-collab bench")])
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class Failed(Exception):
    """A run gave no figure. The text says why."""


def raise_file_limit() -> None:
    """Let the servers, which inherit it, hold thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_load(server: Server, arguments: tuple[str, ...]) -> dict[str, Any]:
    """The report of `trio-collab bench` with these arguments, against a server started for it alone.

    Raises:
        Failed: the server did not come up, or events were lost.
    """
    with running(server) as (url, pid):
        report = put_under_load(
            url, pid, (f"--dialect={server.dialect}", *server.load, *arguments), environ=server.environ
        )
    if any(report["faults"].values()):
        faults = {name: count for name, count in report["faults"].items() if count}
        raise Failed(f"{faults} {report['first_end']}")
    return report


def put_under_load(
    url: str, pid: int, arguments: tuple[str, ...], *, environ: Mapping[str, str] = {}
) -> dict[str, Any]:
    """The report of `trio-collab bench` with these arguments against a server that runs.

    Raises:
        Failed: there is none.
    """
    load = subprocess.run(
        [COMMAND, "bench", url, f"--pid={pid}", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
        timeout=RUN_SECONDS,
        preexec_fn=lambda: pin(LOAD_CPU),
    )
    if not load.stdout:
        raise Failed(load.stderr.strip())
    report: dict[str, Any] = json.loads(load.stdout)
    return report


@contextmanager
def running(server: Server) -> Iterator[tuple[str, int]]:
    """The server's URL and process, from its start to its end. It has an empty directory to itself."""
    with tempfile.TemporaryDirectory(prefix="trio-collab-bench-") as directory:
        port = free_port()
        with (Path(directory) / "output").open("wb") as output:
            process = subprocess.Popen(
                [part.format(port=port) for part in server.command],
                cwd=directory,
                env={**os.environ, **server.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: pin(SERVER_CPU),
            )
        try:
            wait_for(port, process)
            yield f"{server.scheme}://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def versions() -> dict[str, str]:
    """The version of each server that is installed, by its name."""
    found = {
        OURS: f"{version('trio-collab')} on trio {version('trio')}",
        "python-socketio": f"{version('python-socketio')} on uvicorn {version('uvicorn')}",
    }
    for name, package in ((REFERENCE, "socket.io"), ("ws", "ws")):
        manifest = PEERS / "node_modules" / package / "package.json"
        if manifest.exists():
            found[name] = json.loads(manifest.read_text())["version"]
    return found


def pin(number: int) -> None:
    """Stay on this one of the CPUs that we may use, where there are several."""
    if hasattr(os, "sched_setaffinity") and len(cpus := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(0, {cpus[number]})


def free_port() -> int:
    """A port of the loopback interface that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process listens.

    Raises:
        Failed: it ended, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"ended at once with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise Failed("did not listen in time")
