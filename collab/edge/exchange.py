"""Owns one HTTP exchange on a connection: a whole request read within bounds, then its response."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import h11
import trio

from collab.errors import Refused

if TYPE_CHECKING:
    from collab.edge.peer import Ends
    from collab.wire.head import Head

_RECEIVE_BYTES = 65536


async def read_body(stream: trio.abc.Stream, head: Head, rest: bytes, *, max_bytes: int) -> bytes:
    """The request's body, decoded. What follows it on the connection is never looked at.

    h11 finds where the body ends, so that nothing here parses a chunk.

    Raises:
        Refused: 400 for a malformed body, 413 for one over `max_bytes`.
        trio.EndOfChannel: the peer left before the end of the body.
    """
    if int(head.get("content-length") or 0) > max_bytes:
        raise _too_large(max_bytes)
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(head.to_bytes() + rest)
    if (head.get("expect") or "").lower() == "100-continue" and not rest:
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            # h11's own words quote the body, which belongs in no log.
            raise Refused(400, "bad_request", "the body of the request is malformed") from None
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif event is h11.NEED_DATA:
            data = await stream.receive_some(_RECEIVE_BYTES)
            if not data:
                raise trio.EndOfChannel
            parser.receive_data(bytes(data))


class Exchange(trio.abc.Stream):
    """The stream that the HTTP server sees: one whole request to read, one response to write.

    A peer that does not read its response is given up after `write_seconds`, or at once by
    `abort`, even where the server shields its send from cancellation. The response's head waits for the
    first of its body, to go out with it: python-engineio's asyncio client breaks, and does not come
    back, where an error arrives in two pieces. Does not own the stream.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        request: bytes,
        ends: Ends,
        *,
        write_seconds: float,
        tells_end: bool = False,
    ) -> None:
        self.socket = ends
        """The part of a socket that Hypercorn reads: its addresses."""
        self.serving = trio.CancelScope()
        """Around all that the server does for this exchange: it ends when the exchange is given up."""
        self._stream = stream
        self._request = request
        self._head: bytes | None = None
        self._write_seconds = write_seconds
        self._tells_end = tells_end
        self._watching = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._done = trio.Event()
        self._aborted = False

    def abort(self) -> None:
        """Give the response up, and end the server's work on it."""
        self._aborted = True
        self._sending.cancel()
        # A response that failed is not enough: while a request asks for an upgrade, Hypercorn's reader waits
        # for the response's end, and nothing tells it that there will be none.
        self.serving.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The request, then nothing until the server is done.

        A peer that closes its sending side still waits for its response, so its end is not told, unless
        `tells_end`: then whoever goes before its response is given up, and the response with it.
        """
        if self._request:
            request, self._request = self._request, b""
            return request
        if self._tells_end and await self._has_ended():
            return b""
        await self._done.wait()
        raise trio.ClosedResourceError

    async def _has_ended(self) -> bool:
        """Wait for what the peer does before its response is there: whether it is gone."""
        with self._watching:
            try:
                # Anything else that it sends is never looked at.
                return not await self._stream.receive_some(1)
            except trio.BrokenResourceError:
                return True
        return False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send a part of the response; the first, which is its head, goes out with the second.

        Raises:
            trio.BrokenResourceError: the peer is gone or too slow, or the exchange was aborted.
        """
        # Whoever has its response may go.
        self._watching.cancel()
        if self._aborted:
            raise trio.BrokenResourceError("the exchange was given up")
        if self._head is None:
            self._head = bytes(data)
            await trio.lowlevel.checkpoint()
            return
        data, self._head = self._head + data, b""
        self._sending = trio.CancelScope(deadline=trio.current_time() + self._write_seconds)
        sent = False
        try:
            with self._sending:
                await self._stream.send_all(data)
                sent = True
        finally:
            if not sent:
                self.abort()
        if not sent:
            raise trio.BrokenResourceError("the peer did not read its response in time")

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The server is done; the door closes the connection."""
        self._watching.cancel()
        self._done.set()
        if self._head and not self._aborted:
            with suppress(trio.BrokenResourceError):
                await self.send_all(b"")
        await trio.lowlevel.checkpoint()


class TlsExchange(Exchange):
    """An exchange under TLS, by which Hypercorn knows that its scheme is https: the handshake is done."""

    @property
    def transport_stream(self) -> Exchange:
        """Where Hypercorn looks for the `socket`."""
        return self

    async def do_handshake(self) -> None:
        """Nothing is left to do."""
        await trio.lowlevel.checkpoint()

    def selected_alpn_protocol(self) -> str:
        """What is spoken, whether the peer asked for it or not."""
        return "http/1.1"


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, "too_large", f"the body of a request may have at most {max_bytes:,} bytes")
