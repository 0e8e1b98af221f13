"""Owns the service under the soak: its process, and what can be read of it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from _bench.servers import END_SECONDS, SERVER_CPU, free_port, pin, wait_for

from _soak.runner import DESCRIPTOR
from collab.bench.cost import cpu_seconds, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = [sys.executable, "-m", "_soak.runner"]
_READ_BYTES = 65536


@attrs.frozen
class Holdings:
    """What the service's process holds at one moment."""

    tasks: int
    descriptors: int
    threads: int
    blocks: int
    """Pieces of up to 512 bytes that Python has allocated, garbage left out: nearly all of its objects."""
    heap_bytes: int
    """What is larger than that, without the holes between."""
    rss_bytes: int

    def is_back_at(self, before: Holdings) -> bool:
        """Whether nothing was left behind; memory has its own verdict."""
        return (self.tasks, self.descriptors, self.threads) == (
            before.tasks,
            before.descriptors,
            before.threads,
        )


class Server:
    """The running service. Made by `running`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, told: int, log: Path) -> None:
        self.port = port
        self.exit_code: int | None = None
        self._process = process
        self._told = told
        self._rest = b""
        self._last: dict[str, int] = {}
        self._log = log
        os.set_blocking(told, False)

    @property
    def cpu_seconds(self) -> float:
        """The CPU time it has used so far."""
        return cpu_seconds(self._process.pid)

    def holdings(self) -> Holdings | None:
        """What it holds now; tasks and blocks as it told last. None where it has told nothing yet."""
        self._hear()
        if not self._last:
            return None
        proc = Path(f"/proc/{self._process.pid}")
        return Holdings(
            tasks=self._last["tasks"],
            descriptors=len(os.listdir(proc / "fd")),
            threads=len(os.listdir(proc / "task")),
            blocks=self._last["blocks"],
            heap_bytes=self._last["heap_bytes"],
            rss_bytes=resident_bytes(self._process.pid),
        )

    def complaints(self) -> list[str]:
        """Lines of its log at level error, and whatever is no line of its log."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            try:
                level = json.loads(line)["level"]
            except (ValueError, TypeError, KeyError):
                level = "none"
            if level not in ("debug", "info", "warning"):
                found.append(line)
        return found

    def end(self) -> None:
        """Ask it to drain and end, and note how it did."""
        self._process.terminate()
        try:
            self.exit_code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> None:
        while True:
            try:
                data = os.read(self._told, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise ChildProcessError(f"the service has ended: {self.complaints()[-3:]}")
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._last = json.loads(line)


@contextmanager
def running() -> Iterator[Server]:
    """The service with its defaults, on a free loopback port, on a CPU of its own where there are two."""
    port = free_port()
    told, tell = os.pipe()
    with tempfile.TemporaryDirectory(prefix="trio-collab-soak-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*RUNNER, "serve", "--host=127.0.0.1", f"--port={port}", "--log-format=json", "--log-file="],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[tell],
                env={**os.environ, DESCRIPTOR: str(tell)},
                preexec_fn=lambda: pin(SERVER_CPU),
            )
        os.close(tell)
        server = Server(process, port, told, log)
        try:
            wait_for(port, process)
            yield server
        finally:
            if server.exit_code is None:
                server.end()
            os.close(told)
