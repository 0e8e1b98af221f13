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
    return Mailbox(max_messages=max_messages, max_bytes=max_bytes)


async def read(mailbox: Mailbox) -> bytes:
    frames = await mailbox.take()
    mailbox.sent()
    return frames


def test_the_bounds_come_from_the_settings() -> None:
    mailbox = Mailbox.from_limits(LimitSettings(mailbox_messages=3))
    assert [mailbox.put(b"x") for _ in range(4)] == [True, True, True, False]


def test_a_mailbox_holds_so_many_messages() -> None:
    mailbox = make(max_messages=2)
    assert [mailbox.put(b"a") for _ in range(3)] == [True, True, False]
    assert (mailbox.messages, mailbox.bytes) == (2, 2)


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
        self.mailbox = Mailbox(max_messages=max_messages, max_bytes=max_bytes)
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
