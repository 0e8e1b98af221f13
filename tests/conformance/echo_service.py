"""Owns the echo that conformance is judged by: the real acceptor, with nothing changed but what is said.

The door, the handshake, the tap, the pump, the scanner, trio-websocket, the mailbox and the goodbye are the
service's own. What an event router does with a message is replaced: each one is sent back as it came,
a binary one too, and nobody is greeted.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from collab.core.connection import Connection
from collab.edge.intake import Intake
from collab.edge.life import Life
from collab.settings import Duration, LimitSettings, Settings, Size, TimeoutSettings
from collab.wire.frames import text_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_websocket import WebSocketConnection

    from collab.core.outbox import Outbox
    from collab.edge.tap import Tap

TARGET = "/?user_id=autobahn&backend_url=http://localhost:8000&presence=none"

SETTINGS = Settings(
    limits=LimitSettings(
        message_bytes=Size("16MiB"),
        mailbox_messages=100_000,
        mailbox_bytes=Size("256MiB"),
        control_frames=0,
        errors=0,
        connections_per_user=0,
    ),
    timeouts=TimeoutSettings(write=Duration("1m"), ping_interval=Duration("1h")),
)
"""Limits that no case reaches, and no ping of ours in between."""


@contextmanager
def echoing() -> Iterator[None]:
    """While it is open, every connection that is accepted gets back what it sends."""
    with patch.multiple(
        "collab.edge.acceptor", Life=_EchoLife, Intake=_EchoIntake, Connection=_EchoConnection
    ):
        yield


class _EchoConnection(Connection):
    def send(self, message: object, reply_id: bytes = b"") -> None:
        """Say nothing that was not said to us: neither `connected` nor `service_shutdown`."""


class _EchoIntake(Intake):
    __slots__ = ()

    def take(self, texts: list[bytes]) -> list[object]:
        for text in texts:
            self.connection.mailbox.put_or_wait(text_frame(text))
        return []


class _EchoLife(Life):
    __slots__ = ()

    def __init__(
        self, intake: Intake, tap: Tap, websocket: WebSocketConnection, *, outbox: Outbox, **parts: object
    ) -> None:
        texts = _TextsOf(websocket, intake.connection, tap, outbox)
        super().__init__(intake, tap, texts, outbox=outbox, **parts)


class _TextsOf:
    """The text messages that went through trio-websocket; a binary one is sent back here."""

    def __init__(
        self, websocket: WebSocketConnection, connection: Connection, tap: Tap, outbox: Outbox
    ) -> None:
        self._websocket = websocket
        self._connection = connection
        self._tap = tap
        self._outbox = outbox

    async def get_message(self) -> str:
        while isinstance(message := await self._websocket.get_message(), bytes):
            with self._outbox:
                self._connection.mailbox.put_or_wait(b"\x82" + text_frame(message)[1:])
            self._tap.scanner.odd_taken()
        return message
