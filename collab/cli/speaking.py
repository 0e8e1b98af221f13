"""Owns the WebSocket of `trio-collab doctor`, on Trio and wsproto: it tells how an upgrade went wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from collab.cli.asking import Answer, open_stream

if TYPE_CHECKING:
    from collab.cli.far import Far

_READ_BYTES = 65536
_MOST_BYTES = 1024 * 1024
_CLOSE_SECONDS = 2.0


class Trouble(Exception):
    """The connection broke, ended, or says what no WebSocket says."""


class Refusal(Exception):
    """The upgrade has an answer of HTTP."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.sentence)
        self.answer = answer


class Speaker:
    """One WebSocket with messages of JSON. Owns its stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[ws.Event] = []
        self._text = ""

    @classmethod
    async def connect(cls, far: Far, target: str, headers: dict[str, str], *, seconds: float) -> Speaker:
        """An open WebSocket.

        Raises:
            Refusal: the answer is another than 101.
            Trouble, Unreachable, trio.TooSlowError: there is none.
        """
        with trio.fail_after(seconds):
            speaker = cls(await open_stream(far))
            try:
                await speaker._open(far.netloc, target, headers)
            except BaseException:
                await trio.aclose_forcefully(speaker._stream)
                raise
        return speaker

    async def send(self, message: dict[str, object]) -> None:
        """Send one message. Where that fails, `receive` says why: something may have come before the end."""
        await self._send(ws.TextMessage(msgspec.json.encode(message).decode()))

    async def receive(self) -> dict[str, Any]:
        """The next message; one that is none of the service is an empty object. Raises Trouble."""
        while True:
            event = await self._next_event()
            if isinstance(event, ws.TextMessage):
                self._text += event.data
                if len(self._text) > _MOST_BYTES:
                    raise Trouble("a message is too large")
                if event.message_finished:
                    text, self._text = self._text, ""
                    return _object(text)
            elif isinstance(event, ws.Ping):
                await self._send(event.response())
            elif isinstance(event, ws.CloseConnection):
                if self._protocol.state is ConnectionState.OPEN:
                    # wsproto's own word for a frame that is none.
                    raise Trouble(f"what comes is not WebSocket: {event.reason}")
                await self._send(event.response())
                raise Trouble(
                    f"the service closed it with {event.code}, {event.reason or 'without a reason'}"
                )

    async def close(self) -> None:
        """Close in good order, where that is still possible; in any case, and in time."""
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            with suppress(Trouble):
                if self._protocol.state is ConnectionState.OPEN:
                    await self._send(ws.CloseConnection(1000))
                    while True:
                        await self.receive()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)

    async def _open(self, host: str, target: str, headers: dict[str, str]) -> None:
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send(ws.Request(host=host, target=target, extra_headers=extra))
        event = await self._next_event()
        if isinstance(event, ws.AcceptConnection):
            return
        if not isinstance(event, ws.RejectConnection):
            raise Trouble("the upgrade has no answer")
        body = bytearray()
        # A body that breaks off is of no importance.
        with suppress(Trouble):
            while event.has_body and isinstance(data := await self._next_event(), ws.RejectData):
                body += data.data
                if data.body_finished or len(body) > _MOST_BYTES:
                    break
        names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in event.headers}
        raise Refusal(Answer(event.status_code, names, bytes(body)))

    async def _send(self, event: ws.Event) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
            await self._stream.send_all(self._protocol.send(event))

    async def _next_event(self) -> ws.Event:
        while not self._events:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Trouble("the connection broke") from None
            if not data:
                raise Trouble("the connection ended")
            try:
                self._protocol.receive_data(bytes(data))
                self._events += self._protocol.events()
            except (RemoteProtocolError, LocalProtocolError, ValueError) as error:
                # ValueError: wsproto decodes what stands in the head.
                raise Trouble(f"the answer is not that of a WebSocket server: {error}") from None
        return self._events.pop(0)


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
