"""Owns the promises to those who are connected already, while others make the service wait."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
from certificates import Certificates
from clients import open_files
from commands import Command
from peer import Peer, head
from tokens import jwk, private_key, token

from _promises.figure import Figure
from _promises.pair import USERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SERVE = ("serve", "--host=127.0.0.1", "--port=0", "--log-file=")
_LAG_SECONDS = 0.050
_ALONE_SECONDS = 3.0
_PATIENCE_SECONDS = 30.0
_BETWEEN_FETCHES_SECONDS = 10.0
_FETCH_SECONDS = 5.0
_STRANGERS = 100
_HANDSHAKES, _HANDSHAKES_PER_SECOND = 500, 200
_STALLED_SECONDS = 15
_TIMES_P99 = 2.0
# What two processes and a kernel need between them, whatever the ratio says.
_LEAST_SECONDS = 0.002


def keys(directory: Path) -> Iterator[Figure]:
    """While the host of the keys stalls, with 100 clients waiting for it, the others lag less than 50 ms."""
    with _host_of_keys() as url:
        environ = {"COLLAB_AUTH__MODE": "jwt", "COLLAB_AUTH__JWKS_URL": url}
        tokens = {user_id: _signed(user_id, "known") for user_id in USERS}
        with Command(directory, *_SERVE, environ=environ) as command, open_files(_STRANGERS + 256):
            _, port = command.address()
            began = time.monotonic()
            with _pair(port, tokens=tokens) as pair, ExitStack() as stack:
                # Only now an unknown key makes it ask again.
                time.sleep(max(began + _BETWEEN_FETCHES_SECONDS + 1 - time.monotonic(), 0))
                asking = time.monotonic()
                strangers = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS))
                    for _ in range(_STRANGERS)
                ]
                for number, stranger in enumerate(strangers):
                    user_id = f"stranger{number}"
                    stranger.sendall(head(user_id, token=_signed(user_id, f"unknown-{number}")))
                answers = {stranger.recv(4096)[9:12] for stranger in strangers}
                answered = time.monotonic()
                # Whose key is known need not wait.
                Peer(port, "cyd", token=_signed("cyd", "known")).socket.close()
            assert answers == {b"401"}, answers
            assert answered - asking > _FETCH_SECONDS / 2, "they did not wait for the host"
            alone, beside = pair.between(0, asking), pair.between(asking, answered)
            for what, latencies in (
                ("with nobody else", alone),
                (f"beside {_STRANGERS} who wait for keys", beside),
            ):
                yield Figure(f"worst latency {what}", max(latencies) * 1000, _LAG_SECONDS * 1000, "ms")
            waited = answered - asking
            yield Figure("until those were refused", waited, _FETCH_SECONDS + 2)


def handshakes(directory: Path) -> Iterator[Figure]:
    """Beside 500 stalled TLS handshakes the 99th percentile of the others' latency at most doubles."""
    certificates = Certificates(directory)
    environ = {
        "COLLAB_TLS__CERT_FILE": str(certificates.cert_file),
        "COLLAB_TLS__KEY_FILE": str(certificates.key_file),
        "COLLAB_TIMEOUTS__HANDSHAKE": f"{_STALLED_SECONDS}s",
    }
    hello = _hello(certificates.client())
    for what, said in (("half a hello", hello[: len(hello) // 2]), ("a hello", hello)):
        with Command(directory, *_SERVE, environ=environ) as command, open_files(_HANDSHAKES + 256):
            port = int(command.line(r'Listening.*"wss://[^":]+:(\d+)"')[1])
            with _pair(port, ca_file=str(certificates.root_file)) as pair, ExitStack() as stack:
                time.sleep(_ALONE_SECONDS)
                came = time.monotonic()
                for number in range(_HANDSHAKES):
                    # One after the other: a crowd that comes at once is another matter.
                    time.sleep(max(came + number / _HANDSHAKES_PER_SECOND - time.monotonic(), 0))
                    stalled = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    stalled.sendall(said)
                stand = time.monotonic()
                time.sleep(_ALONE_SECONDS)
                over = time.monotonic()
                with socket.create_connection(("127.0.0.1", port)) as plain:
                    certificates.client().wrap_socket(plain, server_hostname="localhost").close()
                newcomer = time.monotonic() - over
            alone, coming, beside = (
                pair.between(begin, end) for begin, end in ((0.0, came), (came, stand), (stand, over))
            )
            most = max(_TIMES_P99 * _p99(alone), _LEAST_SECONDS) * 1000
            yield Figure(f"p99 beside {_HANDSHAKES} times {what}", _p99(beside) * 1000, most, "ms")
            yield Figure("p99 while they come", _p99(coming) * 1000, _LAG_SECONDS * 1000, "ms")
            yield Figure("handshake of a newcomer beside them", newcomer, 1.0)


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


def _signed(user_id: str, key_id: str) -> str:
    return token(user_id, key=private_key("EdDSA"), algorithm="EdDSA", headers={"kid": key_id})


def _hello(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@contextmanager
def _host_of_keys() -> Iterator[str]:
    """The URL of a host that answers once, and from then on accepts and says nothing."""
    body = json.dumps({"keys": [jwk("EdDSA", "known")]}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as kept:

        def serve() -> None:
            with suppress(OSError):
                with listener.accept()[0] as first:
                    first.recv(65536)
                    first.sendall(answer)
                while True:
                    kept.enter_context(listener.accept()[0])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        finally:
            # It does not see that the listener is closed.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@attrs.define
class _Pair:
    """Two who exchange events in a process of their own."""

    found: list[tuple[float, float]] = attrs.field(factory=list)
    """When each event was due, and how long after that it arrived; known once the pair has ended."""

    def between(self, begin: float, end: float) -> list[float]:
        """The latencies of what was due in this time."""
        return [seconds for due, seconds in self.found if begin <= due < end]


@contextmanager
def _pair(port: int, *, tokens: dict[str, str] | None = None, ca_file: str = "") -> Iterator[_Pair]:
    """A pair that is connected, from here to the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "_promises.pair"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pair = _Pair()
    try:
        process.stdin.write(json.dumps({"port": port, "tokens": tokens or {}, "ca_file": ca_file}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n", "the pair did not begin"
        yield pair
        output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
        pair.found = [(due, seconds) for due, seconds in json.loads(output)]
    finally:
        process.kill()
        process.wait()
