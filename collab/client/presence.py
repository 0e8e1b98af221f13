"""Owns who is online, as the service tells: the list when a connection begins, and notices from then on."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING
from weakref import WeakSet

from anyio.lowlevel import checkpoint

from collab.client.bell import Bell
from collab.client.events import OnlineUser, PresenceChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from collab.client.errors import Stopped
    from collab.wire.as_client import OnlineRow


class Presence:
    """The users who are online. Without a connection, those who last were."""

    def __init__(self) -> None:
        self._users: dict[str, OnlineUser] = {}
        self.online: Mapping[str, OnlineUser] = MappingProxyType(self._users)
        """A live view."""
        self._since: dict[str, OnlineUser | None] | None = None
        self._changes: WeakSet[Changes] = WeakSet()
        self._is_over = False
        self._stopped: Stopped | None = None

    def begin(self) -> None:
        """A connection began. Its notices are newer than a list that was asked for after this."""
        self._since = {}

    def came(self, user_id: str, display_name: str) -> None:
        """The notice `user_online`."""
        user = OnlineUser(user_id=user_id, display_name=display_name)
        if self._since is not None:
            self._since[user_id] = user
        self._set(user)

    def went(self, user_id: str) -> None:
        """The notice `user_offline`."""
        if self._since is not None:
            self._since[user_id] = None
        self._remove(user_id)

    def fill(self, rows: Sequence[OnlineRow]) -> None:
        """The list came. Of whom there was a notice meanwhile, the notice counts."""
        listed: dict[str, OnlineUser | None] = {
            row.user_id: OnlineUser(
                user_id=row.user_id,
                display_name=row.display_name,
                backend_url=row.backend_url,
                connected_at=row.connected_at,
            )
            for row in rows
        }
        for user_id, user in (self._since or {}).items():
            # The list knows more of a user who came than the notice does.
            if user is None or listed.get(user_id) is None:
                listed[user_id] = user
        self._since = None
        for user_id in [known for known in self._users if listed.get(known) is None]:
            self._remove(user_id)
        for user in listed.values():
            if user is not None:
                self._set(user)

    def changes(self) -> Changes:
        """An iterator over what changes from now on."""
        changes = Changes(self)
        self._changes.add(changes)
        return changes

    def end(self, stopped: Stopped | None) -> None:
        """Nothing more comes."""
        self._is_over = True
        self._stopped = stopped
        for changes in self._changes:
            changes.bell.ring()

    def check(self) -> None:
        """Raises what an iterator ends with, once it has to."""
        if self._stopped is not None:
            raise self._stopped.again()
        if self._is_over:
            raise StopAsyncIteration

    def _set(self, user: OnlineUser) -> None:
        is_new = user.user_id not in self._users
        self._users[user.user_id] = user
        if is_new:
            self._tell(PresenceChange(user_id=user.user_id, online=True, display_name=user.display_name))

    def _remove(self, user_id: str) -> None:
        user = self._users.pop(user_id, None)
        if user is not None:
            self._tell(PresenceChange(user_id=user_id, online=False, display_name=user.display_name))

    def _tell(self, change: PresenceChange) -> None:
        for changes in self._changes:
            changes.add(change)


class Changes:
    """Iterates over who comes and goes. For a slow reader, a coming and a going cancel each other out.

    So it holds no more than the difference between what was read and what is.
    """

    def __init__(self, presence: Presence) -> None:
        self.bell = Bell()
        self._presence = presence
        self._unread: dict[str, PresenceChange] = {}

    def add(self, change: PresenceChange) -> None:
        """One more."""
        if self._unread.pop(change.user_id, None) is None:
            self._unread[change.user_id] = change
            self.bell.ring()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> PresenceChange:
        if self._unread:
            await checkpoint()
        while not self._unread:
            self._presence.check()
            await self.bell.wait()
        return self._unread.pop(next(iter(self._unread)))
