"""The goodbye of a connection to whom something is owed that does not come: its close frame comes in time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from fake_connections import make_connection

from collab.edge.goodbye import Goodbye
from collab.wire.close import Close, CloseCode

CLOSE_SECONDS = 2.0
GOING_AWAY = Close(CloseCode.GOING_AWAY, "The service is going down")


class FakeTap:
    """Notes when the close frame was sent; the peer answers it after a while."""

    def __init__(self, answer_seconds: float = 0.0) -> None:
        self.scanner = SimpleNamespace(peer_closed=False)
        self.sent_at = math.inf
        self.answered_at = math.inf
        self._answer_seconds = answer_seconds

    async def send_close(self, close: Close | None) -> None:
        await trio.lowlevel.checkpoint()
        self.sent_at = trio.current_time()

    async def wait_ended(self) -> None:
        await trio.sleep(self._answer_seconds)
        self.answered_at = trio.current_time()

    async def send_end(self) -> None:
        await trio.lowlevel.checkpoint()


async def wait_for_nothing() -> None:
    await trio.lowlevel.checkpoint()


def owing(tap: FakeTap) -> Goodbye:
    """The goodbye of a connection that waits for an ack which never comes."""
    connection = make_connection()
    connection.in_flight = 1
    connection.close = GOING_AWAY
    return Goodbye(connection, tap, lambda _: b"", close_seconds=CLOSE_SECONDS)  # type: ignore[arg-type]  # fakes


@pytest.mark.trio
@pytest.mark.parametrize(("drain", "reserve"), [(4.0, 1.0), (40.0, CLOSE_SECONDS)])
async def test_what_is_owed_in_a_drain_leaves_time_for_the_close_frame(autojump_clock, drain, reserve):
    tap = FakeTap(answer_seconds=reserve / 2)
    goodbye = owing(tap)
    begun = trio.current_time()
    goodbye.be_gone_by(begun + drain)
    await goodbye.say(wait_for_nothing)
    assert tap.sent_at - begun == pytest.approx(drain - reserve)
    assert tap.answered_at - begun == pytest.approx(drain - reserve / 2)


@pytest.mark.trio
async def test_a_drain_that_comes_upon_a_goodbye_leaves_time_for_its_close_frame(autojump_clock):
    tap = FakeTap(answer_seconds=0.1)
    goodbye = owing(tap)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(goodbye.say, wait_for_nothing)
        await trio.testing.wait_all_tasks_blocked()
        goodbye.be_gone_by(begun + 1.0)
    assert tap.sent_at - begun == pytest.approx(0.75)
    assert tap.answered_at - begun == pytest.approx(0.85)


@pytest.mark.trio
async def test_what_is_owed_to_nobody_in_a_drain_takes_no_longer_than_the_close_timeout(autojump_clock):
    tap = FakeTap()
    begun = trio.current_time()
    await owing(tap).say(wait_for_nothing)
    assert tap.sent_at - begun == pytest.approx(CLOSE_SECONDS)


@pytest.mark.trio
async def test_a_peer_that_does_not_answer_is_waited_for_until_the_deadline_and_no_longer(autojump_clock):
    tap = FakeTap(answer_seconds=1000)
    goodbye = owing(tap)
    begun = trio.current_time()
    goodbye.be_gone_by(begun + 4.0)
    await goodbye.say(wait_for_nothing)
    assert tap.answered_at == math.inf
    assert trio.current_time() - begun == pytest.approx(4.0)
