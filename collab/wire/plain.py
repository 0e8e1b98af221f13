"""Owns the plain dialect: one text frame for each message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.wire import codec
from collab.wire.frames import text_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.errors import MessageError
    from collab.wire.messages import ClientMessage, CollabEvent, ServerMessage


class PlainDialect:
    """How the messages travel over a plain WebSocket. Stateless: one instance serves all connections."""

    name = "plain"

    def decode(self, text: bytes) -> ClientMessage:
        """The client's message in one text frame's payload.

        Raises:
            MessageError: what the sender is to be told.
        """
        return codec.decode(text)

    def frame(self, message: ServerMessage, reply_id: bytes = b"") -> bytes:
        """A message of the service as a frame ready to send."""
        return text_frame(codec.encode(message, reply_id))

    def event_frame(self, event: CollabEvent, from_user: str) -> bytes:
        """An event as the frame that every recipient gets."""
        return text_frame(codec.encode_event(event, from_user))

    def ack_frame(
        self, event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes
    ) -> bytes:
        """The acknowledgement of an event to so many distinct recipients."""
        return text_frame(codec.encode_ack(event_type, recipients, undelivered, reply_id))

    def error_frame(self, error: MessageError) -> bytes:
        """The `error` that answers a message."""
        return self.frame(codec.error_reply(error), error.reply_id)


PLAIN = PlainDialect()
