"""Owns the gathering of a round: each mailbox that got frames writes them once, together."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from collab.core.mailbox import Mailbox


class Outbox:
    """The mailboxes of one service that hold frames which may be written at once.

    Inside `with outbox:` they are gathered and written at its end; outside, at once. Only for
    synchronous code: nothing may be awaited inside the block. Blocks may be nested.
    """

    __slots__ = ("_depth", "_fresh", "_is_settling", "_to_settle")

    def __init__(self) -> None:
        self._fresh: deque[Mailbox] = deque()
        self._depth = 0
        self._to_settle: deque[Callable[[], None]] = deque()
        self._is_settling = False

    def add(self, mailbox: Mailbox) -> None:
        """Note a mailbox that has frames to write."""
        self._fresh.append(mailbox)
        if not self._depth:
            self._write()

    def settle(self, settle: Callable[[], None]) -> None:
        """Run what may lead to more of its kind: those run one after the other, never nested.

        A mailbox that is closed settles what waited, the acks of that may close the next, and so on.
        """
        self._to_settle.append(settle)
        if self._is_settling:
            return
        self._is_settling = True
        try:
            while self._to_settle:
                self._to_settle.popleft()()
        finally:
            self._is_settling = False

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth and self._fresh:
            self._write()

    def _write(self) -> None:
        # Held open: a write may make room, what waited for it moves up, and acks follow from that.
        self._depth += 1
        try:
            while self._fresh:
                self._fresh.popleft().write_fresh()
        finally:
            self._depth -= 1
