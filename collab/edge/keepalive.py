"""Owns the sweeper: one task that looks after the liveness of all connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from collab.edge.stops import STOPPED_SECONDS

if TYPE_CHECKING:
    from collab.core.router import Router
    from collab.edge.acceptor import Acceptor
    from collab.settings import Settings

_LONGEST_TICK_SECONDS = 0.1
_SHORTEST_TICK_SECONDS = 0.01
_LATE_SECONDS = 0.2
_SKIPPED_AT_MOST = 10
_EVICTIONS_AT_ONCE = 8
_EVICTION_PAUSE_SECONDS = 0.01
_LONGEST_PING_CHECK_SECONDS = 1.0


class Sweeper:
    """Pings silent peers, ends those that do not answer, and evicts slow consumers."""

    def __init__(self, settings: Settings, acceptor: Acceptor, router: Router) -> None:
        self._acceptor = acceptor
        self._router = router
        # A tenth of what is measured keeps a check at most that much late.
        timeouts = settings.timeouts
        self._ping_check_seconds = min(
            _LONGEST_PING_CHECK_SECONDS, timeouts.ping_interval / 10, timeouts.ping_timeout / 10
        )
        self._tick_seconds = max(
            min(_LONGEST_TICK_SECONDS, settings.limits.slow_consumer / 10, self._ping_check_seconds),
            _SHORTEST_TICK_SECONDS,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep until cancelled."""
        task_status.started()
        next_ping_check = trio.current_time() + self._ping_check_seconds
        skipped = 0
        while True:
            due = trio.current_time() + self._tick_seconds
            late_seconds = await self._acceptor.stops.sleep_until(due)
            now = trio.current_time()
            if late_seconds > _LATE_SECONDS and skipped < _SKIPPED_AT_MOST:
                # We did not run for a while: what looks like a peer's silence may lie in its socket
                # unread. Let the readers and writers run before anybody is judged.
                skipped += 1
                if late_seconds > STOPPED_SECONDS:
                    self._router.discount(late_seconds)
                continue
            skipped = 0
            await self._evict_slow_consumers()
            if now >= next_ping_check:
                next_ping_check = now + self._ping_check_seconds
                for life in self._acceptor.lives():
                    life.check_alive(now)

    async def _evict_slow_consumers(self) -> None:
        while True:
            if not self._router.evict_slow_consumers(_EVICTIONS_AT_ONCE):
                return
            # Their tasks end now, and everybody else has a turn.
            await self._acceptor.stops.sleep_until(trio.current_time() + _EVICTION_PAUSE_SECONDS)
