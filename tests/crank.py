"""A service in memory that a synchronous test turns by hand, and the peers that such a test plays.

A `Crank` is a guest run of Trio (`trio.lowlevel.start_guest_run`) whose host is the test: each of its
methods lets Trio run until every task waits, and gives control back. No thread is used, and no time
passes but that of `advance`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any
from urllib.parse import urlencode

import attrs
import trio
import trio.testing
from baseline import Holdings
from outcome import Outcome
from peers import CLOSE, PING, PONG, TEXT, UPGRADE, frame, head

from collab.settings import Settings
from collab.testing import LocalService, MemoryStream, open_service


class WatchedStream(MemoryStream):
    """A stream that knows whether it is being read."""

    read_since: float | None = None
    """Since when a read is under way, on Trio's clock."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        self.read_since = trio.current_time()
        try:
            return await super().receive_some(max_bytes)
        finally:
            self.read_since = None


class Peer:
    """A WebSocket client in memory that reads at once, answers pings and closes, and never waits."""

    def __init__(self, user_id: str, *, presence: bool = False) -> None:
        self.user_id = user_id
        self._to_peer = trio.testing.MemorySendStream(send_all_hook=self._refuse_if_gone)
        self._from_peer = trio.testing.MemoryReceiveStream()
        self.far_end = WatchedStream(trio.StapledStream(self._to_peer, self._from_peer))
        self.scope = trio.CancelScope()
        """Cancels the service's own task for this connection."""
        self.is_served = True
        """Whether the service has a task for this connection."""
        self.task: trio.lowlevel.Task | None = None
        """That task."""
        self.inbox: list[dict[str, Any]] = []
        self.status = 0
        self.code: int | None = None
        """How the service ended the connection; 1006 without a close frame; None while it did not."""
        self._gone = False
        self._is_closing = False
        self._unparsed = b""
        query = {
            "user_id": user_id,
            "backend_url": "http://localhost:8000",
            "presence": "all" if presence else "none",
        }
        self._from_peer.put_data(head("GET", f"/?{urlencode(query)}", UPGRADE))

    def send(self, *frames: bytes) -> None:
        """Send frames; they lie there until the service reads."""
        self._from_peer.put_data(b"".join(frames))

    def stall(self) -> None:
        """Take nothing more."""
        self.far_end.hold()

    def resume(self) -> None:
        """Take everything again."""
        self.far_end.release()

    def close(self) -> None:
        """Begin to close in good order, with 1000."""
        self._is_closing = True
        self.send(frame(CLOSE, b"\x03\xe8"))

    def drop(self) -> None:
        """Vanish: what the service sends from now on fails, also what it is sending."""
        self._gone = True
        self._from_peer.put_eof()
        self.far_end.release()

    def read(self) -> bool:
        """Take what has come: whether something was answered."""
        if self._gone or self.code is not None:
            return False
        answered = False
        try:
            while data := self._to_peer.get_data_nowait():
                self._unparsed += data
                answered |= self._parse()
        except trio.WouldBlock:
            return answered
        if self.code is None:
            self.code = 1006
        return answered

    async def _refuse_if_gone(self) -> None:
        if self._gone:
            raise trio.BrokenResourceError("the peer is gone")

    def _parse(self) -> bool:
        if not self.status:
            start, found, self._unparsed = self._unparsed.partition(b"\r\n\r\n")
            assert found, "the answer to the handshake came in pieces"
            self.status = int(start.split()[1])
        answered = False
        while self.status == 101 and len(self._unparsed) >= 2:
            first, size = self._unparsed[0], self._unparsed[1]
            begin = {126: 4, 127: 10}.get(size, 2)
            if begin > 2:
                size = int.from_bytes(self._unparsed[2:begin], "big")
            if len(self._unparsed) < begin + size:
                break
            payload, self._unparsed = self._unparsed[begin : begin + size], self._unparsed[begin + size :]
            answered |= self._take(first, payload)
        return answered

    def _take(self, first: int, payload: bytes) -> bool:
        assert self.code is None, "a frame after the close frame"
        opcode = first & 0xF
        if opcode == TEXT:
            self.inbox.append(json.loads(payload))
            return False
        if opcode == PING:
            return self._answer(frame(PONG, payload))
        assert opcode == CLOSE
        self.code = int.from_bytes(payload[:2], "big")
        return not self._is_closing and self._answer(frame(CLOSE, payload[:2]))

    def _answer(self, data: bytes) -> bool:
        try:
            self._from_peer.put_data(data)
        except trio.ClosedResourceError:
            return False
        return True


@attrs.define(eq=False)
class Crank:
    """A Trio run with a mock clock and one service at a time in memory. End it with `stop`."""

    settings: Settings
    instruments: Sequence[trio.abc.Instrument] = ()
    scope: trio.CancelScope = attrs.field(init=False)
    """Cancels the service and all its connections, as when the task that serves is cancelled."""
    local: LocalService = attrs.field(init=False)
    peers: list[Peer] = attrs.field(init=False)
    drained: bool = attrs.field(init=False)
    """Whether a drain that was asked for has come to its end."""
    _clock: trio.testing.MockClock = attrs.field(factory=trio.testing.MockClock)
    _ticks: deque[Callable[[], object]] = attrs.field(factory=deque)
    _todo: Callable[[], object] | None = None
    _ended: Outcome[None] | None = None
    _nursery: trio.Nursery = attrs.field(init=False)
    _renewing: bool = False
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        trio.lowlevel.start_guest_run(
            self._run,
            run_sync_soon_threadsafe=self._ticks.append,
            done_callback=self._note_end,
            host_uses_signal_set_wakeup_fd=True,
            clock=self._clock,
            instruments=self.instruments,
        )
        self.do(lambda: None)

    @property
    def now(self) -> float:
        """The time on the mock clock, in seconds."""
        return self._clock.current_time()

    def do(self, action: Callable[[], object]) -> None:
        """Do this and let everything run that follows from it. Raises what made the run end."""
        assert self._todo is None
        self._todo = action
        while self._todo is not None:
            self._turn_once()

    def connect(self, peer: Peer) -> None:
        """Let a peer come in."""
        self.peers.append(peer)
        self.do(lambda: self._nursery.start_soon(self._serve, peer))

    def advance(self, seconds: float) -> None:
        """Let time pass, in one jump."""
        self.do(lambda: self._clock.jump(seconds))

    def drain(self) -> None:
        """Ask the service to drain; it has when `drained`."""
        self.do(lambda: self._nursery.start_soon(self._drain))

    def renew(self) -> None:
        """A new service in place of the present one, which must leave nothing behind."""
        former = self.local
        self._renewing = True
        while self.local is former:
            self._turn_once()

    def stop(self) -> None:
        """End the service, which must leave nothing behind, and the run."""
        self._stopping = True
        failed = self._ended is not None
        while self._ended is None:
            self._ticks.popleft()()
        if not failed:
            self._ended.unwrap()

    def _turn_once(self) -> None:
        if self._ended is not None:
            self._ended.unwrap()
        self._ticks.popleft()()

    async def _run(self) -> None:
        before = Holdings.now()
        while not self._stopping:
            self._renewing, self.drained, self.peers = False, False, []
            with trio.CancelScope() as self.scope:
                async with (
                    open_service(self.settings, in_memory=True) as self.local,
                    trio.open_nursery() as self._nursery,
                ):
                    try:
                        await self._turn()
                    finally:
                        self._todo = None
                        # A goodbye is shielded, so that its time must pass.
                        self._clock.autojump_threshold = 0
                    self._nursery.cancel_scope.cancel()
            self._clock.autojump_threshold = inf
            self._clock.jump(-self.now % 1)
            now = Holdings.now()
            assert now.tasks == before.tasks, f"I7: left {now.tasks - before.tasks}"
            assert now.descriptors <= before.descriptors, "I7: descriptors"
            assert now.threads <= before.threads, "I7: threads"

    async def _turn(self) -> None:
        while not self._renewing and not self._stopping:
            if self._todo is None:
                # Always runnable, so that the host is never sent to wait in a thread.
                await trio.lowlevel.checkpoint()
                continue
            self._todo()
            while True:
                await trio.testing.wait_all_tasks_blocked()
                answered = [peer.read() for peer in self.peers]
                if not any(answered):
                    break
            self._todo = None

    async def _serve(self, peer: Peer) -> None:
        peer.task = trio.lowlevel.current_task()
        try:
            with peer.scope:
                await self.local.service.serve_stream(peer.far_end)
        finally:
            peer.is_served = False

    async def _drain(self) -> None:
        await self.local.service.drain()
        self.drained = True

    def _note_end(self, outcome: Outcome[None]) -> None:
        self._ended = outcome
