"""Owns the client's bounds: how long it waits, and how much it keeps."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """What a client waits for and keeps, at most. Times are in seconds."""

    offline_sends: int = 1000
    """How many sends may wait for a connection; one more raises `NotConnected` at once."""
    offline_seconds: float = 30.0
    """How long a send waits to be written, before it raises `NotConnected`."""
    ack_seconds: float = 15.0
    """How long a send waits for its ack, before it raises `AckTimeout`."""
    message_bytes: int = 65536
    """The largest message to send: `limits.message_bytes` of the service."""
    queued_events: int = 1024
    """How many events may wait for handlers and iterators, before reading pauses."""
    queued_bytes: int = 4 * 1024 * 1024
    """The same in bytes."""
    connect_seconds: float = 10.0
    """For one try to connect, its token included, until the service says `connected`."""
    write_seconds: float = 10.0
    """How long the service may take nothing, before the connection counts as lost."""
    close_seconds: float = 2.0
    """How long the end of a connection waits for the service's close frame."""
    ping_seconds: float = 20.0
    """After so much silence the service is pinged. Below `timeouts.ping_interval` of the service."""
    pong_seconds: float = 20.0
    """How long it may take to answer, before the connection counts as lost."""
    first_delay_seconds: float = 0.5
    """A reconnect waits a random part of this; it doubles with each try that fails."""
    longest_delay_seconds: float = 20.0
    """Up to this."""
