"""Owns what the core knows of one live connection, whatever carries it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from collab.core.mailbox import Mailbox
from collab.wire.close import Close
from collab.wire.identity import Identity

if TYPE_CHECKING:
    from collab.errors import MessageError
    from collab.observe.audit import Audit
    from collab.wire.messages import ClientMessage, CollabEvent, ServerMessage


class Dialect(Protocol):
    """How messages travel over one kind of connection. `name` tells dialects apart."""

    name: str

    def decode(self, text: bytes) -> ClientMessage:
        """The client's message in a text; raises `MessageError`."""
        ...

    def frame(self, message: ServerMessage, reply_id: bytes = b"") -> bytes:
        """A message of the service, ready to send."""
        ...

    def event_frame(self, event: CollabEvent, from_user: str) -> bytes:
        """An event, ready to send to any number of recipients."""
        ...

    def ack_frame(
        self, event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes
    ) -> bytes:
        """The acknowledgement of an event to so many distinct recipients."""
        ...

    def error_frame(self, error: MessageError) -> bytes:
        """The answer to a message that could not be handled."""
        ...


MaySend = Callable[["Connection", str], bool]
"""Whether what comes on this connection may reach this user, and so whether it is told of them."""


def _ignore(_: Close) -> None:
    pass


class Unacknowledged(Protocol):
    """An event that was taken from a connection and whose ack is still owed."""

    undecided: int
    """Recipients of whom it is not yet known whether they get it."""

    def ack_frame(self) -> bytes:
        """The acknowledgement, once nothing is undecided."""
        ...

    def tell(self, audit: Audit) -> None:
        """Have the audit log say what became of the event, once nothing is undecided."""
        ...


@attrs.define(eq=False, kw_only=True)
class Connection:
    """One live connection of a user: who it speaks for, its mailbox, and what it still owes.

    Equality is identity: two connections of one user are two connections.
    """

    connection_id: int
    identity: Identity
    address: str
    """The peer's IP address."""
    dialect: Dialect
    connected_at: datetime
    mailbox: Mailbox
    max_in_flight: int
    """Events that may be unacknowledged before reading stops."""
    on_end: Callable[[Close], None] = _ignore
    """Begins the end of the connection; synchronous, called at most once."""

    expires_at: float = math.inf
    """When, on Trio's clock, the token that it came with ends."""
    peers: frozenset[str] | None = None
    """The users whom its token names as those to whom it may send; None where it does not say."""
    in_flight: int = 0
    """Events handed to the router and not yet acknowledged."""
    unacknowledged: deque[Unacknowledged] | None = None
    """Those of them that wait for a recipient to be decided, and what came after them, in order."""
    close: Close | None = None
    """Why the connection is ending; None while it is live."""
    on_change: Callable[[], None] | None = None
    """Called when `may_read` may have changed, for who reads without waiting."""
    peer_close_code: int = 1006
    """The code of the peer's close frame; 1006 while there is none (RFC 6455 section 7.1.5)."""
    _changed: trio.Event | None = None

    @property
    def user_id(self) -> str:
        """The user this connection speaks for."""
        return self.identity.user_id

    def end(self, close: Close) -> None:
        """Begin the end of the connection, for this reason unless it is ending already."""
        if self.close is None:
            self.close = close
            self.on_end(close)
            self.changed()

    def send(self, message: ServerMessage, reply_id: bytes = b"") -> None:
        """Queue a message for this connection alone; a full mailbox makes it wait and reading pause."""
        self.mailbox.put_or_wait(self.dialect.frame(message, reply_id))

    def may_read(self) -> bool:
        """Whether to read from the peer: its window is open and none of its replies waits.

        A connection that is ending is read to see the peer's close frame.
        """
        return self.close is not None or (
            self.in_flight < self.max_in_flight and not self.mailbox.has_waiting
        )

    async def wait_may_read(self) -> None:
        """Wait until `may_read` holds."""
        while not self.may_read():
            await self._wait_changed()

    async def wait_acknowledged(self) -> None:
        """Wait until every event of this connection has been acknowledged."""
        while self.in_flight:
            await self._wait_changed()

    async def wait_all_entered(self) -> None:
        """Wait until nothing waits for room in the mailbox any more."""
        while self.mailbox.has_waiting:
            await self._wait_changed()

    def changed(self) -> None:
        """Wake whoever waits for the window, the mailbox or the end of this connection."""
        if self.on_change is not None:
            self.on_change()
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def release(self) -> None:
        """It is over: forget whom to call."""
        self.on_end = _ignore
        self.on_change = None
        self.mailbox.release()

    async def _wait_changed(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()
