"""The record layer of a client of TLS 1.3 (RFC 8446 section 5), for what Python's own would not send."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    import trio

ALERT, HANDSHAKE, DATA = 21, 22, 23
CLOSE_NOTIFY = b"\x01\x00"
KEY_UPDATE, KEY_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x00", b"\x18\x00\x00\x01\x01"


class Direction:
    """What one side sends: its secret, and the number of its next record."""

    def __init__(self, secret: bytes) -> None:
        self._rekey(secret)

    def seal(self, kind: int, content: bytes) -> bytes:
        """One record."""
        size = struct.pack("!BHH", DATA, 0x0303, len(content) + 17)
        return size + self._key.encrypt(self._nonce(), content + bytes([kind]), size)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """The kind of a record and what it holds; raises where it does not come next."""
        plain = self._key.decrypt(self._nonce(), record[5:], record[:5]).rstrip(b"\0")
        return plain[-1], plain[:-1]

    def update(self) -> None:
        """Go on with the next key, behind a KeyUpdate."""
        self._rekey(_expand(self._secret, "traffic upd", 48))

    def _rekey(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, "key", 32))
        self._iv = int.from_bytes(_expand(secret, "iv", 12), "big")
        self._number = 0

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return nonce


class Records:
    """A connection whose handshake Python's `ssl` has made, record by record from there on.

    `keys` is the file that the client's context logs its secrets to; nothing was sent over `stream` yet.
    """

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], keys: Path) -> None:
        assert stream.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        secrets = [line.split() for line in keys.read_text().splitlines() if "TRAFFIC_SECRET_0" in line]
        found = {label: bytes.fromhex(secret) for label, _, secret in secrets}
        self.stream = stream.transport_stream
        self.ours = Direction(found["CLIENT_TRAFFIC_SECRET_0"])
        self.theirs = Direction(found["SERVER_TRAFFIC_SECRET_0"])
        self.updates = 0
        """How often the peer took a new key."""
        self.alerts: list[bytes] = []
        self._buffer = b""

    async def send(self, *contents: bytes) -> None:
        """Each as a record of its own, all in one piece."""
        await self.stream.send_all(b"".join(self.ours.seal(DATA, content) for content in contents))

    def updated(self, request: bytes = KEY_UPDATE_REQUESTED) -> bytes:
        """A KeyUpdate; what is sealed from here on has the next key."""
        record = self.ours.seal(HANDSHAKE, request)
        self.ours.update()
        return record

    async def receive(self) -> bytes:
        """The data of the next record that has any; b"" at the end."""
        while True:
            while len(self._buffer) < 5 or len(self._buffer) < self._size():
                data = await self.stream.receive_some(65536)
                if not data:
                    return b""
                self._buffer += data
            record, self._buffer = self._buffer[: self._size()], self._buffer[self._size() :]
            kind, content = self.theirs.open(record)
            if kind == DATA:
                return content
            if kind == ALERT:
                self.alerts.append(content)
            elif content == KEY_UPDATE:
                self.updates += 1
                self.theirs.update()

    async def receive_until(self, marker: bytes) -> bytes:
        """All data up to some that holds this."""
        data = b""
        while marker not in data:
            piece = await self.receive()
            assert piece, f"it ended behind {data!r}"
            data += piece
        return data

    def _size(self) -> int:
        return 5 + int.from_bytes(self._buffer[3:5], "big")


def logs_keys(context: ssl.SSLContext, keys: Path) -> ssl.SSLContext:
    """This client's context, which writes its secrets to a file."""
    context.keylog_filename = str(keys)
    return context


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label, RFC 8446 section 7.1."""
    name = b"tls13 " + label.encode()
    info = struct.pack("!HB", size, len(name)) + name + b"\0"
    return HKDFExpand(SHA384(), size, info).derive(secret)
