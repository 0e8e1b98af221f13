"""Owns the calls of functions that an application gave: handlers, and the source of tokens."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def outcome_of(function: Callable[..., Awaitable[T] | T], *arguments: object) -> T:
    """Call it, and await what it gives if that can be awaited. Raises what it raises.

    On asyncio a task that awaits a cancelled one gets the exception that its own cancellation would be.
    Here that would end the client without a word, so it becomes a `RuntimeError`.
    """
    try:
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result
    except anyio.get_cancelled_exc_class() as error:
        await checkpoint_if_cancelled()
        raise RuntimeError("what it awaited was cancelled") from error
