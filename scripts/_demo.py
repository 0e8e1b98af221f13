"""Owns the stage of the demo: runs the service and the two backends as processes, prints what they say."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import trio
from _demo_backend import CONNECTED, WAITS

_LONGEST_SECONDS = 20.0
_BACKEND = Path(__file__).with_name("_demo_backend.py")
_COLOURS = {"ada": 36, "bob": 33, "service": 2}


class Stage:
    """The processes and their common output. Owns the processes and the pipe."""

    def __init__(self) -> None:
        # One pipe for all of them, so that its order is the order in which things happened.
        reading, self._writing = os.pipe()
        self._output = trio.lowlevel.FdStream(reading)
        self._said: defaultdict[tuple[str, str], trio.Event] = defaultdict(trio.Event)
        self._listening = trio.Event()
        self._ws_url = ""
        self._playing = trio.CancelScope()
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.problem = ""
        """Why the story did not come to its end; empty where it did."""
        self.signal: int | None = None

    async def play(self) -> None:
        """Play the story to its end, or until a signal, a failure or the time limit cuts it off.

        Cut off, every process is ended by SIGTERM, and after 5 s by SIGKILL.
        """
        async with self._output, trio.open_nursery() as nursery:
            nursery.start_soon(self._obey_signals)
            async with trio.open_nursery() as reading:
                reading.start_soon(self._print_output)
                try:
                    with self._playing:
                        self._playing.deadline = trio.current_time() + _LONGEST_SECONDS
                        async with trio.open_nursery() as processes:
                            await self._run_story(processes)
                    if self._playing.cancelled_caught and not self.problem:
                        self.problem = f"not over after {_LONGEST_SECONDS:.0f} s"
                finally:
                    # Once the processes are gone too, this is the end of their output.
                    os.close(self._writing)
            nursery.cancel_scope.cancel()

    async def _run_story(self, nursery: trio.Nursery) -> None:
        arguments = ["-m", "collab", "serve", "--port", "0", "--log-file", ""]
        service = await self._start(nursery, "service", arguments)
        await self._listening.wait()
        for name in ("ada", "bob"):
            await self._start(nursery, name, [str(_BACKEND), name, self._ws_url])
            await self._said[name, CONNECTED].wait()
        for name in ("ada", "bob"):
            await self._said[name, WAITS].wait()
        self._print("demo", "asks the service to go down")
        service.terminate()

    async def _start(self, nursery: trio.Nursery, name: str, arguments: list[str]) -> trio.Process:
        run = partial(
            trio.run_process,
            [sys.executable, *arguments],
            stdout=self._writing,
            check=False,
            env=_environment(),
            # Ctrl-C reaches the demo alone, which then ends the others in good order.
            start_new_session=True,
        )
        process: trio.Process = await nursery.start(run)
        nursery.start_soon(self._watch, name, process)
        return process

    async def _watch(self, name: str, process: trio.Process) -> None:
        exit_code = await process.wait()
        if exit_code and not self.problem:
            # Without one of them the others would wait in vain.
            self.problem = f"{name} ended with exit code {exit_code}"
            self._playing.cancel()

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                self.signal = number
                self.problem = self.problem or "stopped"
                self._playing.cancel()

    async def _print_output(self) -> None:
        rest = b""
        async for data in self._output:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        name, tab, text = line.partition("\t")
        if not tab:
            name, text = "service", line
        self._print(name, text)
        if name == "service" and not self._listening.is_set():
            _, found, details = text.partition(": Listening ")
            if found:
                self._ws_url = json.loads(details)["ws"]
                self._listening.set()
        self._said[name, text].set()

    def _print(self, name: str, text: str) -> None:
        head = f"{name:<7} │"
        if self._coloured and name in _COLOURS:
            head = f"\x1b[{_COLOURS[name]}m{head}\x1b[0m"
        print(f"{head} {text}", flush=True)


def _environment() -> dict[str, str]:
    """This process's environment without what would configure the service."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "PORT" and not name.upper().startswith("COLLAB_")
    }


async def _main() -> int:
    stage = Stage()
    await stage.play()
    if stage.problem:
        print(f"demo: {stage.problem}", file=sys.stderr)
        return 1 if stage.signal is None else 128 + stage.signal
    print("Everyone saw what they should.")
    return 0


if __name__ == "__main__":
    sys.exit(trio.run(_main))
