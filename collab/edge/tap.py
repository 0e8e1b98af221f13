"""Owns the stream under trio-websocket: takes all frames but the close frame out of it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from collab.edge.tls import TlsStream
from collab.wire.close import Close, CloseCode
from collab.wire.frames import EMPTY_CLOSE_FRAME, FrameScanner, close_frame, is_close_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.edge.stops import FloodMeter

RECEIVE_BYTES = 65536
_SEND_BYTES = 65536
_LINGER_BYTES = 16 << 20
"""What a peer may still send behind its violation, so that it comes to read our close frame."""
_TOO_MANY_CONTROLS = Close(CloseCode.POLICY, "Too many pings and pongs")


class Tap(trio.abc.Stream):
    """One connection's bytes, between the socket and trio-websocket.

    Until `open` it gives out the request's head and nothing else. After it, text messages go to
    `deliver`, the answers to pings to `answer`, a breach of the protocol to `on_violation`, and the peer's
    close frame to trio-websocket. It reads by itself, awaiting `before_read` before each read, unless it
    is `pumped`: then somebody else
    reads and calls `feed`. Nothing is sent after a close frame or after a send that was cut off.
    Does not own the stream: whoever opened it closes it, after `release`.
    """

    __slots__ = (
        "_answer",
        "_before_read",
        "_broken",
        "_changed",
        "_close_answer",
        "_close_given",
        "_close_sent",
        "_controls",
        "_deliver",
        "_descriptor",
        "_discarded_bytes",
        "_ended",
        "_head",
        "_lock",
        "_on_lost",
        "_on_violation",
        "_opened",
        "_pumped",
        "_rest",
        "_senders",
        "_stopped",
        "_stream",
        "_tls",
        "_unsent",
        "_write_seconds",
        "frames",
        "last_received",
        "reading",
        "scanner",
        "timed_out",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        head: bytes,
        rest: bytes,
        *,
        max_message_bytes: int,
        write_seconds: float,
        controls: FloodMeter,
        binary_as: bytes | None = None,
    ) -> None:
        self._stream = stream
        self._tls = stream if isinstance(stream, TlsStream) else None
        self._descriptor = -1
        if self._tls is not None:
            self._descriptor = self._tls.descriptor
        elif isinstance(stream, trio.SocketStream):
            self._descriptor = stream.socket.fileno()
        self._head = head
        self._rest = rest
        self._write_seconds = write_seconds
        self._controls = controls
        # Made with the first send that may meet another: what goes through `write_now` needs none.
        self._lock: trio.Lock | None = None
        self._senders = 0
        self._opened = False
        self._ended = False
        self._stopped = False
        self._pumped = False
        self._broken = False
        self._close_given = False
        self._close_sent = False
        self._close_answer = EMPTY_CLOSE_FRAME
        self._discarded_bytes = 0
        self._unsent = b""
        self._changed: trio.Event | None = None
        self._deliver: Callable[[list[bytes]], Awaitable[None]]
        self._answer: Callable[[bytes], None]
        self._before_read: Callable[[], Awaitable[None]]
        self._on_violation: Callable[[Close], None]
        self._on_lost: Callable[[], None] = _nothing
        self.scanner = FrameScanner(max_message_bytes, binary_as=binary_as)
        self.frames = 0
        """How many frames the bytes that were fed last made whole."""
        self.last_received = trio.current_time()
        """When, on Trio's clock, the peer was last heard, or last waited for us to read."""
        self.timed_out = False
        """Whether the peer took nothing for the write deadline."""
        self.reading = False
        """Whether bytes that the peer sends now would be read at once."""

    @property
    def descriptor(self) -> int:
        """The descriptor of a socket that may be read and written without waiting; -1 where there is none."""
        return self._descriptor

    @property
    def is_encrypted(self) -> bool:
        """Whether it is under TLS. Then `write_now` is only for a tap that is `pumped`.

        A tap that reads by itself may be sending an answer of TLS from within its read.
        """
        return self._tls is not None

    def release(self) -> None:
        """Forget the descriptor and whom to call.

        It must come before the stream is closed: the numbers of descriptors are used again.
        """
        self._descriptor = -1
        self._deliver = _deliver_to_nobody
        self._before_read = trio.lowlevel.checkpoint
        self._answer = self._on_violation = _ignore
        self._on_lost = _nothing

    def open(
        self,
        *,
        deliver: Callable[[list[bytes]], Awaitable[None]],
        answer: Callable[[bytes], None],
        before_read: Callable[[], Awaitable[None]],
        on_violation: Callable[[Close], None],
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """The handshake is done: let frames through."""
        self._deliver = deliver
        self._answer = answer
        self._before_read = before_read
        self._on_violation = on_violation
        self._on_lost = on_lost or _nothing
        self._opened = True
        self._notify()

    def pump(self) -> bytes:
        """From now on somebody else reads (`read_now`), beginning with the bytes given back."""
        self._pumped = True
        rest, self._rest = self._rest, b""
        if self._tls is not None:
            try:
                rest += self._tls.read_ahead()
            except OSError:
                self.end()
            if self._tls.peer_ended:
                self.end()
        return rest

    def read_now(self, max_bytes: int) -> bytes:
        """For `feed`: what the peer has sent, of at most so many bytes of the socket; b"" at its end.

        Raises:
            BlockingIOError: there is nothing yet.
            OSError: the peer is gone.
        """
        if self._tls is None:
            return os.read(self._descriptor, max_bytes)
        return self._tls.read_now(max_bytes)

    def open_by_hand(self) -> None:
        """The handshake is done, and for a while `read_by_hand` lets frames through; then `open`."""
        self._pumped = self._opened = True
        self._deliver = _deliver_to_nobody
        self._before_read = trio.lowlevel.checkpoint
        self._answer = self._on_violation = _ignore

    def read_alone(self) -> None:
        """From now on the tap reads for itself."""
        self._pumped = False
        self._notify()

    async def read_by_hand(self) -> tuple[list[bytes], Close | None]:
        """Read once, for one who reads for a while before anybody else does; see `feed`."""
        data = self._rest or await self._receive()
        self._rest = b""
        if not data:
            self.end()
        return self.feed(data)

    def stop(self) -> None:
        """Deliver nothing more; read on only to see the peer's close frame or the end of the stream."""
        self._stopped = True

    @property
    def ended(self) -> bool:
        """Whether the peer has sent its close frame or its last byte."""
        return self._ended

    @property
    def is_broken(self) -> bool:
        """Whether nothing can be sent any more, because a send failed or was cut off."""
        return self._broken and not self._senders

    @property
    def has_enough(self) -> bool:
        """Whether the peer floods us behind its violation, so that it is read no more."""
        return self._discarded_bytes > _LINGER_BYTES

    async def wait_ended(self) -> None:
        """Wait for the peer's close frame or its last byte."""
        while not self._ended:
            await self._wait_changed()

    def end(self) -> None:
        """The peer has sent its last byte."""
        self._ended = True
        self._notify()

    def feed(self, data: bytes) -> tuple[list[bytes], Close | None]:
        """Take the peer's next bytes: the texts to deliver, and the breach of the protocol after them."""
        if self.scanner.failed:
            self._discarded_bytes += len(data)
        scan = self.scanner.feed(data)
        self.frames = len(scan.texts) + scan.fragments + scan.controls
        if self.scanner.peer_close or (self._tls is not None and self._tls.peer_ended):
            self.end()
        if self._stopped:
            # Also after a breach of the protocol, when the scanner looks at nothing any more:
            # reading on lets the peer finish its sends and find our close frame.
            return [], None
        if scan.controls and self._controls.is_flood(scan.controls, trio.current_time()):
            self.scanner.give_up()
            return scan.texts, scan.violation or _TOO_MANY_CONTROLS
        if scan.pongs:
            self._answer(scan.pongs)
        return scan.texts, scan.violation

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What trio-websocket gets: the head, the peer's close frame, the end. Heeds no `max_bytes`."""
        if self._head:
            head, self._head = self._head, b""
            return head
        while not self._opened:
            await self._wait_changed()
        while not self._ended:
            if self._pumped or self.has_enough:
                await self._wait_changed()
            else:
                await self._read()
        if self._close_given or self._stopped:
            await trio.lowlevel.checkpoint()
            return b""
        self._close_given = True
        return self.scanner.peer_close

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send for trio-websocket; raises what `send` raises.

        Its answer to the peer's close frame is kept for `send_close`, as acks may still be owed.
        """
        if not self._opened:
            # The answer to the handshake: nobody else sends yet.
            await self._send_alone(bytes(data))
        elif is_close_frame(bytes(data[:1])):
            self._close_answer = bytes(data)
        else:
            await self.send(bytes(data))

    async def send(self, data: bytes) -> None:
        """Send, whole and alone, each 64 KiB of it within the write deadline; nothing after a close frame.

        Raises:
            trio.BrokenResourceError: the peer is gone or too slow, or an earlier send was cut off.
        """
        self._senders += 1
        try:
            if self._lock is None:
                self._lock = trio.Lock()
            async with self._lock:
                await self._send_alone(data)
        finally:
            self._senders -= 1

    def write_now(self, data: bytes) -> int:
        """Write what the socket takes at once: the number of bytes.

        0 where a send is under way. What is left of a write that was begun is kept, and goes
        before anything else; of what is encrypted already a byte at least counts as left. A dead
        socket takes everything, and `on_lost` is called.
        """
        if self._senders or self._unsent or self._close_sent or self._descriptor < 0:
            return 0
        if self._broken:
            return len(data)
        try:
            written = os.write(self._descriptor, data) if self._tls is None else self._tls.write_now(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            self._on_lost()
            return len(data)
        if written < len(data):
            self._unsent = data[written:]
        elif self._tls is not None and self._tls.has_unsent:
            return written - 1
        return written

    async def send_close(self, close: Close | None) -> None:
        """Send this close frame, or with None the answer to the peer's; only the first goes out."""
        frame = self._close_answer if close is None else close_frame(close)
        try:
            await self.send(frame)
            self._close_sent = True
            if self.scanner.failed and isinstance(self._stream, trio.abc.HalfCloseableStream):
                # Past a breach of the protocol the peer's own close frame cannot be found any more:
                # the end of our side tells it to close its own.
                await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end()

    async def send_end(self) -> None:
        """Behind the close frames: tell a peer under TLS that nothing more comes."""
        if self._close_sent and self._tls is not None:
            with suppress(trio.BrokenResourceError, trio.BusyResourceError):
                await self._tls.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """trio-websocket is done with the stream. Its owner says goodbye and closes it."""
        await trio.lowlevel.checkpoint()

    async def _send_alone(self, data: bytes) -> None:
        if self._close_sent:
            return
        if self._broken:
            raise trio.BrokenResourceError("an earlier send was cut off")
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        self._broken = True
        if self._tls is not None and self._tls.has_unsent:
            await self._send_piece(b"")
        with memoryview(data) as view:
            for start in range(0, len(view), _SEND_BYTES):
                await self._send_piece(view[start : start + _SEND_BYTES])
        self._broken = False

    async def _send_piece(self, piece: bytes | memoryview) -> None:
        with trio.move_on_after(self._write_seconds) as deadline:
            await self._stream.send_all(piece)
        if deadline.cancelled_caught:
            self.timed_out = True
            raise trio.BrokenResourceError("the peer did not read within the write deadline")

    async def _read(self) -> None:
        await self._before_read()
        if self._rest:
            data, self._rest = self._rest, b""
        else:
            data = await self._receive()
        if not data:
            self.end()
            return
        texts, violation = self.feed(data)
        if texts:
            await self._deliver(texts)
        if violation is not None:
            self._on_violation(violation)

    async def _receive(self) -> bytes:
        self.last_received = trio.current_time()
        self.reading = True
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        finally:
            self.reading = False

    async def _wait_changed(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


def _nothing() -> None:
    pass


async def _deliver_to_nobody(_: list[bytes]) -> None:
    await trio.lowlevel.checkpoint()


def _ignore(_: object) -> None:
    pass
