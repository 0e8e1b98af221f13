"""Owns every deliberate exception of trio-collab.

The tree::

    CollabError
    ├── SettingsError          the command exits with 2
    ├── CannotStart            the command exits with 1
    ├── AuditFailed            likewise
    ├── HandshakeFailed        no TLS with this peer
    ├── InvalidToken           a token does not say who its bearer is
    ├── Refused                a request that may not come in: an HTTP status and a JSON body
    │   ├── Draining
    │   ├── EngineRefused      with the error of Engine.IO
    │   ├── Unauthenticated
    │   └── Forbidden
    ├── InvalidPacket          a packet of Engine.IO or Socket.IO that nobody may send: the session ends
    └── MessageError           one message could not be handled: an `error` message
        ├── InvalidJson
        ├── InvalidMessage
        ├── UnknownEvent
        ├── InvalidEvent
        ├── FromUserMismatch
        ├── TooManyRecipients
        ├── RefreshRefused
        └── RateLimited

Each carries what the far side should be told; docs/protocol.md lists every code.
"""

from __future__ import annotations

import math
from typing import ClassVar


class CollabError(Exception):
    """Base of every error that trio-collab raises on purpose."""


class SettingsError(CollabError):
    """A setting, its source or its value is wrong. The text is one line that names it."""


class CannotStart(CollabError):
    """The service cannot come up, for example because its port is in use. The text is one line."""


class AuditFailed(CollabError):
    """The audit log could not be written, and the service has ended as `audit.on_full` asks for."""


class HandshakeFailed(CollabError):
    """No TLS with this peer. `alert` is what it should be told, as bytes for the wire, if anything."""

    def __init__(self, reason: str, alert: bytes) -> None:
        super().__init__(reason)
        self.alert = alert


class Refused(CollabError):
    """A request that is answered with an HTTP error and closed.

    `status` is the HTTP status, `code` the machine word, `retry_after_seconds` what the
    Retry-After header says (None: no such header), `headers` further header fields.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_seconds: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers
        self.bodiless = False
        """Whether the request was a HEAD, whose answer has no body (RFC 9110 section 9.3.2)."""
        self.claimed_user_id: str | None = None
        """The user that the request said it is; nobody has checked it."""

    @property
    def body(self) -> dict[str, object]:
        """What the body of the answer holds, as JSON."""
        return {"error": self.message, "code": self.code}


class Draining(Refused):
    """The service is going down: come back, to whatever takes its place."""

    def __init__(self, reconnect_spread_seconds: float) -> None:
        super().__init__(
            503,
            "draining",
            "the service is going down",
            retry_after_seconds=math.ceil(reconnect_spread_seconds),
        )


class EngineRefused(Refused):
    """A request of Engine.IO, which is answered with the protocol's own error.

    `number` is its code (Engine.IO protocol 4), `status` the HTTP status.
    """

    def __init__(self, number: int, message: str, *, status: int = 400) -> None:
        super().__init__(status, "forbidden" if status == 403 else "bad_request", message)
        self.number = number

    @property
    def body(self) -> dict[str, object]:
        """What the body of the answer holds, as JSON."""
        return {"code": self.number, "message": self.message}


class InvalidToken(CollabError):
    """A token that is not taken. The text says why, in words of ours alone: nothing of the token is in it."""


class Unauthenticated(Refused):
    """No token, or one that is not taken (RFC 6750 section 3)."""

    def __init__(self, reason: str) -> None:
        super().__init__(401, "unauthenticated", reason, headers=(("www-authenticate", "Bearer"),))


class Forbidden(Refused):
    """The token is sound, and does not allow this."""

    def __init__(self, reason: str) -> None:
        super().__init__(403, "forbidden", reason)


class InvalidPacket(CollabError):
    """A packet of Engine.IO or Socket.IO that nobody may send. The session ends; the text says why."""


class MessageError(CollabError):
    """One message could not be handled; its sender gets `error` and the connection stays open.

    `message` is a short sentence, `detail` names the field at fault. `reply_id` is the JSON
    text of the message's id, empty where it had none or none could be read.
    """

    code: ClassVar[str] = "internal"
    message: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 400
    """The HTTP status of the answer, where the message came as a request."""

    retry_after_ms: int | None = None
    """When the same message may be taken; None where that does not help."""

    def __init__(self, detail: str, *, reply_id: bytes = b"") -> None:
        super().__init__(detail)
        self.detail = detail
        self.reply_id = reply_id


class InvalidJson(MessageError):
    """The text is not JSON, or is nested too deeply."""

    code = "invalid_json"
    message = "Invalid JSON"


class InvalidMessage(MessageError):
    """The envelope or its id is not what the protocol asks for."""

    code = "invalid_message"
    message = "Invalid message format"


class UnknownEvent(MessageError):
    """The envelope names an event that clients do not send."""

    code = "unknown_event"
    message = "Unknown event"


class InvalidEvent(MessageError):
    """The data of a `collab_event` is not what the protocol asks for."""

    code = "invalid_event"
    message = "Invalid event format"


class FromUserMismatch(MessageError):
    """`from_user` names somebody other than the connection's own user."""

    code = "from_user_mismatch"
    message = "from_user does not match the connection's user"
    status = 403


class TooManyRecipients(MessageError):
    """`to_users` is longer than `limits.max_recipients`."""

    code = "too_many_recipients"
    message = "Too many recipients"


class RefreshRefused(MessageError):
    """The token of a `refresh` is not taken. The old one goes on until its own end."""

    code = "unauthenticated"
    message = "The token was not accepted"


class RateLimited(MessageError):
    """The user sends more events than `limits.events_per_second` allows. Nothing was routed."""

    code = "rate_limited"
    message = "Too many events"
    status = 429

    def __init__(self, retry_after_seconds: float, *, reply_id: bytes = b"") -> None:
        super().__init__("the user sends events faster than it may", reply_id=reply_id)
        self.retry_after_ms = max(1, math.ceil(retry_after_seconds * 1000))
