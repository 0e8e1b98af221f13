"""Owns the end of a connection: what is still owed goes out, then the close frame, all with deadlines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.core.connection import Connection
    from collab.edge.tap import Tap
    from collab.wire.close import Close


class Goodbye:
    """The goodbye of one connection that has left the registry and delivers nothing any more.

    The close frame has time of its own, `close_seconds` behind the time for what is owed, so that
    nobody else's slowness costs the peer its close code.
    """

    __slots__ = ("_close_seconds", "_connection", "_flushing", "_gone_by", "_last_words", "_leaving", "_tap")

    def __init__(
        self,
        connection: Connection,
        tap: Tap,
        last_words: Callable[[Close], bytes],
        *,
        close_seconds: float,
    ) -> None:
        self._connection = connection
        self._tap = tap
        self._last_words = last_words
        self._close_seconds = close_seconds
        self._gone_by: float | None = None
        self._flushing: trio.CancelScope | None = None
        self._leaving: trio.CancelScope | None = None

    def be_gone_by(self, deadline: float) -> None:
        """Have it said by this time on Trio's clock (drain), whether it was begun or not."""
        self._gone_by = deadline
        if self._flushing is not None and self._leaving is not None:
            flush_by, gone_by = self._deadlines()
            self._flushing.deadline = min(self._flushing.deadline, flush_by)
            self._leaving.deadline = min(self._leaving.deadline, gone_by)

    async def say(self, wait_written: Callable[[], Awaitable[None]]) -> None:
        """Say it, shielded; `wait_written` waits until the writer has sent all that it will.

        A peer that closed gets the answer to its close frame, one that we close gets ours and is
        waited for, and to one that vanished nothing is said.
        """
        connection, tap = self._connection, self._tap
        flush_by, gone_by = self._deadlines()
        self._flushing = trio.CancelScope(deadline=flush_by)
        self._leaving = trio.CancelScope(deadline=gone_by, shield=True)
        with self._leaving:
            if connection.close is not None or tap.scanner.peer_closed:
                with self._flushing:
                    if not connection.mailbox.closed:
                        await connection.wait_acknowledged()
                        if connection.close is not None and (words := self._last_words(connection.close)):
                            connection.mailbox.put_or_wait(words)
                        await connection.wait_all_entered()
                        connection.mailbox.close(discard=False)
                    await wait_written()
                with trio.move_on_after(self._close_seconds):
                    await tap.send_close(connection.close)
                    await tap.wait_ended()
                    await tap.send_end()
        connection.mailbox.close(discard=True)

    def _deadlines(self) -> tuple[float, float]:
        """Until when what is owed may go out, and until when the close frame and its answer may take."""
        now = trio.current_time()
        if self._gone_by is None:
            return now + self._close_seconds, now + 2 * self._close_seconds
        return self._gone_by - min(self._close_seconds, (self._gone_by - now) / 4), self._gone_by
