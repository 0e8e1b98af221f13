"""What the service must do, by dicts and deques: no socket, no task, no clock of its own.

A `Model` is told what the peers do, how far time went and who is being read, and says of each connection
what has been read by now (`due`), what its mailbox holds, and whether it lives. It knows the service from
docs/protocol.md and docs/architecture.md. Two simplifications keep it exact: a connection that is read has
its mailbox emptied at once, and time goes in quanta, at whose end the sweeper runs once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
from invariants import Life

if TYPE_CHECKING:
    from collections.abc import Callable


QUANTUM_SECONDS = 0.125
PRESENCE_OFFSETS_SECONDS = (1 / 32, 7 / 128)
"""When within a quantum notices are told: those noted before it, and those that the first telling led to."""

CONNECTIONS_PER_USER = 2
MAILBOX_MESSAGES = 5
BIG_FRAMES = 2
"""How many big frames a mailbox takes by its bytes."""
IN_FLIGHT = 2
SLOW_CONSUMER_SECONDS = 1.0
# Not whole quanta, so that these deadlines never fall together with a telling of notices.
WRITE_SECONDS = 2 + 9 / 128
CLOSE_SECONDS = 9 / 16
PING_INTERVAL_SECONDS = 2.0
PING_TIMEOUT_SECONDS = 1.0

Key = tuple[object, ...]


@attrs.frozen
class Frame:
    """What goes into a mailbox as one message: things to be read, each with the key that orders it."""

    content: tuple[tuple[Key, object], ...] = ()
    is_big: bool = False
    is_ping: bool = False


@attrs.define(eq=False)
class Event:
    """An event on its way."""

    number: int
    sender: Connection
    to_users: list[str]
    is_big: bool
    undecided: int = 0
    undelivered: set[str] = attrs.field(factory=set)


@attrs.define(eq=False)
class Undecided:
    """A recipient some of whose connections have the event waiting for room."""

    event: Event
    user_id: str
    connections: int
    is_decided: bool


@attrs.frozen
class Waiting:
    """A frame that waits for room, and since when."""

    frame: Frame
    recipient: Undecided | None
    since: float


@attrs.define(eq=False)
class Connection:
    """One connection: live until it leaves the registry, then ending, over when its task is."""

    life: Life
    last_heard: float
    is_live: bool = True
    is_over: bool = False
    is_stalled: bool = False
    is_gone: bool = False
    """Whether its peer vanished. The service may not know yet, where it reads nothing from it."""
    is_closed: bool = False
    """Whether its mailbox takes nothing more."""
    mailbox: deque[Frame] = attrs.field(factory=deque)
    waiting: deque[Waiting] = attrs.field(factory=deque)
    due: list[Frame] = attrs.field(factory=list)
    """What must have been read since this was emptied last."""
    may_come: list[Frame] = attrs.field(factory=list)
    """What the beginning of may be read after `due`, as the writer held some of it when all was dropped."""
    unread: list[Event] = attrs.field(factory=list)
    unacknowledged: deque[Event] = attrs.field(factory=deque)
    is_read: bool = True
    """Whether a read is under way. It may be one more than `may_be_read` allows, as it was begun before."""
    pinged_at: float | None = None
    write_since: float | None = None
    """Since when a write is stuck."""
    ended_at: float = 0.0
    over_by: float = 0.0
    close_code: int | None = None
    """The code that the service ends it with; as the peer sees it once it is over."""
    notices_from: float = float("inf")
    """The number of the first notice that it is told."""

    @property
    def user_id(self) -> str:
        return self.life.user_id

    @property
    def may_be_read(self) -> bool:
        return len(self.unacknowledged) < IN_FLIGHT and not self.waiting

    @property
    def is_there(self) -> bool:
        """Whether it is live, and its peer too."""
        return self.is_live and not self.is_gone

    def fits(self, frame: Frame) -> bool:
        if not self.mailbox:
            return True
        bigs = sum(held.is_big for held in self.mailbox)
        return len(self.mailbox) < MAILBOX_MESSAGES and not (frame.is_big and bigs >= BIG_FRAMES)


@attrs.define(eq=False)
class Model:
    """A service as it should be."""

    now: float
    registry: dict[str, list[Connection]] = attrs.field(factory=dict)
    connections: list[Connection] = attrs.field(factory=list)
    """Every one that is not over yet, and those that are until `forget`."""
    total_connections: int = 0
    total_events_routed: int = 0
    has_noted: bool = False
    """Whether a user came or went since notices were told last by time."""
    notices: list[tuple[str, str]] = attrs.field(factory=list)
    """Who came and who went, and was not told yet."""
    _told: int = 0
    _untold_users: set[str] = attrs.field(factory=set)
    _broken: list[Connection] = attrs.field(factory=list)

    def live(self) -> list[Connection]:
        """Those in the registry."""
        return [connection for connection in self.connections if connection.is_live]

    def connect(self, life: Life, *, presence: bool) -> Connection:
        """A peer came in."""
        connection = Connection(life, self.now)
        self.connections.append(connection)
        of_user = self.registry.setdefault(life.user_id, [])
        of_user.append(connection)
        self.total_connections += 1
        self._put_or_wait(connection, Frame(((("connected",), len(self.registry)),)))
        if len(of_user) == 1:
            self._note("user_online", life.user_id)
        if presence:
            connection.notices_from = self._told + len(self.notices)
        for oldest in of_user[:-CONNECTIONS_PER_USER]:
            self._end(oldest, 4002)
        self._follow_up()
        return connection

    def send(self, sender: Connection, events: list[Event]) -> None:
        """A peer sent events in one piece."""
        if not sender.is_read:
            sender.unread += events
            return
        self._route(sender, events)
        self._follow_up()

    def stall(self, connection: Connection) -> None:
        """A peer takes nothing more."""
        connection.is_stalled = True

    def resume(self, connection: Connection) -> None:
        """A peer takes everything again."""
        connection.is_stalled = False
        connection.write_since = None
        if connection.is_closed:
            connection.may_come = list(connection.mailbox)
        else:
            connection.due += connection.mailbox
            connection.mailbox.clear()
            while connection.waiting:
                waiting = connection.waiting.popleft()
                connection.due.append(waiting.frame)
                self._settle(waiting, entered=True)
        self._follow_up()

    def drop(self, connection: Connection) -> None:
        """A peer vanished. Who is not read is found out by the next write."""
        connection.is_gone = True
        if connection.is_live and (connection.is_read or connection.mailbox):
            self._lose(connection)
        elif not connection.is_live and connection.mailbox:
            self._close(connection)
        self._follow_up()

    def cancel(self, connection: Connection) -> None:
        """The service's task for it was cancelled."""
        self._leave(connection)
        self._finish(connection, 1006)
        self._follow_up()

    def close(self, connection: Connection) -> None:
        """A peer sent a close frame with 1000."""
        self._end(connection, 1000)
        self._follow_up()

    def tell(self) -> None:
        """The notices' time has come."""
        self.has_noted = False
        self._tell()
        self._follow_up()

    def sweep(self) -> None:
        """A quantum ends: every deadline that has passed by now."""
        read = [connection for connection in self.live() if connection.is_read]
        live = self.live()
        stuck = [c for c in live if c.write_since is not None and self.now - c.write_since >= WRITE_SECONDS]
        slow = [
            c
            for c in self.connections
            if c.waiting and self.now - c.waiting[0].since >= SLOW_CONSUMER_SECONDS
        ]
        for connection in stuck:
            self._lose(connection)
        for connection in slow:
            if connection.is_live:
                self._end(connection, 4003)
                self._close(connection)
            elif connection.close_code == 1000:
                # It wished to go by itself, and what waits for it is given up as for any other.
                connection.close_code = 4003
                self._close(connection)
            else:
                # It is leaving for another reason: no ack waits for it any longer.
                self._close(connection)
        for connection in live:
            if not connection.is_live or connection not in read:
                connection.pinged_at = None
            else:
                self._check_alive(connection)
        self._follow_up()

    def _route(self, sender: Connection, events: list[Event]) -> None:
        if sender.user_id in self._untold_users:
            self._tell()
        for event in events:
            content = ((("event", sender.life), event.number),)
            frame = Frame(content, is_big=event.is_big)
            for user_id in dict.fromkeys(event.to_users):
                took = False
                full = []
                for connection in self.registry.get(user_id, []):
                    if self._put(connection, frame):
                        took = True
                    elif not connection.is_closed:
                        full.append(connection)
                if full:
                    recipient = Undecided(event, user_id, len(full), took)
                    event.undecided += not took
                    for connection in full:
                        connection.waiting.append(Waiting(frame, recipient, self.now))
                elif not took:
                    event.undelivered.add(user_id)
            sender.unacknowledged.append(event)
            self._acknowledge(sender)

    def _acknowledge(self, sender: Connection) -> None:
        while sender.unacknowledged and not sender.unacknowledged[0].undecided:
            event = sender.unacknowledged.popleft()
            self.total_events_routed += 1
            ack = (event.number, tuple(sorted(event.undelivered)))
            self._put_or_wait(sender, Frame(((("ack",), ack),)))

    def _put(self, connection: Connection, frame: Frame) -> bool:
        if connection.is_closed or connection.waiting or not connection.fits(frame):
            return False
        if connection.is_gone:
            self._broken.append(connection)
        elif not connection.is_stalled:
            connection.due.append(frame)
        else:
            if not connection.mailbox:
                connection.write_since = self.now
            connection.mailbox.append(frame)
        return True

    def _put_or_wait(self, connection: Connection, frame: Frame) -> None:
        if not self._put(connection, frame) and not connection.is_closed:
            connection.waiting.append(Waiting(frame, None, self.now))

    def _settle(self, waiting: Waiting, *, entered: bool) -> None:
        recipient = waiting.recipient
        if recipient is None:
            return
        recipient.connections -= 1
        if recipient.is_decided or not (entered or not recipient.connections):
            return
        recipient.is_decided = True
        event = recipient.event
        event.undecided -= 1
        if not entered:
            event.undelivered.add(recipient.user_id)
        self._acknowledge(event.sender)

    def _note(self, name: str, user_id: str) -> None:
        self.notices.append((name, user_id))
        self._untold_users.add(user_id)
        self.has_noted = True

    def _tell(self) -> None:
        if not self.notices:
            return
        notices, self.notices = self.notices, []
        before, self._told = self._told, self._told + len(notices)
        self._untold_users.clear()
        for connection in self.live():
            if connection.notices_from < self._told:
                missed = max(0, int(connection.notices_from) - before)
                content = tuple((("notice", user_id), name) for name, user_id in notices[missed:])
                self._put_or_wait(connection, Frame(content))

    def _check_alive(self, connection: Connection) -> None:
        pinged_at = connection.pinged_at
        if pinged_at is not None and connection.last_heard < pinged_at:
            if self.now - pinged_at >= PING_TIMEOUT_SECONDS:
                self._end(connection, 4005)
            return
        connection.pinged_at = None
        is_silent = self.now - connection.last_heard >= PING_INTERVAL_SECONDS
        if is_silent and self._put(connection, Frame(is_ping=True)):
            connection.pinged_at = self.now

    def _leave(self, connection: Connection) -> None:
        if not connection.is_live:
            return
        connection.is_live = False
        connection.unread.clear()
        connection.ended_at = self.now
        of_user = self.registry[connection.user_id]
        of_user.remove(connection)
        if not of_user:
            del self.registry[connection.user_id]
            self._note("user_offline", connection.user_id)

    def _end(self, connection: Connection, code: int) -> None:
        """Leave, then say goodbye as far as the peer lets us."""
        self._leave(connection)
        connection.close_code = code
        is_owed = connection.mailbox or connection.waiting or connection.unacknowledged
        connection.over_by = self.now + (2 * CLOSE_SECONDS if is_owed else CLOSE_SECONDS)

    def _close(self, connection: Connection) -> None:
        """The mailbox drops all and takes nothing more."""
        connection.is_closed = True
        lost, connection.waiting = connection.waiting, deque()
        for waiting in lost:
            self._settle(waiting, entered=False)

    def _lose(self, connection: Connection) -> None:
        """Nothing can be sent any more."""
        self._leave(connection)
        self._finish(connection, 1006)

    def _finish(self, connection: Connection, code: int | None) -> None:
        connection.is_over = True
        connection.close_code = code
        self._close(connection)

    def _follow_up(self) -> None:
        """Whatever follows from what was done: broken writes, windows that open, goodbyes that are said."""
        steps: list[Callable[[Connection], bool]] = [self._read_on, self._say_goodbye]
        is_settled = False
        while not is_settled:
            is_settled = True
            while self._broken:
                connection = self._broken.pop()
                if connection.is_live:
                    self._lose(connection)
                elif not connection.is_over:
                    self._close(connection)
            for connection in list(self.connections):
                for step in steps:
                    is_settled &= not step(connection)

    def _read_on(self, connection: Connection) -> bool:
        if not connection.is_live:
            return False
        if connection.is_read or not connection.may_be_read:
            return False
        connection.is_read = True
        if connection.is_gone:
            self._lose(connection)
        elif connection.unread:
            events, connection.unread = connection.unread, []
            self._route(connection, events)
        return True

    def _say_goodbye(self, connection: Connection) -> bool:
        if connection.is_live or connection.is_over:
            return False
        if connection.is_stalled and not connection.is_gone:
            is_stuck = (
                connection.write_since is not None and self.now - connection.write_since >= WRITE_SECONDS
            )
            if is_stuck or self.now >= connection.over_by:
                self._finish(connection, 1006)
                return True
            return False
        is_owed = connection.unacknowledged and not connection.is_closed
        if connection.is_gone or not is_owed or self.now >= connection.ended_at + CLOSE_SECONDS:
            self._finish(connection, connection.close_code)
            return True
        return False
