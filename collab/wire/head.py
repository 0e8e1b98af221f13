"""Owns the head of an HTTP/1.1 request: read within bounds, checked strictly, written anew (RFC 9112)."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import msgspec

from collab.errors import Refused
from collab.wire.headers import SECURITY_HEADERS

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 100

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(\d\.\d)")
# The blanks around the value are stripped, not matched: matching them is cubic in their number.
_HEADER = re.compile(rb"(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)")
_BLANKS = " \t"
_HOST = re.compile(r"[!-~]*")
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"
_TLS_HANDSHAKE = 0x16
_BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


@attrs.frozen
class Head:
    """A request's head. Header names are in lower case, values are latin-1 text without outer blanks."""

    method: str
    path: str
    """Still percent-encoded."""
    query: str
    """Still percent-encoded, without the question mark."""
    version: str
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The header's value, several joined by a comma (RFC 9110 section 5.3); None where absent."""
        values = self.get_all(name)
        return ", ".join(values) if values else None

    def get_all(self, name: str) -> list[str]:
        """Every value of the header."""
        return [value for header, value in self.headers if header == name]

    def tokens(self, name: str) -> list[str]:
        """The comma-separated members of a header, in lower case."""
        return [token for part in (self.get(name) or "").split(",") if (token := part.strip(_BLANKS).lower())]

    def only(self, names: Collection[str]) -> Head:
        """The head of the same request with these headers alone, an upgrade's in plainest form."""
        plain = {"upgrade": "websocket", "connection": "upgrade"}
        kept = {name: plain.get(name, value) for name, value in self.headers if name in names}
        return attrs.evolve(self, headers=tuple(kept.items()))

    def with_body_length(self, size_bytes: int) -> Head:
        """The head of the same request with a body of this size, whatever said its length before.

        What is between the client and us alone is left out (RFC 9110 section 7.6.1): above all no upgrade,
        which a second parser might find where we found none.
        """
        kept = [pair for pair in self.headers if pair[0] not in _LENGTH_FIELDS and pair[0] not in _HOP_FIELDS]
        if size_bytes or self.method not in _BODILESS_METHODS:
            kept.append(("content-length", str(size_bytes)))
        return attrs.evolve(self, headers=tuple(kept))

    def to_bytes(self) -> bytes:
        """The head written anew from its checked parts, so that a second parser cannot read another request.

        `Expect` is left out: whoever hands the request on has its body already.
        """
        target = f"{self.path}?{self.query}" if self.query else self.path
        lines = [f"{self.method} {target} HTTP/{self.version}"]
        lines += [f"{name}: {value}" for name, value in self.headers if name != "expect"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_LENGTH_FIELDS = frozenset({"content-length", "transfer-encoding", "trailer"})
_HOP_FIELDS = frozenset({"connection", "upgrade", "http2-settings", "keep-alive", "te", "proxy-connection"})


class HeadReader:
    """Collects a head from pieces of any size; what came after it is left in `rest`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.rest = b""

    def feed(self, data: bytes) -> Head | None:
        """Take the next bytes: the head once it is whole, else None.

        Raises:
            Refused: 400, 431, 501 or 505, also before the head is whole where it cannot become right.
        """
        seen = max(len(self._buffer) - 3, 0)
        self._buffer += data
        if self._buffer[:1] == bytes((_TLS_HANDSHAKE,)):
            raise _bad_request("this port speaks HTTP and WebSocket without TLS")
        end = self._buffer.find(b"\r\n\r\n", seen)
        # A CR at the very end may be the first half of a line's end.
        head = bytes(self._buffer[: end + 2]) if end >= 0 else bytes(self._buffer).removesuffix(b"\r")
        if head.startswith(_HTTP2_PREFACE):
            raise Refused(505, "http_version_not_supported", "HTTP/2 is not spoken here; use HTTP/1.1")
        if _BARE_NEWLINE.search(head, max(seen - 1, 0)):
            raise _bad_request("a line does not end in CR LF")
        if len(head) > MAX_HEAD_BYTES:
            raise Refused(
                431, "head_too_large", f"the head of a request may have at most {MAX_HEAD_BYTES:,} bytes"
            )
        if end < 0:
            return None
        self.rest = bytes(self._buffer[end + 4 :])
        return _parse(head)


def error_response(error: Refused) -> bytes:
    """A refusal as a whole HTTP/1.1 response that closes its connection.

    The body is `{"error": <sentence>, "code": <machine word>}`, or the error of Engine.IO.
    """
    body = msgspec.json.encode(error.body)
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in SECURITY_HEADERS),
    ]
    if error.retry_after_seconds is not None:
        lines.append(f"retry-after: {error.retry_after_seconds}")
    lines += [f"{name}: {value}" for name, value in error.headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (b"" if error.bodiless else body)


def _parse(raw: bytes) -> Head:
    request_line, *lines = raw.removesuffix(b"\r\n").split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise _bad_request("the request line is malformed")
    method, target, version = (part.decode("ascii") for part in match.groups())
    if version not in ("1.0", "1.1"):
        raise Refused(505, "http_version_not_supported", "use HTTP/1.1")
    if len(lines) > MAX_HEADERS:
        raise Refused(431, "head_too_large", f"a request may have at most {MAX_HEADERS} headers")
    path, query = _path_and_query(method, target)
    head = Head(method, path, query, version, tuple(_header(line) for line in lines))
    _check(head)
    return head


def _header(line: bytes) -> tuple[str, str]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise _bad_request("a header line is malformed")
    return match[1].decode("ascii").lower(), match[2].decode("latin-1").strip(_BLANKS)


def _path_and_query(method: str, target: str) -> tuple[str, str]:
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        path, _, query = target.partition("?")
        return path, query
    # The absolute form must be understood as well (RFC 9112 section 3.2.2).
    try:
        parts = urlsplit(target)
    except ValueError:
        raise _bad_request("the request target is malformed") from None
    if parts.scheme.lower() not in ("http", "https", "ws", "wss") or not parts.netloc:
        raise _bad_request("the request target is malformed")
    return parts.path or "/", parts.query


def _check(head: Head) -> None:
    """Refuse what two parsers could read in two ways, and what is not spoken here."""
    hosts = head.get_all("host")
    if len(hosts) > 1 or (not hosts and head.version == "1.1"):
        raise _bad_request("exactly one Host header is needed")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _bad_request("the Host header is malformed")
    lengths, codings = head.get_all("content-length"), head.get_all("transfer-encoding")
    if lengths and codings:
        raise _bad_request("Content-Length and Transfer-Encoding exclude each other")
    if len(lengths) > 1 or (lengths and not _is_length(lengths[0])):
        raise _bad_request("Content-Length is malformed")
    if codings and head.version == "1.0":
        raise _bad_request("Transfer-Encoding needs HTTP/1.1")
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        raise Refused(501, "not_implemented", "the only transfer coding understood is chunked")
    if "h2c" in head.tokens("upgrade") or head.get("http2-settings") is not None:
        raise _bad_request("HTTP/2 is not spoken here; ask without the upgrade to h2c")


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _bad_request(message: str) -> Refused:
    return Refused(400, "bad_request", message)
