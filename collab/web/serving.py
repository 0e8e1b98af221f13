"""Owns the use of Hypercorn: its stream server, its contexts, nothing of its listening."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from quart_trio import QuartTrio

_ACCESS_LOG_OFF = None


@asynccontextmanager
async def http_server(app: QuartTrio) -> AsyncIterator[Callable[[trio.abc.Stream], Awaitable[None]]]:
    """The app started up, as a function that serves one HTTP exchange on a stream.

    The stream must give one whole request and end, and have a `socket` with both addresses.
    The function returns when the response is written or given up.
    """
    config = _config()
    state: dict[str, Any] = {}
    wrapped = ASGIWrapper(cast("Any", app))
    lifespan = Lifespan(wrapped, config, state)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()

        async def serve_http(stream: trio.abc.Stream) -> None:
            context = WorkerContext(None)
            server = TCPServer(wrapped, config, context, ConnectionState(state), cast("Any", stream))
            await server.run()

        yield serve_http
        await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()


def _config() -> Config:
    config = Config()
    config.accesslog = _ACCESS_LOG_OFF
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    # One request for each connection: the response says `connection: close` and the door closes it.
    config.keep_alive_max_requests = 0
    return config
