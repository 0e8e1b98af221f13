"""The client for code that blocks: scripts, Flask, Django. Its loop runs in a thread of its own.

with connect("ws://localhost:9000", user_id="ada", backend_url="http://localhost:8000") as collab:
    ack = collab.send("comment_added", ["bob"], {"text": "Great setup!"})
    for event in collab.events(timeout=10):
        ...
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple, Unpack, cast, overload

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from collab.client import Limits, NotConnected, Stopped
from collab.client import connect as connect_async

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from anyio.from_thread import BlockingPortal

    from collab.client import Ack, Collab, Event, OnlineUser, PresenceChange, State
    from collab.client.collab import StateCallback

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@contextmanager
def connect(
    url: str,
    *,
    user_id: str,
    backend_url: str,
    display_name: str = "",
    token: str | Callable[[], str] | None = None,
    presence: bool = True,
    on_state: StateCallback | None = None,
    ssl_context: ssl.SSLContext | None = None,
    start_seconds: float = 30.0,
    limits: Limits | None = None,
) -> Iterator[BlockingCollab]:
    """What `collab.client.connect` does, for a `with` block. Raises what that raises.

    `token` and `on_state` are called in the thread of the loop, and must not wait for long. The
    client may be used by several threads.
    """
    client = partial(
        connect_async,
        url,
        user_id=user_id,
        backend_url=backend_url,
        display_name=display_name,
        token=token,
        presence=presence,
        on_state=on_state,
        ssl_context=ssl_context,
        start_seconds=start_seconds,
        limits=limits,
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client()) as collab:
        yield BlockingCollab(portal, collab)


class BlockingCollab:
    """A `Collab` whose methods block. Each raises what its namesake there raises."""

    def __init__(self, portal: BlockingPortal, collab: Collab) -> None:
        self._portal = _Loop(portal)
        self._collab = collab

    @property
    def user_id(self) -> str:
        """Who this is."""
        return self._collab.user_id

    @property
    def state(self) -> State:
        """Where it is."""
        return self._collab.state

    @property
    def reason(self) -> str:
        """Why it is not connected; empty while it is."""
        return self._collab.reason

    @property
    def online(self) -> Mapping[str, OnlineUser]:
        """The users who are online, by id, as of now."""
        try:
            return self._portal.call(dict, self._collab.online)
        except NotConnected:
            return dict(self._collab.online)

    def send(self, type: str, to_users: Sequence[str], data: object = None) -> Ack:
        """See `Collab.send`."""
        return self._portal.call(self._collab.send, type, to_users, data)

    def share_position(
        self,
        to_users: Sequence[str],
        *,
        position_id: str,
        share_url: str,
        shared_at: datetime | None = None,
    ) -> Ack:
        """See `Collab.share_position`."""
        return self._portal.call(
            partial(
                self._collab.share_position,
                to_users,
                position_id=position_id,
                share_url=share_url,
                shared_at=shared_at,
            )
        )

    def add_comment(
        self,
        to_users: Sequence[str],
        *,
        position_id: str,
        text: str,
        comment_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Ack:
        """See `Collab.add_comment`."""
        return self._portal.call(
            partial(
                self._collab.add_comment,
                to_users,
                position_id=position_id,
                text=text,
                comment_id=comment_id,
                created_at=created_at,
            )
        )

    def update_position(
        self, to_users: Sequence[str], *, position_id: str, updates: Mapping[str, object]
    ) -> Ack:
        """See `Collab.update_position`."""
        return self._portal.call(
            partial(self._collab.update_position, to_users, position_id=position_id, updates=updates)
        )

    def revoke_share(self, to_users: Sequence[str], *, position_id: str) -> Ack:
        """See `Collab.revoke_share`."""
        return self._portal.call(partial(self._collab.revoke_share, to_users, position_id=position_id))

    def events(self, *, timeout: float | None = None) -> Iterator[Event]:
        """Iterate over the events. It ends when none came for `timeout` seconds; None waits on."""
        return _Blocking(self._portal, self._portal.call(self._collab.events), timeout)

    def presence(self, *, timeout: float | None = None) -> Iterator[PresenceChange]:
        """Iterate over who comes and goes. It ends when nobody did for `timeout` seconds; None waits on."""
        return _Blocking(self._portal, self._portal.call(self._collab.presence), timeout)

    def on(self, type: str, handler: Callable[[Event], object]) -> Callable[[], None]:
        """See `Collab.on`. The handler runs in a worker thread, and may send."""

        async def in_a_thread(event: Event) -> None:
            # Not abandoned: the end of the block waits for it.
            await anyio.to_thread.run_sync(handler, event)

        if inspect.iscoroutinefunction(handler):
            raise TypeError("a handler of a blocking client is a plain function")
        return partial(self._portal.call, self._portal.call(self._collab.on, type, in_a_thread))

    def wait_connected(self) -> None:
        """See `Collab.wait_connected`."""
        self._portal.call(self._collab.wait_connected)


class _Loop:
    """The portal to the thread of the loop. When the block is left there is none any more."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal

    @overload
    def call(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *arguments: *Ts) -> T: ...

    @overload
    def call(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T: ...

    def call(self, function: Callable[[Unpack[Ts]], Awaitable[T] | T], *arguments: *Ts) -> T:
        """Call it there. Raises what it raises, and `NotConnected` after the end of the block."""
        try:
            outcome = self._portal.start_task_soon(function, *arguments)
        except RuntimeError as error:
            raise NotConnected("the client was closed") from error
        return cast("T", outcome.result())


class _Blocking(Generic[T]):
    """An asynchronous iterator, turned around."""

    def __init__(self, portal: _Loop, items: AsyncIterator[T], timeout: float | None) -> None:
        self._portal = portal
        self._items = items
        self._timeout = timeout

    def __iter__(self) -> _Blocking[T]:
        return self

    def __next__(self) -> T:
        try:
            some = self._portal.call(self._some)
        except Stopped:
            raise
        except NotConnected:
            # The block was left between two items.
            some = ()
        for item in some:
            return item
        raise StopIteration

    async def _some(self) -> tuple[T, ...]:
        with anyio.move_on_after(self._timeout):
            async for item in self._items:
                return (item,)
        return ()
