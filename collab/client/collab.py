"""Owns a client: its public face, and the task that connects again."""

from __future__ import annotations

import logging
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from collab.client.bell import Bell
from collab.client.errors import CollabClientError, InvalidEvent, NotConnected, Stopped
from collab.client.events import Event, State
from collab.client.foreign import outcome_of
from collab.client.inbox import Inbox
from collab.client.line import Line
from collab.client.presence import Presence
from collab.client.redial import Declined, End, Ended, Redial
from collab.client.sends import Sends
from collab.wire.as_client import Unreadable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import httpx

    from collab.client.address import Address
    from collab.client.events import Ack, OnlineUser
    from collab.client.inbox import Taker
    from collab.client.limits import Limits
    from collab.client.presence import Changes

    Handler = Callable[[Event], Awaitable[object] | object]
    StateCallback = Callable[[State, str], object]
    Token = str | Callable[[], str | Awaitable[str]]

_log = logging.getLogger("collab.client")

ANY = "*"


class Collab:
    """A backend's way to the others. Made by `connect`."""

    def __init__(
        self,
        address: Address,
        *,
        user_id: str,
        display_name: str,
        token: Token | None,
        wants_presence: bool,
        on_state: StateCallback | None,
        ssl_context: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self._address = address
        self._user_id = user_id
        self._display_name = display_name
        self._token = token
        self._wants_presence = wants_presence
        self._on_state = on_state
        self._ssl_context = ssl_context
        self._limits = limits
        self._state = State.CONNECTING
        self._reason = ""
        self._stopped: Stopped | None = None
        self._inbox = Inbox(limits)
        self._sends = Sends(limits, self._inbox.look_again)
        self._presence = Presence()
        self._handlers: dict[str, list[Handler]] = {}
        self._taker: Taker | None = None
        self._has_handlers = Bell()
        self._changed = anyio.Event()
        self._filled = anyio.Event()

    # What it is

    @property
    def user_id(self) -> str:
        """Who this is."""
        return self._user_id

    @property
    def state(self) -> State:
        """Where it is."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not connected; empty while it is."""
        return self._reason

    @property
    def online(self) -> Mapping[str, OnlineUser]:
        """A live view of who is online, by id, oneself included. Without a connection, the last known."""
        return self._presence.online

    # Sending

    async def send(self, type: str, to_users: Sequence[str], data: object = None) -> Ack:
        """Send one event and wait for its ack. `data` is anything that can be JSON; None is `{}`.

        Without a connection it waits for one, within `Limits.offline_sends` and `.offline_seconds`.
        Nothing is ever sent twice. Cancelled, it may have been sent.

        Raises:
            NotSent: it reached nobody: `RateLimited`, `NotAllowed`, `InvalidEvent`, `NotConnected`.
            MaybeDelivered: it was sent, and no ack came: `AckTimeout`, `ConnectionLost`.
        """
        return await self._sends.send(type, to_users, {} if data is None else data)

    async def share_position(
        self,
        to_users: Sequence[str],
        *,
        position_id: str,
        share_url: str,
        shared_at: datetime | None = None,
    ) -> Ack:
        """Share a position; `shared_at` is now. Raises what `send` raises."""
        data = {"position_id": position_id, "share_url": share_url, "shared_at": _stamp(shared_at)}
        return await self.send("position_shared", to_users, data)

    async def add_comment(
        self,
        to_users: Sequence[str],
        *,
        position_id: str,
        text: str,
        comment_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Ack:
        """Tell of a comment, with a new id unless one is given. Raises what `send` raises."""
        user = {"id": self._user_id, "display_name": self._display_name or self._user_id}
        comment = {
            "id": comment_id or str(uuid.uuid4()),
            "text": text,
            "user": user,
            "created_at": _stamp(created_at),
        }
        return await self.send("comment_added", to_users, {"position_id": position_id, "comment": comment})

    async def update_position(
        self, to_users: Sequence[str], *, position_id: str, updates: Mapping[str, object]
    ) -> Ack:
        """Tell of changed tags, notes or status. Raises what `send` raises."""
        data = {"position_id": position_id, "updates": dict(updates)}
        return await self.send("position_updated", to_users, data)

    async def revoke_share(self, to_users: Sequence[str], *, position_id: str) -> Ack:
        """Tell that a position is no longer shared. Raises what `send` raises."""
        return await self.send("share_revoked", to_users, {"position_id": position_id})

    # Receiving

    def events(self) -> Taker:
        """Iterate over all events, from the oldest that is still there. Handlers get them as well.

        It ends when the block is left, and raises `Stopped` once the service has said no for good.
        """
        return self._inbox.taker()

    def on(self, type: str, handler: Handler) -> Callable[[], None]:
        """Have a function called, and awaited, with each event of this type; `"*"` is every type.

        Handlers run one after the other, in the order of the events. One that raises is logged. One that
        takes long holds up the next event, and in the end the service: see docs/client.md. The
        function that comes back takes the handler away again.
        """
        self._handlers.setdefault(type, []).append(handler)
        if self._taker is None:
            self._taker = self._inbox.taker()
            self._has_handlers.ring()

        def off() -> None:
            handlers = self._handlers.get(type, [])
            if handler in handlers:
                handlers.remove(handler)
            if self._taker is not None and not any(self._handlers.values()):
                # Events are kept again, for whoever comes.
                self._inbox.leave(self._taker)
                self._taker = None

        return off

    def presence(self) -> Changes:
        """Iterate over who comes and goes from now on; `online` is who is there."""
        return self._presence.changes()

    async def wait_connected(self) -> None:
        """Until there is a connection.

        Raises:
            NotConnected: there will be none: `Stopped` with the reason.
        """
        while self._state is not State.CONNECTED:
            if self._state in (State.STOPPED, State.CLOSED):
                raise self._why_none()
            await self._changed.wait()

    # Living

    async def started(self, seconds: float) -> None:
        """Until it is connected and knows who is online.

        Raises:
            Stopped: the service said no.
            NotConnected: not within this time.
        """
        with anyio.move_on_after(seconds):
            await self.wait_connected()
            await self._filled.wait()
            # The connection may have been another one.
            await self.wait_connected()
        if self._state is not State.CONNECTED:
            if self._stopped is not None:
                raise self._stopped.again()
            raise NotConnected(
                f"not connected to {self._address.shown} within {seconds:g} s: {self._reason or 'no answer'}"
            )

    async def run(self) -> None:
        """Connect, and connect again, until the service says no for good. Raises nothing."""
        from collab.client.session import open_client

        limits = self._limits
        redial = Redial(
            first_seconds=limits.first_delay_seconds,
            longest_seconds=limits.longest_delay_seconds,
            fresh_tokens=callable(self._token),
        )
        async with open_client(
            self._ssl_context, encrypted=self._address.encrypted, seconds=limits.connect_seconds
        ) as client:
            while True:
                end = await self._one_connection(client)
                try:
                    delay = redial.after(end)
                except Stopped as stopped:
                    _log.error("Stopped: %s", stopped)
                    self._stop(stopped)
                    return
                # A service that stays away is told of once, loudly.
                level = logging.INFO if end.reason == self._reason else logging.WARNING
                self._enter(State.CONNECTING, end.reason)
                shown = self._address.shown
                _log.log(level, "Not connected to %s: %s. Next try in %.1f s", shown, end.reason, delay)
                await anyio.sleep(delay)

    async def run_handlers(self) -> None:
        """Give the events to the handlers, one after the other."""
        while True:
            await self._has_handlers.wait()
            while (taker := self._taker) is not None:
                try:
                    event = await anext(taker)
                except Stopped:
                    return
                except StopAsyncIteration:
                    if self._taker is taker:
                        return
                    continue
                for type in (event.type, ANY):
                    for handler in tuple(self._handlers.get(type, ())):
                        await self._handle(handler, event)

    def close(self) -> None:
        """The block was left."""
        if self._state is not State.STOPPED:
            self._enter(State.CLOSED, "the client was closed")
            self._sends.end(self._why_none)
            self._inbox.end(None)
            self._presence.end(None)

    async def _handle(self, handler: Handler, event: Event) -> None:
        try:
            await outcome_of(handler, event)
        except Exception:
            _log.exception("A handler of %s failed", event.type)

    async def _one_connection(self, client: httpx.AsyncClient) -> End:
        """One try, and the connection that comes of it. The boundary: no error of it goes further."""
        import httpx

        from collab.client.session import open_session

        limits = self._limits
        try:
            async with AsyncExitStack() as stack:
                with anyio.fail_after(limits.connect_seconds):
                    token = await self._fresh_token()
                    session = await stack.enter_async_context(
                        open_session(
                            client,
                            self._address.websocket,
                            token,
                            # An ack can name as many users as the event that it is for.
                            longest_message=2 * limits.message_bytes + 65536,
                            write_seconds=limits.write_seconds,
                            close_seconds=limits.close_seconds,
                        )
                    )

                    async def fill_presence() -> bool:
                        return await self._fill_presence(client, token)

                    line = Line(
                        session,
                        sends=self._sends,
                        inbox=self._inbox,
                        presence=self._presence,
                        limits=limits,
                        fill_presence=fill_presence,
                    )
                    hello = await line.greeting()
                self._user_id = hello.user_id
                self._presence.begin()
                self._sends.up()
                self._enter(State.CONNECTED, "")
                try:
                    return await line.run()
                finally:
                    self._sends.down()
        except Declined as declined:
            return End(
                reason=str(declined),
                status=declined.status,
                word=declined.word,
                come_back_in=declined.retry_after,
            )
        except Ended as ended:
            return End(reason=ended.reason, code=ended.code)
        except CollabClientError as error:
            return End(reason=str(error))
        except TimeoutError:
            return End(reason=f"no answer within {limits.connect_seconds:g} s")
        except (httpx.HTTPError, OSError) as error:
            return End(reason=str(error) or type(error).__name__)
        except Exception as error:
            _log.exception("A try to connect failed")
            return End(reason=f"{type(error).__name__}")

    async def _fresh_token(self) -> str:
        token = self._token
        if token is None:
            return ""
        if not isinstance(token, str):
            token = await outcome_of(token)
        if not (token.isascii() and token.isprintable()):
            raise NotConnected("the token holds characters that no token has")
        return token

    async def _fill_presence(self, client: httpx.AsyncClient, token: str) -> bool:
        """Whether there is nothing left to ask."""
        import httpx

        from collab.client.session import fetch_online

        try:
            if self._wants_presence:
                with anyio.fail_after(self._limits.connect_seconds):
                    self._presence.fill(await fetch_online(client, self._address.online, token))
        except (Declined, Unreadable, TimeoutError, httpx.HTTPError, OSError) as error:
            _log.warning("Cannot learn who is online: %s", str(error) or type(error).__name__)
            is_filled = False
        else:
            is_filled = True
        # Whoever waits for the start learns that a try is over; it is not where the connection ended first.
        self._filled.set()
        return is_filled

    def _stop(self, stopped: Stopped) -> None:
        self._stopped = stopped
        self._filled.set()
        self._enter(State.STOPPED, str(stopped))
        self._sends.end(self._why_none)
        self._inbox.end(stopped)
        self._presence.end(stopped)

    def _why_none(self) -> NotConnected:
        return self._stopped.again() if self._stopped else NotConnected("the client was closed")

    def _enter(self, state: State, reason: str) -> None:
        if self._state is State.CLOSED:
            # The connection was still about to end.
            return
        self._reason = reason
        if state is self._state:
            return
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()
        if self._on_state is not None:
            try:
                self._on_state(state, reason)
            except Exception:
                _log.exception("The state callback failed")


def _stamp(when: datetime | None) -> str:
    """UTC, ISO 8601 with Z, in whole seconds.

    Raises:
        InvalidEvent: it has no time zone.
    """
    if when is None:
        when = datetime.now(UTC)
    elif when.tzinfo is None:
        raise InvalidEvent("a time needs its time zone")
    return when.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
