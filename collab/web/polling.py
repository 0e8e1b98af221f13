"""Owns the HTTP side of Engine.IO: each GET and POST of a session whose transport is polling."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import trio
from quart import Response, request
from quart.wrappers.response import DataBody

from collab.edge.socketio import Handshake
from collab.errors import Refused
from collab.wire.engineio import check_request, forbidden

if TYPE_CHECKING:
    from types import TracebackType

    from collab.edge.acceptor import Acceptor
    from collab.edge.polling import PollingSession


class PollingApi:
    """Takes the requests of polling to their sessions (docs/protocol.md, "Socket.IO")."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor

    async def handle(self) -> Response:
        """`GET` and `POST /socket.io/`: a handshake, a poll, or packets."""
        query = request.query_string.decode("latin-1")
        asked = check_request(query, method=request.method, is_upgrade=False)
        if not asked.sid:
            return await _poll(self._open(query))
        session = self._acceptor.sessions.find(asked.sid)
        if request.method == "GET":
            return await _poll(session)
        await session.post(cast("bytes", await request.get_data()))
        return Response("ok", content_type="text/html")

    def _open(self, query: str) -> PollingSession:
        address = request.remote_addr or ""
        try:
            connection_id = self._acceptor.check_comer(request.headers.getlist("origin"), address)
        except Refused as refusal:
            if refusal.code == "origin_not_allowed":
                raise forbidden() from None
            raise
        return self._acceptor.open_session(
            Handshake(connection_id, address, query, tuple(request.headers.getlist("authorization")))
        )


async def _poll(session: PollingSession) -> Response:
    with ExitStack() as stack:
        stack.enter_context(session.polling())
        payload = await session.poll()
        response = Response(content_type="text/plain; charset=UTF-8")
        response.response = _Answer(payload, session, stack.pop_all())
        response.content_length = len(payload)
    return response


class _Answer(DataBody):
    """The answer of a poll, which tells its session whether the whole of it went out."""

    def __init__(self, payload: bytes, session: PollingSession, poll: ExitStack) -> None:
        super().__init__(payload)
        self._session = session
        self._poll = poll

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
            self._poll.close()
