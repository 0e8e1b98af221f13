"""An authority of the tests' own, the certificates that it signs, and services that use them."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import attrs
import trustme

from collab.settings import Settings, TlsSettings
from collab.testing import open_service

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from collab.settings import ClientAuth
    from collab.testing import LocalService


class Certificates:
    """One authority, and in `directory` its root and a pair for the service."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.root_file = directory / "root.pem"
        self.cert_file = directory / "cert.pem"
        self.key_file = directory / "key.pem"
        self.authority.cert_pem.write_to_path(self.root_file)
        self.renew()

    @property
    def settings(self) -> TlsSettings:
        """TLS with the pair."""
        return TlsSettings(cert_file=str(self.cert_file), key_file=str(self.key_file))

    def for_clients(self, client_auth: ClientAuth = "required") -> TlsSettings:
        """TLS with the pair, where clients need a certificate of the same authority."""
        return attrs.evolve(self.settings, client_ca_file=str(self.root_file), client_auth=client_auth)

    def renew(self) -> None:
        """A new pair for the service, each file put in place at once."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1", "::1")
        for path, pem in (
            (self.cert_file, b"".join(part.bytes() for part in issued.cert_chain_pems)),
            (self.key_file, issued.private_key_pem.bytes()),
        ):
            beside = path.with_suffix(".new")
            beside.write_bytes(pem)
            os.replace(beside, path)

    def client(self) -> ssl.SSLContext:
        """A client that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def client_with_certificate(self, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """A client that has a certificate of its own, of this authority or of another."""
        context = self.client()
        (authority or self.authority).issue_cert("client@example.org").configure_cert(context)
        return context

    def open_service(
        self, settings: Settings | None = None, **arguments: object
    ) -> AbstractAsyncContextManager[LocalService]:
        """`collab.testing.open_service` over TLS."""
        settings = attrs.evolve(settings or Settings(), tls=self.settings)
        return open_service(settings, ssl_context=self.client(), **arguments)
