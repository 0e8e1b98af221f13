"""Owns the places that log lines go to: the console and a file that rotates by size."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
from typing import Protocol, TextIO

from collab.errors import CannotStart

# A pipe that polls as writable takes this much without blocking.
_CHUNK_BYTES = 4096
_STALL_MS = 1000


class Output(Protocol):
    """Takes whole lines. `write` raises OSError where a line did not get out, and may be called again."""

    name: str

    def write(self, line: bytes) -> None: ...

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Console:
    """Standard output, by its own descriptor. Owns a duplicate, so that closing stdout does no harm here.

    A reader that has stopped is waited for one second, then not at all until it reads again.
    """

    name = "console"

    def __init__(self, stream: TextIO) -> None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        self._descriptor = _Descriptor(os.dup(stream.fileno()))

    def write(self, line: bytes) -> None:
        self._descriptor.write(line)

    def reopen(self) -> None:
        """Nothing: the console has no name to open it by."""

    def close(self) -> None:
        self._descriptor.close()


class StreamConsole:
    """Standard output where it is no descriptor but an object that a caller of the command has put there."""

    name = "console"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.decode().encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except ValueError as error:  # what a closed stream raises
            raise OSError(str(error)) from error

    def reopen(self) -> None:
        """Nothing: whoever put the stream there owns it."""

    def close(self) -> None:
        """Nothing, as above."""


class LogFile:
    """A file that is renamed to `.1`, `.2` and so on once a line would take it past `max_bytes` (0: never).

    Owns its descriptor. Anything but a regular file is never rotated. `called` and `mode` are what an
    error calls it and its permissions when it is made.

    Raises:
        CannotStart: the file cannot be opened.
    """

    name = "file"

    def __init__(
        self,
        path: str,
        *,
        max_bytes: int = 10 * 1024 * 1024,
        backups: int = 5,
        called: str = "log file",
        mode: int = 0o640,
    ) -> None:
        self.path = os.path.abspath(path)
        self._max_bytes = max_bytes
        self._backups = backups
        self._mode = mode
        self._size = 0
        try:
            self._open()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotStart(f"Cannot open the {called} {path!r}: {reason}") from error

    def write(self, line: bytes) -> None:
        failed: RotationFailed | None = None
        try:
            self.make_room(len(line))
        except RotationFailed as error:
            failed = error
        self._descriptor.write(line)
        self._size += len(line)
        if failed is not None:
            raise failed

    def write_some(self, data: memoryview) -> int:
        """Write what goes out at once and never rotate: the number of bytes, one or more.

        Raises:
            OSError: nothing went out.
        """
        written = self._descriptor.write_some(data)
        self._descriptor.regain_patience()
        self._size += written
        return written

    def make_room(self, size: int) -> None:
        """Rotate where so many bytes more would take the file past its size.

        Raises:
            RotationFailed: it goes on growing; the next try comes a whole file later.
        """
        if not (self._max_bytes and self._size and self._regular) or self._size + size <= self._max_bytes:
            return
        try:
            self._rotate()
        except OSError as error:
            self._size = 0
            raise RotationFailed(error.errno, f"cannot rotate: {error.strerror}") from error

    def reopen(self) -> None:
        """Open the path anew, for a tool that has renamed the file. On OSError the old file stays in use."""
        former = self._descriptor
        self._open()
        former.close()

    def close(self) -> None:
        self._descriptor.close()

    def _open(self) -> None:
        # O_NONBLOCK: to open a named pipe without a reader is an error, not a wait.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        number = os.open(self.path, flags, self._mode)
        status = os.fstat(number)
        self._descriptor = _Descriptor(number)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size

    def _rotate(self) -> None:
        for number in range(self._backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.1")
        self.reopen()


class RotationFailed(OSError):
    """Nothing was lost, but the file keeps growing past its size."""


def console() -> Console | StreamConsole:
    """Standard output as it is now; nowhere, where the process was started without one."""
    if sys.stdout is None:
        return StreamConsole(open(os.devnull, "w"))
    try:
        return Console(sys.stdout)
    except (OSError, ValueError):  # no descriptor, or a closed one
        return StreamConsole(sys.stdout)


class _Descriptor:
    """Writes whole lines to one open descriptor, which it owns, and never waits for long."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._writable = select.poll()
        self._writable.register(number, select.POLLOUT)
        self._patience_ms = _STALL_MS
        self._torn = False

    def write(self, line: bytes) -> None:
        # What follows a line that broke off starts on a line of its own.
        rest = memoryview(b"\n" + line if self._torn else line)
        while rest:
            rest = rest[self.write_some(rest[:_CHUNK_BYTES]) :]
            self._torn = bool(rest)
        self.regain_patience()

    def write_some(self, data: memoryview) -> int:
        """Write what goes out at once: the number of bytes, one or more. OSError: none went out."""
        if not self._writable.poll(self._patience_ms):
            self._patience_ms = 0
            raise TimeoutError("nobody reads it")
        return os.write(self._number, data)

    def regain_patience(self) -> None:
        """Wait again for a reader that has stopped: it reads."""
        self._patience_ms = _STALL_MS

    def close(self) -> None:
        os.close(self._number)
