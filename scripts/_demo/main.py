"""Owns the command line of the demo, and its end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import trio
from stage import Problem, Stage
from story import begin, tell
from view import Panels, Plain


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--web", action="store_true", help="share a position, then stay, for people")
    parser.add_argument("--keep", action="store_true", help="stay when the conversation is over")
    parser.add_argument("--plain", action="store_true", help="lines instead of panels")
    parser.add_argument("--screenshot", metavar="FILE", help="write a picture of both pages, then end")
    return parser.parse_args()


async def _photograph(ada: str, bob: str, file: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("screenshot.py")), ada, bob, file]
    with trio.fail_after(60):
        done = await trio.run_process(command, check=False, capture_stderr=True)
    if done.returncode:
        raise Problem(f"no picture: {done.stderr.decode(errors='replace').strip()}")


async def _main(options: argparse.Namespace) -> int:
    ends_by_itself = not (options.web or options.keep)
    signalled: list[int] = []
    is_shown = sys.stdout.isatty() and not options.plain
    view = Panels() if is_shown else Plain()
    with tempfile.TemporaryDirectory(prefix="demo-") as directory, view:
        stage = Stage(view, Path(directory), pause_seconds=1.2 if is_shown else 0.0)

        async def obey_signals(scope: trio.CancelScope) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async for number in signals:
                    signalled.append(number)
                    scope.cancel()

        async def play() -> None:
            async with stage.open():
                ada, bob = await begin(stage)
                if options.screenshot:
                    await _photograph(ada.url, bob.url, options.screenshot)
                    return
                if options.web:
                    position = await ada.create_position()
                    await ada.share(position, "bob")
                else:
                    await tell(stage, ada, bob)
                if not ends_by_itself:
                    stage.staying = True
                    view.step(f"Ada: {ada.url}   Bob: {bob.url}   Ctrl-C ends the demo")
                    await trio.sleep_forever()

        problem = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey_signals, nursery.cancel_scope)
            try:
                await play()
            except* Problem as problems:
                problem = str(_first(problems))
            nursery.cancel_scope.cancel()
    if problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    if signalled:
        if stage.staying:
            return 0
        print("demo: stopped", file=sys.stderr)
        return 128 + signalled[0]
    print(f"Wrote {options.screenshot}" if options.screenshot else "Everyone saw what they should.")
    return 0


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    given = _options()
    os.chdir(Path(__file__).parents[1])
    sys.exit(trio.run(_main, given))
