"""Owns the notices of who came and who went, gathered for a moment and told together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from collab.wire.messages import UserOffline, UserOnline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.core.connection import Connection, MaySend
    from collab.core.outbox import Outbox
    from collab.core.status import Status

_TICK_SECONDS = 0.02


class Presence:
    """Tells every connection that wants to know when another user comes online or goes offline.

    The notices of one tick go out together, as one message of each mailbox and one bytes object
    for all. Every transition is kept, in order, and none is netted out. A newcomer gets what
    follows its own arrival; as no notice about a user is made while a connection of theirs lives,
    nobody hears of themselves. Where not everybody may send to everybody, a connection is told of those
    alone to whom it may send.
    """

    def __init__(self, outbox: Outbox, status: Status, may_send: MaySend | None = None) -> None:
        self._outbox = outbox
        self._status = status
        self._may_send = may_send
        self._notices: list[UserOnline | UserOffline] = []
        self._told = 0
        self._arrived: dict[Connection, int] = {}
        self._untold_users: set[str] = set()
        self._noted = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell what was noted, a tick after the first of it, until cancelled."""
        task_status.started()
        while True:
            await self._noted.wait()
            await trio.sleep(_TICK_SECONDS)
            self._tell()

    def joined(self, connection: Connection, *, first: bool) -> None:
        """A connection was registered; `first` where it is its user's only one."""
        identity = connection.identity
        if first and not self._status.draining:
            self._note(UserOnline(user_id=identity.user_id, display_name=identity.display_name))
        if identity.wants_presence:
            self._arrived[connection] = self._told + len(self._notices)

    def left(self, connection: Connection, *, last: bool) -> None:
        """A connection was dropped; `last` where its user has no other. Told by nobody during a drain."""
        self._arrived.pop(connection, None)
        if last and not self._status.draining:
            self._note(UserOffline(user_id=connection.user_id))

    def tell_before_event_of(self, user_id: str) -> None:
        """See to it that nobody gets an event of a user of whose arrival they were not told."""
        if user_id in self._untold_users:
            self._tell()

    def _note(self, notice: UserOnline | UserOffline) -> None:
        self._notices.append(notice)
        self._untold_users.add(notice.user_id)
        self._noted.set()

    def _tell(self) -> None:
        if not self._notices:
            return
        notices, self._notices = self._notices, []
        before, self._told = self._told, self._told + len(notices)
        self._untold_users.clear()
        self._noted = trio.Event()
        frames: dict[str, list[bytes]] = {}
        whole: dict[str, bytes] = {}
        with self._outbox:
            for connection, arrived in self._arrived.items():
                if arrived >= self._told:
                    continue
                name = connection.dialect.name
                if name not in frames:
                    frames[name] = [connection.dialect.frame(notice) for notice in notices]
                    whole[name] = b"".join(frames[name])
                missed = max(arrived - before, 0)
                if self._may_send is not None:
                    told = self._permitted(connection, notices[missed:], frames[name][missed:])
                else:
                    told = b"".join(frames[name][missed:]) if missed else whole[name]
                if told:
                    connection.mailbox.put_or_wait(told)

    def _permitted(
        self, connection: Connection, notices: Sequence[UserOnline | UserOffline], frames: Sequence[bytes]
    ) -> bytes:
        assert self._may_send is not None
        may_send = self._may_send
        told = zip(notices, frames, strict=True)
        return b"".join([frame for notice, frame in told if may_send(connection, notice.user_id)])
