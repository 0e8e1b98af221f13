"""What may be at the other end of a URL: each connection gets an answer of the test's own, or none."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from http import HTTPStatus

PATIENCE_SECONDS = 10.0
HEALTH = {
    "status": "healthy",
    "uptime": 61,
    "active_users": 2,
    "total_connections": 3,
    "total_events_routed": 4,
}


def http(status, body=b"", headers=()):
    """A whole response of HTTP; a body that is no bytes becomes JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status, code, sentence="no", **more):
    """A response as the service refuses with."""
    headers = [("Retry-After", more.pop("retry_after"))] if "retry_after" in more else []
    return http(status, {"error": sentence, "code": code, **more}, headers)


def site(pages, upgrade=None):
    """Answers by path: `/health` and `/ready` as a service does, unless `pages` says otherwise.

    `upgrade` is what a request with the header Upgrade gets.
    """
    known = {"/health": http(200, HEALTH), "/ready": http(200, {"status": "ready"}), **pages}

    def answer(head):
        if b"\r\nupgrade:" in head.lower():
            return upgrade
        path = head.split()[1].decode().partition("?")[0]
        return known.get(path, refusal(404, "not_found"))

    return answer


@contextmanager
def answering(answer, context=None):
    """The port of a server that answers each request with these bytes, or with what this function gives.

    None keeps the connection open without a word, `b""` ends it. With `context` over TLS.
    """
    serving = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                serving.append(threading.Thread(target=serve, args=(connection,)))
                serving[-1].start()

        def serve(plain):
            plain.settimeout(PATIENCE_SECONDS)
            with suppress(OSError), plain:
                if context is None:
                    talk(plain)
                else:
                    with context.wrap_socket(plain, server_side=True) as encrypted:
                        talk(encrypted)

        def talk(connection):
            head = b""
            while callable(answer) and b"\r\n\r\n" not in head:
                if not (data := connection.recv(65536)):
                    return
                head += data
            said = answer(head) if callable(answer) else answer
            if said is not None:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # `close` alone does not wake the thread that accepts.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in serving:
                thread.join()


def closed_port():
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
