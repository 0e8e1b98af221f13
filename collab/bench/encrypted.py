"""Owns TLS of the load generator: a non-blocking socket that says so as a plain one does."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from typing_extensions import Buffer


class EncryptedSocket(ssl.SSLSocket):
    """Raises BlockingIOError where TLS waits for the other side. The handshake is done on the way."""

    def send(self, data: Buffer, flags: int = 0) -> int:
        """See `socket.socket.send`."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        """See `socket.socket.recv_into`. One record at most: what is left is in the socket, not here."""
        try:
            return super().recv_into(buffer, nbytes, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None


def client_context() -> ssl.SSLContext:
    """What a client trusts by default: the system's authorities, or the file in `SSL_CERT_FILE`."""
    context = ssl.create_default_context()
    context.sslsocket_class = EncryptedSocket
    return context


def encrypted(connected: socket.socket, context: ssl.SSLContext, server_hostname: str) -> ssl.SSLSocket:
    """The connected socket under TLS. Owns it from now on."""
    return context.wrap_socket(connected, server_hostname=server_hostname, do_handshake_on_connect=False)
