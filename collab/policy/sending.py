"""Owns who may send to whom: everybody, whom a token names, or whom a file puts together."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from collab.errors import SettingsError
from collab.observe.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from collab.settings import AuthMode, PolicySettings

ANYBODY: Final = "*"
_LOOK_SECONDS: Final = 1.0
_log = get_logger()


class Sender(Protocol):
    """A connection, as far as a policy looks at it."""

    @property
    def user_id(self) -> str: ...
    @property
    def peers(self) -> AbstractSet[str] | None: ...


class SendPolicy(Protocol):
    """Whether a user may send to another, and so know of them. To oneself one always may."""

    def may_send(self, sender: Sender, other_id: str) -> bool:
        """Whether what comes on a connection may reach `other_id`; asked once for each recipient."""
        ...

    def allows(self, user_id: str, peers: AbstractSet[str] | None, other_id: str) -> bool:
        """Whether a user, whose token has this claim `peers` (None: it has none), may send to `other_id`."""
        ...

    async def run(self) -> None:
        """What must go on in the background, if anything."""
        ...


def send_policy(settings: PolicySettings, auth_mode: AuthMode) -> SendPolicy | None:
    """The policy of the settings; None where everybody may send to everybody.

    Raises:
        SettingsError: the settings do not go together, or the file is not sound.
    """
    if settings.send == "open":
        if settings.file:
            raise SettingsError('policy.file is set: it counts only with policy.send = "file"')
        return None
    if auth_mode == "none":
        raise SettingsError(
            f"policy.send is {settings.send}: set auth.mode, as without it everybody is who they say"
        )
    if settings.send == "token":
        return PeersOfToken()
    if not settings.file:
        raise SettingsError("policy.send is file: set policy.file")
    return GroupsOfFile(settings.file)


class PeersOfToken:
    """Whom the sender's token names in `peers`; a token without the claim names nobody."""

    def may_send(self, sender: Sender, other_id: str) -> bool:
        """See `SendPolicy`."""
        # The recipient is looked up first: what a token names is nearly always what is sent to.
        peers = sender.peers
        if peers is not None and (other_id in peers or ANYBODY in peers):
            return True
        return other_id == sender.user_id

    def allows(self, user_id: str, peers: AbstractSet[str] | None, other_id: str) -> bool:
        """See `SendPolicy`."""
        return other_id == user_id or (peers is not None and (other_id in peers or ANYBODY in peers))

    async def run(self) -> None:
        """Nothing: a token says what it says."""


class _Groups(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds: in each, every user may send to every other; `*` is anybody."""

    pairs: list[tuple[str, str]] = []
    groups: list[list[str]] = []


class GroupsOfFile:
    """Users who share a group or a pair in a TOML or JSON file, which is read again when it changes.

    A file that is not sound is told of in the log, and the last one that was goes on.

    Raises:
        SettingsError: at the start there is no sound one.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._groups_of: dict[str, frozenset[int]] = {}
        self._open_groups: frozenset[int] = frozenset()
        self._seen = _stamp(self._path)
        self._take(_read(self._path))

    def may_send(self, sender: Sender, other_id: str) -> bool:
        """See `SendPolicy`."""
        return self.allows(sender.user_id, None, other_id)

    def allows(self, user_id: str, peers: AbstractSet[str] | None, other_id: str) -> bool:
        """See `SendPolicy`."""
        if other_id == user_id:
            return True
        groups_of = self._groups_of
        mine, theirs = groups_of.get(user_id, _NO_GROUP), groups_of.get(other_id, _NO_GROUP)
        if not mine.isdisjoint(theirs):
            return True
        open_groups = self._open_groups
        return bool(open_groups) and not (open_groups.isdisjoint(mine) and open_groups.isdisjoint(theirs))

    async def run(self) -> None:
        """Look once a second whether the file has changed, until cancelled."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            if (stamp := _stamp(self._path)) == self._seen:
                continue
            try:
                groups = await trio.to_thread.run_sync(_read, self._path)
            except SettingsError as error:
                _log.error("Policy file not taken", reason=str(error))
            else:
                self._take(groups)
                _log.info("Policy file taken", file=str(self._path))
            self._seen = stamp

    def _take(self, found: _Groups) -> None:
        groups_of: dict[str, set[int]] = {}
        open_groups = set()
        for number, members in enumerate([*found.groups, *map(list, found.pairs)]):
            for user_id in members:
                if user_id == ANYBODY:
                    open_groups.add(number)
                else:
                    groups_of.setdefault(user_id, set()).add(number)
        self._groups_of = {user_id: frozenset(numbers) for user_id, numbers in groups_of.items()}
        self._open_groups = frozenset(open_groups)


_NO_GROUP: Final[frozenset[int]] = frozenset()


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells one state of the file from the next; empty while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: Path) -> _Groups:
    try:
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return msgspec.convert(data, _Groups)
    except OSError as error:
        raise SettingsError(f"policy.file: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"policy.file: {path}: {error}") from None
