from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import attrs
import peer_frames as peer
import peers
import pytest
import trio
import trio.testing
import wsproto.frame_protocol as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from collab.edge.stops import FloodMeter, Stops
from collab.edge.tap import Tap
from collab.policy.rate import Rate
from collab.testing import MemoryStream
from collab.wire.close import Close, CloseCode
from collab.wire.frames import close_frame, text_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 100_000
HEAD = peers.head("GET", "/", peers.UPGRADE)
BYE = Close(CloseCode.GOING_AWAY, "bye")


@attrs.define
class Tapped:
    """A tap under trio-websocket, the peer's end of its stream, and what came out of it."""

    tap: Tap
    peer: trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]
    far_end: MemoryStream
    """The service's end of the stream."""
    websocket: WebSocketConnection
    delivered: list[list[bytes]] = attrs.field(factory=list)
    """One list for each read that lifted something."""
    violations: list[Close] = attrs.field(factory=list)
    gate: trio.Event = attrs.field(factory=trio.Event)
    """Reading goes on while it is set."""
    closed: bool = False
    """trio-websocket has no more messages."""
    raw: bytes = b""
    """Every byte that the peer got after the handshake."""
    told_the_end: bool = False
    """Our side of the stream has ended."""

    def open(self) -> None:
        self.tap.open(
            deliver=self._deliver,
            answer=self._answers.send_nowait,
            before_read=self._before_read,
            on_violation=self._violated,
        )

    @property
    def heard(self) -> list[str]:
        """Every text that was delivered, in order."""
        return [text.decode() for texts in self.delivered for text in texts]

    async def wait_closed(self) -> None:
        """The part of a connection that waits for trio-websocket, which sees no message."""
        with pytest.raises(ConnectionClosed):
            await self.websocket.get_message()
        self.closed = True

    async def answer(self) -> None:
        """The part of a connection that writes."""
        async for frames in self._answered:
            await self.tap.send(frames)

    async def say(self, *pieces: bytes) -> None:
        """Each piece is one read of the service."""
        for piece in pieces:
            await self.peer.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()

    async def listen(self) -> None:
        """The part of the peer that reads."""
        with suppress(trio.ClosedResourceError):
            while data := await self.peer.receive_some():
                self.raw += data
                self._client.receive_bytes(bytes(data))
            self.told_the_end = True

    async def read(self) -> list[tuple[int, object]]:
        """The frames that the peer got by now."""
        await trio.testing.wait_all_tasks_blocked()
        return [(int(frame.opcode), frame.payload) for frame in self._client.received_frames()]

    _answers: trio.MemorySendChannel[bytes] = attrs.field(init=False)
    _answered: trio.MemoryReceiveChannel[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._answers, self._answered = trio.open_memory_channel[bytes](100)

    _client: oracle.FrameProtocol = attrs.field(factory=lambda: oracle.FrameProtocol(True, []))

    async def _before_read(self) -> None:
        await self.gate.wait()

    async def _deliver(self, texts: list[bytes]) -> None:
        self.delivered.append(texts)

    def _violated(self, close: Close) -> None:
        self.violations.append(close)
        self.tap.stop()


@asynccontextmanager
async def open_tap(
    *, rest: bytes = b"", write_seconds: float = 10.0, opened: bool = True
) -> AsyncIterator[Tapped]:
    """A tap whose handshake is done. Nothing is left running after the block."""
    near, far = trio.testing.memory_stream_pair()
    far_end = MemoryStream(far)
    unmetered = FloodMeter(Rate(per_second=0, burst=0), Stops())
    tap = Tap(far_end, HEAD, rest, max_message_bytes=LIMIT, write_seconds=write_seconds, controls=unmetered)
    async with trio.open_nursery() as nursery:
        request = await wrap_server_stream(nursery, tap)
        websocket = await request.accept()
        assert (await peers.read_answer(near)).status == 101
        tapped = Tapped(tap, near, far_end, websocket)
        tapped.gate.set()
        if opened:
            tapped.open()
        nursery.start_soon(tapped.wait_closed)
        nursery.start_soon(tapped.answer)
        nursery.start_soon(tapped.listen)
        yield tapped
        nursery.cancel_scope.cancel()


# Reading


@pytest.mark.trio
async def test_the_texts_of_one_read_are_delivered_together() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.text("a") + peer.text("b"), peer.text("c"))
        assert tapped.delivered == [[b"a", b"b"], [b"c"]]


@pytest.mark.trio
async def test_a_text_in_pieces_is_delivered_once_it_is_whole() -> None:
    async with open_tap() as tapped:
        frame = peer.text("pieces")
        await tapped.say(*(frame[i : i + 1] for i in range(len(frame))))
        assert tapped.delivered == [[b"pieces"]]


@pytest.mark.trio
async def test_what_came_with_the_head_is_read_first() -> None:
    async with open_tap(rest=peer.text("early") + peer.text("bird")[:4]) as tapped:
        await tapped.say(peer.text("bird")[4:])
        assert tapped.delivered == [[b"early"], [b"bird"]]


@pytest.mark.trio
async def test_nothing_but_the_head_is_given_out_before_the_tap_is_open() -> None:
    async with open_tap(rest=peer.text("early"), opened=False) as tapped:
        await tapped.say(peer.text("a"), peer.frame(peer.PING))
        assert tapped.heard == []
        assert await tapped.read() == []
        tapped.open()
        await trio.testing.wait_all_tasks_blocked()
        assert tapped.heard == ["early", "a"]
        assert await tapped.read() == [(peer.PONG, b"")]


@pytest.mark.trio
async def test_a_ping_between_texts_is_answered() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.text("a") + peer.frame(peer.PING, b"beat") + peer.text("b"))
        assert tapped.delivered == [[b"a", b"b"]]
        assert await tapped.read() == [(peer.PONG, b"beat")]


@pytest.mark.trio
async def test_the_pings_of_a_read_are_answered_together_and_before_its_texts() -> None:
    _, far = trio.testing.memory_stream_pair()
    tap = Tap(
        far, HEAD, b"", max_message_bytes=LIMIT, write_seconds=1, controls=FloodMeter(Rate(0, 0), Stops())
    )
    answered: list[bytes] = []
    tap.open(deliver=_fail, answer=answered.append, before_read=_fail, on_violation=_fail)
    ping = peer.frame(peer.PING, b"x")
    assert tap.feed(ping + peer.text("a") + ping + peer.frame(peer.PONG)) == ([b"a"], None)
    assert answered == [b"\x8a\x01x" * 2]
    assert tap.frames == 4
    assert tap.feed(b"".join(peer.fragments("b", "c", "d"))) == ([b"bcd"], None)
    assert tap.frames == 3


@pytest.mark.trio
async def test_a_fragmented_message_is_delivered_whole_and_in_its_place() -> None:
    async with open_tap() as tapped:
        first, second = peer.fragments("grü", "ße")
        await tapped.say(peer.text("1"), first, peer.frame(peer.PING), second + peer.text("2"))
        assert tapped.delivered == [[b"1"], ["grüße".encode(), b"2"]]
        assert await tapped.read() == [(peer.PONG, b"")]


@pytest.mark.trio
async def test_trio_websocket_gets_the_head_the_close_frame_and_the_end() -> None:
    near, far = trio.testing.memory_stream_pair()
    tap = Tap(
        far, HEAD, b"", max_message_bytes=LIMIT, write_seconds=1, controls=FloodMeter(Rate(0, 0), Stops())
    )
    tap.open(deliver=_deliver, answer=_ignore, before_read=trio.lowlevel.checkpoint, on_violation=_fail)
    assert await tap.receive_some() == HEAD
    close = peer.close(1000, "bye")
    await near.send_all(peer.text("a") + peer.frame(peer.PING) + b"".join(peer.fragments("b", "c")) + close)
    assert await tap.receive_some() == close
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            assert await tap.receive_some() == b""


def _fail(*_: object) -> NoReturn:
    raise AssertionError("nobody calls this")


def _ignore(_: bytes) -> None:
    pass


async def _deliver(_: list[bytes]) -> None:
    await trio.lowlevel.checkpoint()


messages = st.one_of(
    st.text(max_size=10).map(peer.text),
    st.lists(st.text(max_size=5), min_size=2, max_size=3).map(lambda parts: b"".join(peer.fragments(*parts))),
    st.binary(max_size=5).map(lambda payload: peer.frame(peer.PING, payload)),
)


@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 200), max_size=8))
@settings(max_examples=max(settings().max_examples // 2, 1))
@pytest.mark.trio
async def test_messages_stay_in_order_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)
    cuts = sorted({min(cut, len(stream)) for cut in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    straight = oracle.FrameProtocol(client=False, extensions=[])
    straight.receive_bytes(stream)
    expected, parts = [], list[str]()
    for frame in straight.received_frames():
        if not frame.opcode.iscontrol():
            parts.append(frame.payload)
            if frame.message_finished:
                expected.append("".join(parts))
                parts = []
    async with open_tap() as tapped:
        await tapped.say(*filter(None, pieces))
        assert tapped.heard == expected


@pytest.mark.trio
async def test_nothing_is_read_while_reading_is_held_back() -> None:
    async with open_tap() as tapped:
        await trio.testing.wait_all_tasks_blocked()
        tapped.gate = trio.Event()
        # The read that was under way before still ends.
        await tapped.say(peer.text("a"), peer.text("b"), peer.text("c"))
        assert tapped.delivered == [[b"a"]]
        assert not tapped.tap.reading
        tapped.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert tapped.delivered == [[b"a"], [b"b", b"c"]]
        assert tapped.tap.reading


@pytest.mark.trio
async def test_the_peer_is_heard_when_a_read_begins_or_brings_something(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_tap() as tapped:
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert tapped.tap.last_received == began
        mock_clock.jump(10)
        assert tapped.tap.last_received == began
        await tapped.say(peer.text("a"))
        assert tapped.tap.last_received == began + 10


# The end of what the peer says


@pytest.mark.trio
async def test_a_close_of_the_peer_ends_the_tap_and_is_answered_by_trio_websocket() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.text("last") + peer.close(1000, "bye") + peer.text("ghost"))
        with trio.fail_after(10):
            await tapped.tap.wait_ended()
        assert tapped.tap.ended
        assert tapped.delivered == [[b"last"]]
        assert tapped.closed
        # Its answer is kept until what is still owed was sent.
        assert await tapped.read() == []
        await tapped.tap.send_close(None)
        assert await tapped.read() == [(peer.CLOSE, (1000, "bye"))]


@pytest.mark.trio
async def test_what_follows_a_close_in_a_later_read_is_not_delivered() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.close(), peer.text("ghost"))
        assert tapped.heard == []


@pytest.mark.trio
async def test_a_peer_that_ends_without_a_close_frame_ends_the_tap() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.text("last"))
        await tapped.peer.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert tapped.tap.ended
        assert tapped.closed
        assert tapped.delivered == [[b"last"]]


@pytest.mark.trio
async def test_a_reset_ends_the_tap() -> None:
    async with open_tap() as tapped:

        async def broken(max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError

        tapped.far_end.receive_some = broken
        await tapped.say(peer.text("last"))
        assert tapped.tap.ended
        assert tapped.closed


@pytest.mark.trio
async def test_a_stopped_tap_delivers_nothing_and_still_sees_the_peers_close() -> None:
    async with open_tap() as tapped:
        tapped.tap.stop()
        await tapped.say(peer.text("a"), b"".join(peer.fragments("b", "c")), peer.frame(peer.PING))
        assert tapped.heard == []
        assert not tapped.tap.ended
        await tapped.say(peer.close())
        assert tapped.tap.ended


# Violations


@pytest.mark.trio
@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (peer.text("x", mask=None), 1002),
        (peer.text("x", reserved=4), 1002),
        (peer.frame(3), 1002),
        (peer.frame(peer.CONTINUATION, b"x"), 1002),
        (peer.close(1005), 1002),
        (peer.text(b"\xff"), 1007),
        (peer.text("x" * (LIMIT + 1)), 1009),
        (peer.frame(peer.BINARY, b"x"), 1003),
        (peer.text("", fin=False) + peer.frame(peer.CONTINUATION, fin=False) * 500, 1008),
    ],
)
async def test_a_violation_is_told_once_with_the_texts_before_it_delivered(bad: bytes, code: int) -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.text("before") + bad + peer.text("after"), peer.text("later"), bad)
        assert [close.code for close in tapped.violations] == [code]
        assert tapped.delivered == [[b"before"]]
        assert not tapped.tap.ended


@pytest.mark.trio
async def test_past_a_violation_the_peer_is_read_to_its_end() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.frame(3), *[b"x" * 65536] * 3)
        assert not tapped.tap.ended
        await tapped.peer.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert tapped.tap.ended


@pytest.mark.trio
async def test_past_a_violation_our_side_ends_behind_the_close_frame() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.frame(3))
        await tapped.tap.send_close(Close(CloseCode.PROTOCOL_ERROR, "no"))
        assert await tapped.read() == [(peer.CLOSE, (1002, "no"))]
        assert tapped.told_the_end


# Sending


@pytest.mark.trio
async def test_a_send_goes_out_whole_beside_what_trio_websocket_sends() -> None:
    async with open_tap() as tapped:
        tapped.far_end.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tapped.tap.send_all, text_frame(b"a" * 70_000))
            await tapped.say(peer.frame(peer.PING, b"beat"))
            nursery.start_soon(tapped.tap.send_all, text_frame(b"b"))
            await trio.testing.wait_all_tasks_blocked()
            tapped.far_end.release()
        frames = await tapped.read()
        assert {opcode for opcode, _ in frames} == {peer.TEXT, peer.PONG}
        assert sum(len(payload) for opcode, payload in frames if opcode == peer.TEXT) == 70_001


@pytest.mark.trio
async def test_one_close_frame_is_sent_and_nothing_after_it() -> None:
    async with open_tap() as tapped:
        await tapped.tap.send_all(text_frame(b"before"))
        await tapped.tap.send_close(BYE)
        await tapped.tap.send_close(Close(CloseCode.NORMAL, "again"))
        await tapped.tap.send_all(text_frame(b"after"))
        await tapped.say(peer.frame(peer.PING), peer.close())
        assert await tapped.read() == [(peer.TEXT, "before"), (peer.CLOSE, (1001, "bye"))]
        assert tapped.raw == text_frame(b"before") + close_frame(BYE)


@pytest.mark.trio
async def test_after_trio_websockets_answer_to_a_close_no_other_close_frame_is_sent() -> None:
    async with open_tap() as tapped:
        await tapped.say(peer.close(1000))
        await tapped.tap.send_close(None)
        await tapped.tap.send_close(BYE)
        await tapped.read()
        assert tapped.raw == close_frame(Close(CloseCode.NORMAL, ""))


@pytest.mark.trio
async def test_a_peer_that_does_not_read_breaks_the_stream_at_the_write_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_tap(write_seconds=3) as tapped:
        tapped.far_end.hold()
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await tapped.tap.send_all(text_frame(b"a"))
        assert trio.current_time() == began + 3
        tapped.far_end.release()
        with pytest.raises(trio.BrokenResourceError):
            await tapped.tap.send_all(text_frame(b"b"))
        await tapped.tap.send_close(BYE)
        assert tapped.tap.ended
        assert await tapped.read() == []


@pytest.mark.trio
async def test_a_cancelled_send_may_have_left_half_a_frame_so_nothing_is_sent_again() -> None:
    async with open_tap() as tapped:
        tapped.far_end.hold()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tapped.tap.send_all, text_frame(b"a"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        tapped.far_end.release()
        with pytest.raises(trio.BrokenResourceError):
            await tapped.tap.send_all(text_frame(b"b"))
        await tapped.tap.send_close(BYE)
        assert await tapped.read() == []


@pytest.mark.trio
async def test_a_send_that_is_cancelled_while_another_goes_out_breaks_nothing() -> None:
    async with open_tap() as tapped:
        tapped.far_end.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tapped.tap.send_all, text_frame(b"a"))
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await tapped.tap.send_all(text_frame(b"lost"))
            tapped.far_end.release()
        await tapped.tap.send_all(text_frame(b"b"))
        assert await tapped.read() == [(peer.TEXT, "a"), (peer.TEXT, "b")]


@pytest.mark.trio
async def test_a_peer_that_is_gone_breaks_the_send_and_ends_the_goodbye() -> None:
    async with open_tap() as tapped:
        await trio.aclose_forcefully(tapped.peer)
        with pytest.raises(trio.BrokenResourceError):
            await tapped.tap.send_all(text_frame(b"a"))
        await tapped.tap.send_close(BYE)
        assert tapped.tap.ended


@asynccontextmanager
async def open_plain_tap() -> AsyncIterator[tuple[Tap, trio.SocketStream]]:
    """A tap of a plain-TCP socket whose handshake is over, and the peer's end."""
    ours, peers_end = trio.socket.socketpair()
    async with trio.SocketStream(ours) as stream, trio.SocketStream(peers_end) as far_end:
        tap = Tap(
            stream,
            HEAD,
            b"",
            max_message_bytes=LIMIT,
            write_seconds=10,
            controls=FloodMeter(Rate(0, 0), Stops()),
        )
        tap.open(deliver=_deliver, answer=_ignore, before_read=trio.lowlevel.checkpoint, on_violation=_fail)
        yield tap, far_end


@pytest.mark.trio
async def test_nothing_is_written_into_the_middle_of_a_send() -> None:
    async with open_plain_tap() as (tap, far_end), trio.open_nursery() as nursery:
        long = text_frame(b"a" * 5_000_000)
        nursery.start_soon(tap.send, long)
        await trio.testing.wait_all_tasks_blocked()
        read = bytearray()
        while len(read) < len(long) // 2:
            # There is room in the socket by now, and the sender may not have come to use it yet.
            read += os.read(far_end.socket.fileno(), 1 << 20)
            assert tap.write_now(text_frame(b"b")) == 0
            await trio.testing.wait_all_tasks_blocked()
        while len(read) < len(long):
            read += await far_end.receive_some(1 << 20)
        assert read == long
        await trio.testing.wait_all_tasks_blocked()
        assert tap.write_now(text_frame(b"b")) == len(text_frame(b"b"))


@pytest.mark.trio
async def test_nothing_is_written_behind_the_close_frame() -> None:
    async with open_plain_tap() as (tap, far_end):
        await tap.send_close(BYE)
        assert tap.write_now(text_frame(b"b")) == 0
        assert await far_end.receive_some() == close_frame(BYE)
        with trio.move_on_after(0):
            raise AssertionError(await far_end.receive_some())


@pytest.mark.trio
async def test_closing_the_tap_leaves_the_stream_to_its_owner() -> None:
    async with open_tap() as tapped:
        await tapped.tap.aclose()
        await tapped.tap.send_close(BYE)
        assert await tapped.read() == [(peer.CLOSE, (1001, "bye"))]
        assert not tapped.told_the_end
