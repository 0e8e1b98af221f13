"""Owns live connections without a transport: real mailboxes, read by hand, and the core around them."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio
from msgspec import Raw

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.core.membership import Membership
from collab.core.outbox import Outbox
from collab.core.presence import Presence
from collab.core.registry import Registry
from collab.core.router import Batch, Router
from collab.core.status import Status
from collab.observe.audit import Audit
from collab.settings import AuditSettings
from collab.wire import codec
from collab.wire.close import Close, CloseCode
from collab.wire.identity import Identity
from collab.wire.messages import CollabEvent, ErrorReply, RouteRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.core.mailbox import Settled
    from collab.errors import MessageError
    from collab.wire.messages import ClientMessage, ServerMessage

_ids = itertools.count(1)
FILLER = b'{"event":"filler"}\n'


class LinesDialect:
    """Every message is one line of JSON. Counts the events it built."""

    def __init__(self, name: str = "lines") -> None:
        self.name = name
        self.events_built = 0

    def decode(self, text: bytes) -> ClientMessage:
        return codec.decode(text)

    def frame(self, message: ServerMessage, reply_id: bytes = b"") -> bytes:
        return codec.encode(message, reply_id) + b"\n"

    def event_frame(self, event: CollabEvent, from_user: str) -> bytes:
        self.events_built += 1
        return codec.encode_event(event, from_user) + b"\n"

    def ack_frame(
        self, event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes
    ) -> bytes:
        return codec.encode_ack(event_type, recipients, undelivered, reply_id) + b"\n"

    def error_frame(self, error: MessageError) -> bytes:
        reply = ErrorReply(message=error.message, error=error.detail, code=error.code)
        return self.frame(reply, error.reply_id)


class RecordingMailbox(Mailbox):
    """Notes every frame that entered it, in order."""

    def __init__(
        self, outbox: Outbox | None = None, *, max_messages: int = 256, max_bytes: int = 1 << 20
    ) -> None:
        super().__init__(outbox or Outbox(), max_messages=max_messages, max_bytes=max_bytes)
        self.entered: list[bytes] = []

    def put(self, frame: bytes) -> bool:
        took = super().put(frame)
        if took:
            self.entered.append(frame)
        return took

    def put_later(self, frame: bytes, settled: Settled | None = None) -> None:
        def noted(entered: bool) -> None:
            if entered:
                self.entered.append(frame)
            if settled is not None:
                settled(entered)

        super().put_later(frame, noted)


class FakeEventLog:
    """Notes what it is told to log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, list[str]]] = []

    def routed(self, type: str, from_user: str, to_users: Sequence[str]) -> None:
        self.lines.append((type, from_user, list(to_users)))


DIALECT = LinesDialect()


def make_connection(
    user_id: str = "ada",
    *,
    mailbox: Mailbox | None = None,
    dialect: LinesDialect = DIALECT,
    wants_presence: bool = True,
    display_name: str = "",
    backend_url: str = "http://localhost:8000",
    max_in_flight: int = 64,
    connected_at: datetime | None = None,
) -> Connection:
    """A connection that nobody has registered."""
    return Connection(
        connection_id=next(_ids),
        identity=Identity(
            user_id=user_id,
            backend_url=backend_url,
            display_name=display_name or user_id.title(),
            wants_presence=wants_presence,
        ),
        address="127.0.0.1",
        dialect=dialect,
        connected_at=connected_at or datetime.now(UTC),
        mailbox=mailbox or RecordingMailbox(),
        max_in_flight=max_in_flight,
    )


class Core:
    """Registry, router, presence and membership, as a service puts them together."""

    def __init__(self, *, slow_consumer_seconds: float = 2.0, connections_per_user: int = 0) -> None:
        self.registry = Registry()
        self.status = Status(started_at=0.0)
        self.events = FakeEventLog()
        self.outbox = Outbox()
        self.presence = Presence(self.outbox, self.status)
        self.router = Router(
            self.registry,
            self.presence,
            self.status,
            self.events,
            self.outbox,
            slow_consumer_seconds=slow_consumer_seconds,
        )
        self.membership = Membership(
            self.registry,
            self.router,
            self.presence,
            self.status,
            self.outbox,
            Audit(AuditSettings()),
            connections_per_user=connections_per_user,
            reconnect_spread_seconds=5.0,
        )

    def register(
        self, user_id: str, *, max_messages: int = 256, max_bytes: int = 1 << 20, **rest: Any
    ) -> Connection:
        """A connection that can be reached; nobody is told."""
        mailbox = RecordingMailbox(self.outbox, max_messages=max_messages, max_bytes=max_bytes)
        connection = make_connection(user_id, mailbox=mailbox, **rest)
        connection.on_end = lambda close: self._end(connection, close)
        self.registry.add(connection)
        self.router.watch(connection)
        self.presence.joined(connection, first=False)
        return connection

    def join(self, user_id: str, **rest: Any) -> Connection:
        """A connection that was let in and greeted."""
        rest.setdefault("mailbox", RecordingMailbox(self.outbox))
        connection = make_connection(user_id, **rest)
        connection.on_end = lambda close: self._end(connection, close)
        self.membership.join(connection)
        return connection

    def drop(self, connection: Connection) -> None:
        """The peer vanishes."""
        self.membership.leave(connection)
        connection.mailbox.close(discard=True)

    async def route(self, sender: Connection, *events: tuple[str, list[str]]) -> None:
        """Have events, each an id and its recipients, routed as one batch, and wait until that was done."""
        await self.router.submit([batch(sender, *events)])
        await trio.testing.wait_all_tasks_blocked()

    def tell(self) -> None:
        """End the tick of presence now."""
        self.presence._tell()

    def _end(self, connection: Connection, close: Close) -> None:
        self.membership.leave(connection)
        if close.code == CloseCode.SLOW_CONSUMER:
            connection.mailbox.close(discard=True)


def request(id: str, to_users: list[str]) -> RouteRequest:
    """An event whose data and id tell which it is."""
    raw = b'"%b"' % id.encode()
    return RouteRequest(CollabEvent("t", to_users, data=Raw(raw)), raw)


def batch(sender: Connection, *events: tuple[str, list[str]]) -> Batch:
    """Events, each an id and its recipients, as they come from one read."""
    return Batch(sender, [request(id, to_users) for id, to_users in events])


def messages_in(frames: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in frames.splitlines()]


async def read_some(connection: Connection) -> list[dict[str, Any]]:
    """What the writer would send next, in one go; nothing where nothing is queued."""
    mailbox = connection.mailbox
    if not mailbox.messages:
        return []
    frames = await mailbox.take()
    mailbox.sent()
    return messages_in(frames)


async def read_all(connection: Connection, event: str | None = None) -> list[dict[str, Any]]:
    """Everything queued and waiting, without the fillers; where `event` is given, of that name alone."""
    found: list[dict[str, Any]] = []
    while connection.mailbox.messages:
        found += await read_some(connection)
    return [m for m in found if m["event"] == event or (event is None and m["event"] != "filler")]


async def events_of(connection: Connection) -> list[str]:
    """The ids of the events that were queued for a connection."""
    return [m["data"]["data"] for m in await read_all(connection, "collab_event")]


def fill(connection: Connection) -> None:
    """Leave no room in a mailbox."""
    while connection.mailbox.put(FILLER):
        pass
