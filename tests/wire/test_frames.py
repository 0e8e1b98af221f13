from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import attrs
import peer_frames as peer
import pytest
import wsproto.frame_protocol as oracle
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle

from collab.wire.close import Close, CloseCode
from collab.wire.frames import (
    PING_FRAME,
    FrameScanner,
    close_frame,
    is_close_frame,
    text_frame,
    unmask,
    unmask_in_python,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 1 << 20


@attrs.define
class Heard:
    """What a scanner made of everything it was fed."""

    texts: list[bytes] = attrs.field(factory=list)
    pongs: bytes = b""
    violation: Close | None = None


def scan(*pieces: bytes, limit: int = LIMIT) -> Heard:
    return feed(FrameScanner(limit), *pieces)


def feed(scanner: FrameScanner, *pieces: bytes) -> Heard:
    heard = Heard()
    for piece in pieces:
        found = scanner.feed(piece)
        heard.texts += found.texts
        heard.pongs += found.pongs
        if found.violation is not None:
            assert heard.violation is None
            heard.violation = found.violation
    return heard


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def code_of(*pieces: bytes, limit: int = LIMIT) -> int | None:
    violation = scan(*pieces, limit=limit).violation
    return None if violation is None else violation.code


masks = st.binary(min_size=4, max_size=4)
sizes_that_matter = st.sampled_from([0, 1, 125, 126, 127, 65535, 65536])
controls = st.builds(peer.frame, st.sampled_from([peer.PING, peer.PONG]), st.binary(max_size=125), mask=masks)


@st.composite
def fragmented_messages(draw: st.DrawFn) -> bytes:
    """A message in two or more frames, cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([peer.TEXT, peer.BINARY]))
    payload = draw(st.text(max_size=40)).encode() if opcode == peer.TEXT else draw(st.binary(max_size=40))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    frames = peer.fragments(*parts, opcode=opcode)
    between = draw(st.lists(st.just(b"") | controls, min_size=len(frames), max_size=len(frames)))
    return b"".join(between[i] + frame for i, frame in enumerate(frames))


whole_texts = st.builds(peer.text, st.text(max_size=200), mask=masks)
whole_binaries = st.builds(lambda payload: peer.frame(peer.BINARY, payload), st.binary(max_size=40))
right_frames = st.one_of(whole_texts, whole_texts, controls, fragmented_messages(), whole_binaries)
right_streams = st.lists(right_frames, max_size=12).map(b"".join)

any_frames = st.builds(
    peer.frame,
    st.sampled_from([peer.TEXT, peer.CONTINUATION, peer.BINARY, peer.PING, peer.CLOSE, 3, 7, 11, 15]),
    st.one_of(
        st.text(max_size=130).map(str.encode),
        st.binary(max_size=130),
        st.integers(998, 5001).map(lambda code: code.to_bytes(2, "big")),
    ),
    fin=st.sampled_from([True, True, False]),
    reserved=st.sampled_from([0, 0, 0, 0, 1, 2, 4]),
    mask=st.one_of(masks, masks, masks, st.none()),
    length_bytes=st.sampled_from([None, None, None, 2, 8]),
)
wild_streams = st.one_of(
    st.lists(st.one_of(right_frames, right_frames, any_frames), max_size=8).map(b"".join),
    st.tuples(right_streams, st.binary(max_size=60)).map(b"".join),
    st.binary(max_size=200),
)


@st.composite
def cut_up(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


# Building


@given(st.one_of(st.binary(max_size=300), sizes_that_matter.map(lambda size: b"x" * size)))
def test_a_text_frame_is_the_one_wsproto_builds(payload: bytes) -> None:
    text = payload.decode("latin-1")
    server = oracle.FrameProtocol(client=False, extensions=[])
    assert text_frame(text.encode()) == server.send_data(text, fin=True)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_a_text_frame_is_read_back_by_a_client(size: int) -> None:
    client = oracle.FrameProtocol(client=True, extensions=[])
    client.receive_bytes(text_frame(b"a" * size))
    (frame,) = list(client.received_frames())
    assert (frame.opcode, frame.message_finished) == (oracle.Opcode.TEXT, True)
    assert frame.payload == "a" * size


@given(st.sampled_from(CloseCode), st.text(max_size=200))
def test_a_close_frame_is_read_back_with_as_much_of_its_reason_as_fits(code: CloseCode, reason: str) -> None:
    built = close_frame(Close(code, reason))
    client = oracle.FrameProtocol(client=True, extensions=[])
    client.receive_bytes(built)
    (frame,) = list(client.received_frames())
    heard_code, heard_reason = frame.payload
    assert heard_code == code
    assert reason.startswith(heard_reason or "")
    assert len(built) <= 2 + 125
    if len(reason.encode()) <= 123:
        assert (heard_reason or "") == reason
    else:
        # Cut between characters, and no earlier than it must be.
        assert len((heard_reason or "").encode()) > 123 - 4
    assert is_close_frame(built)


def test_only_a_close_frame_is_taken_for_one() -> None:
    assert not is_close_frame(b"")
    assert not is_close_frame(text_frame(b"\x88\x02"))
    assert not is_close_frame(PING_FRAME)
    assert not is_close_frame(b"HTTP/1.1 101 Switching Protocols\r\n")


def test_the_ping_frame_is_read_back_as_an_empty_ping() -> None:
    client = oracle.FrameProtocol(client=True, extensions=[])
    client.receive_bytes(PING_FRAME)
    (frame,) = list(client.received_frames())
    assert (frame.opcode, frame.payload) == (oracle.Opcode.PING, b"")


@given(st.binary(max_size=300), masks)
def test_unmasking_undoes_masking(payload: bytes, mask: bytes) -> None:
    assert unmask(peer.masked(payload, mask), mask) == payload


@given(st.binary(max_size=300), masks)
def test_unmasking_in_c_and_in_python_give_the_same(payload: bytes, mask: bytes) -> None:
    assert unmask(payload, mask) == unmask_in_python(payload, mask)


def test_the_tests_run_with_the_accelerator() -> None:
    assert unmask is not unmask_in_python


# Lifting


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_a_whole_text_frame_is_lifted_at_every_form_of_its_length(size: int) -> None:
    assert scan(peer.text("a" * size)) == Heard([b"a" * size])


def test_many_text_frames_in_one_read_are_lifted_in_order() -> None:
    texts = [str(i) for i in range(1000)]
    assert scan(b"".join(map(peer.text, texts))).texts == [text.encode() for text in texts]


def test_every_client_mask_is_undone() -> None:
    frames = b"".join(peer.text("x" * i, mask=bytes([i, 0, 255 - i, 7])) for i in range(9))
    assert scan(frames).texts == [b"x" * i for i in range(9)]


@given(right_streams)
def test_fed_byte_by_byte_a_stream_gives_what_it_gives_whole(stream: bytes) -> None:
    assert scan(*bytewise(stream)) == scan(stream)


@given(cut_up(wild_streams), st.sampled_from([1, 20, 125, LIMIT]))
def test_no_split_changes_what_is_heard(pieces: list[bytes], limit: int) -> None:
    assert scan(*pieces, limit=limit) == scan(b"".join(pieces), limit=limit)


def test_every_split_of_a_busy_stream_in_two_gives_the_same() -> None:
    stream = b"".join(
        [
            peer.text("grüße"),
            peer.frame(peer.PING, b"beat"),
            *peer.fragments("a", "", "ö"),
            peer.text("x" * 130),
            peer.close(1000, "bye"),
            peer.text("too late"),
        ]
    )
    whole = scan(stream)
    assert whole.texts == ["grüße".encode(), "aö".encode(), b"x" * 130]
    for cut in range(len(stream) + 1):
        assert scan(stream[:cut], stream[cut:]) == whole


@given(st.lists(any_frames | right_frames, max_size=8).map(b"".join))
def test_wsproto_hears_the_same_messages_and_finds_the_same_streams_broken(stream: bytes) -> None:
    direct = Oracle()
    expected = direct.messages(stream)
    scanner = FrameScanner(LIMIT)
    found = feed(scanner, stream)
    heard = [text.decode() for text in found.texts]
    if found.violation is not None and found.violation.code == CloseCode.BINARY_MESSAGE:
        # wsproto goes on where we do not.
        assert heard == expected[: len(heard)]
        return
    assert heard == expected
    if scanner.peer_closed:
        # It does not know the code 1014.
        assert direct.closed or direct.failed
    else:
        assert (found.violation is not None) == direct.failed
        assert not direct.closed


# Order


def pong(payload: bytes) -> bytes:
    return b"\x8a" + bytes([len(payload)]) + payload


def test_a_ping_between_texts_is_answered_and_holds_nothing_up() -> None:
    assert scan(peer.text("a") + peer.frame(peer.PING, b"x") + peer.text("b")) == Heard(
        [b"a", b"b"], pong(b"x")
    )


def test_a_pong_between_texts_holds_nothing_up() -> None:
    assert scan(peer.text("a") + peer.frame(peer.PONG, b"x") + peer.text("b")) == Heard([b"a", b"b"])


def test_pings_are_answered_in_their_order_with_what_they_carry() -> None:
    payloads = [b"", b"a", b"x" * 125]
    pings = b"".join(peer.frame(peer.PING, payload) for payload in payloads)
    assert scan(pings).pongs == b"".join(map(pong, payloads))


def test_a_ping_between_fragments_is_answered_before_the_message_is_whole() -> None:
    first, second = peer.fragments("a", "b")
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, first + peer.frame(peer.PING, b"beat")) == Heard([], pong(b"beat"))
    assert feed(scanner, second) == Heard([b"ab"])


def test_messages_in_fragments_and_whole_ones_keep_their_order() -> None:
    wire = peer.text("1") + b"".join(peer.fragments("2", "", "3")) + peer.text("4")
    wire += b"".join(peer.fragments("", "5")) + peer.text("6")
    assert scan(wire).texts == [b"1", b"23", b"4", b"5", b"6"]


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_character_may_be_cut_off_in_the_middle_by_a_fragment(cut: int) -> None:
    whole = "\U0001f600é".encode()
    assert scan(*peer.fragments(whole[:cut], whole[cut:])).texts == [whole]
    assert scan(*peer.fragments(whole[:cut], b"", whole[cut:])).texts == [whole]
    assert scan(*peer.fragments(*bytewise(whole))).texts == [whole]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"ab\xff", b"c"], id="no character begins so"),
        pytest.param([b"\xf4", b"\x90", b"\x80"], id="nothing can follow that makes a character"),
        pytest.param([b"\xed", b"\xa0", b"\x80", b""], id="half a surrogate pair"),
        pytest.param([b"\xc3", b"a", b"b"], id="a character that does not go on"),
    ],
)
def test_a_text_in_fragments_that_cannot_become_utf8_fails_at_once(parts: list[bytes]) -> None:
    frames = peer.fragments(*parts)
    assert code_of(*frames[:-1]) == 1007


def test_a_text_whose_last_fragment_ends_in_half_a_character_is_a_violation() -> None:
    frames = peer.fragments(b"a\xe2\x82", b"")
    assert code_of(*frames[:-1]) is None
    assert code_of(*frames) == 1007


def test_the_message_behind_one_in_fragments_is_judged_for_itself() -> None:
    assert scan(*peer.fragments("ö", "ä"), peer.text("ü"), *peer.fragments("a", "ß")).texts == [
        "öä".encode(),
        "ü".encode(),
        "aß".encode(),
    ]


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("size", [0, 1, 60_000])
def test_a_binary_message_is_refused_at_its_head(fin: bool, size: int) -> None:
    head = peer.frame(peer.BINARY, b"x" * size, fin=fin)[: -size or None]
    found = scan(peer.text("before") + head)
    assert found.texts == [b"before"]
    assert found.violation is not None
    assert found.violation.code == CloseCode.BINARY_MESSAGE


@pytest.mark.parametrize("opcode", [peer.TEXT, peer.BINARY])
def test_a_whole_message_inside_a_fragmented_one_is_a_violation(opcode: int) -> None:
    found = scan(peer.text("a", fin=False), peer.frame(opcode, b"b"))
    assert found.violation is not None
    assert found.violation.code == CloseCode.PROTOCOL_ERROR
    assert found.texts == []


def test_a_second_beginning_inside_a_fragmented_message_is_a_violation() -> None:
    assert code_of(peer.text("a", fin=False), peer.text("b", fin=False)) == 1002


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_is_a_violation(fin: bool) -> None:
    assert code_of(peer.frame(peer.CONTINUATION, b"a", fin=fin)) == 1002


# Framing


@pytest.mark.parametrize("opcode", [peer.TEXT, peer.BINARY, peer.CONTINUATION, peer.PING, peer.CLOSE])
@pytest.mark.parametrize("reserved", [1, 2, 4, 7])
def test_a_reserved_bit_is_a_violation(opcode: int, reserved: int) -> None:
    assert code_of(peer.frame(opcode, reserved=reserved)) == 1002


@pytest.mark.parametrize("opcode", [peer.TEXT, peer.BINARY, peer.PING, peer.CLOSE])
def test_an_unmasked_frame_is_a_violation(opcode: int) -> None:
    assert code_of(peer.frame(opcode, mask=None)) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("fin", [True, False])
def test_an_unknown_opcode_is_a_violation(opcode: int, fin: bool) -> None:
    assert code_of(peer.frame(opcode, fin=fin)) == 1002


@pytest.mark.parametrize("opcode", [peer.TEXT, peer.BINARY, peer.PING, peer.CLOSE])
@pytest.mark.parametrize(("size", "length_bytes"), [(0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65535, 8)])
def test_a_length_in_a_longer_form_than_needed_is_a_violation(
    opcode: int, size: int, length_bytes: int
) -> None:
    assert code_of(peer.frame(opcode, b"a" * size, length_bytes=length_bytes)) == 1002


def test_a_length_with_its_highest_bit_set_is_a_violation() -> None:
    assert code_of(b"\x81\xff" + b"\xff" * 8 + peer.MASK) == 1002


@pytest.mark.parametrize("opcode", [peer.PING, peer.PONG, peer.CLOSE])
def test_a_fragmented_control_frame_is_a_violation(opcode: int) -> None:
    assert code_of(peer.frame(opcode, fin=False)) == 1002


@pytest.mark.parametrize("opcode", [peer.PING, peer.PONG, peer.CLOSE])
def test_a_control_frame_over_125_bytes_is_a_violation_before_its_payload_came(opcode: int) -> None:
    assert code_of(peer.frame(opcode, b"\x03\xe8" + b"a" * 124)[:8]) == 1002


def test_a_ping_of_125_bytes_is_answered_once_it_is_whole() -> None:
    ping = peer.frame(peer.PING, b"a" * 125)
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, ping[:-1]) == Heard()
    assert feed(scanner, ping[-1:]) == Heard([], pong(b"a" * 125))


@pytest.mark.parametrize("payload", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"ok\xf5\x80\x80\x80"])
def test_a_text_that_is_not_utf8_is_a_violation_with_the_texts_before_it_kept(payload: bytes) -> None:
    found = scan(peer.text("before") + peer.text(payload) + peer.text("after"))
    assert found.texts == [b"before"]
    assert found.violation is not None
    assert found.violation.code == CloseCode.INVALID_UTF8


def test_after_a_violation_everything_is_ignored() -> None:
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, peer.text("a") + peer.text("b", mask=None) + peer.text("c")).texts == [b"a"]
    assert scanner.failed
    assert feed(scanner, peer.text("d"), peer.close(), peer.text("e", mask=None)) == Heard()
    assert not scanner.peer_closed


# Limits


def test_a_text_of_exactly_the_limit_is_lifted() -> None:
    assert scan(peer.text("a" * 100), limit=100).texts == [b"a" * 100]


def test_a_text_over_the_limit_is_a_violation_before_its_payload_came() -> None:
    assert code_of(peer.text("a" * 101)[:6], limit=100) == 1009


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert scan(peer.text("é" * 50), limit=100).violation is None
    assert code_of(peer.text("é" * 51), limit=100) == 1009


def test_a_frame_that_says_it_is_huge_is_not_waited_for() -> None:
    assert code_of(b"\x81\xff" + (1 << 62).to_bytes(8, "big") + peer.MASK) == 1009


def test_fragments_are_counted_together() -> None:
    assert code_of(*peer.fragments("a" * 60, "b" * 40), limit=100) is None
    assert code_of(*peer.fragments("a" * 60, "b" * 41), limit=100) == 1009


def test_each_fragmented_message_is_counted_anew() -> None:
    assert code_of(*(peer.fragments("a" * 60, "b" * 40) * 3), limit=100) is None


def test_a_control_frame_does_not_count_against_the_message_around_it() -> None:
    first, second = peer.fragments("a" * 60, "b" * 40)
    assert code_of(first, peer.frame(peer.PING, b"x" * 100), second, limit=100) is None


def test_a_flood_of_empty_fragments_ends_as_a_breach_of_policy() -> None:
    flood = peer.text("", fin=False) + peer.frame(peer.CONTINUATION, fin=False) * 10_000
    found = scan(flood)
    assert found.violation is not None
    assert found.violation.code == CloseCode.POLICY


def test_a_flood_of_one_byte_fragments_ends_as_a_breach_of_policy() -> None:
    flood = peer.text("", fin=False) + peer.frame(peer.CONTINUATION, b"a", fin=False) * 10_000
    assert code_of(flood) == 1008


def test_two_hundred_small_fragments_are_a_message() -> None:
    assert code_of(*peer.fragments(*["a"] * 200)) is None


def test_the_fragments_of_each_message_are_counted_anew() -> None:
    assert code_of(*peer.fragments(*["a"] * 200) * 5) is None


def test_a_large_message_may_have_many_fragments_of_a_fair_size() -> None:
    assert code_of(*peer.fragments(*["a" * 32] * 5_000)) is None


# The peer's close


@pytest.mark.parametrize(
    "frame",
    [
        peer.close(None),
        peer.close(1000),
        peer.close(1001, "grüße"),
        peer.close(3000),
        peer.close(4999, "x" * 123),
    ],
)
def test_a_close_frame_is_kept_as_it_came(frame: bytes) -> None:
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, frame[:-1]) == Heard()
    assert not scanner.peer_closed
    assert feed(scanner, frame[-1:]) == Heard()
    assert scanner.peer_closed
    assert scanner.peer_close == frame
    assert not scanner.failed


def test_a_text_before_a_close_in_the_same_read_is_lifted() -> None:
    assert scan(peer.text("last words") + peer.close()) == Heard([b"last words"])


def test_a_text_behind_a_close_is_not_delivered() -> None:
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, peer.close() + peer.text("ghost")) == Heard()
    assert feed(scanner, peer.text("ghost")) == Heard()


def test_nothing_behind_a_close_is_a_violation() -> None:
    assert scan(peer.close() + b"\xff" * 100).violation is None


def test_a_close_inside_a_fragmented_message_ends_it() -> None:
    scanner = FrameScanner(LIMIT)
    assert feed(scanner, peer.text("a", fin=False) + peer.close() + peer.frame(peer.CONTINUATION)) == Heard()
    assert scanner.peer_closed


@pytest.mark.parametrize("payload", [b"\x03", b"\x00\x00", b"\x03\xe7", b"\xff\xff"])
def test_a_close_frame_with_half_a_code_or_an_impossible_one_is_a_violation(payload: bytes) -> None:
    scanner = FrameScanner(LIMIT)
    found = feed(scanner, peer.frame(peer.CLOSE, payload))
    assert found.violation is not None
    assert found.violation.code == CloseCode.PROTOCOL_ERROR
    assert not scanner.peer_closed


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000])
def test_a_close_code_that_no_peer_may_send_is_a_violation(code: int) -> None:
    assert code_of(peer.close(code)) == 1002


def test_a_close_reason_that_is_not_utf8_is_a_violation() -> None:
    assert code_of(peer.close(1000, b"\xff")) == 1007


# Work


def bytes_allocated(scanner: FrameScanner, pieces: Iterable[bytes]) -> int:
    """Memory that the scanner asked for in total, also what it gave back at once."""
    total = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            scanner.feed(piece)
            total += max(tracemalloc.get_traced_memory()[1] - before, 0)
    finally:
        tracemalloc.stop()
    return total


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(peer.text(b"a" * LIMIT), id="one text"),
        pytest.param(b"".join(peer.fragments(b"a" * (LIMIT // 2), b"a" * (LIMIT // 2))), id="two fragments"),
        pytest.param(b"".join(peer.fragments(*[b"a" * 1024] * 1024)), id="fragments"),
        pytest.param(peer.text(b"a" * 100) * 10_000, id="small texts"),
    ],
)
def test_the_memory_moved_for_a_mebibyte_in_small_pieces_grows_with_its_size_alone(stream: bytes) -> None:
    # Copying what has been collected so far at each piece would take hundreds of mebibytes.
    assert bytes_allocated(FrameScanner(LIMIT), in_pieces(stream, 512)) < 12 * len(stream)


def test_an_endless_frame_keeps_no_more_than_the_limit() -> None:
    scanner = FrameScanner(1000)
    tracemalloc.start()
    try:
        for _ in range(1000):
            for fragment in peer.fragments(b"a" * 500, b"a" * 500):
                scanner.feed(fragment[:-1])
                scanner.feed(fragment[-1:])
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_after_giving_up_nothing_is_looked_at_not_even_a_close() -> None:
    scanner = FrameScanner(LIMIT)
    assert scanner.feed(peer.text("a") + peer.frame(peer.PING)[:3]).texts == [b"a"]
    scanner.give_up()
    assert feed(scanner, peer.text("b") + peer.close()) == Heard()
    assert scanner.failed
    assert not scanner.peer_closed


def test_a_scan_counts_the_frames_that_are_no_whole_text() -> None:
    scanner = FrameScanner(LIMIT)
    wire = peer.text("a") + peer.frame(peer.PING) + b"".join(peer.fragments("b", "c", "d"))
    found = scanner.feed(wire + peer.frame(peer.PONG)[:2])
    assert (len(found.texts), found.fragments, found.controls) == (2, 2, 1)
    found = scanner.feed(peer.frame(peer.PONG)[2:])
    assert (len(found.texts), found.fragments, found.controls) == (0, 0, 1)
