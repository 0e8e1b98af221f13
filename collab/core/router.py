"""Owns the routing of events: the one task that puts them into mailboxes, and their acks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from collab.core.connection import Connection
from collab.observe.log import get_logger
from collab.wire.close import Close, CloseCode
from collab.wire.messages import RouteRequest

if TYPE_CHECKING:
    from collab.core.connection import MaySend
    from collab.core.mailbox import Settled
    from collab.core.outbox import Outbox
    from collab.core.presence import Presence
    from collab.core.registry import Registry
    from collab.core.status import Status
    from collab.observe.audit import Audit
    from collab.observe.events import EventLog

_INBOX_ROUNDS = 64
_log = get_logger()
_INTERNAL = Close(CloseCode.INTERNAL_ERROR, "Internal error")
_UNAUDITED = Close(CloseCode.GOING_AWAY, "The service is going down")
_TOO_SLOW = Close(CloseCode.SLOW_CONSUMER, "Slow consumer: the mailbox stayed full")


@attrs.define
class Batch:
    """Events of one sender, in the order in which they were sent."""

    sender: Connection
    requests: Sequence[RouteRequest]


class Router:
    """Routes batches of events to the mailboxes of their recipients and acknowledges each event.

    It never waits for a recipient. What finds a full mailbox waits behind it, in order, and the
    sender's ack with it, until the mailbox takes it or is closed; `evict_slow_consumers` ends the
    connections whose mailbox stayed full for longer than `slow_consumer_seconds`.
    """

    def __init__(
        self,
        registry: Registry,
        presence: Presence,
        status: Status,
        event_log: EventLog,
        outbox: Outbox,
        *,
        slow_consumer_seconds: float,
        may_send: MaySend | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._registry = registry
        self._presence = presence
        self._status = status
        self._event_log = event_log
        self._outbox = outbox
        self._slow_consumer_seconds = slow_consumer_seconds
        self._may_send = may_send
        self._audit = audit
        self._inlet, self._outlet = trio.open_memory_channel[Sequence[Batch]](_INBOX_ROUNDS)
        self._queued = 0
        self._in_flight = 0
        self._settled: trio.Event | None = None
        self._stalled: set[Connection] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued, so that `route` may be called at once and order still holds."""
        return not self._queued

    @property
    def is_audited(self) -> bool:
        """Whether each event gets a line in the audit log, once it is decided."""
        return self._audit is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Route until cancelled. Raises nothing that a peer can cause."""
        task_status.started()
        async for batches in self._outlet:
            self._queued -= 1
            for batch in batches:
                self._count(batch, -1)
            self.route(batches)
            for batch in batches:
                batch.sender.changed()

    async def submit(self, batches: Sequence[Batch]) -> None:
        """Hand a round over. Waiting here, and for the window, is the backpressure that a sender feels."""
        # Counted from here on: who looks at the window, or drains, must see what is on its way.
        self._queued += 1
        for batch in batches:
            self._count(batch, 1)
        try:
            await self._inlet.send(batches)
        except BaseException:
            self._queued -= 1
            for batch in batches:
                self._count(batch, -1)
                batch.sender.changed()
            self._note_settled()
            raise

    def route(self, batches: Sequence[Batch]) -> None:
        """Route a round now. Synchronous on purpose: every mailbox sees the same order."""
        with self._outbox:
            for batch in batches:
                sender = batch.sender
                if self._audit is not None and self._audit.has_failed:
                    sender.end(_UNAUDITED)
                    continue
                try:
                    self._presence.tell_before_event_of(sender.user_id)
                    for request in batch.requests:
                        self._route(sender, request)
                except Exception:
                    # A fault of ours in routing one sender's events must not end everybody's router.
                    _log.exception("Routing failed", user_id=sender.user_id)
                    sender.end(_INTERNAL)
                if not sender.may_read():
                    sender.changed()
        self._note_settled()

    async def wait_settled(self) -> None:
        """Wait until every event handed over has been acknowledged."""
        while self._in_flight:
            if self._settled is None:
                self._settled = trio.Event()
            await self._settled.wait()

    def watch(self, connection: Connection) -> None:
        """Keep an eye on a connection's mailbox: it may become that of a slow consumer."""
        connection.mailbox.on_waiting = lambda: self._stalled.add(connection)
        connection.mailbox.on_room = connection.changed

    def evict_slow_consumers(self, most: float = math.inf) -> bool:
        """End connections whose mailbox has kept something waiting for too long: whether there may be more.

        The end of each costs some time, and there may be hundreds: at most so many at a time.
        """
        longest_since = trio.current_time() - self._slow_consumer_seconds
        for connection in list(self._stalled):
            mailbox = connection.mailbox
            if mailbox.overrun or mailbox.waiting_since <= longest_since:
                if connection.close is None:
                    connection.end(_TOO_SLOW)
                    most -= 1
                else:
                    # It is leaving for another reason. What its goodbye has queued may still go out; what
                    # waits behind that is lost, and no ack waits for it any longer.
                    mailbox.close(discard=False)
            if mailbox.closed or not mailbox.has_waiting:
                self._stalled.discard(connection)
            if not most:
                return True
        return False

    def discount(self, seconds: float) -> None:
        """Hold this much time against nobody: the process did not run, so nobody could be served."""
        for connection in self._stalled:
            connection.mailbox.discount(seconds)

    def give_up_waiting(self) -> None:
        """Count as undelivered whatever waits for room in a mailbox, so that its acks can go out (drain)."""
        stalled = list(self._stalled)
        self._stalled.clear()
        for connection in stalled:
            connection.mailbox.close(discard=False)

    def acknowledge_decided(self, sender: Connection) -> None:
        """Queue the acks that are due, in the order of their events."""
        unacknowledged = sender.unacknowledged
        acknowledged = 0
        while unacknowledged and not unacknowledged[0].undecided:
            routing = unacknowledged.popleft()
            if self._audit is not None:
                routing.tell(self._audit)
            sender.mailbox.put_or_wait(routing.ack_frame())
            acknowledged += 1
        if acknowledged:
            sender.in_flight -= acknowledged
            self._in_flight -= acknowledged
            self._status.total_events_routed += acknowledged
            sender.changed()
            self._note_settled()

    def _route(self, sender: Connection, request: RouteRequest) -> None:
        event = request.event
        to_users = event.to_users
        distinct = to_users if len(to_users) < 2 else dict.fromkeys(to_users)
        routing: _Routing | None = None
        undelivered: list[str] = []
        frames: dict[str, bytes] = {}
        may_send = self._may_send
        for user_id in distinct:
            if may_send is not None and not may_send(sender, user_id):
                # The same as for one who is offline: nobody learns who exists.
                undelivered.append(user_id)
                continue
            took = False
            full: list[Connection] | None = None
            for connection in self._registry.of_user(user_id):
                dialect = connection.dialect
                frame = frames.get(dialect.name)
                if frame is None:
                    frame = frames[dialect.name] = dialect.event_frame(event, sender.user_id)
                if connection.mailbox.put(frame):
                    took = True
                elif not connection.mailbox.closed:
                    full = [*full, connection] if full else [connection]
            if full:
                if routing is None:
                    routing = _Routing(self, sender, event.type, distinct, undelivered, request.reply_id)
                settled = routing.wait_for(user_id, connections=len(full), took=took)
                for connection in full:
                    connection.mailbox.put_later(frames[connection.dialect.name], settled)
            elif not took:
                undelivered.append(user_id)
        self._event_log.routed(event.type, sender.user_id, to_users)
        if routing is None and not sender.unacknowledged:
            ack = sender.dialect.ack_frame(event.type, len(distinct), undelivered, request.reply_id)
            sender.mailbox.put_or_wait(ack)
            self._status.total_events_routed += 1
            if self._audit is not None:
                named = to_users if distinct is to_users else list(distinct)
                self._audit.routed(sender, event.type, named, undelivered)
            return
        if routing is None:
            routing = _Routing(self, sender, event.type, distinct, undelivered, request.reply_id)
        if sender.unacknowledged is None:
            sender.unacknowledged = deque()
        sender.unacknowledged.append(routing)
        sender.in_flight += 1
        self._in_flight += 1
        self.acknowledge_decided(sender)

    def _count(self, batch: Batch, sign: int) -> None:
        events = len(batch.requests) * sign
        batch.sender.in_flight += events
        self._in_flight += events

    def _note_settled(self) -> None:
        if not self._in_flight and self._settled is not None:
            self._settled.set()
            self._settled = None


class _Routing:
    """One event on its way: how many recipients are still undecided, and who did not get it."""

    __slots__ = (
        "_event_type",
        "_recipients",
        "_reply_id",
        "_router",
        "_sender",
        "_to_users",
        "_undelivered",
        "undecided",
    )

    def __init__(
        self,
        router: Router,
        sender: Connection,
        event_type: str,
        to_users: Collection[str],
        undelivered: list[str],
        reply_id: bytes,
    ) -> None:
        self._router = router
        self._sender = sender
        self._event_type = event_type
        self._recipients = len(to_users)
        # Who they are is kept for the audit alone.
        self._to_users = list(to_users) if router.is_audited else []
        self._undelivered = undelivered
        self._reply_id = reply_id
        self.undecided = 0

    def wait_for(self, user_id: str, *, connections: int, took: bool) -> Settled:
        """Note a recipient some of whose connections have the event waiting behind a full mailbox.

        The recipient is decided as soon as one of the connections takes the event, or none can
        any more; at once where another connection of theirs took it already.
        """
        waiting, decided = connections, took
        self.undecided += not took

        def settled(entered: bool) -> None:
            nonlocal waiting, decided
            waiting -= 1
            if not decided and (entered or not waiting):
                decided = True
                self._decide(user_id, delivered=entered)

        return settled

    def ack_frame(self) -> bytes:
        """The acknowledgement of the event, once nothing is undecided."""
        return self._sender.dialect.ack_frame(
            self._event_type, self._recipients, self._undelivered, self._reply_id
        )

    def tell(self, audit: Audit) -> None:
        """Have the audit log say what became of the event, once nothing is undecided."""
        audit.routed(self._sender, self._event_type, self._to_users, self._undelivered)

    def _decide(self, user_id: str, *, delivered: bool) -> None:
        self.undecided -= 1
        if not delivered:
            self._undelivered.append(user_id)
        if not self.undecided:
            self._router.acknowledge_decided(self._sender)
