"""Owns a wake-up for a task that waits, or several."""

from __future__ import annotations

import anyio


class Bell:
    """`ring` wakes the tasks that wait, or the next one that would."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Synchronous, and cheap where it rings already."""
        self._event.set()

    async def wait(self) -> None:
        """Until it rings. That ring is used up."""
        event = self._event
        await event.wait()
        if self._event is event:
            self._event = anyio.Event()
