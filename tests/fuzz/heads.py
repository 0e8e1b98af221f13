"""Owns the fuzzing of request heads: upgrades and HTTP requests, right and wrong, in pieces of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import h11
from test_docs import rows

from collab.errors import Refused
from collab.wire.head import Head, HeadReader, error_response
from collab.wire.identity import identity_from_query
from fuzz.draw import bytewise, cut, damage, dice

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

AREA = "heads"
REFUSALS = frozenset((int(row[0]), row[1].strip("`")) for row in rows("Refusals"))
TOO_LARGE = {(431, "head_too_large"), (400, "bad_request")}
"""What is wrong beyond the bound on a head's size may be seen first, where it comes in one piece."""
_BYTEWISE_BYTES = 600

_METHODS = ("GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PUT", "BREW", "get", "CONNECT", "G@T", "")
_PATHS = (
    *("/", "/", "/ws", "/ws/ada", "/ws/", "/ws/a%20b", "/ws/%ff", "/ws/%00", "/health", "/ready", "/nowhere"),
    *(
        "/api/users/online",
        "/api/users/ada",
        "/api/register",
        "*",
        "http://localhost/ws",
        "ws://[::1/ws",
        "//x/ws",
    ),
    *("/ws/ada/more", "/../ws", "/%2e%2e/ws", "", "http:///ws", "/" + "a" * 3000),
)
_VALUES = (
    *("ada", "", "a%20b", "%00", "%ff", "%E2%80%AE", "%F0%9F%98%80", "%", "%zz", "a+b", "x" * 128, "x" * 129),
    *(
        "%C3%BC" * 128,
        "%ED%A0%80",
        "http://localhost:8000",
        "https://h",
        "http://",
        "ftp://h",
        "http://h:port",
    ),
    *("http%3A%2F%2Fb%3A8000%2Fx", "http://[::1", "http://h:99999", "javascript:1", "http://" + "h" * 2100),
)
_NAMES = ("user_id", "backend_url", "display_name", "presence", "token", "", "USER_ID", "user%5Fid")
_WRONG_LINES = (
    *(
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: 1_0",
        "Content-Length: 99999999999999999999",
    ),
    *("Content-Length: 0", "Content-Length: 0000", "Content-Length: 5, 5", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: identity, chunked", "Transfer-Encoding : chunked"),
    *("Host: other", "Host:", "Host: a b", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    *(
        "Sec-WebSocket-Version: 8",
        "Sec-WebSocket-Key: short",
        "Connection: close",
        "Connection: keep-alive, Upgrade",
    ),
    *(
        "Origin: null",
        "Origin: http://evil",
        "Expect: 100-continue",
        "Sec-WebSocket-Extensions: permessage-deflate",
    ),
    *(
        "Sec-WebSocket-Protocol: chat",
        " folded: line",
        "no colon",
        ": no name",
        "na me: x",
        "x:\x00",
        "x:\x7f",
        "ü: x",
    ),
    *("X: " + "y" * 5_000, "X: " + "y" * 17_000, "X:" + " " * 9_000 + "x", "Cookie: a=\xff"),
)
_SPICE = (
    *(
        b"\r\n\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\n\n",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"\xff",
        b"%",
    ),
    *(
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n ",
        b"\x0b",
        b"?",
    ),
)
_UPGRADE_LINES = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


# What goes out


def request(draw: random.Random, user_id: str = "ada") -> bytes:
    """One request, mostly damaged; what follows its head may be a body or anything else."""
    how = draw.random()
    if how < 0.04:
        return draw.randbytes(int(draw.random() * 60))
    lines = [_request_line(draw, user_id)]
    headers = ["Host: localhost:9000"]
    if draw.random() < 0.6:
        headers += _UPGRADE_LINES
    if draw.random() < 0.4:
        headers += [draw.choice(_WRONG_LINES) for _ in range(1 + int(draw.random() * 3))]
    if draw.random() < 0.1:
        headers.remove(draw.choice(headers))
    if headers and draw.random() < 0.1:
        headers.append(draw.choice(headers))
    if draw.random() < 0.03:
        headers += [f"X-{number}: y" for number in range(draw.choice((90, 99, 100, 300)))]
    if draw.random() < 0.3:
        draw.shuffle(headers)
    end = "\r\n" if draw.random() < 0.97 else draw.choice(("\n", "\r", "\r\r\n", "\n\r"))
    head = (end.join(lines + headers) + end * 2).encode("latin-1")
    body = b"" if draw.random() < 0.6 else _body(draw)
    if draw.random() < 0.3:
        head = damage(draw, head, _SPICE)
    return head + body


def _request_line(draw: random.Random, user_id: str) -> str:
    if draw.random() < 0.5:
        return f"GET /?user_id={user_id}&backend_url=http://localhost:8000 HTTP/1.1"
    method = draw.choice(_METHODS)
    path = draw.choice(_PATHS)
    pairs = [
        f"{draw.choice(_NAMES)}={draw.choice(_VALUES) if draw.random() < 0.7 else user_id}"
        for _ in range(int(draw.random() * 5))
    ]
    query = "?" + "&".join(pairs) if pairs else ""
    version = draw.choice(
        ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", "")
    )
    return f"{method} {path}{query} {version}"


def _body(draw: random.Random) -> bytes:
    return draw.choice(
        (
            b"hello",
            b'{"user_id":"ada","backend_url":"http://x"}',
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
            b"-1\r\nhello",
            b"ffffffffffffffff\r\n",
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x81\x80\x00\x00\x00\x00",
            draw.randbytes(int(draw.random() * 100)),
        )
    )


# What must come of it


@attrs.frozen
class Outcome:
    """What a reader made of the bytes: a head with what follows it, a refusal, or that more is needed."""

    head: Head | None = None
    rest: bytes = b""
    refusal: tuple[int, str] | None = None


def read(pieces: Iterable[bytes]) -> Outcome:
    """What the reader makes of the pieces."""
    reader = HeadReader()
    left = list(pieces)
    try:
        while left:
            head = reader.feed(left.pop(0))
            if head is not None:
                return Outcome(head, reader.rest + b"".join(left))
    except Refused as refused:
        return _refusal(refused)
    return Outcome()


def _refusal(refused: Refused) -> Outcome:
    assert error_response(refused).startswith(b"HTTP/1.1 %d " % refused.status)
    assert (refused.status, refused.code) in REFUSALS
    return Outcome(refusal=(refused.status, refused.code))


def run(seed: int, index: int) -> None:
    """One request: every split gives the same head or the same listed refusal, and so does its identity."""
    draw = dice(AREA, seed, index)
    data = request(draw)
    outcome = read([data])
    splits = [cut(draw, data), cut(draw, data)]
    if len(data) <= _BYTEWISE_BYTES and draw.random() < 0.1:
        splits.append(bytewise(data))
    for pieces in splits:
        again = read(pieces)
        assert again == outcome or {again.refusal, outcome.refusal} == TOO_LARGE, (
            f"{pieces=} {again=} {outcome=}"
        )
    if outcome.head is not None:
        _check_head(outcome.head)
        _check_identity(outcome.head)


def _check_head(head: Head) -> None:
    """Written anew, the head is read as the same request by ourselves and by h11."""
    written = head.to_bytes()
    again = read([written]).head
    assert again is not None
    assert again.to_bytes() == written
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(written)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    target = f"{head.path}?{head.query}" if head.query else head.path
    assert (event.method.decode(), event.target.decode()) == (head.method, target)
    assert [(name.decode(), value.decode("latin-1")) for name, value in event.headers] == [
        (name, value) for name, value in head.headers if name != "expect"
    ]


def _check_identity(head: Head) -> None:
    path_user_id = head.path.removeprefix("/ws/") if head.path.startswith("/ws/") else ""
    try:
        identity = identity_from_query(head.query, path_user_id=path_user_id)
    except Refused as refused:
        _refusal(refused)
        return
    assert 1 <= len(identity.user_id) <= 128
    assert 1 <= len(identity.display_name) <= 128
    assert identity.backend_url.lower().startswith(("http://", "https://"))
    for text in (identity.user_id, identity.display_name, identity.backend_url):
        assert text.encode().decode() == text
        assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)
