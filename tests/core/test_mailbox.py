from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.settings import LimitSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Outcomes:
    """What became of frames that had to wait, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bool]] = []

    def of(self, frame: bytes) -> Callable[[bool], None]:
        return lambda entered: self.seen.append((frame, entered))


def make(max_messages: int = 2, max_bytes: int = 100) -> Mailbox:
    return Mailbox(Outbox(), max_messages=max_messages, max_bytes=max_bytes)


async def read(mailbox: Mailbox) -> bytes:
    with trio.fail_after(5):
        frames = await mailbox.take()
    mailbox.sent()
    return frames


def test_the_bounds_come_from_the_settings() -> None:
    mailbox = Mailbox.from_limits(Outbox(), LimitSettings(mailbox_messages=3))
    assert [mailbox.put(b"x") for _ in range(4)] == [True, True, True, False]


def test_a_mailbox_holds_so_many_messages() -> None:
    mailbox = make(max_messages=2)
    assert [mailbox.put(b"a") for _ in range(3)] == [True, True, False]
    assert (mailbox.messages, mailbox.bytes) == (2, 2)


@pytest.mark.trio
async def test_a_reader_that_takes_a_few_at_a_time_makes_room_for_as_many() -> None:
    mailbox, outcomes = make(max_messages=4), Outcomes()
    for frame in (b"1", b"22", b"3", b"4"):
        assert mailbox.put(frame)
    for frame in (b"5", b"6", b"7"):
        mailbox.put_later(frame, outcomes.of(frame))
    assert await mailbox.take(2) == b"122"
    assert (mailbox.messages, mailbox.bytes) == (4, 5)
    mailbox.sent()
    assert outcomes.seen == [(b"5", True), (b"6", True)]
    assert (mailbox.messages, mailbox.bytes) == (4, 4)
    assert await mailbox.take(3) == b"345"
    mailbox.sent()
    assert await mailbox.take(3) == b"67"
    mailbox.sent()
    assert (mailbox.messages, mailbox.bytes) == (0, 0)


def test_a_mailbox_holds_so_many_bytes() -> None:
    mailbox = make(max_messages=10, max_bytes=10)
    assert mailbox.put(b"x" * 6)
    assert not mailbox.put(b"x" * 5)
    assert mailbox.put(b"x" * 4)
    assert not mailbox.put(b"x")
    assert mailbox.put(b"")


def test_an_empty_mailbox_takes_a_frame_of_any_size_and_nothing_more() -> None:
    mailbox = make(max_messages=10, max_bytes=10)
    assert mailbox.put(b"x" * 1000)
    assert not mailbox.put(b"")
    assert mailbox.messages == 1


@pytest.mark.trio
async def test_what_the_writer_holds_counts_until_it_is_sent() -> None:
    mailbox = make(max_messages=2)
    mailbox.put(b"a")
    mailbox.put(b"b")
    assert await mailbox.take() == b"ab"
    assert (mailbox.messages, mailbox.bytes) == (2, 2)
    assert not mailbox.put(b"c")
    mailbox.sent()
    assert (mailbox.messages, mailbox.bytes) == (0, 0)
    assert mailbox.put(b"c")


@pytest.mark.trio
async def test_a_frame_put_while_the_writer_sends_is_not_freed_with_what_it_sends() -> None:
    mailbox = make(max_messages=2)
    mailbox.put(b"a")
    await mailbox.take()
    assert mailbox.put(b"bc")
    mailbox.sent()
    assert (mailbox.messages, mailbox.bytes) == (1, 2)
    assert await read(mailbox) == b"bc"


@pytest.mark.trio
async def test_a_writer_that_waits_is_woken_by_a_frame() -> None:
    mailbox = make()
    async with trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def writer() -> None:
            got.append(await mailbox.take())

        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.put(b"a")
    assert got == [b"a"]


@pytest.mark.trio
async def test_a_writer_that_is_cancelled_while_it_waits_loses_nothing() -> None:
    mailbox = make()
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.take()
    mailbox.put(b"a")
    assert await read(mailbox) == b"a"


@pytest.mark.trio
async def test_a_writer_that_is_cancelled_with_a_frame_ready_loses_nothing() -> None:
    mailbox = make()
    mailbox.put(b"a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.take()
    assert mailbox.messages == 1
    assert await read(mailbox) == b"a"


# Waiting


@pytest.mark.trio
async def test_what_waits_enters_in_order_as_soon_as_there_is_room() -> None:
    mailbox, outcomes = make(max_messages=2), Outcomes()
    for frame in (b"a", b"b"):
        mailbox.put(frame)
    for frame in (b"c", b"d", b"e"):
        mailbox.put_later(frame, outcomes.of(frame))
    assert mailbox.messages == 2
    assert outcomes.seen == []
    assert await read(mailbox) == b"ab"
    assert outcomes.seen == [(b"c", True), (b"d", True)]
    assert mailbox.has_waiting
    assert await read(mailbox) == b"cd"
    assert await read(mailbox) == b"e"
    assert outcomes.seen == [(b"c", True), (b"d", True), (b"e", True)]


@pytest.mark.trio
async def test_nothing_overtakes_what_waits_even_if_it_would_fit() -> None:
    mailbox = make(max_messages=10, max_bytes=10)
    mailbox.put(b"a" * 8)
    mailbox.put_or_wait(b"b" * 5)
    assert not mailbox.put(b"c")
    mailbox.put_or_wait(b"c")
    assert await read(mailbox) == b"a" * 8
    assert await read(mailbox) == b"bbbbbc"


@pytest.mark.trio
async def test_a_frame_larger_than_the_mailbox_waits_until_that_is_empty() -> None:
    mailbox, outcomes = make(max_messages=10, max_bytes=10), Outcomes()
    mailbox.put(b"a")
    mailbox.put_later(b"x" * 1000, outcomes.of(b"x"))
    await mailbox.take()
    mailbox.put_later(b"b", outcomes.of(b"b"))
    assert outcomes.seen == []
    mailbox.sent()
    assert outcomes.seen == [(b"x", True)]
    assert await read(mailbox) == b"x" * 1000
    assert await read(mailbox) == b"b"


@pytest.mark.trio
async def test_on_waiting_and_on_room_tell_the_beginning_and_the_end_of_waiting() -> None:
    mailbox, told = make(max_messages=1), list[str]()
    mailbox.on_waiting = lambda: told.append("waiting")
    mailbox.on_room = lambda: told.append("room")
    mailbox.put_or_wait(b"a")
    assert told == []
    mailbox.put_or_wait(b"b")
    mailbox.put_or_wait(b"c")
    assert told == ["waiting"]
    await read(mailbox)
    assert told == ["waiting"]
    await read(mailbox)
    assert told == ["waiting", "room"]
    await read(mailbox)
    mailbox.put_or_wait(b"d")
    mailbox.put_or_wait(b"e")
    assert told == ["waiting", "room", "waiting"]


@pytest.mark.trio
async def test_waiting_since_is_the_time_of_the_oldest_that_still_waits(
    mock_clock: trio.testing.MockClock,
) -> None:
    mailbox = make(max_messages=1)
    assert mailbox.waiting_since == math.inf
    mailbox.put(b"a")
    began = trio.current_time()
    mailbox.put_or_wait(b"b")
    mock_clock.jump(5)
    mailbox.put_or_wait(b"c")
    assert mailbox.waiting_since == began
    await read(mailbox)
    assert mailbox.waiting_since == began + 5
    await read(mailbox)
    assert mailbox.waiting_since == math.inf


@pytest.mark.trio
async def test_a_frame_put_by_the_one_who_is_told_of_room_keeps_its_place() -> None:
    """A sender's ack, put when its own event got in, waits behind what already waits."""
    mailbox, acks = make(max_messages=1), list[bool]()

    def settled(entered: bool) -> None:
        acks.append(entered)
        mailbox.put_or_wait(b"ack")

    mailbox.put(b"a")
    mailbox.put_later(b"event", settled)
    mailbox.put_later(b"next")
    assert await read(mailbox) == b"a"
    assert acks == [True]
    assert [await read(mailbox) for _ in range(3)] == [b"event", b"next", b"ack"]


@pytest.mark.trio
@pytest.mark.parametrize(("max_bytes", "bound"), [(100, 1 << 20), (1 << 20, 4 << 20)])
async def test_a_mailbox_for_which_too_much_waits_is_closed(max_bytes: int, bound: int) -> None:
    mailbox, outcomes, told = make(max_messages=1, max_bytes=max_bytes), Outcomes(), list[str]()
    mailbox.on_room = lambda: told.append("room")
    mailbox.put(b"a")
    waiting, frame = 0, b"x" * 10_000
    while waiting + len(frame) + 1000 < bound:
        mailbox.put_later(frame, outcomes.of(frame))
        # What it costs to keep it counts too.
        waiting += len(frame) + 256
    assert not mailbox.overrun
    assert outcomes.seen == []
    number = waiting // (len(frame) + 256)
    mailbox.put_later(frame * 2, outcomes.of(b"last"))
    assert mailbox.overrun
    assert mailbox.closed
    assert outcomes.seen == [*[(frame, False)] * number, (b"last", False)]
    assert told == ["room"]


@pytest.mark.trio
async def test_one_frame_may_wait_whatever_its_size() -> None:
    mailbox = make(max_messages=1)
    mailbox.put(b"a")
    mailbox.put_or_wait(b"x" * (2 << 20))
    assert not mailbox.overrun
    assert await read(mailbox) == b"a"
    assert len(await read(mailbox)) == 2 << 20


# The end


@pytest.mark.trio
async def test_a_closed_mailbox_gives_out_what_it_holds_and_then_ends() -> None:
    mailbox = make()
    mailbox.put(b"a")
    mailbox.close(discard=False)
    assert not mailbox.put(b"b")
    assert await read(mailbox) == b"a"
    with pytest.raises(trio.EndOfChannel):
        await mailbox.take()


@pytest.mark.trio
async def test_a_discarded_mailbox_gives_out_nothing() -> None:
    mailbox = make()
    mailbox.put(b"a")
    mailbox.close(discard=True)
    with pytest.raises(trio.ClosedResourceError):
        await mailbox.take()


@pytest.mark.trio
@pytest.mark.parametrize("discard", [False, True])
async def test_closing_wakes_the_writer_that_waits(discard: bool) -> None:
    mailbox = make()

    async def writer() -> None:
        with pytest.raises(trio.EndOfChannel):
            await mailbox.take()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.close(discard=discard)


@pytest.mark.trio
@pytest.mark.parametrize("discard", [False, True])
async def test_what_waits_at_the_close_is_lost_and_told_so_once(discard: bool) -> None:
    mailbox, outcomes = make(max_messages=1), Outcomes()
    mailbox.put(b"a")
    for frame in (b"b", b"c"):
        mailbox.put_later(frame, outcomes.of(frame))
    mailbox.put_or_wait(b"d")
    mailbox.close(discard=discard)
    mailbox.close(discard=discard)
    assert outcomes.seen == [(b"b", False), (b"c", False)]
    assert not mailbox.has_waiting
    assert mailbox.waiting_since == math.inf


@pytest.mark.trio
async def test_what_comes_after_the_close_is_lost_at_once() -> None:
    mailbox, outcomes = make(), Outcomes()
    mailbox.close(discard=False)
    mailbox.put_later(b"a", outcomes.of(b"a"))
    mailbox.put_or_wait(b"b")
    assert outcomes.seen == [(b"a", False)]
    assert mailbox.messages == 0


@pytest.mark.trio
async def test_one_who_is_told_of_a_loss_may_put_again_and_is_lost_again() -> None:
    mailbox, told = make(max_messages=1), list[bool]()

    def settled(entered: bool) -> None:
        told.append(entered)
        mailbox.put_or_wait(b"ack")

    mailbox.put(b"a")
    mailbox.put_later(b"b", settled)
    mailbox.close(discard=False)
    assert told == [False]
    assert await read(mailbox) == b"a"
    with pytest.raises(trio.EndOfChannel):
        await mailbox.take()


@pytest.mark.trio
async def test_a_mailbox_closed_while_the_writer_sends_lets_it_finish() -> None:
    mailbox = make()
    mailbox.put(b"a")
    await mailbox.take()
    mailbox.close(discard=True)
    mailbox.sent()
    assert mailbox.messages == 0


# Writing through


class Socket:
    """What `write_now` writes to: takes as many bytes as told to, and keeps what is left of a write."""

    def __init__(self, mailbox: Mailbox, takes: int = 1 << 30) -> None:
        self.mailbox = mailbox
        self.takes = takes
        """How many bytes it takes at once from here on."""
        self.busy = False
        """Whether others are being sent just now."""
        self.received = b""
        self.unsent = b""
        self.writes = 0
        self.woken = 0
        mailbox.on_queued = self._wake
        mailbox.write_through(self.write_now)

    def write_now(self, data: bytes) -> int:
        self.writes += 1
        if self.busy or self.unsent:
            return 0
        written = min(self.takes, len(data))
        self.received += data[:written]
        self.takes -= written
        if 0 < written < len(data):
            self.unsent = data[written:]
        return written

    async def send_queued(self) -> None:
        """The writer's turn."""
        data = await self.mailbox.take()
        self.received += self.unsent + data
        self.unsent = b""
        self.mailbox.sent()

    def _wake(self) -> None:
        self.woken += 1


def test_what_finds_the_writer_idle_is_written_at_once_and_no_writer_is_woken() -> None:
    socket = Socket(make())
    for _ in range(5):
        assert socket.mailbox.put(b"a")
        assert (socket.mailbox.messages, socket.mailbox.bytes) == (0, 0)
    assert (socket.received, socket.writes, socket.woken) == (b"aaaaa", 5, 0)


def test_the_frames_of_a_round_are_one_write_and_count_until_then() -> None:
    outbox = Outbox()
    socket = Socket(Mailbox(outbox, max_messages=3, max_bytes=100))
    with outbox:
        assert [socket.mailbox.put(frame) for frame in (b"a", b"b", b"c")] == [True, True, True]
        assert (socket.mailbox.messages, socket.mailbox.bytes, socket.writes) == (3, 3, 0)
    assert (socket.received, socket.writes) == (b"abc", 1)
    assert (socket.mailbox.messages, socket.mailbox.bytes) == (0, 0)


def test_one_frame_alone_is_written_without_a_copy() -> None:
    mailbox, written = make(), list[bytes]()
    mailbox.write_through(lambda data: written.append(data) or len(data))
    frame = b"x" * 1000
    mailbox.put(frame)
    assert written[0] is frame


@pytest.mark.trio
async def test_the_remainder_of_a_write_goes_before_all_else() -> None:
    socket = Socket(make(max_messages=5), takes=3)
    assert socket.mailbox.put(b"abcdef")
    assert (socket.mailbox.messages, socket.mailbox.bytes, socket.woken) == (1, 3, 1)
    socket.takes = 1 << 30
    assert socket.mailbox.put(b"gh")
    assert socket.received == b"abc"
    assert (socket.mailbox.messages, socket.mailbox.bytes) == (2, 5)
    await socket.send_queued()
    assert socket.received == b"abcdefgh"
    assert (socket.mailbox.messages, socket.mailbox.bytes) == (0, 0)
    socket.mailbox.put(b"i")
    assert socket.received == b"abcdefghi"


@pytest.mark.trio
async def test_what_does_not_go_out_at_all_is_queued() -> None:
    socket = Socket(make())
    socket.busy = True
    assert socket.mailbox.put(b"a")
    assert (socket.mailbox.messages, socket.mailbox.bytes, socket.woken) == (1, 1, 1)
    socket.busy = False
    # Something is queued: nothing is even tried until the writer is done with it.
    assert socket.mailbox.put(b"b")
    assert socket.writes == 1
    await socket.send_queued()
    assert socket.received == b"ab"


@pytest.mark.trio
async def test_the_frames_of_a_round_that_were_queued_are_freed_together() -> None:
    outbox = Outbox()
    socket = Socket(Mailbox(outbox, max_messages=3, max_bytes=100), takes=0)
    with outbox:
        for frame in (b"a", b"b", b"c"):
            socket.mailbox.put(frame)
    assert (socket.mailbox.messages, socket.mailbox.bytes) == (3, 3)
    assert not socket.mailbox.put(b"d")
    await socket.send_queued()
    assert (socket.received, socket.mailbox.messages, socket.mailbox.bytes) == (b"abc", 0, 0)


@pytest.mark.trio
async def test_what_was_queued_before_writing_through_goes_first() -> None:
    mailbox = make()
    mailbox.put(b"a")
    socket = Socket(mailbox)
    mailbox.put(b"b")
    assert socket.writes == 0
    await socket.send_queued()
    assert socket.received == b"ab"


def test_a_mailbox_that_is_full_of_one_round_is_written_within_it_and_nothing_waits() -> None:
    outbox = Outbox()
    socket = Socket(Mailbox(outbox, max_messages=2, max_bytes=100))
    frames = [b"%d" % number for number in range(9)]
    with outbox:
        for frame in frames:
            assert socket.mailbox.put(frame)
            assert socket.mailbox.messages <= 2
    assert socket.received == b"".join(frames)
    assert socket.writes == 5


@pytest.mark.trio
async def test_what_waits_within_a_round_enters_in_order_once_the_writer_is_done() -> None:
    outbox, outcomes = Outbox(), Outcomes()
    socket = Socket(Mailbox(outbox, max_messages=2, max_bytes=100), takes=1)
    frames = [b"%d" % number for number in range(9)]
    with outbox:
        for frame in frames:
            if not socket.mailbox.put(frame):
                socket.mailbox.put_later(frame, outcomes.of(frame))
    assert socket.received == b"0"
    assert outcomes.seen == []
    # 0 went out, 1 is the remainder, 2 is queued, the others wait.
    socket.takes = 1 << 30
    await socket.send_queued()
    assert socket.received == b"".join(frames)
    assert outcomes.seen == [(frame, True) for frame in frames[3:]]
    assert not socket.mailbox.has_waiting


@pytest.mark.trio
@pytest.mark.parametrize("writer_first", [False, True])
async def test_10000_frames_that_wait_go_out_without_recursion(writer_first: bool) -> None:
    outbox, outcomes = Outbox(), Outcomes()
    # A round at a time, for each frame that got in frees the room of one that waits.
    mailbox = Mailbox(outbox, max_messages=2500, max_bytes=1 << 20)
    socket = Socket(mailbox, takes=0)
    for number in range(12_500):
        frame = b"%d," % number
        if not mailbox.put(frame):
            mailbox.put_later(frame, outcomes.of(frame))
    assert len(outcomes.seen) == 0
    # From here on one frame at a time finds room.
    mailbox._max_messages = 1
    socket.takes = 1 << 30 if not writer_first else 0
    await socket.send_queued()
    while mailbox.messages:
        await socket.send_queued()
    assert socket.received == b"".join(b"%d," % number for number in range(12_500))
    assert outcomes.seen == [(b"%d," % number, True) for number in range(2_500, 12_500)]
    assert not mailbox.has_waiting


@pytest.mark.trio
async def test_a_dead_socket_takes_everything_and_what_comes_later_is_told_so() -> None:
    outbox, outcomes = Outbox(), Outcomes()
    mailbox = Mailbox(outbox, max_messages=1, max_bytes=100)

    def lost(data: bytes) -> int:
        mailbox.close(discard=True)
        return len(data)

    mailbox.write_through(lost)
    with outbox:
        assert mailbox.put(b"a")
        assert not mailbox.put(b"b")
        mailbox.put_later(b"b", outcomes.of(b"b"))
    assert outcomes.seen == [(b"b", False)]
    assert mailbox.messages == 0
    assert not mailbox.put(b"c")


def test_what_is_discarded_in_a_round_is_not_written_at_its_end() -> None:
    outbox = Outbox()
    socket = Socket(Mailbox(outbox, max_messages=3, max_bytes=100))
    with outbox:
        socket.mailbox.put(b"a")
        socket.mailbox.put(b"b")
        socket.mailbox.close(discard=True)
    assert socket.writes == 0


def test_what_is_in_at_the_close_is_written_at_the_end_of_the_round() -> None:
    outbox = Outbox()
    socket = Socket(Mailbox(outbox, max_messages=3, max_bytes=100))
    with outbox:
        socket.mailbox.put(b"a")
        socket.mailbox.close(discard=False)
    assert socket.received == b"a"


# Any order of all of it


@attrs.define
class Waits:
    frame: bytes
    since: float


class MailboxModel(RuleBasedStateMachine):
    """A mailbox against two queues and the rules written out."""

    @initialize(max_messages=st.integers(1, 4), max_bytes=st.integers(1, 30))
    def open(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages, self.max_bytes = max_messages, max_bytes
        self.mailbox = Mailbox(Outbox(), max_messages=max_messages, max_bytes=max_bytes)
        self.now = 0.0
        self.queued: deque[bytes] = deque()
        self.taken: list[bytes] = []
        self.waiting: deque[Waits] = deque()
        self.settled: list[tuple[bytes, bool]] = []
        self.expected: list[tuple[bytes, bool]] = []
        self.told: list[str] = []
        self.expected_told: list[str] = []
        self.mailbox.on_waiting = lambda: self.told.append("waiting")
        self.mailbox.on_room = lambda: self.told.append("room")
        self.closed = self.discarded = False
        self.frames = 0

    def frame(self, size: int) -> bytes:
        self.frames += 1
        return b"%d|" % self.frames + b"x" * size

    def within_trio(self, step: Callable[[], Awaitable[object]]) -> None:
        clock = trio.testing.MockClock()

        async def main() -> None:
            clock.jump(self.now)
            await step()

        trio.run(main, clock=clock)

    def fits(self, frame: bytes) -> bool:
        held = [*self.queued, *self.taken]
        return not held or (
            len(held) < self.max_messages and sum(map(len, held)) + len(frame) <= self.max_bytes
        )

    @rule(size=st.integers(0, 40))
    def put(self, size: int) -> None:
        frame = self.frame(size)
        expected = not self.closed and not self.waiting and self.fits(frame)
        assert self.mailbox.put(frame) == expected
        if expected:
            self.queued.append(frame)

    @rule(size=st.integers(0, 40))
    def put_or_wait_for_it(self, size: int) -> None:
        frame = self.frame(size)

        async def step() -> None:
            if not self.mailbox.put(frame):
                self.mailbox.put_later(frame, lambda entered: self.settled.append((frame, entered)))

        self.within_trio(step)
        if self.closed:
            self.expected.append((frame, False))
        elif not self.waiting and self.fits(frame):
            self.queued.append(frame)
        else:
            if not self.waiting:
                self.expected_told.append("waiting")
            self.waiting.append(Waits(frame, self.now))

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.queued and not self.taken and not self.discarded)
    @rule()
    def take(self) -> None:
        async def step() -> None:
            assert await self.mailbox.take() == b"".join(self.queued)

        self.within_trio(step)
        self.taken = list(self.queued)
        self.queued.clear()

    @precondition(lambda self: self.taken)
    @rule()
    def sent(self) -> None:
        self.mailbox.sent()
        self.taken = []
        if not self.waiting:
            return
        while self.waiting and self.fits(self.waiting[0].frame):
            frame = self.waiting.popleft().frame
            self.queued.append(frame)
            self.expected.append((frame, True))
        if not self.waiting:
            self.expected_told.append("room")

    @precondition(lambda self: self.frames > 6)
    @rule(discard=st.booleans())
    def close(self, discard: bool) -> None:
        self.mailbox.close(discard=discard)
        if self.waiting:
            self.expected_told.append("room")
        self.expected += [(wait.frame, False) for wait in self.waiting]
        self.waiting.clear()
        self.closed = True
        self.discarded |= discard

    @invariant()
    def counters_and_bounds_hold(self) -> None:
        held = [*self.queued, *self.taken]
        assert self.mailbox.messages == len(held) <= self.max_messages
        assert self.mailbox.bytes == sum(map(len, held))
        assert self.mailbox.bytes <= self.max_bytes or len(held) == 1
        assert self.mailbox.closed == self.closed

    @invariant()
    def waiting_is_told_as_it_is(self) -> None:
        assert self.mailbox.has_waiting == bool(self.waiting)
        assert self.mailbox.waiting_since == (self.waiting[0].since if self.waiting else math.inf)
        assert self.told == self.expected_told

    @invariant()
    def everything_settled_was_settled_once_and_in_order(self) -> None:
        assert self.settled == self.expected


TestAnyUseOfAMailbox = MailboxModel.TestCase
TestAnyUseOfAMailbox.settings = settings(
    max_examples=max(settings().max_examples // 2, 1), stateful_step_count=40
)


class WriteThroughModel(RuleBasedStateMachine):
    """A mailbox that writes through to a socket which takes what it likes, or is in other hands, or dies."""

    @initialize(max_messages=st.integers(1, 4), max_bytes=st.integers(1, 30))
    def open(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages, self.max_bytes = max_messages, max_bytes
        self.outbox = Outbox()
        self.mailbox = Mailbox(self.outbox, max_messages=max_messages, max_bytes=max_bytes)
        self.socket = Socket(self.mailbox, takes=0)
        self.entered: list[bytes] = []
        """Every frame that is in or was, in order."""
        self.lost: list[bytes] = []
        self.waiting: deque[bytes] = deque()
        self.taken: bytes | None = None
        self.closed = False
        self.frames = 0

    def within_trio(self, step: Callable[[], Awaitable[object]]) -> None:
        trio.run(step)

    @rule(takes=st.integers(0, 60))
    def have_room(self, takes: int) -> None:
        self.socket.takes = takes

    @rule(busy=st.booleans())
    def be_in_other_hands(self, busy: bool) -> None:
        self.socket.busy = busy

    @rule(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), in_round=st.booleans())
    def put(self, sizes: list[int], in_round: bool) -> None:
        async def step() -> None:
            if in_round:
                with self.outbox:
                    self.put_all(sizes)
            else:
                self.put_all(sizes)

        self.within_trio(step)

    def put_all(self, sizes: list[int]) -> None:
        for size in sizes:
            self.frames += 1
            frame = b"%d|" % self.frames + b"x" * size
            if self.mailbox.put(frame):
                assert not self.waiting, "overtook what waits"
                assert not self.closed
                self.entered.append(frame)
                continue
            self.waiting.append(frame)
            self.mailbox.put_later(frame, lambda entered, frame=frame: self.settle(frame, entered))
            self.closed |= self.mailbox.overrun
            self.bounds_hold()

    def settle(self, frame: bytes, entered: bool) -> None:
        assert self.waiting.popleft() == frame
        (self.entered if entered else self.lost).append(frame)

    @precondition(lambda self: self.mailbox.messages and self.taken is None and not self.closed)
    @rule()
    def take(self) -> None:
        async def step() -> None:
            self.taken = await self.mailbox.take()

        self.within_trio(step)

    @precondition(lambda self: self.taken is not None)
    @rule()
    def sent(self) -> None:
        async def step() -> None:
            self.socket.received += self.socket.unsent + (self.taken or b"")
            self.socket.unsent = b""
            self.taken = None
            self.mailbox.sent()

        self.within_trio(step)

    @precondition(lambda self: self.frames > 10)
    @rule()
    def close(self) -> None:
        self.mailbox.close(discard=True)
        self.closed = True

    @invariant()
    def nothing_overtakes_and_nothing_is_lost_or_doubled(self) -> None:
        everything = b"".join(self.entered)
        assert everything.startswith(self.socket.received)
        # What has entered and was not written is exactly what is counted.
        if not self.closed:
            assert self.mailbox.bytes == len(everything) - len(self.socket.received)
            assert bool(self.mailbox.messages) == bool(self.mailbox.bytes)

    @invariant()
    def bounds_hold(self) -> None:
        assert 0 <= self.mailbox.messages <= self.max_messages
        assert self.mailbox.bytes <= self.max_bytes or self.mailbox.messages == 1

    @invariant()
    def what_waits_waits_for_a_reason(self) -> None:
        assert self.mailbox.has_waiting == bool(self.waiting)
        if self.waiting:
            assert self.mailbox.messages

    def teardown(self) -> None:
        if not hasattr(self, "mailbox") or self.closed:
            return

        async def step() -> None:
            if self.taken is not None:
                self.socket.received += self.socket.unsent + self.taken
                self.socket.unsent = b""
                self.mailbox.sent()
            while self.mailbox.messages:
                await self.socket.send_queued()

        self.within_trio(step)
        assert self.socket.received == b"".join(self.entered)
        assert not self.waiting
        assert not self.lost


TestAnyUseOfAMailboxThatWritesThrough = WriteThroughModel.TestCase
TestAnyUseOfAMailboxThatWritesThrough.settings = settings(
    max_examples=max(settings().max_examples // 2, 1), stateful_step_count=40
)


@pytest.mark.trio
async def test_a_chain_of_mailboxes_that_close_one_another_does_not_recurse() -> None:
    outbox = Outbox()
    chain = [Mailbox(outbox, max_messages=1, max_bytes=1) for _ in range(2000)]
    closed = []
    for number, mailbox in enumerate(chain):
        mailbox.put(b"x")

        def close_next(entered: bool, number: int = number) -> None:
            assert not entered
            closed.append(number)
            if number + 1 < len(chain):
                chain[number + 1].close(discard=True)

        mailbox.put_later(b"y", close_next)
    chain[0].close(discard=True)
    assert closed == list(range(len(chain)))


@pytest.mark.trio
async def test_a_close_in_the_middle_of_a_round_sends_what_was_put_before_it() -> None:
    outbox = Outbox()
    mailbox = Mailbox(outbox, max_messages=4, max_bytes=100)
    mailbox.write_through(lambda data: 1)
    with outbox:
        assert mailbox.put(b"abc")
        mailbox.close(discard=False)
    assert await mailbox.take() == b""
    mailbox.sent()
    with pytest.raises(trio.EndOfChannel):
        await mailbox.take()
