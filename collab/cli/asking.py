"""Owns one request of a tool to the HTTP API of a service, on Trio and h11."""

from __future__ import annotations

import re
import socket
import ssl
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import quote

import attrs
import h11
import msgspec
import trio

from collab.cli.far import Declined, Far, Unreachable
from collab.cli.screen import is_number

_READ_BYTES = 65536
_MOST_BYTES = 64 * 1024 * 1024


@attrs.frozen
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)

    def object(self) -> dict[str, Any] | None:
        """The JSON object in it, or None."""
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def code(self) -> str:
        """The service's word for a refusal; empty where this is none of the service."""
        found = (self.object() or {}).get("code")
        return found if isinstance(found, str) else ""

    @property
    def sentence(self) -> str:
        """What it says about its refusal; else what the status means."""
        found = (self.object() or {}).get("error")
        if isinstance(found, str) and found:
            return found
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "an unknown status"

    @property
    def retry_after_seconds(self) -> float | None:
        """When to try again, if it says so."""
        exact = (self.object() or {}).get("retry_after_ms")
        if is_number(exact):
            return exact / 1000
        seconds = self.headers.get("retry-after", "")
        return float(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None


async def ask(
    far: Far, method: str, path: str, *, body: bytes | None = None, seconds: float = 10.0
) -> Answer:
    """Make one request on a connection of its own, with the token if there is one.

    Raises:
        Unreachable: there is no answer, or none of HTTP.
    """
    token = far.token()
    try:
        with trio.fail_after(seconds):
            stream = await open_stream(far)
            async with stream:
                return await _exchange(stream, far, method, path, body, token)
    except trio.TooSlowError:
        late = f"no answer within {seconds:g} s"
        if body is not None:
            late += "; what was sent may have been taken"
        raise _unreachable(far, late, "silent") from None


async def ask_json(
    far: Far, method: str, path: str, *, body: bytes | None = None, seconds: float = 10.0
) -> dict[str, Any]:
    """The JSON object that the service answers with 200.

    Raises:
        Unreachable: there is no answer, or it is none of the service.
        Declined: the service says no.
    """
    answer = await ask(far, method, path, body=body, seconds=seconds)
    if answer.status != 200:
        raise declined(far, answer)
    found = answer.object()
    if found is None:
        raise strange(far)
    return found


def strange(far: Far) -> Unreachable:
    """The error for an answer that the service would not give."""
    return _unreachable(far, "what answers there is not trio-collab", "strange")


def declined(far: Far, answer: Answer) -> Declined:
    """The sentence for an answer that is a refusal."""
    if not answer.code:
        text = f"{far.websocket_url} answers {answer.status} {answer.sentence}, which is not from trio-collab"
        return Declined(far.hide(text + _hint(far)), answer.status, "")
    text = f"the service refused: {answer.sentence} ({answer.status} {answer.code})"
    if answer.status == 401 and not far.has_token:
        text += "; give a token with --token or COLLAB_TOKEN"
    elif answer.retry_after_seconds is not None:
        text += f"; try again in {answer.retry_after_seconds:g} s"
    return Declined(far.hide(text), answer.status, answer.code)


def path_of_user(user_id: str) -> str:
    """Where the row of one user is."""
    return f"/api/users/{quote(user_id, safe='')}"


async def open_stream(far: Far) -> trio.abc.Stream:
    """A connection to the service, under TLS where the URL says so. The caller owns it.

    Raises:
        Unreachable: there is none.
    """
    try:
        tcp = await trio.open_tcp_stream(far.host, far.port)
    except (OSError, UnicodeError) as error:
        sentence, kind = _why_no_connection(error)
        raise _unreachable(far, sentence, kind) from None
    if far.ssl_context is None:
        return tcp
    stream = trio.SSLStream(tcp, far.ssl_context, server_hostname=far.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise _unreachable(far, why_no_tls(error.__cause__, far.host), "tls") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def why_no_tls(cause: BaseException | None, host: str) -> str:
    """The sentence for a handshake that failed."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        reasons = {
            9: "the certificate is not valid yet",
            10: "the certificate has expired",
            18: "the certificate is self-signed",
            19: "the certificate is of an authority that this machine does not trust",
            20: "the certificate is of an authority that this machine does not trust",
            21: "the certificate is of an authority that this machine does not trust",
            62: f"the certificate is not for {host}",
            64: f"the certificate is not for {host}",
        }
        return reasons.get(cause.verify_code, f"the certificate is refused: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
        return f"the other side refuses TLS: {(cause.reason or '').replace('_', ' ').lower()}"
    return "there is no TLS on this port"


async def _exchange(
    stream: trio.abc.Stream, far: Far, method: str, path: str, body: bytes | None, token: str
) -> Answer:
    http = h11.Connection(h11.CLIENT)
    headers = [("host", far.netloc), ("connection", "close"), ("accept", "application/json")]
    if token:
        headers.append(("authorization", f"Bearer {token}"))
    if body is not None:
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    request = http.send(h11.Request(method=method, target=far.prefix + path, headers=headers))
    request += http.send(h11.Data(data=body)) if body else b""
    request += http.send(h11.EndOfMessage())
    response: h11.Response | None = None
    received = bytearray()
    try:
        await _write(stream, request)
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                received += event.data
                if len(received) > _MOST_BYTES:
                    raise _unreachable(far, "the answer is too large", "strange")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError:
        _no_answer(far, "silent" if http.trailing_data[0] == b"" else "strange")
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise _unreachable(far, why_no_tls(error.__cause__, far.host), "tls") from None
        _no_answer(far, "silent")
    if response is None:
        _no_answer(far, "silent")
    names = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return Answer(response.status_code, names, bytes(received))


async def _write(stream: trio.abc.Stream, request: bytes) -> None:
    try:
        await stream.send_all(request)
    except trio.BrokenResourceError as error:
        # A refusal may have come before the whole request was taken.
        if isinstance(error.__cause__, ssl.SSLError):
            raise


def _no_answer(far: Far, kind: str) -> NoReturn:
    if kind == "silent":
        raise _unreachable(far, "the connection ended without an answer", kind) from None
    raise _unreachable(far, "what answers there does not speak HTTP", kind) from None


def _unreachable(far: Far, sentence: str, kind: str) -> Unreachable:
    return Unreachable(f"cannot reach {far.websocket_url}: {sentence}{_hint(far)}", kind)


def _hint(far: Far) -> str:
    return f" (trio-collab doctor {far.websocket_url} says more)"


def _why_no_connection(error: BaseException) -> tuple[str, str]:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the name of the host is not known", "name"
    errors = [error]
    if isinstance(error.__cause__, BaseExceptionGroup):
        errors += error.__cause__.exceptions
    if any(isinstance(one, ConnectionRefusedError) for one in errors):
        return "nothing listens there", "refused"
    reasons = [one.strerror for one in reversed(errors) if isinstance(one, OSError) and one.strerror]
    return (reasons[0].lower() if reasons else "there is no way to it"), "network"
