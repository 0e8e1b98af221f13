"""Owns how audit lines get into their file, in order, and what happens where they cannot."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import time
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import msgspec

from collab.observe.log import get_logger
from collab.observe.outputs import LogFile, RotationFailed
from collab.observe.writer import QueueWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from collab.settings import AuditSettings

_log = get_logger("collab.audit")
_encode_lines = msgspec.json.Encoder(enc_hook=str).encode_lines
_LINGER_SECONDS: Final = 0.005
_NO_PROGRESS_SECONDS: Final = 1.0
_ROOM_SECONDS: Final = 0.001
_RETRY_SECONDS: Final = 0.5
_BLOCK_LINES: Final = 256
_BLOCK_BYTES: Final = 64 * 1024
_QUEUE_WEIGHT: Final = 131_072
_LINE_WEIGHT: Final = 2
"""What a line weighs in the queue, beside 1 for each recipient; 1 is some 150 bytes."""
# JSON escapes what could end a string or a line. These it may leave as they are, and they could move the
# cursor of whoever reads the file, or reorder what is seen.
_NOT_PLAIN: Final = re.compile(r"[^\n\x20-\x7e]")
_TIGHT: Final = (",", ":")
_IS_DROP: Final = b'"event":"drop","connection_id":null'


class RouteLine(msgspec.Struct, frozen=True, gc=False):
    """The one line that is written for every event; a dict takes twice as long."""

    seq: int
    time: str
    event: str
    connection_id: int
    user_id: str
    address: str
    type: str
    to: Sequence[str]
    delivered: int
    undelivered: Sequence[str]


Line: TypeAlias = "RouteLine | dict[str, Value]"
Value: TypeAlias = "str | int | float | bool | Sequence[str] | Mapping[str, Value] | None"


@attrs.frozen
class _Dropped:
    """Lines that will not be in the file."""

    last: int
    """The number of the last."""
    since: str
    """The time of the first."""


class _Wake(enum.Enum):
    """What the queue holds. The lines gather in a list: not each of them must wake the thread."""

    LINES = enum.auto()


class AuditWriter(QueueWriter[_Wake]):
    """Appends lines to the audit file. Each is a JSON object that begins with its number, `seq`, in ASCII.

    A line begun is always finished before another follows. Where the file cannot be written, or too
    much is queued (43,000 lines with one recipient each, 130 with a thousand):

    - with `on_full` "continue" the lines are dropped. Once there is room, a line `drop` with the number of
      the last of them says how many they were, so that every number is accounted for;
    - with "stop" they are kept and tried again until the end. `put` waits while too much is queued; where
      nothing is written for a second, or a line cannot be, `on_failure` is called, from the thread or from
      `put`: the caller must stop soon.

    Raises:
        CannotStart: the file cannot be opened.
    """

    def __init__(
        self,
        path: str,
        settings: AuditSettings,
        on_failure: Callable[[], None],
        *,
        queue_weight: int = _QUEUE_WEIGHT,
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
        # The putting side appends, the thread takes from the front: each a single step, with no lock.
        self._lines: list[Line] = []
        self._is_awake = False
        # Two counters with one writer each: their difference is what is queued.
        self._put_weight = 0
        self._taken_weight = 0
        self._queue_weight = queue_weight
        self._overflow: _Dropped | None = None
        self._told = 0
        """The last number that the queue or a drop in it accounts for; of the putting side."""
        self._overflowed_lines = 0
        # From here on of the thread.
        self._kept: list[bytes] = []
        self._lost: _Dropped | None = None
        self._lost_lines = 0
        self._written = 0
        """The number of the last line that was begun."""
        self._whole = 0
        """Where that one was cut off, the number of the one before it."""
        # What is left of a line that was begun. A line without an end that somebody left is ended.
        self._rest = b"" if _ends_whole(self._file.path) else b"\n"
        self._is_failing = False
        self.error = ""
        """With "stop": why the first line could not be written."""
        self.has_failed = False
        """With "stop": whether it has come to that."""

    @property
    def dropped(self) -> int:
        """Lines dropped so far."""
        return self._overflowed_lines + self._lost_lines

    @property
    def unwritten(self) -> int:
        """With "stop", lines that are in no file and will be in none; after `stop`."""
        return len(self._kept) + len(self._lines) + (self._rest not in (b"", b"\n"))

    def put(self, line: Line, number: int, weight: int = _LINE_WEIGHT) -> None:
        """Queue one line, whose `seq` is `number`. From one thread only."""
        if self._put_weight - self._taken_weight > self._queue_weight:
            if not self._keeps:
                since = _now() if self._overflow is None else self._overflow.since
                self._overflow = _Dropped(number, since)
                self._overflowed_lines += 1
                return
            self._wait_for_room()
        if self._overflow is not None:
            self._tell_overflow()
        self._told = number
        self._put_weight += weight
        self._lines.append(line)
        if not self._is_awake:
            self._is_awake = True
            self._queue.put(_Wake.LINES)

    def _wait_for_room(self) -> None:
        """With "stop": hold the whole service up until the thread has caught up.

        That is backpressure: who sends faster than a disk takes must not be able to end the service. It
        fails only where the thread gets nowhere.
        """
        taken, deadline = self._taken_weight, time.monotonic() + _NO_PROGRESS_SECONDS
        self._hurry.set()
        while self._put_weight - self._taken_weight > self._queue_weight // 2:
            if self.has_failed:
                return
            if self._taken_weight != taken:
                taken, deadline = self._taken_weight, time.monotonic() + _NO_PROGRESS_SECONDS
            elif time.monotonic() > deadline:
                self._fail("queue full")
                return
            time.sleep(_ROOM_SECONDS)

    def put_last(self, line: Line, number: int) -> None:
        """Queue a line however much is queued before it."""
        self._queue_weight = self._put_weight
        self.put(line, number)

    def tell_overflow(self) -> None:
        """Have lines that found the queue full told, if there is room; from the thread of `put`."""
        if self._overflow is not None and self._put_weight - self._taken_weight <= self._queue_weight:
            self._tell_overflow()
            self._queue.put(_Wake.LINES)

    def reopen(self) -> None:
        """Have the thread open the file anew, soon. Not for a signal handler."""
        super().reopen()
        self._hurry.set()

    def _tell_overflow(self) -> None:
        assert self._overflow is not None
        self._lines.append(_drop(self._overflow, self._told))
        self._put_weight += _LINE_WEIGHT
        self._told = self._overflow.last
        self._overflow = None

    def _write(self, item: _Wake) -> None:
        """Nothing: what there is to write shows in `_settle`."""

    def _settle(self, *, idle: bool) -> None:
        # Before the lines are looked at: who puts one later wakes the thread again.
        self._is_awake = False
        if self._rest or self._lost is not None or self._kept:
            self._write_out([])
        while taken := self._lines[:_BLOCK_LINES]:
            del self._lines[: len(taken)]
            lines = _encoded(taken)
            if self._kept:
                # Tried once in a while, not once for each block.
                self._kept += lines
                lines = []
            while lines:
                block = lines
                while len(block) > 1 and sum(map(len, block)) > self._block_bytes:
                    block = block[: len(block) // 2]
                self._write_out(block)
                lines = lines[len(block) :]
            self._taken_weight += sum(map(_weight, taken))

    def _write_out(self, lines: list[bytes]) -> None:
        """Write everything at hand, or keep or drop what does not go out."""
        if self._kept:
            lines = self._kept = [*self._kept, *lines]
        if self._lost is not None:
            lines = [_drop_line(self._lost, self._written), *lines]
        if lines and not self._rest:
            self._make_room(sum(map(len, lines)) + len(lines))
        data = self._rest + b"\n".join((*lines, b""))
        taken = self._append(data)
        if taken == len(data):
            if lines:
                self._written = _number(lines[-1])
            self._rest, self._kept, self._lost = b"", [], None
            if self._is_failing:
                self._recovered()
            return
        self._retry_seconds = _RETRY_SECONDS
        if taken < len(self._rest):
            self._rest = self._rest[taken:]
            begun = 0
        else:
            begun, self._rest = _begun(lines, taken - len(self._rest))
        if begun:
            self._whole = _number(lines[begun - 2]) if begun > 1 else self._written
            self._written = _number(lines[begun - 1])
        self._leave(lines[begun:], drop_told=bool(begun))

    def _leave(self, lines: list[bytes], *, drop_told: bool) -> None:
        """Keep or drop lines that could not be written."""
        if self._keeps:
            self._kept, self._lost = lines, None
            return
        since = _now() if self._lost is None or drop_told else self._lost.since
        self._lost_lines += sum(_IS_DROP not in line for line in lines)
        self._lost = _Dropped(_number(lines[-1]), since) if lines else None

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
        self._is_failing = False
        _log.warning("Audit log written again", file=self._file.path, dropped=self.dropped)

    def _fail(self, reason: str) -> None:
        if self._keeps and not self.has_failed:
            self.error = reason
            self.has_failed = True
            self._on_failure()

    def _reopen(self) -> None:
        if self._rest not in (b"", b"\n"):
            # Its beginning stays in the former file: it counts as dropped.
            self._rest = b""
            self._lost = self._lost or _Dropped(self._written, _now())
            self._written = self._whole
            self._lost_lines += 1
        try:
            self._file.reopen()
        except OSError as error:
            _log.error("Audit log not reopened", file=self._file.path, error=error.strerror)

    def _close(self) -> None:
        self._file.close()


def _now() -> str:
    milliseconds = time.time_ns() // 1_000_000
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{text}.{milliseconds % 1000:03}Z"


def _begun(lines: list[bytes], taken: int) -> tuple[int, bytes]:
    """Of how many lines something went out with so many bytes, and what is left of the last of them."""
    for index, line in enumerate(lines):
        if not taken:
            return index, b""
        if taken <= len(line):
            return index + 1, line[taken:] + b"\n"
        taken -= len(line) + 1
    return len(lines), b""


def _number(line: bytes) -> int:
    return int(line[len(b'{"seq":') : line.index(b",")])


def _weight(line: Line) -> int:
    return _LINE_WEIGHT + (len(line.to) if isinstance(line, RouteLine) else 0)


def _encoded(lines: list[Line]) -> list[bytes]:
    """The JSON of lines, printable ASCII alone."""
    try:
        text = _encode_lines(lines)
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 cannot carry
        text = "".join(
            f"{json.dumps(msgspec.to_builtins(line, enc_hook=str), separators=_TIGHT)}\n" for line in lines
        ).encode()
    if not text.isascii() or b"\x7f" in text:
        text = _NOT_PLAIN.sub(_escape, text.decode()).encode()
    return text.split(b"\n")[:-1]


def _escape(match: re.Match[str]) -> str:
    # Such characters stand in strings alone, where JSON takes them as UTF-16 escapes.
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _drop_line(dropped: _Dropped, told: int) -> bytes:
    (line,) = _encoded([_drop(dropped, told)])
    return line


def _drop(dropped: _Dropped, told: int) -> Line:
    return {
        "seq": dropped.last,
        "time": _now(),
        "event": "drop",
        "connection_id": None,
        "user_id": None,
        "address": None,
        "count": dropped.last - told,
        "since": dropped.since,
    }


def _ends_whole(path: str) -> bool:
    """Whether what is in a file ends with a line's end; True where that cannot be told."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"\n"
    return True
