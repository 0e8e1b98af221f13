"""Owns when to connect again, and when not (docs/protocol.md, Reconnecting). Sans-IO."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs

from collab.client.errors import Stopped
from collab.wire.close import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable

NO_CLOSE_FRAME = 1006

_TERMINAL_STATUS = frozenset({400, 401, 403})
_TERMINAL_CODES = frozenset({CloseCode.REPLACED, CloseCode.DISCONNECTED_BY_OPERATOR})
_STEADY_SECONDS = 10.0


class Ended(Exception):
    """The connection is over: the close code (1006 without a close frame) and the reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Declined(Exception):
    """The upgrade, or a request, got another answer than it asked for."""

    def __init__(self, status: int, reason: str, word: str, retry_after: float | None) -> None:
        super().__init__(reason)
        self.status = status
        self.word = word
        self.retry_after = retry_after


@attrs.frozen(kw_only=True)
class End:
    """How a try or a connection ended.

    `status` is there where the upgrade was refused, `code` is the close code otherwise. `come_back_in`
    is what the service asked for, in seconds, `lived` how long there was a connection.
    """

    reason: str
    code: int = NO_CLOSE_FRAME
    status: int | None = None
    word: str = ""
    come_back_in: float | None = None
    lived: float = 0.0


class Redial:
    """How long to wait before the next try."""

    def __init__(
        self,
        *,
        first_seconds: float,
        longest_seconds: float,
        fresh_tokens: bool,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._fresh_tokens = fresh_tokens
        self._uniform = uniform
        self._failures = 0
        self._refused_tokens = 0

    def after(self, end: End) -> float:
        """The seconds until the next try: a random part of a bound that doubles (full jitter).

        Raises:
            Stopped: there is to be none.
        """
        if end.status in _TERMINAL_STATUS and not self._another_token_may_do(end.status):
            raise Stopped(end.reason, status=end.status, code=end.word)
        if end.code in _TERMINAL_CODES:
            raise Stopped(end.reason, close_code=end.code)
        if end.lived > 0:
            self._refused_tokens = 0
        if end.lived >= _STEADY_SECONDS:
            # Not at once: a service that takes us and drops us again is not to be stormed.
            self._failures = 0
        bound = min(self._longest_seconds, self._first_seconds * 2.0 ** min(self._failures, 32))
        self._failures += 1
        delay = self._uniform(0.0, bound)
        return delay if end.come_back_in is None else max(delay, end.come_back_in)

    def _another_token_may_do(self, status: int) -> bool:
        if status != 401 or not self._fresh_tokens:
            return False
        self._refused_tokens += 1
        return self._refused_tokens < 2
