"""Owns what the service knows of itself: since when it runs, what it has counted, whether it drains."""

from __future__ import annotations

import attrs
import trio


@attrs.define
class Status:
    """One service's own state. Times are on Trio's clock, so that a moved wall clock changes nothing."""

    started_at: float = attrs.field(factory=trio.current_time)
    total_connections: int = 0
    """WebSocket connections registered since the start."""
    total_events_routed: int = 0
    """Events acknowledged since the start."""
    draining: bool = False

    def uptime_seconds(self) -> int:
        """Whole seconds since the start."""
        return int(trio.current_time() - self.started_at)
