"""Owns the connection to SQLite, and the one thread that uses it."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from demo_backend.store import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable

    P = ParamSpec("P")
    T = TypeVar("T")


class Database:
    """Runs functions of `store`, one after the other, each in a transaction of its own."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Waits for what is under way: a cancelled caller does not stop it.
        self._thread.shutdown()
        self._connection.close()

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T:
        """Call the function with the connection; what it wrote is kept unless it raises."""
        call = partial(self._in_transaction, partial(function, self._connection, *arguments, **named))
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _in_transaction(self, call: Callable[[], T]) -> T:
        with self._connection:
            return call()
