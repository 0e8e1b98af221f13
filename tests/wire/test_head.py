from __future__ import annotations

import string

import h11
import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from collab.errors import Refused
from collab.wire.head import MAX_HEAD_BYTES, MAX_HEADERS, Head, HeadReader, error_response

PLAIN = b"GET /ws?user_id=ada HTTP/1.1\r\nHost: localhost:9000\r\nX-One:  a b\t\r\n\r\n"


def read(*pieces: bytes) -> Head:
    head = read_if_whole(*pieces)
    assert head is not None
    return head


def read_if_whole(*pieces: bytes) -> Head | None:
    reader = HeadReader()
    for piece in pieces:
        head = reader.feed(piece)
        if head is not None:
            return head
    return None


def refusal(*pieces: bytes) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        read_if_whole(*pieces)
    return caught.value.status, caught.value.code


def request(*lines: str, line: str = "GET / HTTP/1.1", host: str = "Host: localhost") -> bytes:
    return "".join(text + "\r\n" for text in (line, host, *lines) if text).encode("latin-1") + b"\r\n"


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def as_h11_reads(data: bytes) -> tuple[str, str, str, list[tuple[str, str]]]:
    """Method, target, version and headers of the one request in these bytes."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    return event.method.decode(), event.target.decode(), event.http_version.decode(), headers


def assert_h11_reads_the_same(head: Head) -> None:
    target = head.path + (f"?{head.query}" if head.query else "")
    # h11 gives the transfer coding in lower case.
    kept = [
        (name, value.lower() if name == "transfer-encoding" else value)
        for name, value in head.headers
        if name != "expect"
    ]
    assert as_h11_reads(head.to_bytes()) == (head.method, target, head.version, kept)


@st.composite
def cut_up(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


blanks = st.text(" \t", max_size=2)
tokens = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
values = st.text([chr(c) for c in range(0x20, 0x100) if c != 0x7F] + ["\t"], max_size=20)
targets = st.one_of(
    st.text([chr(c) for c in range(0x21, 0x7F)], max_size=20).map(lambda rest: "/" + rest),
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "ws", "HTTP"]),
        st.sampled_from(["localhost", "a:80", "[::1]:9000"]),
        st.sampled_from(["", "/", "//x", "/p?q=1", "?q", "/p?", "/p#f", "/%00"]),
    ),
)
telling_headers = st.sampled_from(
    [
        ("Content-Length", "5"),
        ("Content-Length", "005"),
        ("Content-Length", "5, 5"),
        ("Content-Length", "+5"),
        ("Content-Length", ""),
        ("Content-Length", "\xb2"),
        ("Transfer-Encoding", "chunked"),
        ("Transfer-Encoding", "Chunked"),
        ("Transfer-Encoding", ""),
        ("Transfer-Encoding", ","),
        ("Transfer-Encoding", "chunked\xa0"),
        ("Transfer-Encoding", "chunked,"),
        ("Transfer-Encoding", "gzip, chunked"),
        ("Expect", "100-continue"),
        ("Host", "other"),
        ("Upgrade", "h2c"),
        ("Connection", "close"),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request's head, mostly right."""
    headers = draw(st.lists(st.one_of(st.tuples(tokens, values), telling_headers), max_size=6))
    lines = [f"{draw(tokens)} {draw(targets)} HTTP/{draw(st.sampled_from(['1.1', '1.1', '1.0']))}", "Host: h"]
    lines += [f"{name}:{draw(blanks)}{value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@st.composite
def damaged_requests(draw: st.DrawFn) -> bytes:
    """A request's head with something put in or left out somewhere."""
    data = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        left_out = draw(st.integers(0, 3))
        put_in = draw(
            st.one_of(
                st.sampled_from(
                    [b"", b"\r", b"\n", b"\r\n", b"\r\n ", b"\x00", b":", b" ", b"\x0b", b"\x85"]
                ),
                st.binary(max_size=4),
            )
        )
        data = data[:at] + put_in + data[at + left_out :]
    return data


junk = st.one_of(damaged_requests(), st.binary(max_size=200), requests())


# Reading


def test_a_plain_request_is_read() -> None:
    head = read(PLAIN)
    assert head == Head("GET", "/ws", "user_id=ada", "1.1", (("host", "localhost:9000"), ("x-one", "a b")))
    assert head.get("x-one") == "a b"
    assert head.get("x-two") is None


def test_what_follows_the_head_is_left_in_rest() -> None:
    reader = HeadReader()
    assert reader.feed(PLAIN[:20]) is None
    assert reader.feed(PLAIN[20:] + b"\x81\x80\r\n\r\n\n") is not None
    assert reader.rest == b"\x81\x80\r\n\r\n\n"


def test_a_head_may_come_byte_by_byte() -> None:
    assert read(*bytewise(PLAIN)) == read(PLAIN)


def test_a_head_may_come_in_any_two_pieces() -> None:
    for cut in range(len(PLAIN)):
        assert read(PLAIN[:cut], PLAIN[cut:]) == read(PLAIN)


def test_a_head_may_come_line_by_line() -> None:
    assert read(*PLAIN.splitlines(keepends=True)) == read(PLAIN)


def test_values_of_a_repeated_header_are_joined_by_commas() -> None:
    head = read(request("A: 1", "a: 2, 3"))
    assert head.get("a") == "1, 2, 3"
    assert head.get_all("a") == ["1", "2, 3"]


def test_tokens_are_in_lower_case_and_empty_members_are_left_out() -> None:
    assert read(request("Connection: keep-alive, , Upgrade", "connection: X")).tokens("connection") == [
        "keep-alive",
        "upgrade",
        "x",
    ]


def test_only_blanks_and_tabs_are_taken_off_a_token() -> None:
    assert read(request("Upgrade: websocket\xa0")).tokens("upgrade") == ["websocket\xa0"]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/a?", "/a", ""),
        ("//evil/x", "//evil/x", ""),
        ("/ws/%C3%A9%2Fx", "/ws/%C3%A9%2Fx", ""),
        ("http://localhost:9000/ws?x=1", "/ws", "x=1"),
        ("ws://localhost:9000/ws", "/ws", ""),
        ("https://localhost", "/", ""),
        ("HTTP://localhost?x", "/", "x"),
        ("http://localhost//x", "//x", ""),
    ],
)
def test_origin_form_and_absolute_form_give_path_and_query(target: str, path: str, query: str) -> None:
    head = read(request(line=f"GET {target} HTTP/1.1"))
    assert (head.path, head.query) == (path, query)
    assert_h11_reads_the_same(head)


def test_the_asterisk_is_a_target_of_options_alone() -> None:
    assert read(request(line="OPTIONS * HTTP/1.1")).path == "*"
    assert refusal(request(line="GET * HTTP/1.1")) == (400, "bad_request")


@pytest.mark.parametrize(
    "target", ["ws", "localhost:9000", "ftp://x/", "http:///x", "http://[::1/", "file:///etc/passwd", "?x"]
)
def test_another_form_of_target_is_refused(target: str) -> None:
    assert refusal(request(line=f"CONNECT {target} HTTP/1.1")) == (400, "bad_request")


@pytest.mark.parametrize(
    "line",
    [
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET / HTTP/11",
        "GET / HTTP/1.1.1",
        "G(T / HTTP/1.1",
        "GET /\xe9 HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\x00 HTTP/1.1",
    ],
)
def test_a_malformed_request_line_is_refused(line: str) -> None:
    assert refusal(request(line=line)) == (400, "bad_request")


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
def test_another_version_of_http_is_refused(version: str) -> None:
    assert refusal(request(line=f"GET / HTTP/{version}")) == (505, "http_version_not_supported")


@pytest.mark.parametrize(
    "line",
    [
        "No colon",
        ": no name",
        "Blank before : x",
        "N\xe4me: x",
        "A(b): x",
        "A: nul\x00",
        "A: bell\x07",
        "A: escape\x1b[2J",
        "A: delete\x7f",
        "A: vertical\x0btab",
    ],
)
def test_a_malformed_header_line_is_refused(line: str) -> None:
    assert refusal(request(line)) == (400, "bad_request")


@pytest.mark.parametrize("fold", [" folded", "\tfolded", " ", "\t"])
def test_a_folded_header_is_refused(fold: str) -> None:
    assert refusal(request("A: b", fold)) == (400, "bad_request")
    assert refusal(request(fold, host="")) == (400, "bad_request")


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"9000\r\n", b"9000\n"),
        PLAIN.replace(b"9000\r\n", b"9000\r"),
        PLAIN.replace(b"9000\r\n", b"9000\r\r\n"),
        PLAIN.replace(b"9000\r\n", b"9000\n\r\n"),
        PLAIN.replace(b"a b", b"a\nb"),
        PLAIN.replace(b"a b", b"a\rb"),
        b"\n" + PLAIN,
    ],
)
def test_a_line_that_does_not_end_in_cr_lf_is_refused_however_it_is_split(data: bytes) -> None:
    assert refusal(data) == (400, "bad_request")
    assert refusal(*bytewise(data)) == (400, "bad_request")
    for cut in range(len(data)):
        assert refusal(data[:cut], data[cut:]) == (400, "bad_request")


def test_a_bare_newline_is_refused_before_the_head_is_whole() -> None:
    assert refusal(b"GET / HTTP/1.1\nHost: x") == (400, "bad_request")


@pytest.mark.parametrize("piece", [b"\r\n", b"\r\n\r\n"])
def test_an_empty_line_before_the_request_is_refused(piece: bytes) -> None:
    assert refusal(piece + PLAIN) == (400, "bad_request")


# Limits


def test_a_head_over_the_limit_is_refused_before_it_is_whole() -> None:
    start = b"GET / HTTP/1.1\r\nHost: x\r\nA: "
    assert read_if_whole(start + b"a" * (MAX_HEAD_BYTES - len(start) - 2)) is None
    assert refusal(start + b"a" * MAX_HEAD_BYTES) == (431, "head_too_large")
    assert refusal(start, *[b"a"] * MAX_HEAD_BYTES) == (431, "head_too_large")


def test_a_head_of_the_limit_is_read_with_any_amount_behind_it() -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"\r\n"
    head = start + b"a" * (MAX_HEAD_BYTES - len(start) - len(end)) + end
    assert len(head) == MAX_HEAD_BYTES
    assert read(head + b"\r\n" + b"x" * 100_000).method == "GET"
    assert refusal(head[:-2] + b"a\r\n\r\n") == (431, "head_too_large")


def test_a_hundred_headers_are_read_and_one_more_is_refused() -> None:
    many = [f"X-{i}: {i}" for i in range(MAX_HEADERS - 1)]
    assert len(read(request(*many)).headers) == MAX_HEADERS
    assert refusal(request(*many, "X: one more")) == (431, "head_too_large")


@pytest.mark.parametrize("end", [b"x", b"\x01", b"\x7f"])
@pytest.mark.parametrize("filling", [b" ", b"\t", b" x", b" \t"])
def test_a_header_full_of_blanks_is_decided_at_once(filling: bytes, end: bytes) -> None:
    # Where matching is cubic in the number of blanks this takes hours.
    blanks = filling * (15_000 // len(filling))
    data = b"GET / HTTP/1.1\r\nHost: x\r\nA:a" + blanks + end + b"\r\nB:" + end + b"\r\n\r\n"
    if end == b"x":
        assert len(read(data).headers) == 3
    else:
        assert refusal(data) == (400, "bad_request")


# What two parsers could read in two ways


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 5",),
        ("Content-Length: 5,",),
        ("Content-Length: +5",),
        ("Content-Length: -1",),
        ("Content-Length: 0x5",),
        ("Content-Length: 5 5",),
        ("Content-Length: 1_0",),
        ("Content-Length: \xb2",),
        ("Content-Length: 5.0",),
        ("Content-Length:",),
        ("Content-Length: " + "9" * 19,),
    ],
)
def test_a_content_length_that_is_doubtful_is_refused(lines: tuple[str, ...]) -> None:
    assert refusal(request(*lines, line="POST / HTTP/1.1")) == (400, "bad_request")


@pytest.mark.parametrize("coding", ["chunked", "identity", "", ",", " , ", "gzip, chunked", "chunked\xa0"])
@pytest.mark.parametrize("first", ["length", "coding"])
def test_content_length_with_transfer_encoding_is_refused(coding: str, first: str) -> None:
    lines = [f"Transfer-Encoding: {coding}", "Content-Length: 5"]
    if first == "length":
        lines.reverse()
    assert refusal(request(*lines, line="POST / HTTP/1.1")) == (400, "bad_request")


@pytest.mark.parametrize(
    "lines",
    [
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: chunked\xa0",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: \x85chunked",),
        ("Transfer-Encoding: chunked;q=1",),
        ("Transfer-Encoding:",),
        ("Transfer-Encoding: ,",),
    ],
)
def test_any_transfer_coding_but_chunked_is_refused(lines: tuple[str, ...]) -> None:
    assert refusal(request(*lines, line="POST / HTTP/1.1")) == (501, "not_implemented")


def test_chunked_is_understood_in_any_case() -> None:
    head = read(request("Transfer-Encoding: CHUNKED", line="POST / HTTP/1.1"))
    assert head.tokens("transfer-encoding") == ["chunked"]
    assert_h11_reads_the_same(head)


def test_a_transfer_coding_needs_http_1_1() -> None:
    assert refusal(request("Transfer-Encoding: chunked", line="POST / HTTP/1.0")) == (400, "bad_request")


def test_http_1_1_needs_exactly_one_host() -> None:
    assert refusal(request(host="")) == (400, "bad_request")
    assert refusal(request("Host: localhost")) == (400, "bad_request")
    assert refusal(request("hOST: other")) == (400, "bad_request")
    assert read(request(host="Host:")).get("host") == ""


def test_http_1_0_needs_no_host_and_takes_no_two() -> None:
    assert read(request(line="GET / HTTP/1.0", host="")).version == "1.0"
    assert refusal(request("Host: other", line="GET / HTTP/1.0")) == (400, "bad_request")


def test_absolute_form_needs_its_host_header_too() -> None:
    assert refusal(request(line="GET http://localhost/ HTTP/1.1", host="")) == (400, "bad_request")


# What is not spoken here


@pytest.mark.parametrize(
    "lines",
    [
        ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"),
        ("Upgrade: H2C",),
        ("Upgrade: websocket, h2c",),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("HTTP2-Settings: AAMAAABk",),
        ("HTTP2-Settings:",),
    ],
)
def test_an_upgrade_to_h2c_is_refused(lines: tuple[str, ...]) -> None:
    assert refusal(request(*lines)) == (400, "bad_request")


def test_the_preface_of_http_2_is_refused_however_it_is_split() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert refusal(preface) == (505, "http_version_not_supported")
    assert refusal(*bytewise(preface)) == (505, "http_version_not_supported")


def test_a_tls_client_is_told_at_its_first_byte() -> None:
    assert refusal(b"\x16") == (400, "bad_request")
    assert refusal(b"", b"\x16\x03\x01\x02\x00\x01\x00") == (400, "bad_request")


# Writing anew


def test_expect_is_not_written() -> None:
    head = read(request("Expect: 100-continue", "Content-Length: 3", line="POST / HTTP/1.1"))
    assert head.get("expect") == "100-continue"
    assert b"expect" not in head.to_bytes()
    assert_h11_reads_the_same(head)


def test_a_body_length_replaces_every_header_that_told_the_length() -> None:
    head = read(request("Transfer-Encoding: chunked", "Trailer: X", "A: b", line="POST / HTTP/1.1"))
    rewritten = head.with_body_length(7)
    assert rewritten.headers == (("host", "localhost"), ("a", "b"), ("content-length", "7"))
    assert_h11_reads_the_same(rewritten)


@pytest.mark.parametrize(
    ("method", "size", "lengths"),
    [("GET", 0, []), ("GET", 3, ["3"]), ("POST", 0, ["0"]), ("DELETE", 0, ["0"]), ("OPTIONS", 0, [])],
)
def test_no_body_is_told_where_the_method_leaves_it_open(method: str, size: int, lengths: list[str]) -> None:
    head = read(request("Content-Length: 9", line=f"{method} / HTTP/1.1"))
    assert head.with_body_length(size).get_all("content-length") == lengths


@pytest.mark.parametrize(
    "line",
    [
        "A: b\r\nInjected: c",
        "A: b\nInjected: c",
        "A: b\rInjected: c",
        "A: b\x00Injected: c",
        "A: b\x85Injected: c",
        "A: b\xe2\x80\xa8Injected: c",
        "A: b%0d%0aInjected: c",
        "A: \\r\\nInjected: c",
    ],
)
def test_a_value_cannot_become_a_header_of_its_own(line: str) -> None:
    data = request(line)
    if line.startswith("A: b\r\n"):
        assert len(read(data).headers) == 3
        return
    try:
        head = read(data)
    except Refused:
        return
    assert head.get("injected") is None
    assert_h11_reads_the_same(head)


@given(requests())
def test_what_is_written_anew_is_read_by_h11_as_the_same_request(data: bytes) -> None:
    try:
        head = read(data)
    except Refused:
        assume(False)
    assert_h11_reads_the_same(head)


@given(junk)
@example(request("Transfer-Encoding: ,"))
@example(request("Transfer-Encoding: chunked\xa0"))
def test_junk_is_refused_or_a_head_that_h11_reads_as_the_same_request(data: bytes) -> None:
    try:
        head = read_if_whole(data)
    except Refused:
        return
    if head is not None:
        assert_h11_reads_the_same(head)
        rewritten = read(head.to_bytes())
        assert rewritten.to_bytes() == head.to_bytes()


@given(st.data())
def test_no_split_changes_what_is_read_or_refused(data: st.DataObject) -> None:
    stream = data.draw(junk)
    pieces = data.draw(cut_up(stream))

    def outcome(*parts: bytes) -> tuple[int, str] | tuple[Head | None, bytes]:
        reader = HeadReader()
        left = list(parts)
        try:
            while left:
                if (head := reader.feed(left.pop(0))) is not None:
                    return head, reader.rest + b"".join(left)
        except Refused as error:
            return error.status, error.code
        return None, b""

    assert outcome(*pieces) == outcome(stream)


# Refusing


@given(st.text(max_size=50), st.none() | st.integers(0, 60))
def test_a_refusal_is_a_whole_response_that_closes_the_connection(
    message: str, retry_after_seconds: int | None
) -> None:
    error = Refused(503, "draining", message, retry_after_seconds=retry_after_seconds)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(error_response(error))
    response, body = client.next_event(), client.next_event()
    assert isinstance(response, h11.Response)
    assert isinstance(body, h11.Data)
    headers = dict(response.headers)
    assert response.status_code == 503
    assert headers[b"connection"] == b"close"
    assert headers.get(b"retry-after") == (
        None if retry_after_seconds is None else str(retry_after_seconds).encode()
    )
    assert msgspec.json.decode(bytes(body.data)) == {"error": message, "code": "draining"}
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.their_state is h11.MUST_CLOSE


def test_a_refusal_of_head_has_no_body_but_its_length() -> None:
    error = Refused(426, "upgrade_required", "upgrade", headers=(("upgrade", "websocket"),))
    whole = error_response(error)
    error.bodiless = True
    without = error_response(error)
    assert whole.startswith(without)
    assert without.endswith(b"\r\nupgrade: websocket\r\n\r\n")
    assert f"content-length: {len(whole) - len(without)}\r\n".encode() in without
