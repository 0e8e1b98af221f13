"""Owns a wake-up for one waiting task."""

from __future__ import annotations

import anyio


class Bell:
    """`ring` wakes the task that waits, or the next one that would."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Synchronous, and cheap where it rings already."""
        self._event.set()

    async def wait(self) -> None:
        """Until it rings. That ring is used up."""
        await self._event.wait()
        self._event = anyio.Event()
