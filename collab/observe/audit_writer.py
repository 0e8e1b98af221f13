"""Owns how audit lines get into their file, numbered and in order, and what happens where they cannot."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import msgspec

from collab.observe.log import get_logger
from collab.observe.outputs import LogFile, RotationFailed
from collab.observe.writer import QueueWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.settings import AuditSettings

_log = get_logger("collab.audit")
_LINGER_SECONDS: Final = 0.02
_RETRY_SECONDS: Final = 0.5
_BLOCK_BYTES: Final = 64 * 1024
_QUEUE_BYTES: Final = 16 * 1024 * 1024
_LINE_COST_BYTES: Final = 128
"""What it costs to keep a line queued, beside its own bytes; an estimate."""


@attrs.frozen
class Dropped:
    """Lines that are not in the file, between those before and after."""

    count: int
    since: str
    """The time of the first."""


_Item: TypeAlias = bytes | Dropped
"""A JSON object without `seq`, or a gap."""


class AuditWriter(QueueWriter[_Item]):
    """Appends lines to the audit file, each with its number, `seq`, which counts from 1 without a gap.

    The thread gives the numbers, so that their order is that of the lines. A line begun is always
    finished before another follows. Where the file cannot be written, or more than 16 MiB are queued:

    - with `on_full` "continue" the lines are dropped, and their numbers with them; a line `drop` says how
      many, once there is room;
    - with "stop" they are kept and tried again until the end, and `on_failure` is called, from the thread
      or from `put`: the caller must stop soon.

    Raises:
        CannotStart: the file cannot be opened.
    """

    def __init__(
        self,
        path: str,
        settings: AuditSettings,
        on_failure: Callable[[], None],
        *,
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        super().__init__("collab-audit", linger_seconds=_LINGER_SECONDS)
        self._file = LogFile(
            path,
            max_bytes=int(settings.max_bytes),
            backups=settings.backups,
            called="audit log",
            mode=0o600,
        )
        # Whole blocks are written: the file must not go far past its size by one.
        self._block_bytes = min(_BLOCK_BYTES, int(settings.max_bytes) // 4 or _BLOCK_BYTES)
        self._keeps = settings.on_full == "stop"
        self._on_failure = on_failure
        self._queue_bytes = queue_bytes
        # Two counters with one writer each, the putting side and the thread: their difference needs no lock.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._overflowed: Dropped | None = None
        self._sequence = 0
        self._items: list[_Item] = []
        self._items_bytes = 0
        # What is left of a line that was begun. A line without an end that somebody left is ended.
        self._rest = b"" if _ends_whole(self._file.path) else b"\n"
        self._is_failing = False
        self.error = ""
        """Why the last line could not be written."""
        self.has_failed = False
        """With "stop": whether it has come to that."""
        self._overflowed_lines = 0
        self._lost_lines = 0

    @property
    def dropped(self) -> int:
        """Lines dropped so far."""
        return self._overflowed_lines + self._lost_lines

    @property
    def unwritten(self) -> int:
        """Lines that are in no file and will be in none, after `stop`."""
        kept = sum(item.count if isinstance(item, Dropped) else 1 for item in self._items)
        return kept + (self._rest not in (b"", b"\n")) + self._queue.qsize()

    def put(self, line: bytes) -> None:
        """Queue the JSON object of one line, which gets its `seq` later. From one thread only."""
        if self._is_full():
            if not self._keeps:
                before = self._overflowed
                self._overflowed = Dropped(before.count + 1, before.since) if before else self._gap(1)
                self._overflowed_lines += 1
                return
            self._fail("queue full")
        self.tell_overflow()
        self._put_bytes += len(line) + _LINE_COST_BYTES
        self._queue.put(line)

    def put_last(self, line: bytes) -> None:
        """Queue a line however much is queued before it."""
        if self._overflowed is not None:
            self._queue.put(self._overflowed)
            self._overflowed = None
        self._queue.put(line)

    def tell_overflow(self) -> None:
        """Have lines that found the queue full told, if there is room; from the thread of `put`."""
        if self._overflowed is not None and not self._is_full():
            self._queue.put(self._overflowed)
            self._overflowed = None

    def _is_full(self) -> bool:
        return self._put_bytes - self._taken_bytes > self._queue_bytes

    def _write(self, item: _Item) -> None:
        self._items.append(item)
        if not isinstance(item, Dropped):
            self._taken_bytes += len(item) + _LINE_COST_BYTES
            self._items_bytes += len(item)

    def _settle(self, *, idle: bool) -> None:
        if (idle or self._items_bytes >= self._block_bytes) and (self._items or self._rest):
            self._write_out()

    def _write_out(self) -> None:
        """Write everything at hand, or keep or drop what does not go out."""
        items, self._items, self._items_bytes = self._items, [], 0
        before = self._sequence
        texts, numbers = self._numbered(items)
        rest = self._rest
        data = rest + b"".join(texts)
        if not rest:
            self._make_room(len(data))
        taken = self._append(data)
        if taken == len(data):
            self._rest = b""
            self._recovered()
            return
        if taken < len(rest):
            self._rest = rest[taken:]
            begun = 0
        else:
            begun, self._rest = _begun(texts, taken - len(rest))
        self._sequence = numbers[begun - 1] if begun else before
        self._items = self._left(items[begun:])
        self._retry_seconds = _RETRY_SECONDS

    def _numbered(self, items: list[_Item]) -> tuple[list[bytes], list[int]]:
        texts, numbers = [], []
        number = self._sequence
        for item in items:
            if isinstance(item, Dropped):
                number += item.count
                item = self._drop_line(item)
            number += 1
            texts.append(b'{"seq":%d,%b\n' % (number, item[1:]))
            numbers.append(number)
        self._sequence = number
        return texts, numbers

    def _drop_line(self, dropped: Dropped) -> bytes:
        return msgspec.json.encode(
            {
                "time": _now(),
                "event": "drop",
                "connection_id": None,
                "user_id": None,
                "address": None,
                "count": dropped.count,
                "since": dropped.since,
            }
        )

    def _left(self, items: list[_Item]) -> list[_Item]:
        """What is tried next time in place of items that could not be written."""
        if self._keeps or not items:
            return items
        gaps = [item for item in items if isinstance(item, Dropped)]
        lines = len(items) - len(gaps)
        self._lost_lines += lines
        since = gaps[0].since if isinstance(items[0], Dropped) else _now()
        return [Dropped(lines + sum(gap.count for gap in gaps), since)]

    def _append(self, data: bytes) -> int:
        """Write as much as goes out: the number of bytes."""
        taken = 0
        view = memoryview(data)
        try:
            while taken < len(data):
                taken += self._file.write_some(view[taken:])
        except OSError as error:
            reason = error.strerror or str(error)
            if not self._is_failing:
                self._is_failing = True
                _log.error("Audit log cannot be written", file=self._file.path, error=reason)
            self._fail(reason)
        return taken

    def _make_room(self, size: int) -> None:
        try:
            self._file.make_room(size)
        except RotationFailed as error:
            _log.error("Audit log not rotated", file=self._file.path, error=error.strerror)

    def _recovered(self) -> None:
        self._retry_seconds = None
        if self._is_failing:
            self._is_failing = False
            _log.warning("Audit log written again", file=self._file.path, dropped=self.dropped)

    def _fail(self, reason: str) -> None:
        self.error = reason
        if self._keeps and not self.has_failed:
            self.has_failed = True
            self._on_failure()

    def _reopen(self) -> None:
        if self._rest not in (b"", b"\n"):
            # Its beginning stays in the former file. It counts as dropped, as if it had never been begun.
            self._rest = b""
            self._sequence -= 1
            self._lost_lines += 1
            self._items.insert(0, self._gap(1))
        try:
            self._file.reopen()
        except OSError as error:
            _log.error("Audit log not reopened", file=self._file.path, error=error.strerror)

    def _gap(self, count: int) -> Dropped:
        return Dropped(count, _now())

    def _close(self) -> None:
        self._file.close()


def _now() -> str:
    milliseconds = time.time_ns() // 1_000_000
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{text}.{milliseconds % 1000:03}Z"


def _begun(texts: list[bytes], taken: int) -> tuple[int, bytes]:
    """Of how many texts something went out with so many bytes, and what is left of the last of them."""
    begun = 0
    for text in texts:
        if not taken:
            break
        begun += 1
        if taken < len(text):
            return begun, text[taken:]
        taken -= len(text)
    return begun, b""


def _ends_whole(path: str) -> bool:
    """Whether what is in a file ends with a line's end; True where that cannot be told."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"\n"
    return True
