"""Owns the threads that write lines off the hot path, each with its queue, and the writer of the log."""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from collab.observe.format import Line
from collab.observe.outputs import RotationFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from collab.observe.format import Plain
    from collab.observe.outputs import Output


_QUEUE_LINES = 10_000
_CLOSE_SECONDS = 2.0
_REPORT_SECONDS = 10.0


class _Ask(enum.Enum):
    STOP = enum.auto()
    REOPEN = enum.auto()


T = TypeVar("T")


class QueueWriter(Generic[T]):
    """A thread of its own that writes what is queued for it, between `start` and `stop`.

    How is for a subclass to say: `_write` takes each item, `_settle` is called after it, `_close` at
    the end. With `linger_seconds` the thread lets items gather for so long once the queue is empty, so
    that not each of them wakes it.
    """

    def __init__(self, thread_name: str, *, linger_seconds: float = 0.0) -> None:
        self._queue: queue.SimpleQueue[T | threading.Event | _Ask] = queue.SimpleQueue()
        self._linger_seconds = linger_seconds
        self._retry_seconds: float | None = None
        """How long to wait for the next item before `_settle` is called again; None: for ever."""
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def reopen(self) -> None:
        """Have the thread open its file anew, after what is queued. Safe in a signal handler."""
        self._queue.put(_Ask.REOPEN)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until what is queued now is written. False: it was not, within the time given."""
        written = threading.Event()
        self._queue.put(written)
        self._hurry.set()
        return written.wait(timeout_seconds)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = _CLOSE_SECONDS) -> bool:
        """Write what is queued, end the thread and close the outputs. False: it took longer, and was left."""
        self._queue.put(_Ask.STOP)
        self._hurry.set()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _write(self, item: T) -> None:
        raise NotImplementedError

    def _settle(self, *, idle: bool) -> None:
        """Called after each item; `idle`: nothing else is queued, or somebody waits for what was."""
        raise NotImplementedError

    def _reopen(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while (item := self._next()) is not _Ask.STOP:
                if item is _Ask.REOPEN:
                    self._settle(idle=True)
                    self._reopen()
                elif isinstance(item, threading.Event):
                    self._settle(idle=True)
                    item.set()
                elif item is None:
                    self._settle(idle=True)
                else:
                    self._write(item)
                    self._settle(idle=self._queue.empty())
                if self._linger_seconds and self._queue.empty():
                    self._hurry.wait(self._linger_seconds)
                    self._hurry.clear()
            self._settle(idle=True)
        finally:
            self._close()

    def _next(self) -> T | threading.Event | _Ask | None:
        try:
            return self._queue.get(timeout=self._retry_seconds)
        except queue.Empty:
            return None


class LogWriter(QueueWriter[logging.LogRecord]):
    """Writes the records of its handlers to its outputs, in a thread of its own, between `start` and `stop`.

    Owns `outputs`, which the thread closes. A full queue or a failing output loses lines, never
    more than that: the loss is counted, and told in a line of its own once lines get out again.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        render: Callable[[logging.LogRecord], str],
        *,
        queue_lines: int = _QUEUE_LINES,
    ) -> None:
        super().__init__("collab-log")
        self._queue_lines = queue_lines
        self._outputs = [_Tracked(output) for output in outputs]
        self._render = render
        self._lock = threading.Lock()
        self._overflowed = 0
        self._unwritten = 0
        self._reported = 0
        self._report_due = 0.0

    @property
    def dropped(self) -> int:
        """Lines that found the queue full, or that at least one output did not take."""
        return self._overflowed + self._unwritten

    def handler(self, level: int = logging.NOTSET) -> logging.Handler:
        """A handler that queues records from `level` on, as they are, and never waits."""
        return _QueueHandler(self, level)

    def put(self, record: logging.LogRecord) -> None:
        """Queue one record, or count it as dropped."""
        if self._queue.qsize() < self._queue_lines:
            self._queue.put(record)
        else:
            with self._lock:
                self._overflowed += 1

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self._render(record)}\n".encode()
        except Exception:  # only a library's record with wrong arguments; there is nobody to tell
            self._unwritten += 1
            return
        if not self._write_to(self._outputs, line):
            self._unwritten += 1

    def _settle(self, *, idle: bool) -> None:
        # While lines are still being dropped, a report after each one written would only add to them.
        if idle or time.monotonic() >= self._report_due:
            self._report_overflow()

    def _close(self) -> None:
        for tracked in self._outputs:
            tracked.output.close()

    def _write_to(self, outputs: Iterable[_Tracked], line: bytes) -> bool:
        taken_by_all = True
        for tracked in outputs:
            try:
                tracked.output.write(line)
            except RotationFailed as error:
                self._tell(tracked, "Log file not rotated", error)
            except OSError as error:
                taken_by_all = False
                tracked.missed += 1
                tracked.error = error.strerror or str(error)
                if tracked.missed == 1:
                    self._tell(tracked, "Log output failed", error)
                continue
            if tracked.missed:
                missed, tracked.missed = tracked.missed, 0
                lost = self._own(
                    "Log lines dropped", count=missed, output=tracked.output.name, error=tracked.error
                )
                self._write_to([tracked], lost)
        return taken_by_all

    def _tell(self, failed: _Tracked, event: str, error: OSError) -> None:
        """Say on the outputs that work what is wrong with `failed`."""
        line = self._own(event, output=failed.output.name, error=error.strerror or str(error))
        self._write_to([other for other in self._outputs if other is not failed and not other.missed], line)

    def _report_overflow(self) -> None:
        if count := self._overflowed - self._reported:
            self._reported += count
            self._report_due = time.monotonic() + _REPORT_SECONDS
            line = self._own("Log lines dropped", count=count, error="queue full")
            self._write_to(self._outputs, line)

    def _reopen(self) -> None:
        for tracked in self._outputs:
            try:
                tracked.output.reopen()
            except OSError as error:
                line = self._own("Log file not reopened", error=error.strerror or str(error))
                self._write_to(self._outputs, line)

    def _own(self, event: str, **fields: Plain) -> bytes:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, Line(event, fields), None, None)
        return f"{self._render(record)}\n".encode()


class _QueueHandler(logging.Handler):
    def __init__(self, writer: LogWriter, level: int) -> None:
        super().__init__(level)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.put(record)


class _Tracked:
    """One output, and what it has missed since it last took a line."""

    __slots__ = ("error", "missed", "output")

    def __init__(self, output: Output) -> None:
        self.output = output
        self.missed = 0
        self.error = ""
