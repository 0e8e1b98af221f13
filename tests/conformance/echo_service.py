"""Owns the echo that conformance is judged by: the real acceptor, with nothing changed but what is said.

The door, the handshake, the tap, the pump, the scanner, trio-websocket, the mailbox and the goodbye are the
service's own. What an event router does with a message is replaced: each one is sent back as it came,
a binary one too, and nobody is greeted.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from peers import BINARY, CONTINUATION

from collab.core.connection import Connection
from collab.edge.intake import Intake
from collab.edge.life import Life
from collab.settings import Duration, LimitSettings, Settings, Size, TimeoutSettings
from collab.wire.frames import FrameScanner, text_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_websocket import WebSocketConnection

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
    with (
        patch.multiple(
            "collab.edge.acceptor", Life=_EchoLife, Intake=_EchoIntake, Connection=_EchoConnection
        ),
        patch("collab.edge.tap.FrameScanner", _EchoScanner),
    ):
        yield


class _EchoConnection(Connection):
    def send(self, message: object, reply_id: bytes = b"") -> None:
        """Say nothing that was not said to us: neither `connected` nor `service_shutdown`."""


class _EchoIntake(Intake):
    scanner: _EchoScanner

    def take(self, texts: list[bytes]) -> list[object]:
        for text in texts:
            sent = text_frame(text)
            if self.scanner.are_binary.popleft():
                sent = b"\x82" + sent[1:]
            self.connection.mailbox.put_or_wait(sent)
        return []


class _EchoScanner(FrameScanner):
    """One that takes binary messages too, and says of each message that it lifts which kind it is."""

    def __init__(self, max_message_bytes: int, **others: object) -> None:
        super().__init__(max_message_bytes, **others)
        self.are_binary: deque[bool] = deque()
        self._is_binary = False

    def _lift(self, data: bytes, texts: list[bytes]) -> int:
        try:
            return super()._lift(data, texts)
        finally:
            self.are_binary.extend([False] * len(texts))

    def _check_kind(self, opcode: int) -> None:
        if opcode != CONTINUATION:
            self._is_binary = opcode == BINARY

    def _check_text(self, payload: bytes, *, is_last: bool) -> None:
        if not self._is_binary:
            super()._check_text(payload, is_last=is_last)
        if is_last:
            self.are_binary.append(self._is_binary)


class _EchoLife(Life):
    __slots__ = ()

    def __init__(
        self, intake: _EchoIntake, tap: Tap, websocket: WebSocketConnection, **parts: object
    ) -> None:
        intake.scanner = tap.scanner
        super().__init__(intake, tap, websocket, **parts)
