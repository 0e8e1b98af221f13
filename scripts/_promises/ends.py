"""Owns the promises of how soon the service ends, and begins again."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from commands import PACKAGE, Command
from peer import Peer
from sigterm import DRAIN_SECONDS, sigterm_under_load

from _promises.figure import Figure

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

_SLACK_SECONDS = 2.0
_AT_ONCE_SECONDS = 1.0
_RELOAD_SECONDS = 2.0
_SERVE = ("serve", "--host=127.0.0.1", "--port=0", "--log-file=")
# Without a deadline of its own, whoever waits for the stalled client would do so for two minutes.
_PATIENT = {
    "COLLAB_SERVER__DRAIN": "120s",
    "COLLAB_TIMEOUTS__CLOSE": "120s",
    "COLLAB_TIMEOUTS__WRITE": "120s",
}


def sigterm(directory: Path) -> Iterator[Figure]:
    """SIGTERM with 1,000 clients at 2,000 events/s and two stalled readers: exit 0 within drain + 2 s."""
    took = sigterm_under_load(directory, 1000, 2000, live_seconds=3)
    yield Figure(f"SIGTERM to exit 0, drain {DRAIN_SECONDS} s", took, DRAIN_SECONDS + _SLACK_SECONDS)


def signals(directory: Path) -> Iterator[Figure]:
    """A stalled client holds the drain no longer than it may take, and a second signal not at all."""
    environ = {**_PATIENT, "COLLAB_SERVER__DRAIN": "1s"}
    with Command(directory, *_SERVE, environ=environ) as command, _stalled(command.address()):
        asked = time.monotonic()
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        yield Figure("SIGTERM to exit 0, drain 1 s", time.monotonic() - asked, 1 + _SLACK_SECONDS)
    with Command(directory, *_SERVE, environ=_PATIENT) as command, _stalled(command.address()):
        command.signal(signal.SIGTERM)
        command.line("Stopping")
        asked = time.monotonic()
        command.signal(signal.SIGTERM)
        assert command.wait() == 1
        yield Figure("second SIGTERM to exit 1", time.monotonic() - asked, _AT_ONCE_SECONDS)


def reload(directory: Path) -> Iterator[Figure]:
    """`serve --reload` serves again within 2 s of a change, also beside a stalled client."""
    copy = directory / "copy"
    shutil.copytree(PACKAGE, copy / "collab", ignore=shutil.ignore_patterns("__pycache__"))
    config = directory / "collab.toml"
    config.write_text("server.port = 0\n")
    arguments = [*_SERVE[:2], "--reload", "--config=collab.toml", "--log-file="]
    with Command(directory, *arguments, environ=_PATIENT, python_path=copy) as command:
        address = command.address()
        asked = time.monotonic()
        config.write_text("server.port = 0\nserver.reconnect_spread = '3s'\n")
        address = command.address()
        yield Figure("change of the config file to serving", time.monotonic() - asked, _RELOAD_SECONDS)
        asked = time.monotonic()
        with (copy / "collab" / "_version.py").open("a") as module:
            module.write("# changed\n")
        address = command.address()
        yield Figure("change of the code to serving", time.monotonic() - asked, _RELOAD_SECONDS)
        with _stalled(address):
            asked = time.monotonic()
            config.write_text("server.port = 0\n")
            command.address()
            yield Figure("the same beside a stalled client", time.monotonic() - asked, _RELOAD_SECONDS)
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


@contextmanager
def _stalled(address: tuple[str, int]) -> Iterator[socket.socket]:
    """A client that is connected, and never reads or answers again."""
    with Peer(address[1], "stalled").socket as opened:
        yield opened
