"""Owns the stream under trio-websocket: lifts whole text frames out and lets all else through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from collab.wire.frames import FrameScanner, close_frame, is_close_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.wire.close import Close

_RECEIVE_BYTES = 65536


class Tap(trio.abc.Stream):
    """One connection's bytes, between the socket and trio-websocket.

    Until `open` it gives out the request's head and nothing else. After it, whole text frames go to
    `deliver` and the rest to trio-websocket; `before_read` is awaited before each read, and a
    breach of the protocol goes to `on_violation`. Nothing is sent after a close frame or after a
    send that was cut off. Does not own the stream: whoever opened it closes it.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        head: bytes,
        rest: bytes,
        *,
        max_message_bytes: int,
        write_seconds: float,
    ) -> None:
        self._stream = stream
        self._head = head
        self._rest = rest
        self._write_seconds = write_seconds
        self._lock = trio.Lock()
        self._opened = trio.Event()
        self._stopped = False
        self._broken = False
        self._close_sent = False
        self._ended = trio.Event()
        self._deliver: Callable[[list[bytes]], Awaitable[None]]
        self._before_read: Callable[[], Awaitable[None]]
        self._on_violation: Callable[[Close], None]
        self.scanner = FrameScanner(max_message_bytes)
        self.last_received = trio.current_time()
        """When, on Trio's clock, the peer was last heard, or last waited for us to read."""
        self.reading = False
        """Whether bytes that the peer sends now would be read at once."""

    def open(
        self,
        *,
        deliver: Callable[[list[bytes]], Awaitable[None]],
        before_read: Callable[[], Awaitable[None]],
        on_violation: Callable[[Close], None],
    ) -> None:
        """The handshake is done: let frames through."""
        self._deliver = deliver
        self._before_read = before_read
        self._on_violation = on_violation
        self._opened.set()

    def stop(self) -> None:
        """Deliver nothing more; read on only to see the peer's close frame or the end of the stream."""
        self._stopped = True

    @property
    def ended(self) -> bool:
        """Whether the peer has sent its close frame or its last byte."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait for the peer's close frame or its last byte."""
        await self._ended.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes for trio-websocket; more than `max_bytes` where a read gave more."""
        if self._head:
            head, self._head = self._head, b""
            return head
        await self._opened.wait()
        while not self._ended.is_set():
            await self._before_read()
            data = await self._next_bytes()
            if not data:
                self._ended.set()
                break
            if odd := await self._take(data):
                return odd
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, whole and alone, within the write deadline.

        Raises:
            trio.BrokenResourceError: the peer is gone or too slow, or an earlier send was cut off.
        """
        async with self._lock:
            if self._close_sent:
                return
            if self._broken:
                raise trio.BrokenResourceError("an earlier send was cut off")
            self._close_sent = self._opened.is_set() and is_close_frame(bytes(data[:1]))
            self._broken = True
            with trio.move_on_after(self._write_seconds):
                await self._stream.send_all(data)
                self._broken = False
            if self._broken:
                raise trio.BrokenResourceError("the peer did not read within the write deadline")

    async def send_close(self, close: Close) -> None:
        """Send the close frame, unless one was sent or none can be any more. Raises nothing."""
        try:
            await self.send_all(close_frame(close))
            if self.scanner.failed and isinstance(self._stream, trio.abc.HalfCloseableStream):
                # Past a breach of the protocol the peer's own close frame cannot be found any more:
                # the end of our side tells it to close its own.
                await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended.set()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """trio-websocket is done with the stream. Its owner says goodbye and closes it."""
        await trio.lowlevel.checkpoint()

    async def _next_bytes(self) -> bytes:
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        self.last_received = trio.current_time()
        self.reading = True
        try:
            return bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        finally:
            self.reading = False

    async def _take(self, data: bytes) -> bytes:
        scan = self.scanner.feed(data)
        if self.scanner.peer_closed:
            self._ended.set()
        if self._stopped:
            # Also after a breach of the protocol, when the scanner looks at nothing any more:
            # reading on lets the peer finish its sends and find our close frame.
            return b""
        if scan.texts:
            await self._deliver(scan.texts)
        if scan.violation is not None:
            self._on_violation(scan.violation)
            return b""
        return scan.odd
