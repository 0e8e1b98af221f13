"""Owns the dialect of a sender that is an HTTP request: it gets its ack, and never anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.wire import codec
from collab.wire.plain import PlainDialect

if TYPE_CHECKING:
    from collections.abc import Sequence


class AnswerDialect(PlainDialect):
    """An ack is the body of the answer: the data of an `event_ack`."""

    name = "answer"

    def ack_frame(
        self, event_type: str, recipients: int, undelivered: Sequence[str], reply_id: bytes
    ) -> bytes:
        """The acknowledgement of an event to so many distinct recipients."""
        return codec.encode_ack_data(event_type, recipients, undelivered)


ANSWER = AnswerDialect()
