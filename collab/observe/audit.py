"""Owns the audit log: what is said of whom, one JSON object a line. How lines get out is audit_writer's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from collab.errors import AuditFailed
from collab.observe.audit_writer import AuditWriter, RouteLine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from collab.errors import Refused
    from collab.observe.audit_writer import Value
    from collab.settings import AuditSettings

_POLICY: Final = 1008
_OWN_CODES: Final = 4000


class Party(Protocol):
    """Of whom a line speaks: a connection, as far as it is known."""

    @property
    def connection_id(self) -> int: ...
    @property
    def user_id(self) -> str: ...
    @property
    def address(self) -> str: ...


class TokenFacts(Protocol):
    """What a line may say of a token."""

    @property
    def user_id(self) -> str: ...
    @property
    def token_id(self) -> str | None: ...
    @property
    def issuer(self) -> str | None: ...
    @property
    def expires_at_text(self) -> str: ...


class Audit:
    """Writes audit lines between `open` and `close`; where the settings name no file, every method is empty.

    Each line has `seq`, `time`, `event`, `connection_id`, `user_id` and `address` (null where there is
    none), then what the event has (docs/audit.md). Lines are ASCII: whatever a client has chosen
    stands in them escaped. No method waits, and none raises because of what a client has sent.
    """

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings
        self.is_on = bool(settings.file)
        self.routes = self.is_on and settings.routes
        """Whether routed events get a line."""
        self._writer: AuditWriter | None = None
        self._number = 0
        self._second = self._millisecond = 0
        self._second_text = self._time_text = ""

    @property
    def has_failed(self) -> bool:
        """Whether a line could not be written and `audit.on_full` is "stop": no event may be routed."""
        return self._writer is not None and self._writer.has_failed

    @property
    def dropped(self) -> int:
        """Lines dropped since the start."""
        return 0 if self._writer is None else self._writer.dropped

    def open(self, on_failure: Callable[[], None], **start: Value) -> None:
        """Open the file and say `start`. `on_failure` is called once, from any thread, when it has failed.

        Raises:
            CannotStart: the file cannot be opened.
        """
        if not self._settings.file:
            return
        self._writer = AuditWriter(self._settings.file, self._settings, on_failure)
        self._writer.start()
        self._put(self._line("start", start))

    def close(self, **stop: Value) -> None:
        """Say `stop`, and write what is queued, for at most two seconds.

        Raises:
            AuditFailed: lines were lost, and `audit.on_full` is "stop".
        """
        writer = self._writer
        if writer is None:
            return
        line = self._line("stop", stop)
        writer.put_last(line, self._number)
        self._writer = None
        writer.stop()
        if writer.has_failed:
            lost = writer.unwritten
            raise AuditFailed(
                f"The audit log {self._settings.file!r} could not be written: {writer.error}"
                + (f"; {lost} lines are lost" if lost else "; all lines were written in the end")
            )

    def reopen(self) -> None:
        """Open the file anew, for a tool that has renamed it."""
        if self._writer is not None:
            self._writer.reopen()

    def tick(self) -> None:
        """Say how many lines were dropped, as soon as there is room; called once a second."""
        if self._writer is not None:
            self._writer.tell_overflow()

    def connected(self, party: Party, *, dialect: str, backend_url: str, display_name: str) -> None:
        """A connection is up."""
        if self.is_on:
            fields = {"dialect": dialect, "backend_url": backend_url, "display_name": display_name}
            self._put(self._line("connect", fields, party))

    def disconnected(self, party: Party, code: int, reason: str) -> None:
        """A connection has ended, or begun to."""
        if self.is_on:
            self._put(self._line("disconnect", {"code": code, "reason": reason}, party))

    def evicted(self, party: Party, code: int, reason: str) -> None:
        """We have ended a connection; a line where the code is 1008 or one of our own (4000 up)."""
        if self.is_on and (code == _POLICY or code >= _OWN_CODES):
            self._put(self._line("evict", {"code": code, "reason": reason}, party))

    def refused(self, address: str | None, refusal: Refused, **more: Value) -> None:
        """A request did not come in. The user is as claimed: nobody has checked it."""
        if self.is_on:
            fields: dict[str, Value] = {
                "claimed_user_id": refusal.claimed_user_id,
                "status": refusal.status,
                "code": refusal.code,
                "reason": refusal.message,
            }
            if refusal.retry_after_seconds is not None:
                fields["retry_after_seconds"] = refusal.retry_after_seconds
            self._put(self._line("refuse", {**fields, **more}, address=address))

    def authenticated(
        self, facts: TokenFacts, *, by: str, address: str | None, connection_id: int | None, **more: Value
    ) -> None:
        """A token was taken; `by` says what brought it: "connect", "refresh" or "request"."""
        if self.is_on:
            fields: dict[str, Value] = {
                "success": True,
                "by": by,
                "token_id": facts.token_id,
                "issuer": facts.issuer,
                "expires_at": facts.expires_at_text,
            }
            line = self._line("authenticate", {**fields, **more}, address=address)
            line["connection_id"], line["user_id"] = connection_id, facts.user_id
            self._put(line)

    def refresh_refused(self, party: Party, reason: str) -> None:
        """The token of a `refresh` was not taken."""
        if self.is_on:
            fields: dict[str, Value] = {"success": False, "by": "refresh", "reason": reason}
            self._put(self._line("authenticate", fields, party))

    def limited(self, party: Party, limit: str, retry_after_ms: int | None) -> None:
        """A client was told to slow down; `limit` is the setting."""
        if self.is_on:
            fields: dict[str, Value] = {"limit": limit, "retry_after_ms": retry_after_ms}
            self._put(self._line("limit", fields, party))

    def administered(self, act: str, address: str | None, **more: Value) -> None:
        """An operator did something."""
        if self.is_on:
            self._put(self._line("admin", {"act": act, **more}, address=address))

    def routed(self, sender: Party, type: str, to: Sequence[str], undelivered: Sequence[str]) -> None:
        """An event was decided: to whom it went, and which of them did not get it. Only where `routes`."""
        writer = self._writer
        if writer is not None:
            number = self._number = self._number + 1
            writer.put(
                RouteLine(
                    number,
                    self._time(),
                    "route",
                    sender.connection_id,
                    sender.user_id,
                    sender.address,
                    type,
                    to,
                    len(to) - len(undelivered),
                    undelivered,
                ),
                number,
                2 + len(to),
            )

    def _line(
        self,
        event: str,
        fields: Mapping[str, Value],
        party: Party | None = None,
        *,
        address: str | None = None,
    ) -> dict[str, Value]:
        self._number += 1
        return {
            "seq": self._number,
            "time": self._time(),
            "event": event,
            "connection_id": None if party is None else party.connection_id,
            "user_id": None if party is None else party.user_id,
            "address": address if party is None else party.address,
            **fields,
        }

    def _put(self, line: dict[str, Value]) -> None:
        if self._writer is not None:
            self._writer.put(line, self._number)

    def _time(self) -> str:
        """Now, in UTC with milliseconds; made once for each millisecond."""
        millisecond = time.time_ns() // 1_000_000
        if millisecond != self._millisecond:
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._millisecond = millisecond
            self._time_text = f"{self._second_text}.{rest:03}Z"
        return self._time_text
