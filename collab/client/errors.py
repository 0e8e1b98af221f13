"""Owns what the client raises.

The tree::

    CollabClientError
    ├── NotSent                nothing was delivered: sending again does no harm
    │   ├── RateLimited        `retry_after` says when
    │   ├── NotAllowed
    │   ├── InvalidEvent
    │   └── NotConnected
    │       └── Stopped        and no further try will be made: the reason is there
    └── MaybeDelivered         it was sent, and no ack came
        ├── AckTimeout         in time
        └── ConnectionLost     before the connection ended
"""

from __future__ import annotations

from collab.errors import CollabError


class CollabClientError(CollabError):
    """Base of every error that the client raises on purpose."""


class NotSent(CollabClientError):
    """The event reached nobody. To send it again does no harm."""


class RateLimited(NotSent):
    """The user sends faster than it may. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotAllowed(NotSent):
    """This user may not send this. `code` is the service's word for it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidEvent(NotSent):
    """The event is not what the protocol asks for; the text names the field. The same is refused again."""

    def __init__(self, message: str, code: str = "invalid_event") -> None:
        super().__init__(message)
        self.code = code


class NotConnected(NotSent):
    """There was no connection in time, or too much waits for one already. The event was not sent."""


class Stopped(NotConnected):
    """The service has said no for good, in a refusal or a close that says stay away.

    `status` is the HTTP status of the refusal, `close_code` the code of the close frame; one of them is
    None. `code` is the service's word for a refusal.
    """

    def __init__(
        self, message: str, *, status: int | None = None, close_code: int | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.close_code = close_code
        self.code = code

    def again(self) -> Stopped:
        """The same for another one who waits: an exception object has one traceback."""
        return Stopped(str(self), status=self.status, close_code=self.close_code, code=self.code)


class MaybeDelivered(CollabClientError):
    """The event was sent and no ack came: it may or may not have been delivered. It is not sent again."""


class AckTimeout(MaybeDelivered):
    """The connection stands, and the ack did not come in time."""


class ConnectionLost(MaybeDelivered):
    """The connection ended before the ack came."""
