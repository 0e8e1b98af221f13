"""Owns what is told of those who were not let in: the audit, and a log that is not theirs to fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.observe.log import get_logger

if TYPE_CHECKING:
    from collab.errors import Refused
    from collab.observe.audit import Audit

_log = get_logger()
_LOGGED_A_SECOND = 50


class Refusals:
    """Tells of each refusal, and in the log of so many a second; one line a second counts them all."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._count = 0
        self._handshakes = 0

    def note_handshake(self) -> None:
        """A connection was closed before its handshake of TLS: there have been too many."""
        self._handshakes += 1

    def note(self, address: str, refusal: Refused) -> None:
        """Somebody was refused."""
        self._audit.refused(address, refusal)
        # Whoever is refused can ask again at once.
        self._count += 1
        if self._count <= _LOGGED_A_SECOND:
            _log.info(
                "Request refused",
                address=address,
                status=refusal.status,
                code=refusal.code,
                reason=refusal.message,
            )

    def tick(self) -> None:
        """Sum up what was not logged one by one in the second that ends now; called once a second."""
        if self._count > _LOGGED_A_SECOND:
            _log.info("Requests refused", count=self._count)
        self._count = 0
        if self._handshakes:
            _log.info("TLS handshakes over the rate", count=self._handshakes)
        self._handshakes = 0
