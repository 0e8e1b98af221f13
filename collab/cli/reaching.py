"""Owns the first steps of `trio-collab doctor`: from the name of the host to an answer of the service."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from collab.cli.asking import ask, why_no_tls
from collab.cli.far import Far, Unreachable
from collab.cli.findings import (
    Failed,
    Found,
    ends_of,
    is_it_running,
    names_of,
    no_service,
    other_program,
    skipped,
    warning,
)
from collab.cli.screen import count, duration, is_number, listed

if TYPE_CHECKING:
    _Tls = trio.SSLStream[trio.SocketStream]

_SOON_DAYS = 14
_LOCAL = ("127.", "::1")


class Reaching:
    """The way to a service. Each step raises `Failed` where the next ones would be pointless."""

    def __init__(self, far: Far, seconds: float) -> None:
        self._far = far
        self._seconds = seconds
        self._addresses: list[str] = []

    @property
    def is_local(self) -> bool:
        """Whether the way does not leave this machine. Known once the name is."""
        return all(address.startswith(_LOCAL) for address in self._addresses)

    async def name(self) -> Found:
        """The name of the host has addresses."""
        far = self._far
        try:
            with trio.fail_after(self._seconds):
                rows = await trio.socket.getaddrinfo(far.host, far.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise Failed(
                f"nobody knows the name {far.host}",
                "is it spelt right in COLLAB_URL? In a container, names of other machines may be others",
            ) from None
        self._addresses = list(dict.fromkeys(str(row[4][0]) for row in rows))
        if self._addresses == [far.host]:
            return Found(f"{far.host} is an address")
        return Found(f"{far.host} is {listed(self._addresses)}")

    async def tcp(self) -> Found:
        """The port takes connections."""
        far = self._far
        works: list[str] = []
        fails: dict[str, str] = {}
        for address in self._addresses:
            try:
                with trio.fail_after(self._seconds):
                    await (await trio.open_tcp_stream(address, far.port)).aclose()
                works.append(address)
            except trio.TooSlowError:
                fails[address] = "no answer"
            except OSError as error:
                fails[address] = _why(error)
        if works:
            finding = f"port {far.port} takes connections at {listed(works)}"
            if not fails:
                return Found(finding)
            others = listed([f"{address} ({why})" for address, why in fails.items()])
            if self.is_local:
                # `localhost` has two addresses, and clients try both.
                return Found(f"{finding}; not at {others}")
            return warning(
                f"{finding}, but not at {others}",
                "clients may try that one first: let the service listen there, or take it from the name",
            )
        advice = is_it_running(far.port)
        if not far.names_port:
            advice = f"the URL names no port, so it is {far.port}; the service's own is 9000. Else: " + advice
        if "no answer" in fails.values():
            advice = "a firewall on the way may drop it: let the port through. Else: " + advice
        elif self.is_local:
            advice += " In a container, localhost is the container itself"
        raise Failed(f"port {far.port} takes no connection: {listed(sorted(set(fails.values())))}", advice)

    async def tls(self) -> Found:
        """The certificate is good, and for how long."""
        far = self._far
        if far.ssl_context is None:
            if self.is_local:
                return skipped("not asked for: ws:// goes over this machine alone")
            secret = "the token and the events" if far.has_token else "the events"
            return warning(
                "not asked for: ws:// is not encrypted",
                f"{secret} can be read on the way: use wss:// (tls.cert_file, or a proxy that does it)",
            )
        try:
            stream = await self._handshake(far.ssl_context)
        except trio.BrokenResourceError as error:
            await self._fail_tls(error.__cause__)
        version = stream.version() or "TLS"
        der = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        ends = ends_of(der)
        if ends is None:
            return Found(version)
        days = (ends - datetime.now(UTC)).days
        finding = f"{version}; the certificate is good for {count(days, 'day')} more, until {ends:%Y-%m-%d}"
        if days < _SOON_DAYS:
            return warning(finding, "renew it: the service takes a renewed one within seconds")
        return Found(finding)

    async def _handshake(self, context: ssl.SSLContext) -> _Tls:
        with trio.fail_after(self._seconds):
            tcp = await trio.open_tcp_stream(self._far.host, self._far.port)
            stream = trio.SSLStream(tcp, context, server_hostname=self._far.host, https_compatible=True)
            try:
                await stream.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        return stream

    async def _fail_tls(self, cause: BaseException | None) -> NoReturn:
        finding = why_no_tls(cause, self._far.host)
        if isinstance(cause, ssl.SSLCertVerificationError):
            der = await self._unverified_certificate()
            ends = ends_of(der)
            if cause.verify_code == 10 and ends is not None:
                raise Failed(
                    f"{finding}, on {ends:%Y-%m-%d}",
                    "renew it: the service takes a renewed one within seconds. Or is our clock wrong?",
                )
            if cause.verify_code == 9:
                raise Failed(finding, "look at the clock of this machine, and at the certificate's dates")
            if cause.verify_code in (62, 64):
                names = names_of(der)
                told = f"; it is for {listed(names)}" if names else ""
                raise Failed(
                    finding + told, "use such a name in the URL, or have a certificate made for this one"
                )
            raise Failed(
                finding,
                "where it is meant to be so, name its authority with --cacert FILE (in a backend: "
                "SSL_CERT_FILE, or its ssl_context); else take a certificate of an authority that is known",
            )
        if await self._speaks_http():
            raise Failed(
                finding + ": it speaks plain HTTP",
                "use ws:// in the URL; or turn TLS on in the service (tls.cert_file, tls.key_file)",
            )
        raise Failed(finding, f"is port {self._far.port} the service's? " + other_program(self._far.port))

    async def http(self) -> Found:
        """It is trio-collab, and does not go down."""
        far = self._far.without_token()
        try:
            answer = await ask(far, "GET", "/health", seconds=self._seconds)
        except Unreachable as error:
            await self._fail_http(error)
        counters = answer.object() or {}
        needed = [counters.get(name) for name in ("uptime", "active_users", "total_events_routed")]
        if answer.status != 200 or not all(map(is_number, needed)):
            raise no_service(answer, far.port)
        ready = await ask(far, "GET", "/ready", seconds=self._seconds)
        if ready.status == 503 and (ready.object() or {}).get("status") == "draining":
            raise Failed(
                "the service is going down", "wait for the one that takes its place; clients reconnect then"
            )
        return Found(
            f"trio-collab, up {duration(counters['uptime'])}, "
            f"{count(counters['active_users'], 'user')} online"
        )

    async def _fail_http(self, error: Unreachable) -> NoReturn:
        if error.kind == "tls":
            raise Failed(
                "the other side ends TLS at the first request",
                "it may want a certificate of this client (tls.client_ca_file): --cert FILE, --key FILE",
            ) from None
        if self._far.ssl_context is None and await self._speaks_tls():
            raise Failed("this port speaks TLS", "use wss:// in the URL") from None
        if error.kind == "strange":
            raise Failed("what answers there does not speak HTTP", other_program(self._far.port)) from None
        raise Failed(
            "connections are taken, and get no answer",
            "the service may be stopped or stuck, or it is another program: look at its log. "
            + other_program(self._far.port),
        ) from None

    async def _speaks_tls(self) -> bool:
        try:
            stream = await self._handshake(_taking_any())
        except trio.BrokenResourceError as error:
            return "ALERT" in str(getattr(error.__cause__, "reason", ""))
        except (OSError, trio.TooSlowError):
            return False
        await trio.aclose_forcefully(stream)
        return True

    async def _speaks_http(self) -> bool:
        try:
            await ask(
                attrs.evolve(self._far.without_token(), ssl_context=None),
                "GET",
                "/health",
                seconds=self._seconds,
            )
        except Unreachable:
            return False
        return True

    async def _unverified_certificate(self) -> bytes | None:
        try:
            stream = await self._handshake(_taking_any())
        except (OSError, trio.TooSlowError, trio.BrokenResourceError):
            return None
        der: bytes | None = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        return der


def _taking_any() -> ssl.SSLContext:
    """For looking at a certificate only: nothing is sent over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _why(error: OSError) -> str:
    causes: list[BaseException] = [error]
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes += error.__cause__.exceptions
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "refused"
    texts = [cause.strerror for cause in reversed(causes) if isinstance(cause, OSError) and cause.strerror]
    return texts[0].lower() if texts else "no way to it"
