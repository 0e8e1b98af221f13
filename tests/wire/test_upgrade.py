from __future__ import annotations

from collections import deque

import pytest

from collab.errors import EngineRefused, InvalidPacket
from collab.wire.engineio import NOOP_PAYLOAD, payload_of
from collab.wire.frames import text_frame
from collab.wire.upgrade import Upgrade, UpgradeMachine


def probed():
    machine = UpgradeMachine()
    machine.begin()
    machine.receive(b"2probe")
    return machine


def done():
    machine = probed()
    machine.receive(b"5")
    return machine


def test_an_upgrade_is_a_probe_and_then_an_upgrade_packet():
    machine = UpgradeMachine()
    machine.begin()
    assert machine.polls_may_hang
    assert machine.receive(b"2probe") == text_frame(b"3probe")
    assert not machine.polls_may_hang
    assert not machine.is_done
    assert machine.receive(b"5") == b""
    assert machine.is_done


@pytest.mark.parametrize(
    "text", [b"", b"2", b"5", b"3probe", b"2probe ", b"40", b'42["ping"]', b"1", b"6", b"x"]
)
def test_anything_but_a_probe_is_refused_on_the_new_websocket(text):
    machine = UpgradeMachine()
    machine.begin()
    with pytest.raises(InvalidPacket):
        machine.receive(text)
    assert not machine.is_done


@pytest.mark.parametrize("text", [b"", b"2probe", b"2", b"40", b'42["ping"]', b"5x", b"x"])
def test_anything_but_an_upgrade_is_refused_after_the_probe(text):
    machine = probed()
    with pytest.raises(InvalidPacket):
        machine.receive(text)
    assert not machine.is_done


@pytest.mark.parametrize("text", [b"5", b"2probe"])
def test_an_upgrade_needs_a_websocket(text):
    with pytest.raises(InvalidPacket):
        UpgradeMachine().receive(text)
    with pytest.raises(InvalidPacket):
        done().receive(text)


def test_a_second_websocket_is_refused_while_one_is_there_and_after_it():
    opened = UpgradeMachine()
    opened.begin()
    for machine in (opened, probed(), done()):
        state = machine.state
        with pytest.raises(EngineRefused) as caught:
            machine.begin()
        assert caught.value.number == 3
        assert machine.state is state


def test_an_upgrade_that_broke_off_may_be_tried_again():
    machine = probed()
    machine.abort()
    assert machine.state is Upgrade.NONE
    assert machine.polls_may_hang
    machine.begin()
    machine.receive(b"2probe")
    machine.receive(b"5")
    assert machine.is_done


def test_an_upgrade_that_is_done_cannot_break_off():
    machine = done()
    machine.abort()
    assert machine.is_done


def test_polling_is_over_once_the_upgrade_is_done():
    for machine in (UpgradeMachine(), probed()):
        machine.check_polling()
    with pytest.raises(EngineRefused) as caught:
        done().check_polling()
    assert caught.value.number == 3


EVENTS = 3
"""What the service emits in each trace, and what the client does."""


class Trace:
    """A client and a service in the middle of an upgrade, and everything that is under way between them.

    `state` is all of it, so that equal traces are followed once. Each step is one that may happen next;
    what is under way on one connection keeps its order, and nothing else does.
    """

    def __init__(self, steps=()):
        # The service: its queue as frames, its machine, the poll that hangs, and what it took of the client.
        self.machine = UpgradeMachine()
        self.queue = b""
        self.poll_hangs = False
        self.taken = []
        self.emitted = 0
        # Between them.
        self.answer = None
        self.poll = self.post = None
        self.post_answered = False
        self.up = deque()
        self.down = deque()
        # The client.
        self.got = []
        self.sent = 0
        self.polling = False
        self.posting = False
        self.pausing = False
        self.upgraded = False
        self.socket_open = False
        self.attempts = 0
        for step in steps:
            getattr(self, step)()

    @property
    def state(self):
        lists = (self.taken, self.got, self.up, self.down)
        others = {
            name: value for name, value in vars(self).items() if name != "machine" and value not in lists
        }
        return self.machine.state, *map(tuple, lists), *others.items()

    def possible(self):
        """The steps that may come next."""
        steps = {
            "emit": self.emitted < EVENTS,
            "poll_goes": not self.polling and not self.pausing and not self.upgraded,
            "poll_arrives": self.poll is not None,
            "answer_arrives": self.answer is not None,
            "post_goes": not self.posting and not self.pausing and not self.upgraded and self.sent < EVENTS,
            "post_arrives": self.post is not None,
            "post_ends": self.post_answered,
            "socket_opens": not self.socket_open and not self.upgraded and self.attempts < 2,
            "second_socket": self.socket_open,
            "socket_breaks": self.socket_open and not self.upgraded,
            "up_arrives": bool(self.up),
            "down_arrives": bool(self.down),
            "upgrade_goes": self.pausing and not self.polling and not self.posting and not self.upgraded,
            "socket_sends": self.upgraded and self.sent < EVENTS,
        }
        return [step for step, is_possible in steps.items() if is_possible]

    # The service.

    def emit(self):
        self.queue += text_frame(b"4e%d" % self.emitted)
        self.emitted += 1
        self._flush()

    def poll_arrives(self):
        self.poll = None
        self.machine.check_polling()
        assert not self.poll_hangs, "two polls at once"
        self.poll_hangs = True
        self._flush()

    def post_arrives(self):
        self.machine.check_polling()
        self.taken.append(self.post)
        self.post = None
        self.post_answered = True

    def up_arrives(self):
        text = self.up.popleft()
        if self.machine.is_done:
            self.taken.append(text)
            return
        if frame := self.machine.receive(text):
            self.down.append(payload_of(frame)[0])
        self._flush()

    def second_socket(self):
        with pytest.raises(EngineRefused):
            self.machine.begin()

    def _flush(self):
        """Give what is queued to whom it is for: the owner's part, as short as it can be."""
        if self.machine.is_done:
            if self.poll_hangs:
                self.poll_hangs, self.answer = False, NOOP_PAYLOAD
            while self.queue:
                payload, end = payload_of(self.queue, max_packets=1)
                self.queue = self.queue[end:]
                self.down.append(payload)
        elif self.poll_hangs and (self.queue or not self.machine.polls_may_hang):
            payload, end = payload_of(self.queue, max_packets=2)
            self.queue = self.queue[end:]
            self.poll_hangs, self.answer = False, payload or NOOP_PAYLOAD

    # The client, as engine.io-client does it.

    def poll_goes(self):
        self.polling, self.poll = True, b"GET"

    def answer_arrives(self):
        self.got += [packet for packet in self.answer.split(b"\x1e") if packet != NOOP_PAYLOAD]
        self.answer, self.polling = None, False

    def post_goes(self):
        self.posting, self.post = True, b"4c%d" % self.sent
        self.sent += 1

    def post_ends(self):
        self.posting = self.post_answered = False

    def socket_opens(self):
        self.machine.begin()
        self.socket_open = True
        self.attempts += 1
        self.up.append(b"2probe")

    def socket_breaks(self):
        self.machine.abort()
        self.socket_open = self.pausing = False
        self.up.clear()
        self.down.clear()
        self._flush()

    def down_arrives(self):
        packet = self.down.popleft()
        if packet == b"3probe":
            self.pausing = True
        else:
            assert self.upgraded
            self.got.append(packet)

    def upgrade_goes(self):
        self.upgraded = True
        self.up.append(b"5")

    def socket_sends(self):
        self.up.append(b"4c%d" % self.sent)
        self.sent += 1


def test_nothing_is_lost_or_overtaken_by_an_upgrade_at_any_interleaving():
    steps_to = {Trace().state: ()}
    to_do = deque([()])
    ends = upgrades = 0
    while to_do:
        steps = to_do.pop()
        trace = Trace(steps)
        assert trace.got == [b"4e%d" % number for number in range(len(trace.got))], steps
        assert trace.taken == [b"4c%d" % number for number in range(len(trace.taken))], steps
        possible = trace.possible()
        # The attempt that changes nothing, and the poll that waits for ever, are no ends of their own.
        if not set(possible) - {"second_socket", "socket_breaks", "socket_opens"}:
            assert len(trace.got) == len(trace.taken) == EVENTS, steps
            assert trace.upgraded or not trace.pausing, steps
            ends += 1
            upgrades += trace.machine.is_done
        for step in possible:
            after = (*steps, step)
            state = Trace(after).state
            if state not in steps_to:
                steps_to[state] = after
                to_do.append(after)
    assert ends > upgrades > 0
