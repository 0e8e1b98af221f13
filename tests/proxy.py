"""What stands between a client and the service, and can stop to forward."""

from __future__ import annotations

import contextlib

import trio


class Proxy:
    """Forwards TCP in both directions until it is told to forward nothing more; it closes nothing then."""

    def __init__(self, address):
        self._address = address
        self._flowing = trio.Event()
        self._flowing.set()
        self.pings = 0
        """How many pings of the service were passed on."""

    def freeze(self):
        self._flowing = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, near):
        async with (
            near,
            await trio.open_tcp_stream(*self._address[:2]) as far,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._forward, near, far)
            nursery.start_soon(self._forward, far, near)

    async def _forward(self, source, sink):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await self._flowing.wait()
                self.pings += data.count(b"\x89\x00")
                await sink.send_all(data)
            await sink.send_eof()
