"""Owns the HTTP side of Engine.IO: each GET and POST of a session whose transport is polling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import trio
from quart import Response, request
from quart.wrappers.response import DataBody

from collab.wire.engineio import check_request

if TYPE_CHECKING:
    from types import TracebackType


class Session(Protocol):
    """What the HTTP side needs of a session (`collab.edge.polling`)."""

    def begin_poll(self) -> None: ...

    async def poll(self) -> bytes: ...

    def delivered(self) -> None: ...

    def answer_lost(self) -> None: ...

    def end_poll(self) -> None: ...

    async def post(self, body: bytes) -> None: ...


class Sessions(Protocol):
    """Where its sessions come from (`collab.edge.acceptor`). Both raise `Refused`."""

    def open_session(
        self, *, origins: list[str], address: str, query: str, authorization: list[str]
    ) -> Session: ...

    def find_session(self, sid: str) -> Session: ...


class PollingApi:
    """Takes the requests of polling to their sessions (docs/protocol.md, "Socket.IO")."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def handle(self) -> Response:
        """`GET` and `POST /socket.io/`: a handshake, a poll, or packets."""
        query = request.query_string.decode("latin-1")
        asked = check_request(query, method=request.method, is_upgrade=False)
        if not asked.sid:
            session = self._sessions.open_session(
                origins=request.headers.getlist("origin"),
                address=request.remote_addr or "",
                query=query,
                authorization=request.headers.getlist("authorization"),
            )
            return await _poll(session)
        session = self._sessions.find_session(asked.sid)
        if request.method == "GET":
            return await _poll(session)
        await session.post(cast("bytes", await request.get_data()))
        return Response("ok", content_type="text/html")


async def _poll(session: Session) -> Response:
    session.begin_poll()
    try:
        payload = await session.poll()
        response = Response(content_type="text/plain; charset=UTF-8")
        response.response = _Answer(payload, session)
        response.content_length = len(payload)
    except trio.Cancelled:
        # Its client is gone, or the service.
        session.answer_lost()
        session.end_poll()
        raise
    except BaseException:
        session.end_poll()
        raise
    return response


class _Answer(DataBody):
    """The answer of a poll, which tells its session whether the whole of it went out.

    Where not even its head goes out nothing is told, and the session ends of that in time.
    """

    def __init__(self, payload: bytes, session: Session) -> None:
        super().__init__(payload)
        self._session = session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        delivered = False
        try:
            # Hypercorn does not tell of a send that failed; but then the exchange is cancelled.
            await trio.lowlevel.checkpoint()
            delivered = error is None
        finally:
            if delivered:
                self._session.delivered()
            else:
                self._session.answer_lost()
            self._session.end_poll()
