"""Owns the processes of the demo: the service and the two backends, and what they say."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from view import View

_SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_START_SECONDS = 20.0
_END_SECONDS = 15.0


class Problem(Exception):
    """Something is not as it should be."""


class Stage:
    """The processes. `pause_seconds` is for people, who want to see one thing after the other."""

    def __init__(self, view: View, directory: Path, *, pause_seconds: float) -> None:
        self.view = view
        self.staying = False
        self.ws_url = ""
        self._directory = directory
        self._pause_seconds = pause_seconds
        self._port = _free_port()
        self._processes: dict[str, trio.Process] = {}
        self._may_end: set[str] = set()
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Start and end processes in this block; at its end all are gone."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            yield
            for name in list(self._processes):
                await self.end(name, signal.SIGTERM)
            nursery.cancel_scope.cancel()

    async def start_service(self) -> None:
        """Start the service; it has the same port each time."""
        arguments = ["-m", "collab", "serve", "--port", str(self._port), "--log-file", ""]
        details = await self._start("service", arguments, {}, r".*: Listening (\{.*\})")
        self.ws_url = json.loads(details)["ws"]

    async def start_backend(self, name: str) -> str:
        """Start somebody's backend; returns its URL."""
        environ = {
            "USER_ID": name,
            "PORT": "0",
            "COLLAB_URL": self.ws_url,
            "DATABASE": str(self._directory / f"{name}.sqlite"),
        }
        return await self._start(name, ["-m", "demo_backend"], environ, r"Listening (\S+)")

    async def end(self, name: str, number: int) -> None:
        """End one of them, and wait until it is gone."""
        process = self._processes.pop(name)
        self._may_end.add(name)
        process.send_signal(number)
        with trio.move_on_after(_END_SECONDS):
            await process.wait()
        if process.returncode not in (0, -number):
            raise Problem(f"{name} ended with exit code {process.returncode}")

    async def pause(self) -> None:
        """For whoever looks on."""
        await trio.sleep(self._pause_seconds)

    async def _start(self, name: str, arguments: list[str], environ: dict[str, str], listening: str) -> str:
        self._may_end.discard(name)
        run = partial(
            trio.run_process,
            [sys.executable, *arguments],
            stdout=(pipe := os.pipe())[1],
            stderr=pipe[1],
            check=False,
            cwd=_SCRIPTS,
            env={**_environment(), **environ},
            # Ctrl-C reaches the demo alone, which then ends the others in good order.
            start_new_session=True,
        )
        output = trio.lowlevel.FdStream(pipe[0])
        try:
            process: trio.Process = await self._nursery.start(run)
        finally:
            os.close(pipe[1])
        self._processes[name] = process
        found: list[str] = []
        is_found = trio.Event()

        def look_at(line: str) -> None:
            if not found and (match := re.match(listening, line)):
                found.append(match[1])
                is_found.set()

        self._nursery.start_soon(self._read, name, process, output, look_at)
        with trio.move_on_after(_START_SECONDS):
            await is_found.wait()
        if not found:
            raise Problem(f"{name} does not start")
        return found[0]

    async def _read(
        self,
        name: str,
        process: trio.Process,
        output: trio.lowlevel.FdStream,
        look_at: Callable[[str], None],
    ) -> None:
        rest = b""
        async with output:
            async for data in output:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    self.view.say(name, text)
                    look_at(text)
        await process.wait()
        if name not in self._may_end:
            # Without one of them the others would wait in vain.
            raise Problem(f"{name} ended with exit code {process.returncode}")


def _environment() -> dict[str, str]:
    """This process's environment without what would configure the service or a backend."""
    own = ("PORT", "BACKEND_URL", "DISPLAY_NAME", "DATABASE", "USER_ID")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.upper().startswith("COLLAB_")
    }
    paths = [_SCRIPTS, *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def _free_port() -> int:
    """A port that no outgoing connection is given, so that the service finds it free again."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Problem("there is no free port")
