"""Owns the rules that every event is held against before it is routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from msgspec import UNSET

from collab.errors import FromUserMismatch, InvalidEvent, RateLimited, TooManyRecipients
from collab.policy.rate import Meters, Rate
from collab.wire.text import has_control_or_bidi

if TYPE_CHECKING:
    from collab.wire.messages import RouteRequest

NO_LIMIT = Rate(0, 0)
_RECIPIENTS_A_UNIT = 10


class EventRules:
    """Whether a connection's user may send this event."""

    def __init__(self, *, max_recipients: int, rate: Rate = NO_LIMIT) -> None:
        self._max_recipients = max_recipients
        # One meter for each user, whatever connection the events come on.
        self._meters = Meters(rate)
        self._is_metered = self._meters.is_on

    def check(self, request: RouteRequest, user_id: str) -> None:
        """Check one event of the user.

        Raises:
            MessageError: `FromUserMismatch`, `TooManyRecipients`, `InvalidEvent` or `RateLimited`,
                with the request's id.
        """
        event = request.event
        if event.from_user is not UNSET and event.from_user != user_id:
            raise FromUserMismatch(
                "data.from_user: expected the connection's own user, or nothing", reply_id=request.reply_id
            )
        if len(event.to_users) > self._max_recipients and len(set(event.to_users)) > self._max_recipients:
            raise TooManyRecipients(
                f"data.to_users: at most {self._max_recipients} recipients", reply_id=request.reply_id
            )
        if has_control_or_bidi("".join(event.to_users)):
            position = next(i for i, recipient in enumerate(event.to_users) if has_control_or_bidi(recipient))
            raise InvalidEvent(
                f"data.to_users[{position}]: holds a control or bidi character", reply_id=request.reply_id
            )
        if self._is_metered:
            units = -(-len(event.to_users) // _RECIPIENTS_A_UNIT) or 1
            if wait_seconds := self._meters.spend(user_id, units, trio.current_time()):
                raise RateLimited(wait_seconds, reply_id=request.reply_id)
