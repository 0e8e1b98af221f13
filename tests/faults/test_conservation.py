"""Nothing is lost silently: 16 in flight over real sockets, while backends come, stall and go.

A run that fails prints its seed; `CONSERVATION_SEED` runs with the same one.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from peers import small_receiver
from wsproto.utilities import LocalProtocolError

from collab.settings import Duration, LimitSettings, Settings
from collab.testing import Closed, FakeBackend, LocalService

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager


IN_FLIGHT = 16
EVENTS = 250
SETTINGS = Settings(limits=LimitSettings(mailbox_messages=16, in_flight=32, slow_consumer=Duration("300ms")))
GONE = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.BusyResourceError,
    LocalProtocolError,
    Closed,
)


@attrs.define(eq=False)
class Sent:
    """One event as its sender knows it."""

    number: int
    life: Life
    to_users: list[str]
    data: str
    undelivered: list[str] | None = None
    """Whom the ack named; None while there is no ack."""
    reached: list[str] = attrs.field(factory=list)
    """The users with whom it arrived."""


@attrs.define(eq=False)
class Life:
    """One connection of a player, from its handshake to its end."""

    backend: FakeBackend
    sent: list[Sent] = attrs.field(factory=list)
    acknowledged: list[Sent] = attrs.field(factory=list)
    heard: list[Sent] = attrs.field(factory=list)
    pong: trio.Event = attrs.field(factory=trio.Event)
    _acked: trio.Event = attrs.field(factory=trio.Event)

    def acknowledge(self, event: Sent) -> None:
        self.acknowledged.append(event)
        self._acked.set()
        self._acked = trio.Event()

    async def wait_in_flight(self, most: int) -> None:
        """Wait until so many events at most are unacknowledged."""
        while len(self.sent) - len(self.acknowledged) > most:
            await self._acked.wait()


@attrs.define(eq=False)
class Player:
    """A backend that sends its share of events, and reads, leaves or stalls as its kind does."""

    user_id: str
    game: Game
    lives: list[Life] = attrs.field(factory=list)
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
        self.lives.append(Life(await self.game.local.connect(self.user_id)))

    async def _send(self, life: Life) -> None:
        draw = self.game.draw
        while self.left_to_send:
            await life.wait_in_flight(IN_FLIGHT - 1)
            burst = draw.randrange(1, 1 + IN_FLIGHT - len(life.sent) + len(life.acknowledged))
            for _ in range(min(burst, self.left_to_send)):
                self.left_to_send -= 1
                event = self.game.new_event(life)
                await life.backend.send_event("t", event.to_users, event.data, id=event.number)

    async def _read(self, life: Life) -> None:
        while True:
            self._take(life, await life.backend.receive())

    def _take(self, life: Life, message: dict[str, object]) -> None:
        data = message["data"]
        assert isinstance(data, dict)
        if message["event"] == "event_ack":
            event = self.game.events[message["id"]]
            assert event.life is life
            assert event.undelivered is None, "acknowledged twice"
            event.undelivered = data.get("undelivered", [])
            assert data["total_recipients"] == len(set(event.to_users))
            assert data["delivered_to"] == data["total_recipients"] - len(event.undelivered)
            life.acknowledge(event)
        elif message["event"] == "collab_event":
            event = self.game.events[int(data["data"].split()[0])]
            assert data["data"] == event.data
            assert data["to_users"] == event.to_users
            event.reached.append(self.user_id)
            life.heard.append(event)
        else:
            assert message["event"] == "pong"
            life.pong.set()

    async def _leave(self, life: Life) -> None:
        pass

    async def _done(self, life: Life) -> None:
        pass


class Stayer(Player):
    """Is there from the beginning to the end, and reads all the time."""

    async def _done(self, life: Life) -> None:
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

    async def _leave(self, life: Life) -> None:
        draw = self.game.draw
        await trio.sleep(draw.uniform(0, 0.2))
        how = draw.choice(["drop", "close", "fin"])
        self.game.ends[how] += 1
        if how == "drop":
            await life.backend.drop()
        elif how == "close":
            await life.backend.stream.send_all(b"\x88\x82\0\0\0\0\x03\xe8")
        else:
            assert isinstance(life.backend.stream, trio.SocketStream)
            await life.backend.stream.send_eof()
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
        self.lives.append(Life(backend))

    async def _read(self, life: Life) -> None:
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
    events: dict[int, Sent] = attrs.field(factory=dict)
    ends: Counter[object] = attrs.field(factory=Counter)
    opened: list[FakeBackend] = attrs.field(factory=list)
    stayers_done: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    def new_event(self, life: Life) -> Sent:
        number, draw = len(self.events), self.draw
        to_users = draw.choices([*self.users, "nobody"], k=draw.randrange(1, 6))
        # Large ones now and then, so that those who stall fill their buffers.
        data = f"{number} " + "x" * draw.choice([0, 10, 100, 100, 1000, 20_000])
        event = self.events[number] = Sent(number, life, to_users, data)
        life.sent.append(event)
        return event


@pytest.mark.trio
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
    staying = {player.user_id for player in stayers}
    for player in [*stayers, *others]:
        for life in player.lives:
            # Acks in the order of the events, none left out; of those who stayed, every one.
            assert life.acknowledged == life.sent[: len(life.acknowledged)]
            assert len(set(life.heard)) == len(life.heard), "a duplicate"
            of_sender: dict[Life, list[int]] = {}
            for event in life.heard:
                of_sender.setdefault(event.life, []).append(event.number)
            assert all(numbers == sorted(numbers) for numbers in of_sender.values()), "out of order"
    for event in game.events.values():
        recipients, reached = set(event.to_users), set(event.reached)
        assert reached <= recipients
        assert len(event.reached) == len(reached), "one user had it twice"
        if event.undelivered is not None:
            undelivered = set(event.undelivered)
            assert len(undelivered) == len(event.undelivered)
            assert undelivered <= recipients
            assert ("nobody" in undelivered) == ("nobody" in recipients)
            assert not undelivered & reached, "named as not reached, and reached"
            # It arrived with each of those who were there to the end and are not named.
            assert (recipients & staying) - undelivered <= reached
            assert not undelivered & staying, "somebody who read all the time was not reached"
    assert len(game.events) == EVENTS * (len(stayers) + len(others))
    # The run was worth something: people left in every way, and a slow consumer was sent away.
    assert {"drop", "close", "fin"} <= set(game.ends)
    assert game.ends[4003] > 0
    assert any(staller.startswith("staller") for e in game.events.values() for staller in e.undelivered or [])
