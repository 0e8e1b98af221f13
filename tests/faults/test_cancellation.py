"""Cancelled at every one of its steps, no path through the service breaks a promise.

For each path the steps are counted in a run that is left alone. Then the same is done afresh for each of
them, and the connection (for a drain, the whole service) is cancelled at exactly that step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from crank import Crank, Peer
from invariants import Ledger, Life, check_i4_registry, check_i5_bounds
from peers import BINARY, CONTINUATION, PING, TEXT, event_text, frame

from collab.settings import Duration, LimitSettings, ServerSettings, Settings, TimeoutSettings

SETTINGS = Settings(
    server=ServerSettings(drain=Duration("1s")),
    limits=LimitSettings(
        mailbox_messages=4, slow_consumer=Duration("500ms"), connections_per_user=1, errors=1
    ),
    timeouts=TimeoutSettings(
        write=Duration("3s"),
        close=Duration("500ms"),
        ping_interval=Duration("2s"),
        ping_timeout=Duration("1s"),
    ),
)
VICTIM = "vic"
_STEP_SECONDS = 0.125


@attrs.define(eq=False)
class Cutter(trio.abc.Instrument):
    """Counts the steps of the tasks it watches, and cuts before the n-th; 0 cuts at none."""

    at_step: int
    cut: Callable[[], None] | None = None
    is_root: Callable[[trio.lowlevel.Task], bool] | None = None
    """Which tasks are watched, with all below them; None: not yet."""
    steps: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        if self.is_root is None or not self._is_watched(task, self.is_root):
            return
        self.steps += 1
        if self.steps == self.at_step and self.cut is not None:
            self.cut()

    def _is_watched(self, task: trio.lowlevel.Task, is_root: Callable[[trio.lowlevel.Task], bool]) -> bool:
        above: trio.lowlevel.Task | None = task
        while above is not None:
            if is_root(above):
                return True
            above = above.parent_nursery.parent_task if above.parent_nursery is not None else None
        return False


@attrs.define(eq=False)
class Scene:
    """A service with ada and bob, who stay, and the victim that is cut off at one step."""

    cutter: Cutter
    crank: Crank = attrs.field(init=False)
    ledger: Ledger = attrs.field(factory=Ledger)
    lives: dict[Peer, Life] = attrs.field(factory=dict)
    ada: Peer = attrs.field(init=False)
    bob: Peer = attrs.field(init=False)
    vic: Peer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.crank = Crank(SETTINGS, [self.cutter])
        self.ada, self.bob = self.join("ada"), self.join("bob")
        self.vic = Peer(VICTIM, presence=True)

    def join(self, user_id: str, *, stays: bool = True) -> Peer:
        """Somebody comes in."""
        peer = Peer(user_id, presence=True)
        self.lives[peer] = self.ledger.begin(user_id, stays=stays)
        self.crank.connect(peer)
        return peer

    def victim_joins(self) -> None:
        """The victim comes in."""
        self.lives[self.vic] = self.ledger.begin(VICTIM)
        self.crank.connect(self.vic)

    def watch_victim(self) -> None:
        """From now on the victim's steps count, and it is cut off at one of them."""
        self.cutter.cut = self.vic.scope.cancel
        self.cutter.is_root = lambda task: task is self.vic.task

    def send(self, peer: Peer, to_users: list[str], times: int = 1) -> None:
        """Send events in one piece."""
        sent = [self.ledger.send(self.lives[peer], to_users) for _ in range(times)]
        frames = [event_text(to_users, {"number": event.number}, id=event.number) for event in sent]
        if peer.is_served:
            self.crank.do(lambda: peer.send(*frames))

    def say(self, *frames: bytes) -> None:
        """The victim sends anything else."""
        if self.vic.is_served:
            self.crank.do(lambda: self.vic.send(*frames))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in steps so small that nobody takes it for a pause of the process."""
        for _ in range(int(seconds / _STEP_SECONDS)):
            self.crank.advance(_STEP_SECONDS)

    def note(self) -> None:
        """Enter what was read into the ledger."""
        for peer, life in self.lives.items():
            inbox, peer.inbox = peer.inbox, []
            for message in inbox:
                self._note(life, message)

    def _note(self, life: Life, message: dict[str, Any]) -> None:
        if message["event"] == "event_ack":
            self.ledger.acknowledge(life, message)
        elif message["event"] == "collab_event":
            self.ledger.receive(life, message["data"]["data"]["number"], message)

    def check(self) -> None:
        """Nothing is broken: I1 to I7, and those who stayed are served."""
        if self.vic.scope.cancel_called:
            # A goodbye that has begun is shielded: it may take its two deadlines.
            self.pass_time(1.25)
            assert not self.vic.is_served, "I7: it outlived its cancellation"
        else:
            self.vic.resume()
            self.pass_time(1.25)
        here = [peer.user_id for peer in self.lives if peer.is_served and peer.status == 101]
        assert {"ada", "bob"} <= set(here)
        check_i4_registry(self.crank.local, here)
        check_i5_bounds(self.crank.local)
        self.send(self.ada, ["bob", VICTIM])
        self.send(self.bob, ["ada", VICTIM])
        self.note()
        self.ledger.check()
        for peer in (self.ada, self.bob):
            life = self.lives[peer]
            assert life.acknowledged == life.sent, f"I2: {life.user_id} misses an ack"
            expected = [] if VICTIM in here else [VICTIM]
            assert life.sent[-1].undelivered == expected
        self.crank.stop()


def register(scene: Scene) -> None:
    scene.watch_victim()
    scene.victim_joins()


def replace(scene: Scene) -> None:
    scene.join(VICTIM, stays=False)
    scene.watch_victim()
    scene.victim_joins()


def be_replaced(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    newest = scene.join(VICTIM, stays=False)
    scene.crank.do(newest.close)


def route(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    scene.send(scene.vic, ["ada", VICTIM, "nobody", "bob", "ada"], times=3)
    scene.send(scene.vic, ["bob"])


def route_with_a_full_mailbox(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.ada.stall)
    scene.watch_victim()
    scene.send(scene.vic, ["ada", "bob"], times=6)
    scene.send(scene.bob, [VICTIM, "ada"])
    scene.crank.do(scene.ada.resume)


def route_what_came_in_fragments(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    event = scene.ledger.send(scene.lives[scene.vic], ["ada", "bob"])
    # The text of a frame that needed two bytes for its length, after head and mask.
    text = event_text(["ada", "bob"], {"number": event.number}, id=event.number)[8:]
    plain = bytes(byte ^ b"\x37\xfa\x21\x3d"[at % 4] for at, byte in enumerate(text))
    scene.say(frame(TEXT, plain[:20], fin=False), frame(PING, b"x"), frame(CONTINUATION, plain[20:]))


def deliver(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    scene.send(scene.ada, [VICTIM, "bob"], times=6)
    scene.send(scene.bob, [VICTIM])


def deliver_when_it_reads_again(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.vic.stall)
    scene.watch_victim()
    scene.send(scene.ada, [VICTIM, "bob"], times=2)
    scene.send(scene.ada, [VICTIM, "bob"], times=4)
    scene.crank.do(scene.vic.resume)


def close_by_the_peer(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    scene.send(scene.vic, ["ada"])
    if scene.vic.is_served:
        scene.crank.do(scene.vic.close)


def close_while_acks_are_owed(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.ada.stall)
    scene.send(scene.vic, ["ada"], times=6)
    scene.watch_victim()
    scene.crank.do(scene.vic.close)
    scene.crank.do(scene.ada.resume)


def close_a_slow_consumer_4003(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.vic.stall)
    scene.send(scene.ada, [VICTIM, "bob"], times=6)
    scene.watch_victim()
    scene.pass_time(2)


def close_a_flood_of_errors_1008(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    scene.say(*[frame(TEXT, b"{")] * 12)


def close_a_breach_of_the_protocol_1003(scene: Scene) -> None:
    scene.victim_joins()
    scene.watch_victim()
    scene.say(frame(BINARY, b"x"))


def close_without_a_pong_4005(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.vic.stall)
    scene.watch_victim()
    scene.pass_time(4.5)


def lose(scene: Scene) -> None:
    scene.victim_joins()
    scene.send(scene.ada, [VICTIM, "bob"])
    scene.watch_victim()
    scene.crank.do(scene.vic.drop)


def lose_with_frames_on_their_way(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.vic.stall)
    scene.send(scene.ada, [VICTIM, "bob"], times=6)
    scene.watch_victim()
    scene.crank.do(scene.vic.drop)


PATHS = [
    register,
    replace,
    be_replaced,
    route,
    route_with_a_full_mailbox,
    route_what_came_in_fragments,
    deliver,
    deliver_when_it_reads_again,
    close_by_the_peer,
    close_while_acks_are_owed,
    close_a_slow_consumer_4003,
    close_a_flood_of_errors_1008,
    close_a_breach_of_the_protocol_1003,
    close_without_a_pong_4005,
    lose,
    lose_with_frames_on_their_way,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_a_connection_cancelled_at_any_step_breaks_no_promise(
    path: Callable[[Scene], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    steps, at_step = 1, 0
    while at_step <= steps:
        cutter = Cutter(at_step)
        scene = Scene(cutter)
        path(scene)
        cutter.is_root = None
        if not at_step:
            steps = cutter.steps
        try:
            scene.check()
        except BaseException as error:
            error.add_note(f"cancelled at step {at_step} of {steps}")
            raise
        at_step += 1
    print(f"{steps} steps")
    assert steps >= 4, "nothing was counted"
    assert not caplog.records


def with_a_reader(scene: Scene) -> None:
    scene.victim_joins()


def with_a_stalled_recipient(scene: Scene) -> None:
    scene.victim_joins()
    scene.crank.do(scene.vic.stall)
    scene.send(scene.ada, [VICTIM, "bob"], times=6)


@pytest.mark.parametrize("given", [with_a_reader, with_a_stalled_recipient], ids=lambda given: given.__name__)
def test_a_service_cancelled_at_any_step_of_its_drain_leaves_nothing(
    given: Callable[[Scene], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    steps, at_step = 1, 0
    while at_step <= steps:
        cutter = Cutter(at_step)
        scene = Scene(cutter)
        crank = scene.crank
        given(scene)
        serving = {scene.ada.task, scene.bob.task, scene.vic.task}
        cutter.cut = crank.scope.cancel
        cutter.is_root = lambda task, serving=serving: (
            task in serving or task.name == "collab.server.Service.run"
        )
        drained = crank.local
        crank.drain()
        for _ in range(10):
            # Cancelled, it is followed by a new one once nothing of it is left.
            if crank.local is drained and not crank.drained:
                crank.advance(_STEP_SECONDS)
        cutter.is_root = None
        if not at_step:
            assert crank.drained
            assert scene.ada.code == scene.bob.code == 1001
            steps = cutter.steps
        try:
            for peer in scene.lives:
                assert not peer.is_served, "I7: a connection outlived the service"
                peer.read()
            scene.note()
            scene.ledger.check()
            crank.stop()
        except BaseException as error:
            error.add_note(f"cancelled at step {at_step} of {steps}")
            raise
        at_step += 1
    print(f"{steps} steps")
    assert steps >= 4, "nothing was counted"
    assert not caplog.records
