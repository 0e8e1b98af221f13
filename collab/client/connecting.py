"""Owns `connect`: the block in which a client lives."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from collab.client.address import address_of
from collab.client.collab import Collab
from collab.client.limits import Limits

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from collab.client.collab import StateCallback, Token


@asynccontextmanager
async def connect(
    url: str,
    *,
    user_id: str,
    backend_url: str,
    display_name: str = "",
    token: Token | None = None,
    presence: bool = True,
    on_state: StateCallback | None = None,
    ssl_context: ssl.SSLContext | None = None,
    start_seconds: float = 30.0,
    limits: Limits | None = None,
) -> AsyncIterator[Collab]:
    """A client of the service at `url`, `ws://HOST:PORT` or `wss://HOST:PORT`, for the length of a block.

    The block begins once it is connected; `start_seconds` is how long that may take, and with 0 the
    block begins at once. From then on the client connects again by itself, for ever, unless the
    service says no for good.

    `token` is a token, or a function that gives one, also asynchronously; it is called for each try to
    connect. Without `presence` nobody is told to this client, and `online` stays empty. `on_state` is
    called with each new state and its reason. `ssl_context` is for `wss://`, where the certificate is
    not one that the machine trusts.

    At the end of the block the connection is closed, and handlers that still run are cancelled.

    Raises:
        Stopped: the service said no.
        NotConnected: there is no connection within `start_seconds`.
        ValueError: `url` is none of a service.
    """
    address = address_of(
        url,
        user_id=user_id,
        backend_url=backend_url,
        display_name=display_name,
        wants_presence=presence,
    )
    collab = Collab(
        address,
        user_id=user_id,
        display_name=display_name,
        token=token,
        wants_presence=presence,
        on_state=on_state,
        ssl_context=ssl_context,
        limits=limits or Limits(),
    )
    failed: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collab.run)
        tasks.start_soon(collab.run_handlers)
        try:
            if start_seconds > 0:
                await collab.started(start_seconds)
            yield collab
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:
            # Kept out of the task group, which would wrap it into an exception group.
            failed = error
        finally:
            tasks.cancel_scope.cancel()
            collab.close()
    if failed is not None:
        raise failed
