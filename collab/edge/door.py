"""Owns the one port: reads a request's head, decides once, hands the connection on, closes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from collab.edge.acceptor import Arrival, claimed_user_id
from collab.edge.exchange import Exchange, TlsExchange, read_body
from collab.edge.peer import Ends, ends_of
from collab.edge.tls import TlsStream
from collab.errors import HandshakeFailed, Refused
from collab.observe.log import get_logger
from collab.policy.limits import network_of
from collab.policy.rate import Meters, Rate
from collab.wire.engineio import ENGINE_PATHS
from collab.wire.head import Head, HeadReader, error_response

if TYPE_CHECKING:
    from collab.edge.acceptor import Acceptor
    from collab.edge.refusals import Refusals
    from collab.edge.tls import Tls
    from collab.observe.audit import Audit
    from collab.settings import Settings

_log = get_logger()
_RECEIVE_BYTES = 4096
_HURRIED_SECONDS = 0.5
_LINGER_BYTES = 1024 * 1024
# HTTP requests shake hands too, one each, and are no connects.
_HANDSHAKES_FOR_A_CONNECT = 10
_SECONDS_AT_ONCE = 10

ServeHttp = Callable[[Exchange], Awaitable[None]]
"""Serves one HTTP exchange: reads its request, writes the response, closes the exchange."""


class Door:
    """Every connection of the port comes in here and is contained here.

    With `tls` each stream is wrapped before anything is read from it. An upgrade to WebSocket goes to
    the acceptor. Any other request is read whole, given to the HTTP server as the only one of its
    connection, and answered with `connection: close`: so every request passes these checks, and an
    upgrade that follows a GET comes as a connection of its own.
    """

    def __init__(
        self,
        settings: Settings,
        acceptor: Acceptor,
        serve_http: ServeHttp,
        audit: Audit,
        refusals: Refusals,
        tls: Tls | None = None,
    ) -> None:
        self._refusals = refusals
        self._tls = tls
        self._handshakes = Meters(
            Rate.with_seconds_at_once(
                settings.limits.connects_per_second * _HANDSHAKES_FOR_A_CONNECT, _SECONDS_AT_ONCE
            )
        )
        self._timeouts = settings.timeouts
        self._max_body_bytes = int(settings.limits.message_bytes)
        self._acceptor = acceptor
        self._serve_http = serve_http
        self._audit = audit
        self._exchanges: set[Exchange] = set()
        self._open = 0
        self._hurried = False
        self._idle_waits: set[trio.CancelScope] = set()
        self._empty: trio.Event | None = None

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection from accept to close. Owns the stream; raises nothing that a peer can cause."""
        # Whoever comes while we wait for the last to go gets an answer, but does not keep us.
        counted = not self._hurried
        self._open += counted
        try:
            if self._tls is None:
                await self._serve(stream)
            else:
                await self._serve_under_tls(stream, self._tls)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # The peer left in the middle of something; there is nobody to tell.
            pass
        except* Exception as group:
            # The boundary of this connection: our own fault must not end the others.
            _log.error("Connection failed", exc_info=group)
        finally:
            try:
                await trio.aclose_forcefully(stream)
            finally:
                if counted:
                    self._closed()

    def hurry(self) -> None:
        """Wait for nobody who has sent nothing yet, and linger for nobody (drain)."""
        self._hurried = True
        for scope in self._idle_waits:
            scope.cancel()

    def abort_exchanges(self) -> None:
        """Give up every HTTP response that is still being written."""
        for exchange in self._exchanges:
            exchange.abort()

    async def wait_empty(self) -> None:
        """Wait until no connection is open."""
        while self._open:
            if self._empty is None:
                self._empty = trio.Event()
            await self._empty.wait()

    def _closed(self) -> None:
        self._open -= 1
        if not self._open and self._empty is not None:
            self._empty.set()
            self._empty = None

    async def _serve_under_tls(self, plain: trio.abc.Stream, tls: Tls) -> None:
        ends = ends_of(plain)
        if ends is None:
            return
        # Before anything is computed for this peer. There is no way yet to tell it so.
        if self._handshakes.spend(network_of(ends.address), 1, trio.current_time()):
            self._refusals.note_handshake()
            return
        address = ends.address
        del ends
        stream = TlsStream(plain, tls.context)
        try:
            if await self._shake_hands(stream, plain, address):
                await self._serve(stream)
        finally:
            stream.release()

    async def _shake_hands(self, stream: TlsStream, plain: trio.abc.Stream, address: str) -> bool:
        """Whether the peer goes through with the handshake of TLS in time."""
        try:
            with trio.move_on_after(self._timeouts.handshake), self._idle_wait():
                await stream.handshake()
                return True
        except HandshakeFailed as failure:
            # Scanners and clients of plain HTTP do this all day.
            _log.debug("TLS handshake failed", address=address, reason=str(failure))
            if failure.alert:
                with trio.move_on_after(self._timeouts.write):
                    await plain.send_all(failure.alert)
                await self._linger(plain)
        return False

    async def _serve(self, stream: trio.abc.Stream) -> None:
        ends = ends_of(stream)
        if ends is None:
            return
        # A connection may live for days: its head, its address pairs and the like go with `_arrive`.
        address = ends.address
        try:
            arrived = await self._arrive(stream, ends)
            del ends
            if isinstance(arrived, Arrival):
                await self._acceptor.serve(arrived)
                return
            if arrived is None:
                return
            await self._serve_exchange(arrived)
        except Refused as refusal:
            self._refusals.note(address, refusal)
            with trio.move_on_after(self._timeouts.write):
                await stream.send_all(error_response(refusal))
        await self._linger(stream)

    async def _arrive(self, stream: trio.abc.Stream, ends: Ends) -> Arrival | Exchange | None:
        """Read a request and decide where it goes; None where the peer left before its end."""
        with self._arrival_deadline():
            read = await self._read_head(stream)
        if read is None:
            return None
        head, rest = read
        try:
            if "websocket" in head.tokens("upgrade"):
                return await self._acceptor.check(stream, head, rest, ends)
            with self._arrival_deadline():
                body = await read_body(stream, head, rest, max_bytes=self._max_body_bytes)
        except Refused as refusal:
            refusal.bodiless = head.method == "HEAD"
            if self._audit.is_on:
                refusal.claimed_user_id = claimed_user_id(head)
            raise
        except trio.EndOfChannel:
            return None
        request = head.with_body_length(len(body)).to_bytes() + body
        kind = TlsExchange if self._tls is not None else Exchange
        # A poll may hang for long, and what it would bring is lost once nobody waits for it.
        is_poll = head.path in ENGINE_PATHS and head.method == "GET"
        return kind(stream, request, ends, write_seconds=self._timeouts.write, tells_end=is_poll)

    @contextmanager
    def _idle_wait(self) -> Iterator[None]:
        """Waits within that a drain does not wait for."""
        with trio.CancelScope() as scope:
            if self._hurried:
                scope.deadline = trio.current_time() + _HURRIED_SECONDS
            self._idle_waits.add(scope)
            try:
                yield
            finally:
                self._idle_waits.discard(scope)

    @contextmanager
    def _arrival_deadline(self) -> Iterator[None]:
        """Gives a part of a request the handshake timeout to arrive; raises `Refused` 408 after it."""
        try:
            with trio.fail_after(self._timeouts.handshake):
                yield
        except trio.TooSlowError:
            raise Refused(408, "request_timeout", "the request did not arrive in time") from None

    async def _serve_exchange(self, exchange: Exchange) -> None:
        self._exchanges.add(exchange)
        try:
            with exchange.serving:
                await self._serve_http(exchange)
        finally:
            self._exchanges.discard(exchange)

    async def _linger(self, stream: trio.abc.Stream) -> None:
        """End our side and read on a little: closing with bytes unread would reset what we just sent."""
        with trio.move_on_after(self._timeouts.close), self._idle_wait():
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            seen = 0
            while seen < _LINGER_BYTES and (data := await stream.receive_some(_RECEIVE_BYTES)):
                seen += len(data)

    async def _read_head(self, stream: trio.abc.Stream) -> tuple[Head, bytes] | None:
        """The head and what came after it; None where the peer left first."""
        reader = HeadReader()
        data: bytes | bytearray = b""
        with self._idle_wait():
            data = await stream.receive_some(_RECEIVE_BYTES)
        while data:
            head = reader.feed(bytes(data))
            if head is not None:
                return head, reader.rest
            data = await stream.receive_some(_RECEIVE_BYTES)
        return None
