"""Owns the sessions of Engine.IO: who may open one, which there are, and how a WebSocket takes one over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from collab.core.mailbox import Mailbox
from collab.edge.polling import PollingSession
from collab.edge.socketio import Handshake, SocketIoIntake, connection_of
from collab.errors import InvalidPacket
from collab.observe.log import get_logger
from collab.wire.close import Close
from collab.wire.engineio import new_sid, open_frame, unknown_sid
from collab.wire.identity import MAX_USER_ID_CHARACTERS, claimed_in
from collab.wire.upgrade import UPGRADE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.core.outbox import Outbox
    from collab.core.router import Router
    from collab.edge.intake import Rules
    from collab.edge.refusals import Refusals
    from collab.edge.tap import Tap
    from collab.errors import Refused
    from collab.policy.limits import Place
    from collab.settings import Settings

_log = get_logger()


@attrs.frozen
class Inherited:
    """What a WebSocket has to see to before all else, when it takes over from polling."""

    texts: list[bytes]
    """Packets that came right behind the upgrade."""
    violation: Close | None
    """The breach of the protocol behind these."""
    frames: bytes
    """What a poll took of the mailbox, and could not bring any more."""


class EngineSessions:
    """The sessions whose transport is polling, each a task in one nursery, found by their `sid`.

    A session over a WebSocket from its beginning is made here as well, and lives as the WebSocket does.
    """

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        router: Router,
        outbox: Outbox,
        refusals: Refusals,
        *,
        check_user: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._router = router
        self._outbox = outbox
        self._refusals = refusals
        self._check_user = check_user
        self._by_sid: dict[str, PollingSession] = {}
        self._nursery: trio.Nursery | None = None
        self._none_left: trio.Event | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the sessions until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def sessions(self) -> list[PollingSession]:
        """The sessions whose transport is polling, at this moment."""
        return list(self._by_sid.values())

    async def wait_empty(self) -> None:
        """Wait until there is no session whose transport is polling."""
        while self._by_sid:
            if self._none_left is None:
                self._none_left = trio.Event()
            await self._none_left.wait()

    def intake(self, handshake: Handshake, sid: str, *, is_polling: bool) -> SocketIoIntake:
        """The intake of a new session; what comes first is the handshake's answer."""
        limits, timeouts = self._settings.limits, self._settings.timeouts
        connection = connection_of(
            handshake, Mailbox.from_limits(self._outbox, limits), max_in_flight=limits.in_flight
        )
        opening = open_frame(
            sid,
            can_upgrade=is_polling,
            ping_interval_ms=int(timeouts.ping_interval * 1000),
            ping_timeout_ms=int(timeouts.ping_timeout * 1000),
            max_payload=int(limits.message_bytes),
        )
        intake = SocketIoIntake(
            connection,
            self._rules,
            handshake,
            opening,
            check_user=self._check_user,
            on_refused=self._note_refused,
        )
        intake.is_polling = is_polling
        # Also before it is let in: what a client makes us send it must read.
        self._router.watch(connection)
        return intake

    def open(self, handshake: Handshake, place: Place) -> PollingSession:
        """A new session, to be polled from now on; it owns its place among the connections."""
        assert self._nursery is not None, "the service is not running"
        sid = new_sid()
        session = PollingSession(
            sid,
            self.intake(handshake, sid, is_polling=True),
            place,
            router=self._router,
            outbox=self._outbox,
            audit=self._rules.audit,
            stops=self._rules.stops,
            timeouts=self._settings.timeouts,
        )
        self._by_sid[sid] = session
        self._nursery.start_soon(self._run, session)
        return session

    def find(self, sid: str) -> PollingSession:
        """The session of this id; raises `EngineRefused` where there is none."""
        session = self._by_sid.get(sid)
        if session is None:
            raise unknown_sid()
        return session

    async def take_over(self, session: PollingSession, tap: Tap) -> Inherited | None:
        """Move a session to this WebSocket, whose handshake is done; the caller has begun its upgrade.

        What is given back has to be brought or taken first; the session's connection and place are the
        caller's from here on. None where the client did not go through with it: the polls go on.
        """
        session.has_taker = True
        took = False
        try:
            texts: list[bytes] = []
            violation = None
            with trio.move_on_after(UPGRADE_SECONDS) as session.probing:
                texts, violation = await self._probe(session, tap)
            session.probing = None
            if not session.upgrade.is_done:
                return None
            await session.left.wait()
            took = session.has_moved
            return Inherited(texts, violation, session.hand_over()) if took else None
        finally:
            session.probing = None
            session.upgrade.abort()
            session.has_taker = False
            if session.has_moved and not took:
                session.abandon()

    async def _probe(self, session: PollingSession, tap: Tap) -> tuple[list[bytes], Close | None]:
        """Play the upgrade, as far as the client plays along: what came behind its last packet."""
        while not tap.ended:
            texts, violation = await tap.read_by_hand()
            for number, text in enumerate(texts, 1):
                try:
                    answer = session.receive_upgrade(text)
                except InvalidPacket:
                    return [], None
                if answer:
                    await tap.send(answer)
                if session.upgrade.is_done:
                    return texts[number:], violation
            if violation is not None:
                break
        return [], None

    async def _run(self, session: PollingSession) -> None:
        try:
            await session.run()
        except* Exception as group:
            # The boundary of this session: a fault of ours must not end the others.
            _log.error("Connection failed", exc_info=group)
        finally:
            del self._by_sid[session.sid]
            session.left.set()
            if not session.has_moved:
                session.place.give_back()
            elif not session.has_taker:
                session.abandon()
            if not self._by_sid and self._none_left is not None:
                self._none_left.set()
                self._none_left = None

    def _note_refused(self, handshake: Handshake, said: str, refusal: Refused) -> None:
        refusal.claimed_user_id = said[: MAX_USER_ID_CHARACTERS + 1] or claimed_in(handshake.query)
        self._refusals.note(handshake.address, refusal)
