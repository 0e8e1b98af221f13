"""Owns the rules that every event is held against before it is routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from msgspec import UNSET

from collab.errors import FromUserMismatch, InvalidEvent, RateLimited, TooManyRecipients
from collab.policy.rate import Meters, Rate
from collab.wire.text import has_control_or_bidi

if TYPE_CHECKING:
    from collab.policy.schemas import EventSchemas
    from collab.settings import Settings
    from collab.wire.messages import RouteRequest

NO_LIMIT = Rate(0, 0)
_RECIPIENTS_A_UNIT = 10


class EventRules:
    """Whether a connection's user may send this event."""

    def __init__(
        self, *, max_recipients: int, rate: Rate = NO_LIMIT, schemas: EventSchemas | None = None
    ) -> None:
        self._max_recipients = max_recipients
        # One meter for each user, whatever connection the events come on.
        self._meters = Meters(rate)
        self.is_metered = self._meters.is_on
        """Whether users have a rate, so that `check` needs to know the time."""
        self._schemas = schemas

    @classmethod
    def from_settings(cls, settings: Settings) -> EventRules:
        """The rules that the settings ask for. Without validation no payload is looked at.

        Raises:
            SettingsError: a schema of `events.schema_dir` is no good.
        """
        schemas = None
        if settings.events.validation != "off":
            # Who does not validate does not load the validator.
            from collab.policy.schemas import EventSchemas

            schemas = EventSchemas.load(settings.events)
        limits = settings.limits
        rate = Rate(limits.events_per_second, limits.burst or limits.events_per_second)
        return cls(max_recipients=limits.max_recipients, rate=rate, schemas=schemas)

    def check(self, request: RouteRequest, user_id: str, now: float | None = None) -> None:
        """Check one event of the user. `now` is the time on Trio's clock, where the caller has it already.

        Raises:
            MessageError: `FromUserMismatch`, `TooManyRecipients`, `InvalidEvent` or `RateLimited`,
                with the request's id.
        """
        event = request.event
        to_users = event.to_users
        if event.from_user is not UNSET and event.from_user != user_id:
            raise FromUserMismatch(
                "data.from_user: expected the connection's own user, or nothing", reply_id=request.reply_id
            )
        if len(to_users) > self._max_recipients and len(set(to_users)) > self._max_recipients:
            raise TooManyRecipients(
                f"data.to_users: at most {self._max_recipients} recipients", reply_id=request.reply_id
            )
        if has_control_or_bidi("".join(to_users)):
            position = next(i for i, recipient in enumerate(to_users) if has_control_or_bidi(recipient))
            raise InvalidEvent(
                f"data.to_users[{position}]: holds a control or bidi character", reply_id=request.reply_id
            )
        if self.is_metered:
            units = -(-len(to_users) // _RECIPIENTS_A_UNIT) or 1
            at = trio.current_time() if now is None else now
            if wait_seconds := self._meters.spend(user_id, units, at):
                raise RateLimited(wait_seconds, reply_id=request.reply_id)
        if self._schemas is not None:
            self._schemas.check(event, request.reply_id)
