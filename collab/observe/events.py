"""Owns the log of routed events, held to a budget of lines a second."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collab.observe.log import Logger

_SHOWN_RECIPIENTS = 20


class EventLog:
    """Logs each routed event, and only counts once the second's budget is used up.

    `per_second` is the number of lines; 0 leaves only the summaries. The owner calls `tick`
    once a second. The payload is never logged, nor seen here.
    """

    __slots__ = ("_budget", "_left", "_log", "_not_logged", "_per_second")

    def __init__(self, log: Logger, per_second: int) -> None:
        self._log = log
        self._per_second = per_second
        self._not_logged = 0
        self._refill()

    def routed(self, type: str, from_user: str, to_users: Sequence[str]) -> None:
        """Note one routed event; `to_users` beyond the twentieth show as a number, `to_count`."""
        if not self._left:
            self._not_logged += 1
            return
        self._left -= 1
        if len(to_users) <= _SHOWN_RECIPIENTS:
            self._log.info("Routing event", type=type, **{"from": from_user}, to=to_users)
        else:
            shown = to_users[:_SHOWN_RECIPIENTS]
            self._log.info(
                "Routing event", type=type, **{"from": from_user}, to=shown, to_count=len(to_users)
            )

    def tick(self) -> None:
        """Sum up the second that ends now, if events were left out, and refill the budget."""
        # With INFO off the budget is 0 and nothing is written: `routed` stays one comparison and one sum.
        if self._not_logged and self._log.is_enabled_for(logging.INFO):
            logged = self._budget - self._left
            self._log.info("Routed events", count=logged + self._not_logged, not_logged=self._not_logged)
        self._not_logged = 0
        self._refill()

    def _refill(self) -> None:
        self._budget = self._left = self._per_second if self._log.is_enabled_for(logging.INFO) else 0
