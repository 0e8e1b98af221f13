"""Owns `serve --reload`: a parent that watches files and runs the service as its child."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import watchfiles

import collab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_POLL_MS = 200
_DEBOUNCE_MS = 200
_PATIENCE_SECONDS = 0.5


def run_reloading(arguments: list[str], config_file: Path | None) -> int:
    """Run `serve` with `arguments`, and again after every change; return the last child's exit code.

    Watches the package and the config file. SIGTERM and SIGINT are handed on to the child and
    end the parent with it. A child that ended by itself is started again by the next change.
    """
    command = [sys.executable, "-m", "collab", "serve", "--until-eof", *arguments]
    stopping = threading.Event()
    config_before = _fingerprint(config_file)
    child = _Child(command)

    def stop(number: int, frame: FrameType | None) -> None:
        # The second signal goes straight on to the child, which then ends at once.
        if stopping.is_set():
            child.signal(signal.SIGTERM)
        stopping.set()

    with child, _handling(stop):
        for changes in watchfiles.watch(
            Path(collab.__file__).parent,
            watch_filter=watchfiles.PythonFilter(),
            debounce=_DEBOUNCE_MS,
            rust_timeout=_POLL_MS,
            yield_on_timeout=True,
            stop_event=stopping,
            raise_interrupt=False,
        ):
            # By its state, not by watching: editors replace the file, deployments the link to it.
            config_now = _fingerprint(config_file)
            if changes or config_now != config_before:
                config_before = config_now
                click.echo("trio-collab: files have changed, restarting", err=True)
                child.replace()
        child.signal(signal.SIGTERM)
        return child.wait()


class _Child:
    """The process that serves. Owns it, and the pipe by whose end it sees that its parent is gone."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process = self._start()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._end()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process; return its exit code as a shell does."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def replace(self) -> None:
        """End the process, by force if need be, and start another one."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_SECONDS)
                break
        self._end()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # In a process group of its own, so that Ctrl-C reaches it once, through its parent.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, process_group=0)

    def _end(self) -> None:
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)


def _fingerprint(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
