"""Owns the composition: builds every part of one service and opens the nurseries it runs in."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from collab._version import __version__
from collab.core.membership import Membership
from collab.core.outbox import Outbox
from collab.core.presence import Presence
from collab.core.registry import Registry
from collab.core.router import Router
from collab.core.status import Status
from collab.edge.acceptor import Acceptor
from collab.edge.door import Door
from collab.edge.keepalive import Sweeper
from collab.edge.listen import Address, PatientListener, local_addresses, open_listeners
from collab.edge.pump import Pump
from collab.edge.refusals import Refusals
from collab.edge.tls import Tls
from collab.observe.audit import Audit
from collab.observe.events import EventLog
from collab.observe.log import get_logger
from collab.policy.auth import Authenticator
from collab.policy.sending import send_policy
from collab.settings.options import security_settings
from collab.settings.warnings import open_to_anybody
from collab.web.admin import AdminApi
from collab.web.app import create_app
from collab.web.events import EventsApi
from collab.web.polling import PollingApi
from collab.web.serving import http_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.settings import Settings

_log = get_logger()
_EVENT_LOG_TICK_SECONDS = 1.0


class Service:
    """A running service. Made by `serve`; usable until `serve` returns."""

    def __init__(self, settings: Settings, addresses: Sequence[Address], *, pumped: bool = True) -> None:
        self.settings = settings
        self.addresses = list(addresses)
        """Where it listens: an IP address and a port number each."""
        self.status = Status()
        self.registry = Registry()
        self._audit = Audit(settings.audit)
        self._event_log = EventLog(_log, settings.log.events_per_second)
        self._outbox = Outbox()
        self._authenticator = Authenticator(settings.auth)
        self._send_policy = policy = send_policy(settings.policy, settings.auth.mode)
        # Asked for each recipient of each event: the policy itself, with nothing between.
        may_send = None if policy is None else policy.may_send
        self._presence = Presence(self._outbox, self.status, may_send)
        self._router = Router(
            self.registry,
            self._presence,
            self.status,
            self._event_log,
            self._outbox,
            slow_consumer_seconds=settings.limits.slow_consumer,
            may_send=may_send,
            audit=self._audit if self._audit.routes else None,
        )
        self._membership = Membership(
            self.registry,
            self._router,
            self._presence,
            self.status,
            self._outbox,
            self._audit,
            connections_per_user=settings.limits.connections_per_user,
            reconnect_spread_seconds=settings.server.reconnect_spread,
            may_send=may_send,
        )
        self._pump = Pump(self._router, self._outbox) if pumped and hasattr(select, "epoll") else None
        self._refusals = Refusals(self._audit)
        self._tls = Tls.from_settings(settings.tls)
        self._acceptor = Acceptor(
            settings,
            self._membership,
            self._router,
            self._outbox,
            self.status,
            self._pump,
            self._authenticator,
            self._audit,
            self._refusals,
        )
        self._door: Door | None = None
        self._streams: set[trio.CancelScope] = set()
        self._drain_asked = trio.Event()
        self._finished = trio.Event()

    @property
    def http_url(self) -> str:
        """The base URL of the HTTP API, by the host name of the settings where it is one."""
        return f"{'http' if self._tls is None else 'https'}://{self._authority()}"

    @property
    def ws_url(self) -> str:
        """The URL that backends connect to."""
        return f"{'ws' if self._tls is None else 'wss'}://{self._authority()}"

    def reload(self) -> None:
        """Read the TLS certificate anew, as at SIGHUP. Where that fails the old one goes on."""
        if self._tls is not None:
            self._tls.renew()

    async def drain(self) -> None:
        """Let nobody new in, tell everyone, deliver what was taken in, and come to an end.

        Returns when the service has ended: within `server.drain`, and early once nobody is left.
        A second call waits for the same end.
        """
        self._drain_asked.set()
        await self._finished.wait()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection that did not come through the listeners. Owns the stream.

        The stream needs a `socket` that knows both addresses (see `collab.testing`).
        """
        assert self._door is not None, "the service is not running"
        scope = trio.CancelScope()
        self._streams.add(scope)
        try:
            with scope:
                await self._door.serve(stream)
        finally:
            self._streams.discard(scope)

    def reopen_audit(self) -> None:
        """Open the audit log anew, for a tool that has renamed its file."""
        self._audit.reopen()

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[Service] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until drained or cancelled. Owns the listeners.

        Raises:
            CannotStart: the audit log cannot be opened.
            AuditFailed: it could not be written, and `audit.on_full` is "stop".
        """
        token = trio.lowlevel.current_trio_token()

        def drain() -> None:
            # Called from the thread that writes the audit log; the loop may be over by then.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._drain_asked.set)

        self._audit.open(drain, version=__version__, settings=security_settings(self.settings))
        try:
            await self._run(listeners, task_status=task_status)
        finally:
            ended = "drained" if self._drain_asked.is_set() else "cancelled"
            self._audit.close(
                reason="audit failed" if self._audit.has_failed else ended,
                events_routed=self.status.total_events_routed,
            )

    async def _run(
        self, listeners: Sequence[trio.SocketListener], *, task_status: trio.TaskStatus[Service]
    ) -> None:
        app = create_app(
            self.settings,
            self.registry,
            self.status,
            self.ws_url,
            self._authenticator,
            self._audit,
            self._send_policy,
            events=EventsApi(
                self.settings, self._router, self._outbox, self.status, self._acceptor.rules, self._audit
            ),
            admin=AdminApi(self.settings, self.registry, self._outbox, self._audit),
            polling=PollingApi(self._acceptor),
        )
        sweeper = Sweeper(self.settings, self._acceptor, self._router)
        try:
            async with http_server(app) as serve_http, trio.open_nursery() as nursery:
                self._door = Door(
                    self.settings, self._acceptor, serve_http, self._audit, self._refusals, self._tls
                )
                try:
                    await nursery.start(self._router.run)
                    await nursery.start(self._presence.run)
                    await nursery.start(sweeper.run)
                    if self._pump is not None:
                        await nursery.start(self._pump.run)
                    await nursery.start(self._acceptor.sessions.run)
                    nursery.start_soon(self._tick_event_log)
                    nursery.start_soon(self._authenticator.run)
                    if self._send_policy is not None:
                        nursery.start_soon(self._send_policy.run)
                    if self._tls is not None:
                        nursery.start_soon(self._tls.run)
                    if listeners:
                        patient = [PatientListener(listener) for listener in listeners]
                        nursery.start_soon(trio.serve_listeners, self._door.serve, patient)
                    task_status.started(self)
                    await self._drain_asked.wait()
                    await self._drain(self._door)
                finally:
                    # A response that nobody reads is sent in a scope that Hypercorn shields.
                    self._door.abort_exchanges()
                nursery.cancel_scope.cancel()
        finally:
            for scope in self._streams:
                scope.cancel()
            if self._pump is not None:
                self._pump.close()
            self._finished.set()

    async def _tick_event_log(self) -> None:
        while True:
            await trio.sleep(_EVENT_LOG_TICK_SECONDS)
            self._event_log.tick()
            self._audit.tick()
            self._refusals.tick()

    async def _drain(self, door: Door) -> None:
        """The order of docs/architecture.md, "Drain". Bounded by `server.drain` as a whole."""
        self.status.draining = True
        deadline = trio.current_time() + self.settings.server.drain
        _log.info("Draining", connections=self.registry.connection_count)
        with trio.move_on_at(deadline) as bounded:
            self._membership.announce_shutdown()
            self._acceptor.stop_reading()
            # A stalled recipient holds up the acks of others, who need time for their own goodbye.
            with trio.move_on_after(self.settings.server.drain / 2) as patience:
                await self._router.wait_settled()
            if patience.cancelled_caught:
                self._router.give_up_waiting()
            self._acceptor.send_away(deadline)
            door.hurry()
            await self._acceptor.sessions.wait_empty()
            await door.wait_empty()
        _log.info("Drained", in_time=not bounded.cancelled_caught)

    def _authority(self) -> str:
        host = self.settings.server.host
        port = self.addresses[0][1] if self.addresses else self.settings.server.port
        if not host or host in ("0.0.0.0", "::"):
            host = "localhost"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(
    settings: Settings,
    *,
    pumped: bool = True,
    task_status: trio.TaskStatus[Service] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one service until it is drained or cancelled.

    Where there is an epoll, one task reads all connections over TCP; without `pumped`, each reads
    for itself. Start it with `service = await nursery.start(serve, settings)`: the `Service` listens by then.
    Several can run in one process. Cancelling leaves no task, socket or thread behind.

    Raises:
        CannotStart: it cannot listen where the settings say, or open the audit log.
        SettingsError: a key or a certificate cannot be read, or settings contradict each other.
        AuditFailed: the audit log could not be written, and `audit.on_full` is "stop".
    """
    if warning := open_to_anybody(settings):
        _log.warning(warning)
    listeners = await open_listeners(settings.server.host, settings.server.port)
    try:
        service = Service(settings, local_addresses(listeners), pumped=pumped)
        await service.run(listeners, task_status=task_status)
    finally:
        for listener in listeners:
            listener.socket.close()
