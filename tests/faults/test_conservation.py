"""Nothing is lost silently: 16 in flight over real sockets, while backends come, stall and go.

A run that fails prints its seed; `CONSERVATION_SEED` runs with the same one.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from counts import count
from invariants import Ledger, Life, SentEvent
from peers import send_fin, small_receiver
from wsproto.utilities import LocalProtocolError

from collab.settings import Duration, LimitSettings, Settings
from collab.testing import Closed, FakeBackend, LocalService

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager


IN_FLIGHT = 16
EVENTS = count(100, 250)
SETTINGS = Settings(limits=LimitSettings(mailbox_messages=16, in_flight=32, slow_consumer=Duration("300ms")))
GONE = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    LocalProtocolError,
    Closed,
)


@attrs.define(eq=False)
class PlayedLife(Life):
    """One connection of a player."""

    backend: FakeBackend = attrs.field(kw_only=True)
    pong: trio.Event = attrs.field(factory=trio.Event)
    _acked: trio.Event = attrs.field(factory=trio.Event)

    def note_ack(self) -> None:
        self._acked.set()
        self._acked = trio.Event()

    async def wait_in_flight(self, most: int) -> None:
        """Wait until so many events at most are unacknowledged."""
        while self.in_flight > most:
            await self._acked.wait()


@attrs.define(eq=False)
class Player:
    """A backend that sends its share of events, and reads, leaves or stalls as its kind does."""

    user_id: str
    game: Game
    lives: list[PlayedLife] = attrs.field(factory=list)
    left_to_send: int = EVENTS

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
                await trio.aclose_forcefully(life.backend.stream)
                await self.connect()

    async def connect(self) -> None:
        """Begin a life."""
        self.begin(await self.game.local.connect(self.user_id))

    def begin(self, backend: FakeBackend) -> None:
        """A life with this connection."""
        self.lives.append(PlayedLife(self.user_id, stays=isinstance(self, Stayer), backend=backend))
        self.game.ledger.lives.append(self.lives[-1])

    async def _send(self, life: PlayedLife) -> None:
        draw = self.game.draw
        while self.left_to_send:
            await life.wait_in_flight(IN_FLIGHT - 1)
            burst = draw.randrange(1, 1 + IN_FLIGHT - life.in_flight)
            for _ in range(min(burst, self.left_to_send)):
                self.left_to_send -= 1
                event, data = self.game.new_event(life)
                await life.backend.send_event("t", event.to_users, data, id=event.number)

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
        await life.backend.send("ping")
        await life.pong.wait()


class Leaver(Player):
    """Vanishes, closes or half-closes at any moment, and comes back at once."""

    async def _leave(self, life: PlayedLife) -> None:
        draw = self.game.draw
        await trio.sleep(draw.uniform(0, 0.2))
        how = draw.choice(["drop", "close", "fin"])
        self.game.ends[how] += 1
        if how == "drop":
            await life.backend.drop()
        elif how == "close":
            await life.backend.stream.send_all(b"\x88\x82\0\0\0\0\x03\xe8")
        else:
            await send_fin(life.backend.stream)
        await trio.sleep(draw.uniform(0, 0.05))
        raise Closed(1006)


class Staller(Player):
    """Stops reading now and then, for longer than a consumer may be slow at times."""

    async def connect(self) -> None:
        stream = await small_receiver(self.game.local)
        backend = FakeBackend(stream, far_end=None, timeout_seconds=20)
        self.game.opened.append(backend)
        await backend.open("localhost", f"/?user_id={self.user_id}&backend_url=http://x&presence=none")
        await backend.receive("connected")
        self.begin(backend)

    async def _read(self, life: PlayedLife) -> None:
        draw = self.game.draw
        pause_seconds = 1.0
        while True:
            await trio.sleep(pause_seconds)
            pause_seconds = draw.choice([0.0, 0.0, 0.02, 1.0])
            for _ in range(draw.randrange(1, 200)):
                try:
                    self._take(life, await life.backend.receive())
                except Closed as closed:
                    self.game.ends[closed.code] += 1
                    raise


@attrs.define(eq=False)
class Game:
    """Everybody who plays, and every event there was."""

    local: LocalService
    draw: random.Random
    users: list[str]
    stayers_to_come: int
    ledger: Ledger = attrs.field(factory=Ledger)
    data: dict[SentEvent, str] = attrs.field(factory=dict)
    """What was sent with each event."""
    ends: Counter[object] = attrs.field(factory=Counter)
    opened: list[FakeBackend] = attrs.field(factory=list)
    stayers_done: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    def new_event(self, life: PlayedLife) -> tuple[SentEvent, str]:
        """An event to some of the users, with its data."""
        draw = self.draw
        event = self.ledger.send(life, draw.choices([*self.users, "nobody"], k=draw.randrange(1, 6)))
        # Large ones now and then, so that those who stall fill their buffers.
        self.data[event] = f"{event.number} " + "x" * draw.choice([0, 10, 100, 100, 1000, 20_000])
        return event, self.data[event]


@pytest.mark.trio
@pytest.mark.also_over_tls
async def test_every_event_is_delivered_or_named_undelivered(
    open_over_sockets: Callable[..., AbstractAsyncContextManager[LocalService]],
) -> None:
    seed = int(os.environ.get("CONSERVATION_SEED") or random.randrange(2**32))
    print(f"CONSERVATION_SEED={seed}")
    kinds = [(Stayer, 5), (Leaver, 5), (Staller, 3)]
    users = [f"{kind.__name__.lower()}-{number}" for kind, count in kinds for number in range(count)]
    async with open_over_sockets(SETTINGS, timeout_seconds=20) as local:
        game = Game(local, random.Random(seed), users, stayers_to_come=5)
        stayers: list[Player] = [Stayer(user_id, game) for user_id in users[:5]]
        others: list[Player] = [Leaver(user_id, game) for user_id in users[5:10]]
        others += [Staller(user_id, game) for user_id in users[10:]]
        with trio.fail_after(60):
            for player in [*stayers, *others]:
                await player.connect()
            async with trio.open_nursery() as nursery:
                for player in stayers:
                    nursery.start_soon(player.play)
                async with trio.open_nursery() as leaving:
                    for player in others:
                        leaving.start_soon(player.play)
                await game.stayers_done.wait()
                game.over.set()
        for backend in game.opened:
            await trio.aclose_forcefully(backend.stream)
    print(dict(game.ends))
    check(game, stayers, others)


def check(game: Game, stayers: list[Player], others: list[Player]) -> None:
    assert [len(player.lives) for player in stayers] == [1] * len(stayers)
    game.ledger.check()
    staying = {player.user_id for player in stayers}
    for event in game.ledger.events.values():
        assert len(event.received_by) == len(event.reached), "one user had it twice"
        if event.undelivered is not None:
            undelivered = set(event.undelivered)
            assert ("nobody" in undelivered) == ("nobody" in event.recipients)
            assert not undelivered & staying, "somebody who read all the time was not reached"
    assert len(game.ledger.events) == EVENTS * (len(stayers) + len(others))
    # The run was worth something: people left in every way, and a slow consumer was sent away.
    assert {"drop", "close", "fin"} <= set(game.ends)
    assert game.ends[4003] > 0
    assert any(
        staller.startswith("staller") for e in game.ledger.events.values() for staller in e.undelivered or []
    )
