"""Owns what a run found: counts, latencies, costs, and which of it is a fault."""

from __future__ import annotations

import attrs

from collab.bench.latency import Percentiles


@attrs.frozen(kw_only=True)
class Cost:
    """CPU time of the measured part of a run. `server_seconds` is None where no process was named."""

    server_seconds: float | None
    own_seconds: float

    @classmethod
    def between(cls, first: float | None, last: float | None, *, own_seconds: float) -> Cost:
        """The cost between two readings of the server's clock."""
        server_seconds = None if first is None or last is None else last - first
        return cls(server_seconds=server_seconds, own_seconds=own_seconds)


@attrs.frozen(kw_only=True)
class Traffic:
    """What became of the events. `events` and `deliveries` are those of the measured part."""

    payload_bytes: int
    in_flight: int | None
    sent: int
    events: int
    deliveries: int
    delivery_latency: Percentiles | None
    """From the sender to the recipient; in an open loop from the time when the event was due."""
    ack_latency: Percentiles | None
    losses: int
    """Deliveries that were due and never came, `undelivered` among them."""
    undelivered: int
    """Deliveries that acks said would not come."""
    duplicates: int
    reorders: int
    misrouted: int
    missing_acks: int
    surplus_acks: int
    errors: int
    first_error: str


@attrs.frozen(kw_only=True)
class Memory:
    """The server's memory at half of the connections and at all of them. None: no process was named."""

    half_connections: int
    half_bytes: int | None
    all_connections: int
    all_bytes: int | None

    @property
    def bytes_per_connection(self) -> float | None:
        """The slope from half to all."""
        if self.half_bytes is None or self.all_bytes is None:
            return None
        return (self.all_bytes - self.half_bytes) / (self.all_connections - self.half_connections)


@attrs.frozen(kw_only=True)
class Phase:
    """One phase of a storm. `notices` are those that reached the one who stayed."""

    name: str
    users: int
    seconds: float
    server_seconds: float | None
    notices: int
    expected_notices: int


@attrs.frozen(kw_only=True)
class Report:
    """What one run found."""

    workload: str
    dialect: str
    connections: int
    seconds: float
    cost: Cost
    connections_lost: int
    first_end: str
    """Why the first lost connection ended."""
    traffic: Traffic | None = None
    memory: Memory | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def server_us_per_event(self) -> float | None:
        """CPU time of the server for each event of the measured part, in microseconds."""
        if self.traffic is None or not self.traffic.events or self.cost.server_seconds is None:
            return None
        return self.cost.server_seconds / self.traffic.events * 1e6

    @property
    def own_us_per_event(self) -> float | None:
        """CPU time of the load generator for each event of the measured part, in microseconds."""
        if self.traffic is None or not self.traffic.events:
            return None
        return self.cost.own_seconds / self.traffic.events * 1e6

    @property
    def faults(self) -> dict[str, int]:
        """What must not happen, and how often it did."""
        found = {"connections lost": self.connections_lost}
        if traffic := self.traffic:
            found |= {
                "losses": traffic.losses,
                "duplicates": traffic.duplicates,
                "reorders": traffic.reorders,
                "misrouted": traffic.misrouted,
                "missing acks": traffic.missing_acks,
                "surplus acks": traffic.surplus_acks,
                "errors": traffic.errors,
            }
        if self.phases:
            found["notices lost"] = sum(
                max(phase.expected_notices - phase.notices, 0) for phase in self.phases
            )
        return found

    @property
    def has_faults(self) -> bool:
        """Whether anything happened that must not."""
        return any(self.faults.values())

    def as_dict(self) -> dict[str, object]:
        """All of it, ready for JSON; the units are in the names."""
        return {
            **attrs.asdict(self),
            "server_us_per_event": self.server_us_per_event,
            "own_us_per_event": self.own_us_per_event,
            "bytes_per_connection": self.memory and self.memory.bytes_per_connection,
            "faults": self.faults,
        }
