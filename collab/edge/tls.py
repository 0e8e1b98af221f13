"""Owns TLS on the one port: the context and its renewal, and the stream of a connection under TLS."""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, cast

import trio
from cryptography import x509

from collab.edge.peer import socket_of
from collab.errors import HandshakeFailed, SettingsError
from collab.observe.log import get_logger

if TYPE_CHECKING:
    from datetime import datetime

    from collab.settings import TlsSettings

_log = get_logger()
_LOOK_SECONDS: Final = 2.0
_VERIFY_MODES: Final = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL}
_MISMATCH: Final = "KEY_VALUES_MISMATCH"
_RECORD_BYTES: Final = 16384
_WRITE_BYTES: Final = 65536
_MOST_UNSENT_BYTES: Final = 256 * 1024
"""What may wait to go out: a write that was cut short, and what reading calls for (TLS 1.3 KeyUpdate)."""

_Fingerprint = tuple[tuple[int, int, int] | None, ...]


class Tls:
    """The context that new connections are wrapped with, renewed whenever its files are.

    Each renewal makes a new context, whole or not at all: connections that live keep theirs, and
    files that do not fit each other leave the old one in place.

    Raises:
        SettingsError: at the start there is no old one; a file that cannot be used is a mistake.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._seen = self._look()
        self.context = _load(settings)
        self._failure = ""
        """Why the last renewal failed; empty where it did not."""

    @classmethod
    def from_settings(cls, settings: TlsSettings) -> Tls | None:
        """TLS where the settings ask for it.

        Raises:
            SettingsError: a setting lacks the one that belongs to it, or a file cannot be used.
        """
        if settings.cert_file and settings.key_file:
            return cls(settings)
        if settings.cert_file:
            raise SettingsError("tls.cert_file is set: set tls.key_file too")
        for name in ("key_file", "client_ca_file"):
            if getattr(settings, name):
                raise SettingsError(f"tls.{name} is set: set tls.cert_file too")
        return None

    async def run(self) -> None:
        """Renew the context as the files change, until cancelled.

        The files are looked at and read on the loop: three calls of `stat` take microseconds, and a thread
        for them would live as long as the service. So they should be on a local disk.
        """
        while True:
            await trio.sleep(_LOOK_SECONDS)
            if self._failure or self._look() != self._seen:
                self.renew()

    def renew(self) -> None:
        """Read the files now. Where they cannot be used, the old context goes on and they are tried again."""
        # Looked at first: what changes while it is read is read once more.
        self._seen = self._look()
        try:
            self.context = _load(self._settings)
        except SettingsError as error:
            # Tried every two seconds, told once.
            if str(error) != self._failure:
                self._failure = str(error)
                _log.error("TLS certificate not renewed, the old one goes on", reason=self._failure)
            return
        self._failure = ""
        expires = _expiry(self._settings.cert_file or "")
        _log.info("TLS certificate renewed", expires=expires.isoformat() if expires else "unknown")

    def _look(self) -> _Fingerprint:
        settings = self._settings
        paths = (settings.cert_file, settings.key_file, settings.client_ca_file)
        return tuple(_stat(path) for path in paths if path)


class TlsStream(trio.abc.HalfCloseableStream):
    """A connection under TLS, from the server's side. Does not own the stream under it.

    Made of `trio.SSLStream`, and of what that keeps to itself: the alert of a handshake that
    failed, and the end of our side (close_notify, RFC 8446 section 6.1) while the peer may still send.

    Over a socket it can be read and written without waiting as well, by whoever does not wait in
    `receive_some` meanwhile: all of it goes through the one SSL object, in order.
    """

    def __init__(self, plain: trio.abc.Stream, context: ssl.SSLContext) -> None:
        self.socket = socket_of(plain)
        self.descriptor = plain.socket.fileno() if isinstance(plain, trio.SocketStream) else -1
        """That of the socket under it, which holds what is encrypted; -1 where there is none."""
        self.peer_ended = False
        """Whether, behind what `read_now` or `read_ahead` gave last, the peer ended or broke TLS."""
        self._plain = plain
        self._parts = _Parts(context)
        # A peer may end its connection without close_notify: HTTP and WebSocket know by themselves
        # whether something is missing.
        self._stream = trio.SSLStream(
            plain, cast("ssl.SSLContext", self._parts), server_side=True, https_compatible=True
        )
        self._ended = False
        self._unsent = b""
        # Stays set once a send was cut off: nothing may follow half a record.
        self._sending = False

    @property
    def has_unsent(self) -> bool:
        """Whether something that is encrypted already waits to go out, before anything else."""
        return bool(self._unsent)

    async def handshake(self) -> None:
        """Agree on everything. The caller sets the deadline.

        Raises:
            HandshakeFailed: the peer is not let in, or speaks no TLS.
            trio.BrokenResourceError: the peer is gone.
        """
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            if not isinstance(cause, ssl.SSLError):
                raise
            raise HandshakeFailed(_reason(cause), self._parts.outgoing.read()) from None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The peer's next bytes. After `send_eof` only their end means something: they may be encrypted."""
        if not self._ended:
            try:
                data = bytes(await self._stream.receive_some(max_bytes))
            except trio.BrokenResourceError:
                if not self._ended:
                    raise
            else:
                if data or not self._ended:
                    return data
        return bytes(await self._plain.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`. Once a send was cancelled nothing can be sent or received.

        With no data it sends what a `write_now` has left.
        """
        self._sending = True
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._plain.send_all(unsent)
        await self._stream.send_all(data)
        self._sending = False

    def read_now(self, max_bytes: int) -> bytes:
        """What the peer has sent, of at most so many encrypted bytes; b"" at its end.

        All that can be decrypted comes at once: nothing stays behind that the descriptor would not tell of.
        After `send_eof` only the end means something.

        Raises:
            BlockingIOError: there is nothing yet.
            OSError: the peer is gone, or has us hold too much that it does not read.
        """
        data = os.read(self.descriptor, max_bytes)
        if self._ended or not data:
            return data
        self._parts.incoming.write(data)
        data = self.read_ahead()
        if not data and not self.peer_ended:
            raise BlockingIOError
        return data

    def read_ahead(self) -> bytes:
        """What has been read of the socket already and not been given out.

        Raises:
            OSError: the peer has us hold too much that it does not read.
        """
        incoming, outgoing, tls = self._parts.incoming, self._parts.outgoing, self._parts.tls
        parts = []
        try:
            while incoming.pending or tls.pending():
                part = tls.read(_RECORD_BYTES)
                if not part:
                    self.peer_ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.peer_ended = True
        if outgoing.pending:
            if not self._sending:
                # A dead socket is found by whoever writes next.
                with suppress(OSError):
                    self._flush()
            if len(self._unsent) + outgoing.pending > _MOST_UNSENT_BYTES:
                raise OSError("the peer does not read what it asks for")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_now(self, data: bytes) -> int:
        """Encrypt and write what the socket takes without waiting: how many bytes were taken.

        What of these did not go out is kept (`has_unsent`), and goes before anything else.

        Raises:
            BlockingIOError: none were taken.
            OSError: the peer is gone.
        """
        if self._sending or not self._flush():
            raise BlockingIOError
        write = self._parts.tls.write
        taken = 0
        with memoryview(data) as view:
            while taken < len(data):
                taken += write(view[taken : taken + _WRITE_BYTES])
                if not self._flush():
                    break
        return taken

    def _flush(self) -> bool:
        """Write what is encrypted already, without waiting: whether nothing of it is left."""
        data = self._unsent + self._parts.outgoing.read()
        if data:
            # Kept first: an error must not let anything else go before it.
            self._unsent = data
            with suppress(BlockingIOError):
                self._unsent = data[os.write(self.descriptor, data) :]
        return not self._unsent

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that nothing more comes from us, once something was sent: close_notify, then FIN.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        self._ended = True
        # It raises because the peer's own close_notify is not there yet; that is not waited for.
        with suppress(ssl.SSLError):
            self._parts.tls.unwrap()
        unsent, self._unsent = self._unsent, b""
        await self._plain.send_all(unsent + self._parts.outgoing.read())
        if isinstance(self._plain, trio.abc.HalfCloseableStream):
            await self._plain.send_eof()

    def release(self) -> None:
        """Free what the connection holds. Nothing may be done with it any more.

        `trio.SSLStream` points to itself through its handshake, and Hypercorn's parts to each other: tens
        of kilobytes of every connection would wait for the garbage collector.
        """
        vars(self._stream).clear()
        del self._parts

    async def aclose(self) -> None:
        """The door closes the stream under it."""
        await trio.lowlevel.checkpoint()


class _Parts:
    """Stands for a context, to keep hold of what `trio.SSLStream` makes of it."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        server_side: bool,
        server_hostname: str | None,
    ) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`."""
        self.incoming = incoming
        self.outgoing = outgoing
        self.tls = self._context.wrap_bio(
            incoming, outgoing, server_side=server_side, server_hostname=server_hostname
        )
        return self.tls


def _load(settings: TlsSettings) -> ssl.SSLContext:
    """A context with these files.

    Raises:
        SettingsError: one cannot be used; the text names its setting.
    """
    cert_file, key_file, client_ca_file = settings.cert_file, settings.key_file, settings.client_ca_file
    assert cert_file is not None
    assert key_file is not None
    _check_readable("tls.cert_file", cert_file)
    _check_readable("tls.key_file", key_file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Not h2: it is not spoken here.
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert_file, key_file, password=_refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == _MISMATCH:
            why = "the key does not fit the certificate"
        else:
            why = f"not a certificate and its key in PEM ({_reason(error)})"
        raise SettingsError(f"tls.cert_file, tls.key_file: {why}") from None
    except OSError as error:
        raise SettingsError(f"tls.cert_file, tls.key_file: {error.strerror}") from None
    if client_ca_file:
        _check_readable("tls.client_ca_file", client_ca_file)
        try:
            context.load_verify_locations(client_ca_file)
        except ssl.SSLError as error:
            raise SettingsError(f"tls.client_ca_file: no certificates in PEM ({_reason(error)})") from None
        except OSError as error:
            raise SettingsError(f"tls.client_ca_file: {error.strerror}") from None
        context.verify_mode = _VERIFY_MODES[settings.client_auth]
    return context


def _check_readable(name: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {path}: {error.strerror}") from None


def _refuse_to_ask() -> NoReturn:
    # OpenSSL would ask whoever sits at the terminal, and wait.
    raise SettingsError("tls.key_file: the key is encrypted, which is not supported")


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _expiry(cert_file: str) -> datetime | None:
    try:
        return x509.load_pem_x509_certificate(Path(cert_file).read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's word for what went wrong, which holds nothing that the peer sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).lower().replace("_", " ")
