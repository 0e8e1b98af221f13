"""Owns the serving process: its log, its signals, and the one `trio.run`."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from collab.errors import CollabError
from collab.observe.log import configure, get_logger
from collab.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from collab.observe.writer import LogWriter
    from collab.server import Service
    from collab.settings import Settings

_LAST_FLUSH_SECONDS = 0.2


def run_service(settings: Settings, *, until_eof: bool = False) -> int:
    """Serve until a signal asks for the end; return the exit code.

    `until_eof` asks for the end also once standard input ends: so a child learns that its
    parent is gone.

    Raises:
        CollabError: the service could not start.
    """
    with configure(settings.log) as log_writer:
        process = _Process(settings, log_writer)
        try:
            trio.run(partial(process.run, until_eof=until_eof))
        except BaseExceptionGroup as group:
            deliberate, others = group.split(CollabError)
            if deliberate is None or others is not None:
                raise
            raise _first(deliberate) from None
    return 0


class _Process:
    """One run of the service, and the reaction of the process to signals."""

    def __init__(self, settings: Settings, log_writer: LogWriter) -> None:
        self._settings = settings
        self._log_writer = log_writer
        self._log = get_logger("collab.cli")
        self._service: Service | None = None
        self._stopping = False

    async def run(self, *, until_eof: bool) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, nursery)
                if until_eof:
                    nursery.start_soon(self._stop_at_eof, nursery)
                # A nursery of its own, because the service ends by itself once it has drained.
                async with trio.open_nursery() as serving:
                    self._service = await serving.start(serve, self._settings)
                    self._log.info("Listening", ws=self._service.ws_url, http=self._service.http_url)
                nursery.cancel_scope.cancel()
        self._log.info("Stopped")

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._log_writer.reopen()
                if self._service is not None:
                    self._service.reopen_audit()
                self._log.info("Log reopened")
                if self._service is not None:
                    self._service.reload()
            elif self._stopping:
                self._exit_at_once(number)
            else:
                self._stop(nursery, signal.Signals(number).name)

    async def _stop_at_eof(self, nursery: trio.Nursery) -> None:
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        if not self._stopping:
            self._stop(nursery, "end of standard input")

    def _stop(self, nursery: trio.Nursery, reason: str) -> None:
        self._stopping = True
        self._log.info("Stopping", reason=reason)
        if self._service is None:
            nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(self._service.drain)

    def _exit_at_once(self, number: int) -> None:
        self._log.warning("Stopped at once", reason=f"second signal, {signal.Signals(number).name}")
        self._log_writer.flush(_LAST_FLUSH_SECONDS)
        os._exit(1)


def _first(group: BaseExceptionGroup[CollabError]) -> CollabError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
