from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable


class Writes:
    """Mailboxes of one outbox, and every write of theirs in order."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.seen: list[tuple[str, bytes]] = []
        self.on_write: Callable[[str], None] = lambda name: None

    def mailbox(self, name: str, *, max_messages: int = 10) -> Mailbox:
        mailbox = Mailbox(self.outbox, max_messages=max_messages, max_bytes=1000)
        mailbox.write_through(lambda data: self._write(name, data))
        return mailbox

    def _write(self, name: str, data: bytes) -> int:
        self.seen.append((name, data))
        self.on_write(name)
        return len(data)


def test_outside_of_a_round_every_frame_is_written_at_once() -> None:
    writes = Writes()
    ada, bob = writes.mailbox("ada"), writes.mailbox("bob")
    for mailbox, frame in ((ada, b"1"), (bob, b"2"), (ada, b"3")):
        mailbox.put(frame)
    assert writes.seen == [("ada", b"1"), ("bob", b"2"), ("ada", b"3")]


def test_in_a_round_each_mailbox_is_written_once_at_its_end_in_the_order_of_the_first_frames() -> None:
    writes = Writes()
    ada, bob, _ = writes.mailbox("ada"), writes.mailbox("bob"), writes.mailbox("cy")
    with writes.outbox:
        for mailbox, frame in ((bob, b"1"), (ada, b"2"), (bob, b"3"), (ada, b"4"), (bob, b"5")):
            mailbox.put(frame)
        assert writes.seen == []
    assert writes.seen == [("bob", b"135"), ("ada", b"24")]


def test_rounds_within_a_round_end_with_the_outermost() -> None:
    writes = Writes()
    ada = writes.mailbox("ada")
    with writes.outbox:
        with writes.outbox:
            ada.put(b"1")
        assert writes.seen == []
        with writes.outbox:
            ada.put(b"2")
    assert writes.seen == [("ada", b"12")]


def test_a_round_that_fails_still_writes_what_it_gathered() -> None:
    writes = Writes()
    ada = writes.mailbox("ada")

    def fail() -> None:
        with writes.outbox:
            ada.put(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    ada.put(b"2")
    assert writes.seen == [("ada", b"1"), ("ada", b"2")]


def test_what_a_write_gives_rise_to_is_written_in_turn_and_not_within() -> None:
    writes = Writes()
    ada, bob = writes.mailbox("ada"), writes.mailbox("bob")
    depth = deepest = 0

    def on_write(name: str) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        if len(writes.seen) < 5000:
            (bob if name == "ada" else ada).put(b"x")
        depth -= 1

    writes.on_write = on_write
    ada.put(b"x")
    assert len(writes.seen) == 5000
    assert deepest == 1


def test_a_mailbox_that_was_discarded_in_the_round_is_passed_over() -> None:
    writes = Writes()
    ada, bob = writes.mailbox("ada"), writes.mailbox("bob")
    with writes.outbox:
        ada.put(b"1")
        bob.put(b"2")
        ada.close(discard=True)
    assert writes.seen == [("bob", b"2")]
    with writes.outbox:
        bob.put(b"3")
    assert writes.seen[1:] == [("bob", b"3")]


def test_an_empty_round_writes_nothing() -> None:
    writes = Writes()
    writes.mailbox("ada")
    with writes.outbox:
        pass
    assert writes.seen == []
