"""Nothing is lost silently: 16 in flight over real sockets, while backends come, stall and go.

They speak the plain dialect alone, or all that there are beside each other: also that of Socket.IO, by a
WebSocket, by polling, and by an upgrade in the midst of it. A run that fails prints its seed;
`CONSERVATION_SEED` runs with the same one.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import pytest
import trio
from counts import count
from dialect_backends import ALL, Backend, PlainBackend
from invariants import Ledger, Life, SentEvent
from wsproto.utilities import LocalProtocolError

from collab.core.connection import Connection
from collab.settings import Duration, LimitSettings, Settings
from collab.testing import Closed, LocalService, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager


IN_FLIGHT = 16
EVENTS = count(100, 250)
SETTINGS = Settings(limits=LimitSettings(mailbox_messages=16, in_flight=32, slow_consumer=Duration("300ms")))
# A poll brings 16 packets at most, and takes a while to come again with so much to do for so many.
MIXED = Settings(limits=LimitSettings(mailbox_messages=32, in_flight=32, slow_consumer=Duration("3s")))
MIXED_EVENTS = count(40, 250)
GONE = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    LocalProtocolError,
    Closed,
    Rejected,
)


@attrs.define(eq=False, repr=False)
class PlayedLife(Life):
    """One connection of a player."""

    backend: Backend = attrs.field(kw_only=True)
    pong: trio.Event = attrs.field(factory=trio.Event)
    _acked: trio.Event = attrs.field(factory=trio.Event)

    def note_ack(self) -> None:
        self._acked.set()
        self._acked = trio.Event()

    async def wait_in_flight(self, most: int) -> None:
        """Wait until so many events at most are unacknowledged."""
        while self.in_flight > most:
            await self._acked.wait()


@attrs.define(eq=False, repr=False)
class Player:
    """A backend that sends its share of events, and reads, leaves or stalls as its kind does."""

    user_id: str
    game: Game
    kind: type[Backend]
    """How it connects."""
    lives: list[PlayedLife] = attrs.field(factory=list)
    left_to_send: int = EVENTS
    reads_little: ClassVar[bool] = False

    async def play(self) -> None:
        """Live until every event was sent; the first life began with `connect`."""
        while self.left_to_send:
            life = self.lives[-1]
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, life)
                    nursery.start_soon(self._leave, life)
                    await self._send(life)
                    if self.left_to_send == 0:
                        with trio.move_on_after(5):
                            await life.wait_in_flight(0)
                        await self._done(life)
                    nursery.cancel_scope.cancel()
            except* GONE:
                await life.backend.drop()
                await self.connect()

    async def connect(self) -> None:
        """Begin a life."""
        backend = await self.kind.connect(self.game.local, self.user_id, reads_little=self.reads_little)
        self.game.opened.append(backend)
        self.game.connections.update(self.game.local.service.registry.of_user(self.user_id))
        self.lives.append(PlayedLife(self.user_id, stays=isinstance(self, Stayer), backend=backend))
        self.game.ledger.lives.append(self.lives[-1])

    async def _send(self, life: PlayedLife) -> None:
        draw = self.game.draw
        while self.left_to_send:
            await life.wait_in_flight(IN_FLIGHT - 1)
            burst = draw.randrange(1, 1 + IN_FLIGHT - life.in_flight)
            burst = min(burst, self.left_to_send)
            self.left_to_send -= burst
            await life.backend.send_events([self.game.new_event(life) for _ in range(burst)])

    async def _read(self, life: PlayedLife) -> None:
        while True:
            self._take(life, await life.backend.receive())

    def _take(self, life: PlayedLife, message: dict[str, Any]) -> None:
        ledger = self.game.ledger
        if message["event"] == "event_ack":
            ledger.acknowledge(life, message)
            life.note_ack()
        elif message["event"] == "collab_event":
            data = message["data"]["data"]
            event = ledger.receive(life, int(data.split()[0]), message)
            assert data == self.game.data[event]
        else:
            assert message["event"] == "pong"
            life.pong.set()

    async def _leave(self, life: PlayedLife) -> None:
        pass

    async def _done(self, life: PlayedLife) -> None:
        pass


class Stayer(Player):
    """Is there from the beginning to the end, and reads all the time."""

    async def _done(self, life: PlayedLife) -> None:
        assert len(life.acknowledged) == len(life.sent)
        self.game.stayers_to_come -= 1
        if not self.game.stayers_to_come:
            self.game.stayers_done.set()
        await self.game.over.wait()
        # The pong comes after everything that was in the mailbox when the last player was done.
        await life.backend.ping()
        await life.pong.wait()


class Leaver(Player):
    """Vanishes, closes or half-closes at any moment, and comes back at once."""

    async def _leave(self, life: PlayedLife) -> None:
        draw = self.game.draw
        await trio.sleep(draw.uniform(0, 0.2))
        how = draw.choice(["drop", "close", "fin"])
        self.game.ends[how] += 1
        await {"drop": life.backend.drop, "close": life.backend.close, "fin": life.backend.fin}[how]()
        await trio.sleep(draw.uniform(0, 0.05))
        raise Closed(1006)


class Staller(Player):
    """Stops reading now and then, for longer than a consumer may be slow at times."""

    reads_little = True

    async def _read(self, life: PlayedLife) -> None:
        draw = self.game.draw
        long_seconds = pause_seconds = self.game.local.service.settings.limits.slow_consumer + 0.7
        while True:
            await trio.sleep(pause_seconds)
            pause_seconds = draw.choice([0.0, 0.0, 0.02, long_seconds])
            for _ in range(draw.randrange(1, 200)):
                self._take(life, await life.backend.receive())


@attrs.define(eq=False, repr=False)
class Game:
    """Everybody who plays, and every event there was."""

    local: LocalService
    draw: random.Random
    users: list[str]
    stayers_to_come: int
    ledger: Ledger = attrs.field(factory=Ledger)
    data: dict[SentEvent, str] = attrs.field(factory=dict)
    """What was sent with each event."""
    ends: Counter[str] = attrs.field(factory=Counter)
    opened: list[Backend] = attrs.field(factory=list)
    connections: set[Connection] = attrs.field(factory=set)
    """As the service sees them: a client may hear of its end or not."""
    stayers_done: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    def new_event(self, life: PlayedLife) -> tuple[SentEvent, str]:
        """An event to some of the users, with its data."""
        draw = self.draw
        event = self.ledger.send(life, draw.choices([*self.users, "nobody"], k=draw.randrange(1, 6)))
        # Large ones often, so that those who stall fill the buffers of the kernel as well.
        self.data[event] = f"{event.number} " + "x" * draw.choice([0, 10, 100, 20_000, 20_000])
        return event, self.data[event]


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_every_event_is_delivered_or_named_undelivered(
    open_over_sockets: Callable[..., AbstractAsyncContextManager[LocalService]],
) -> None:
    await play(open_over_sockets, SETTINGS, [PlainBackend] * 5, [PlainBackend] * 5, [PlainBackend] * 3)


@pytest.mark.trio
async def test_every_event_is_delivered_or_named_undelivered_among_all_dialects(
    open_over_sockets: Callable[..., AbstractAsyncContextManager[LocalService]],
) -> None:
    await play(open_over_sockets, MIXED, ALL * 2, ALL, ALL, events=MIXED_EVENTS)


async def play(
    open_service: Callable[..., AbstractAsyncContextManager[LocalService]],
    settings: Settings,
    staying: list[type[Backend]],
    leaving: list[type[Backend]],
    stalling: list[type[Backend]],
    *,
    events: int = EVENTS,
) -> None:
    seed = int(os.environ.get("CONSERVATION_SEED") or random.randrange(2**32))
    print(f"CONSERVATION_SEED={seed}")
    roles = [(Stayer, staying), (Leaver, leaving), (Staller, stalling)]
    cast = {
        f"{role.__name__.lower()}-{number}": (role, kind)
        for role, kinds in roles
        for number, kind in enumerate(kinds)
    }
    async with open_service(settings, timeout_seconds=20) as local:
        game = Game(local, random.Random(seed), list(cast), stayers_to_come=len(staying))
        players: list[Player] = [
            role(user_id, game, kind, left_to_send=events) for user_id, (role, kind) in cast.items()
        ]
        stayers, others = players[: len(staying)], players[len(staying) :]
        with trio.fail_after(60):
            for player in players:
                await player.connect()
            async with trio.open_nursery() as nursery:
                for player in stayers:
                    nursery.start_soon(player.play)
                async with trio.open_nursery() as coming_and_going:
                    for player in others:
                        coming_and_going.start_soon(player.play)
                await game.stayers_done.wait()
                game.over.set()
        for backend in game.opened:
            await backend.drop()
    print(dict(game.ends))
    check(game, stayers, others, events)


def check(game: Game, stayers: list[Player], others: list[Player], events: int) -> None:
    staying = {player.user_id for player in stayers}
    ends = [(at.user_id, at.close) for at in game.connections if at.close is not None]
    thrown_out = [end for end in ends if end[0] in staying and end[1].code != 1000]
    assert not thrown_out, "somebody who read all the time was sent away"
    assert [len(player.lives) for player in stayers] == [1] * len(stayers)
    game.ledger.check()
    for event in game.ledger.events.values():
        assert len(event.received_by) == len(event.reached), "one user had it twice"
        if event.undelivered is not None:
            undelivered = set(event.undelivered)
            assert ("nobody" in undelivered) == ("nobody" in event.recipients)
            assert not undelivered & staying, "somebody who read all the time was not reached"
    assert len(game.ledger.events) == events * (len(stayers) + len(others))
    # The run was worth something: people left in every way, and a slow consumer was sent away.
    assert {"drop", "close", "fin"} <= set(game.ends)
    assert any(close.code == 4003 for _, close in ends)
    assert any(
        staller.startswith("staller") for e in game.ledger.events.values() for staller in e.undelivered or []
    )
