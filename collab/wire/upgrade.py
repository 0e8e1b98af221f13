"""Owns the upgrade of one Engine.IO session from polling to a WebSocket.

The client opens a WebSocket beside its polls and sends `2probe` on it; the answer is `3probe`. From
then on no poll may hang: the client waits for the end of the one that is open, and opens no other. Then
it sends `5`, and the WebSocket is the transport. Until then everything goes by polling, so nothing is
lost where the WebSocket ends early, and nothing is overtaken where it does not.
"""

from __future__ import annotations

from enum import Enum, auto

from collab.errors import InvalidPacket
from collab.wire.engineio import PROBE_ANSWER_FRAME, bad_request

UPGRADE_SECONDS = 10
"""How long an upgrade may take before its WebSocket is closed."""


class Upgrade(Enum):
    """Where an upgrade is."""

    NONE = auto()
    """The transport is polling; no WebSocket is there."""
    OPENED = auto()
    """A WebSocket is there and has said nothing."""
    PROBED = auto()
    """The probe was answered: no poll hangs from here on."""
    DONE = auto()
    """The transport is the WebSocket."""


class UpgradeMachine:
    """One session's way from polling to a WebSocket."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = Upgrade.NONE

    @property
    def polls_may_hang(self) -> bool:
        """Whether a poll may wait for a packet, and need not be answered with a noop at once."""
        return self.state in (Upgrade.NONE, Upgrade.OPENED)

    @property
    def is_done(self) -> bool:
        """Whether the WebSocket is the transport."""
        return self.state is Upgrade.DONE

    def check_polling(self) -> None:
        """Raises `EngineRefused` unless this session takes a GET or POST: not after its upgrade."""
        if self.is_done:
            raise bad_request()

    def begin(self) -> None:
        """A WebSocket came for this session.

        Raises:
            EngineRefused: another is there already.
        """
        if self.state is not Upgrade.NONE:
            raise bad_request()
        self.state = Upgrade.OPENED

    def receive(self, text: bytes) -> bytes:
        """A text on the new WebSocket: what to send on it at once.

        After `2probe` the hanging poll is to be answered, with a noop if there is nothing else
        (`polls_may_hang` is false then); after `5` as well, and `is_done` holds.

        Raises:
            InvalidPacket: anything else: the WebSocket is to be closed, and `abort` called; the session
                goes on polling.
        """
        if text == b"2probe" and self.state is Upgrade.OPENED:
            self.state = Upgrade.PROBED
            return PROBE_ANSWER_FRAME
        if text == b"5" and self.state is Upgrade.PROBED:
            self.state = Upgrade.DONE
            return b""
        raise InvalidPacket("An upgrade is a probe, and then an upgrade packet")

    def abort(self) -> None:
        """The new WebSocket is gone before the upgrade was done: polling goes on."""
        if not self.is_done:
            self.state = Upgrade.NONE
