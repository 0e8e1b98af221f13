"""Owns the routing of events: the one task that puts them into mailboxes, and their acks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import trio
from msgspec import UNSET

from collab.core.connection import Connection
from collab.wire.close import Close, CloseCode
from collab.wire.messages import EventAck, RouteRequest

if TYPE_CHECKING:
    from collab.core.mailbox import Settled
    from collab.core.registry import Registry
    from collab.core.status import Status
    from collab.observe.events import EventLog

_INBOX_BATCHES = 64
_TOO_SLOW = Close(CloseCode.SLOW_CONSUMER, "Slow consumer: the mailbox stayed full")


@attrs.frozen
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
        self, registry: Registry, status: Status, event_log: EventLog, *, slow_consumer_seconds: float
    ) -> None:
        self._registry = registry
        self._status = status
        self._event_log = event_log
        self._slow_consumer_seconds = slow_consumer_seconds
        self._inlet, self._outlet = trio.open_memory_channel[Batch](_INBOX_BATCHES)
        self._in_flight = 0
        self._settled: trio.Event | None = None
        self._stalled: set[Connection] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Route until cancelled. Raises nothing that a peer can cause."""
        task_status.started()
        async for batch in self._outlet:
            for request in batch.requests:
                self._route(batch.sender, request)

    async def submit(self, batch: Batch) -> None:
        """Hand a batch over. Waiting here, and for the window, is the backpressure that a sender feels."""
        batch.sender.in_flight += len(batch.requests)
        self._in_flight += len(batch.requests)
        try:
            await self._inlet.send(batch)
        except BaseException:
            batch.sender.in_flight -= len(batch.requests)
            batch.sender.changed()
            self._decided(len(batch.requests))
            raise

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

    def evict_slow_consumers(self) -> None:
        """End every connection whose mailbox has kept something waiting for too long."""
        longest_since = trio.current_time() - self._slow_consumer_seconds
        for connection in list(self._stalled):
            if not connection.mailbox.has_waiting:
                self._stalled.discard(connection)
            elif connection.mailbox.waiting_since <= longest_since:
                self._stalled.discard(connection)
                connection.end(_TOO_SLOW)

    def give_up_waiting(self) -> None:
        """Count as undelivered whatever waits for room in a mailbox, so that its acks can go out (drain)."""
        stalled = list(self._stalled)
        self._stalled.clear()
        for connection in stalled:
            connection.mailbox.close(discard=False)

    def acknowledge_decided(self, sender: Connection) -> None:
        """Queue the acks that are due, in the order of their events."""
        unacknowledged = sender.unacknowledged
        while unacknowledged:
            routing = unacknowledged[0]
            if routing.undecided:
                return
            unacknowledged.popleft()
            sender.send(routing.ack(), routing.reply_id)
            self._status.total_events_routed += 1
            sender.acknowledged()
            self._decided(1)

    def _route(self, sender: Connection, request: RouteRequest) -> None:
        # Synchronous on purpose: every mailbox sees the same order.
        event = request.event
        routing = _Routing(self, sender, request)
        frames: dict[str, bytes] = {}
        for user_id in dict.fromkeys(event.to_users):
            routing.total += 1
            took = False
            full: list[Connection] = []
            for connection in self._registry.of_user(user_id):
                frame = frames.get(connection.dialect.name)
                if frame is None:
                    frame = connection.dialect.event_frame(event, sender.user_id)
                    frames[connection.dialect.name] = frame
                if connection.mailbox.put(frame):
                    took = True
                elif not connection.mailbox.closed:
                    full.append(connection)
            if full:
                settled = routing.wait_for(user_id, connections=len(full), took=took)
                for connection in full:
                    connection.mailbox.put_later(frames[connection.dialect.name], settled)
            elif not took:
                routing.undelivered.append(user_id)
        self._event_log.routed(event.type, sender.user_id, event.to_users)
        sender.unacknowledged.append(routing)
        self.acknowledge_decided(sender)

    def _decided(self, events: int) -> None:
        self._in_flight -= events
        if not self._in_flight and self._settled is not None:
            self._settled.set()
            self._settled = None


class _Routing:
    """One event on its way: how many recipients are still undecided, and who did not get it."""

    __slots__ = ("_event_type", "_router", "_sender", "reply_id", "total", "undecided", "undelivered")

    def __init__(self, router: Router, sender: Connection, request: RouteRequest) -> None:
        self._router = router
        self._sender = sender
        self._event_type = request.event.type
        self.reply_id = request.reply_id
        self.undelivered: list[str] = []
        self.total = 0
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

    def ack(self) -> EventAck:
        """The acknowledgement of the event, once nothing is undecided."""
        return EventAck(
            event_type=self._event_type,
            delivered_to=self.total - len(self.undelivered),
            total_recipients=self.total,
            undelivered=self.undelivered or UNSET,
        )

    def _decide(self, user_id: str, *, delivered: bool) -> None:
        self.undecided -= 1
        if not delivered:
            self.undelivered.append(user_id)
        if not self.undecided:
            self._router.acknowledge_decided(self._sender)
