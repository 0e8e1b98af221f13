"""Owns the Origin check of WebSocket upgrades (RFC 6455 section 10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab.errors import Refused

if TYPE_CHECKING:
    from collab.settings import OriginSettings


class OriginPolicy:
    """Which web pages' scripts may connect. Backends send no Origin; browsers always do."""

    def __init__(self, settings: OriginSettings) -> None:
        self._allowed = frozenset(settings.allowed)
        self._allow_absent = settings.allow_absent
        self._allow_null = settings.allow_null

    def check(self, origins: list[str]) -> None:
        """Check the values of the Origin header, an exact match each.

        Raises:
            Refused: 403 `origin_not_allowed`.
        """
        if not self._is_allowed(origins):
            raise Refused(403, "origin_not_allowed", "connections from this origin are not allowed")

    def _is_allowed(self, origins: list[str]) -> bool:
        if not origins:
            return self._allow_absent
        if len(origins) > 1:
            return False
        if origins[0] == "null":
            return self._allow_null
        return "*" in self._allowed or origins[0] in self._allowed
