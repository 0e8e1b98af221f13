"""Owns what a run can be told: the workload, its sizes and its bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import urlsplit

import attrs

from collab.bench.dialects import DIALECTS
from collab.bench.frames import MARK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

WorkloadName = Literal["pairs", "fanout", "open-loop", "idle", "storm"]
WORKLOADS: Final[tuple[str, ...]] = get_args(WorkloadName)

MAX_SECONDS: Final = 300.0
MAX_CONNECTIONS: Final = 20_000
MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MIN_PAYLOAD_BYTES: Final = MARK_BYTES + len('{"mark":"","text":""}')


def _is_within(low: float, high: float) -> Callable[[object, attrs.Attribute[Any], float], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} must be from {low:,} to {high:,}")

    return check


@attrs.frozen(kw_only=True)
class Options:
    """One run. Raises ValueError where a number is out of bounds or the URL is none."""

    url: str
    """`ws://host:port` or `wss://host:port`; http is taken for ws, https for wss."""
    workload: WorkloadName = "pairs"
    dialect: str = attrs.field(default="plain", validator=attrs.validators.in_(DIALECTS))
    pairs: int = attrs.field(default=10, validator=_is_within(1, MAX_CONNECTIONS // 2))
    recipients: int = attrs.field(default=100, validator=_is_within(1, MAX_CONNECTIONS - 1))
    connections: int = attrs.field(default=1000, validator=_is_within(2, MAX_CONNECTIONS - 1))
    """For `idle` and `storm`."""
    in_flight: int = attrs.field(default=1, validator=_is_within(1, 10_000))
    """Unacknowledged events of each sender."""
    rate: float = attrs.field(default=1000.0, validator=_is_within(0.1, 1_000_000))
    """Events a second of all senders together, for `open-loop`."""
    payload_bytes: int = attrs.field(default=200, validator=_is_within(MIN_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES))
    """Size of an event's `data`."""
    seconds: float = attrs.field(default=5.0, validator=_is_within(0.1, MAX_SECONDS))
    events: int = attrs.field(default=0, validator=_is_within(0, 100_000_000))
    """Stop after this many, without a warm-up; 0: only `seconds` counts."""
    warmup_seconds: float = attrs.field(default=0.5, validator=_is_within(0, MAX_SECONDS))
    wants_presence: bool = True
    secret: str = attrs.field(default="", repr=False)
    """The service's `auth.secret`, to sign a token for each user with; empty: users bring none."""
    pid: int | None = None
    """The server's process, whose CPU time and memory are read from the kernel."""

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss", "http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"not a ws:// or wss:// URL: {self.url}")

    @property
    def host(self) -> str:
        """The host name or address to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The TCP port to connect to."""
        return urlsplit(self.url).port or (443 if self.is_encrypted else 80)

    @property
    def is_encrypted(self) -> bool:
        """Whether to speak TLS."""
        return urlsplit(self.url).scheme in ("wss", "https")

    @property
    def path(self) -> str:
        """The path of the URL, `/` at least."""
        return urlsplit(self.url).path or "/"

    @property
    def connection_count(self) -> int:
        """How many connections the workload holds at the same time."""
        if self.workload == "fanout":
            return self.recipients + 1
        return self.connections + 1 if self.workload in ("idle", "storm") else 2 * self.pairs
