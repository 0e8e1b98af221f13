"""Owns the sends that are under way: what waits for a connection, and what waits for its ack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from msgspec import UNSET

from collab.client.bell import Bell
from collab.client.errors import (
    AckTimeout,
    CollabClientError,
    ConnectionLost,
    InvalidEvent,
    NotAllowed,
    NotConnected,
    RateLimited,
)
from collab.client.events import Ack
from collab.wire.as_client import encode_send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from collab.client.limits import Limits
    from collab.wire.messages import ErrorReply, EventAck

_BATCH_SENDS = 64
_BATCH_CHARACTERS = 262144
_NOT_ALLOWED = frozenset({"from_user_mismatch", "forbidden", "unauthenticated"})


class _Pending:
    __slots__ = ("ack", "done", "error", "scope", "text")

    def __init__(self, text: str, scope: anyio.CancelScope) -> None:
        self.text = text
        self.scope = scope
        self.done = anyio.Event()
        self.ack: Ack | None = None
        self.error: CollabClientError | None = None


class Sends:
    """Each send is written once, by one connection, and is over with its ack or an error.

    `on_waiting` is called when a send begins to wait.
    """

    def __init__(self, limits: Limits, on_waiting: Callable[[], None]) -> None:
        self.bell = Bell()
        """Rings when there is something to write."""
        self._limits = limits
        self._on_waiting = on_waiting
        self._last_id = 0
        self._unsent: dict[int, _Pending] = {}
        self._unacked: dict[int, _Pending] = {}
        self._connected = False
        self._over: Callable[[], NotConnected] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits for an ack."""
        return bool(self._unacked or self._unsent)

    async def send(self, type: str, to_users: Sequence[str], data: object) -> Ack:
        """Send one event and wait for its ack. Raises what `Collab.send` raises.

        Cancelled before it was written, it is not sent.
        """
        if self._over is not None:
            raise self._over()
        if not self._connected and len(self._unsent) >= self._limits.offline_sends:
            raise NotConnected(f"not connected, and {len(self._unsent):,} sends wait already")
        self._last_id += 1
        id = self._last_id
        text = self._encoded(id, type, to_users, data)
        with anyio.move_on_after(self._limits.offline_seconds) as scope:
            pending = self._unsent[id] = _Pending(text, scope)
            self.bell.ring()
            self._on_waiting()
            try:
                await pending.done.wait()
            finally:
                was_written = self._unsent.pop(id, None) is None
                self._unacked.pop(id, None)
        if pending.ack is not None:
            return pending.ack
        if pending.error is not None:
            raise pending.error
        if was_written:
            raise AckTimeout(f"no ack within {self._limits.ack_seconds:g} s: it may have been delivered")
        raise NotConnected(f"not connected within {self._limits.offline_seconds:g} s; nothing was sent")

    def _encoded(self, id: int, type: str, to_users: Sequence[str], data: object) -> str:
        if isinstance(to_users, str):
            raise InvalidEvent("to_users: expected a list of user ids, got one text")
        try:
            text = encode_send(id, type, list(to_users), data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(f"data: {error}", "invalid_json") from error
        size = len(text) if text.isascii() else len(text.encode())
        if size > self._limits.message_bytes:
            raise InvalidEvent(f"the event is larger than {self._limits.message_bytes:,} bytes", "too_large")
        return text

    def up(self) -> None:
        """There is a connection."""
        self._connected = True
        self.bell.ring()

    def down(self) -> None:
        """The connection has ended: what was written and not acknowledged may have been delivered."""
        self._connected = False
        for pending in self._unacked.values():
            _fail(pending, ConnectionLost("the connection ended before the ack: it may have been delivered"))
        self._unacked.clear()

    def end(self, why: Callable[[], NotConnected]) -> None:
        """There will be no further connection."""
        self._over = why
        for pending in self._unsent.values():
            _fail(pending, why())

    def take(self) -> list[str]:
        """What is to be written next, in order. It counts as written from now on."""
        texts: list[str] = []
        characters = 0
        deadline = anyio.current_time() + self._limits.ack_seconds
        taken: list[int] = []
        for id, pending in self._unsent.items():
            if pending.error is not None or pending.scope.cancel_called:
                continue
            taken.append(id)
            self._unacked[id] = pending
            pending.scope.deadline = deadline
            texts.append(pending.text)
            pending.text = ""
            characters += len(texts[-1])
            if len(texts) == _BATCH_SENDS or characters > _BATCH_CHARACTERS:
                break
        for id in taken:
            del self._unsent[id]
        return texts

    def acknowledged(self, ack: EventAck, id: object) -> None:
        """An ack came. One that nobody waits for any more is dropped."""
        pending = self._found(id)
        if pending is not None:
            pending.ack = Ack(
                event_type=ack.event_type,
                delivered_to=ack.delivered_to,
                total_recipients=ack.total_recipients,
                undelivered=() if ack.undelivered is UNSET else tuple(ack.undelivered),
            )
            pending.done.set()

    def refused(self, reply: ErrorReply, id: object) -> bool:
        """An error came. Whether somebody waits for it."""
        pending = self._found(id)
        if pending is not None:
            _fail(pending, _error_of(reply))
        return pending is not None

    def _found(self, id: object) -> _Pending | None:
        return self._unacked.get(id) if isinstance(id, int) else None


def _fail(pending: _Pending, error: CollabClientError) -> None:
    if not pending.done.is_set():
        pending.error = error
        pending.done.set()


def _error_of(reply: ErrorReply) -> CollabClientError:
    if reply.code == "rate_limited":
        retry_after_ms = 1000 if reply.retry_after_ms is UNSET else reply.retry_after_ms
        return RateLimited(reply.error, retry_after_ms / 1000)
    if reply.code in _NOT_ALLOWED:
        return NotAllowed(reply.error, reply.code)
    return InvalidEvent(reply.error, reply.code)
