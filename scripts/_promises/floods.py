"""Owns the promise that a flooder is closed soon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from commands import Command
from neighbour import CLOSED_WITHIN_SECONDS, FLOODS, flood_until_cut_off
from peer import Peer

from _promises.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TIMES = 3
_CLOSE_SECONDS = 2.0
"""`timeouts.close`: so long the service waits for an answer to its close frame."""


def floods(directory: Path) -> Iterator[Figure]:
    """Who floods with pings, pongs, fragments or junk is closed within 2 s, and cut off if it goes on."""
    with Command(directory, "serve", "--host=127.0.0.1", "--port=0", "--log-file=") as command:
        _, port = command.address()
        for name, (begin, wire) in FLOODS.items():
            closed, cut_off = [], []
            for _ in range(_TIMES):
                flooder = Peer(port, "flooder")
                opened = time.monotonic()
                told_at = flood_until_cut_off(flooder, begin, wire, lambda: False)
                cut_off.append(time.monotonic() - opened)
                # The reset may come before the close frame was read.
                closed.append(cut_off[-1] if told_at is None else told_at - opened)
                assert flooder.close_code in (1008, None), f"{name}: closed with {flooder.close_code}"
            yield Figure(f"{name}, {_TIMES} times: closed", max(closed), CLOSED_WITHIN_SECONDS)
            most = CLOSED_WITHIN_SECONDS + _CLOSE_SECONDS
            yield Figure(f"{name}, which goes on: cut off", max(cut_off), most)
