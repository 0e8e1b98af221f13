"""`trio-collab` as a child process: its output line by line, its signals, its end."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import collab

PACKAGE = Path(collab.__file__).parent
PATIENCE_SECONDS = 15.0


class Command:
    """One run of the command, in a directory of its own. Owns the process.

    Whoever gives a `stdout` owns that, and the output is not read here. `files` is how many it may open,
    `redirect` what a shell does with its output.
    """

    def __init__(
        self,
        directory,
        *arguments,
        environ=None,
        python_path=PACKAGE.parent,
        stdout=subprocess.PIPE,
        files=None,
        redirect="",
    ):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name != "PORT" and not name.startswith("COLLAB_")
        }
        self.output = ""
        self.errors = ""
        self._lines = queue.SimpleQueue()
        command = [sys.executable, "-m", "collab", *arguments]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        if redirect:
            command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env={**inherited, "PYTHONPATH": str(python_path), **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        reads = (
            [self._read_errors] if self._process.stdout is None else [self._read_output, self._read_errors]
        )
        self._readers = [threading.Thread(target=read) for read in reads]
        for reader in self._readers:
            reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self.wait()

    def signal(self, number):
        self._process.send_signal(number)

    @property
    def pid(self):
        return self._process.pid

    @property
    def has_ended(self):
        return self._process.poll() is not None

    def cpu_seconds(self):
        """What the process has worked so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self):
        """The exit code, once the process and all that hold its output have ended."""
        code = self._process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
            assert not reader.is_alive(), "a process that the command started is still there"
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.stderr.close()
        return code

    def line(self, pattern):
        """The next line of either output that matches, as a match object."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line matches {pattern!r}: {self.output}{self.errors}")
            if match := re.search(pattern, line):
                return match

    def address(self):
        """Host and port of the next line that says where the service listens."""
        url = urlsplit(self.line(r'Listening.*"(ws://[^"]+)"')[1])
        return url.hostname, url.port

    def _read_output(self):
        for line in self._process.stdout:
            self.output += line
            self._lines.put(line)

    def _read_errors(self):
        for line in self._process.stderr:
            self.errors += line
            self._lines.put(line)
