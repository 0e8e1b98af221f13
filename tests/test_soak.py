"""What `scripts/soak` judges by: whether figures grow, and the book that holds the promises."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from _soak.book import PATIENCE_SECONDS, Book
from _soak.reading import MIB, Run
from _soak.report import FLATS, look_for_leftovers
from _soak.server import Holdings
from _soak.verdict import growth

SECONDS = 96
TIMES = [float(second) for second in range(SECONDS)]
MEMORY = next(flat for flat in FLATS if flat.name.startswith("memory"))


def verdict(values):
    middle = SECONDS // 2
    halves = growth(TIMES[:middle], values[:middle]), growth(TIMES[middle:], values[middle:])
    return MEMORY.verdict(growth(TIMES, values), halves, SECONDS)


def noise(seed):
    draw = random.Random(seed)
    return [70 + draw.expovariate(2) for _ in TIMES]


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_only_swings_is_flat(seed):
    assert verdict(noise(seed)) == "flat"


@pytest.mark.parametrize("seed", range(3))
def test_a_leak_of_20_kib_a_second_is_seen_through_the_noise(seed):
    assert verdict([value + at * 20 / 1024 for value, at in zip(noise(seed), TIMES, strict=True)]) == "GROWS"


def test_a_heap_that_became_larger_once_is_no_leak():
    assert verdict([70.0 + 8 * (at > 30) for at in TIMES]) == "flat"


def test_the_line_is_that_of_the_floor_whatever_rises_above_it():
    found = growth(TIMES, [at / 60 + 50 * (at % 2) for at in TIMES])
    assert found.value == pytest.approx(10)
    assert found.low == pytest.approx(found.high) == pytest.approx(10)
    assert (found.start, found.end) == pytest.approx((0, 94 / 60))


@pytest.mark.parametrize(
    ("heap_mib", "objects", "is_broken"), [(0.5, 1_000, False), (2.4, 0, True), (0, 10_000, True)]
)
def test_memory_that_is_still_in_use_once_everybody_left_breaks_i7(heap_mib, objects, is_broken):
    before = Holdings(14, 12, 2, 289_000, 12 * MIB, 57 * MIB)
    after = Holdings(14, 12, 2, 289_000 + objects, int((12 + heap_mib) * MIB), 90 * MIB)
    run = Run(book=Book(), ways=Counter(), before=before, warm_up_seconds=24, rate=1000, after=after)
    look_for_leftovers(run)
    assert run.book.faults["I7"] == is_broken
    assert after.is_back_at(before)


# The book


class Player:
    """A client as the book sees it."""

    numbers = iter(range(1000))

    def __init__(self, user_id, stays=True):
        self.number = next(self.numbers)
        self.user_id = user_id
        self.stays = stays
        self.sent = self.acked = 0
        self.last = {}


@pytest.fixture
def game():
    book = Book()
    ada, bob, cy = Player("ada"), Player("bob"), Player("cy", stays=False)
    for player in (ada, bob):
        book.staying[player.user_id] = {player}
    return SimpleNamespace(book=book, ada=ada, bob=bob, cy=cy)


def event(sender, number, to_users, from_user=None, text=""):
    content = {"s": sender.number, "n": number, "x": text}
    return {"data": {"from_user": from_user or sender.user_id, "to_users": to_users, "data": content}}


def ack(number, delivered, total, undelivered=()):
    data = {"delivered_to": delivered, "total_recipients": total}
    return {"id": number, "data": data | ({"undelivered": list(undelivered)} if undelivered else {})}


def broken(game):
    return {promise for promise, times in game.book.faults.items() if times}


def test_events_that_arrive_and_are_acknowledged_are_forgotten_without_a_fault(game):
    book, ada, bob = game.book, game.ada, game.bob
    for number in range(3):
        book.send(ada, ["bob", "absent-1"], 0, 0.0, 0.1)
        book.receive(bob, event(ada, number, ["bob", "absent-1"]), 0.5)
        book.acknowledge(ada, ack(number, 1, 2, ["absent-1"]))
    assert book.late == [0.5] * 3
    assert book.owed == 0
    book.look_for_overdue(PATIENCE_SECONDS + 1)
    assert broken(game) == set()


def test_an_event_that_was_acknowledged_and_never_came_breaks_i2(game):
    game.book.send(game.ada, ["bob"], 0, 0.0, 0.0)
    game.book.acknowledge(game.ada, ack(0, 1, 1))
    game.book.look_for_overdue(PATIENCE_SECONDS - 1)
    assert broken(game) == set()
    game.book.look_for_overdue(PATIENCE_SECONDS + 1)
    assert broken(game) == {"I2"}


def test_an_ack_that_one_who_does_not_stay_hears_while_it_leaves_breaks_nothing(game):
    for player in (game.cy, game.ada):
        game.book.send(player, ["bob"], 0, 0.0, 0.0)
        game.book.receive(game.bob, event(player, 0, ["bob"]), 0.5)
    game.book.acknowledge(game.ada, ack(0, 1, 1))
    game.book.give_up_all()
    game.book.acknowledge(game.cy, ack(0, 1, 1))
    assert broken(game) == set()
    game.book.acknowledge(game.cy, ack(0, 1, 1))
    assert broken(game) == {"I2"}


def test_an_event_without_an_ack_breaks_i2(game):
    game.book.send(game.ada, ["cy"], 0, 0.0, 0.0)
    game.book.give_up_all()
    assert broken(game) == {"I2"}


@pytest.mark.parametrize(
    ("acks", "promise"),
    [
        ([ack(0, 0, 1, ["bob"])], "I2"),
        ([ack(1, 1, 1)], "I2"),
        ([ack(0, 1, 1), ack(0, 1, 1)], "I2"),
        ([ack(0, 2, 2)], "I1"),
        ([ack(0, 0, 1)], "I1"),
        ([ack(0, 1, 1, ["dee"])], "I1"),
    ],
    ids=["names who stays", "out of order", "twice", "wrong total", "wrong sum", "names somebody else"],
)
def test_an_ack_that_is_not_true_is_noted(game, acks, promise):
    game.book.send(game.ada, ["bob"], 0, 0.0, 0.0)
    for one in acks:
        game.book.acknowledge(game.ada, one)
    assert promise in broken(game)


def test_an_ack_that_counts_who_was_never_there_breaks_i1(game):
    game.book.send(game.ada, ["absent-1"], 0, 0.0, 0.0)
    game.book.acknowledge(game.ada, ack(0, 1, 1))
    assert broken(game) == {"I1"}


def test_an_ack_that_names_who_got_the_event_breaks_i2_whichever_comes_first(game):
    book, ada, cy = game.book, game.ada, game.cy
    book.send(ada, ["cy", "bob"], 0, 0.0, 0.0)
    book.receive(cy, event(ada, 0, ["cy", "bob"]), 0.1)
    book.acknowledge(ada, ack(0, 1, 2, ["cy"]))
    assert book.faults["I2"] == 1
    book.send(ada, ["cy", "bob"], 0, 0.0, 0.0)
    book.acknowledge(ada, ack(1, 1, 2, ["cy"]))
    book.receive(cy, event(ada, 1, ["cy", "bob"]), 0.1)
    assert book.faults["I2"] == 2


@pytest.mark.parametrize(("numbers", "is_broken"), [([0, 1], False), ([0, 0], True), ([1, 0], True)])
def test_order_and_duplicates_are_i3(game, numbers, is_broken):
    for _ in range(2):
        game.book.send(game.ada, ["bob"], 0, 0.0, 0.0)
    for number in numbers:
        game.book.receive(game.bob, event(game.ada, number, ["bob"]), 0.1)
    assert broken(game) == ({"I3"} if is_broken else set())


def test_a_forged_sender_is_i6_and_an_event_for_somebody_else_i1(game):
    game.book.send(game.ada, ["bob"], 0, 0.0, 0.0)
    game.book.receive(game.bob, event(game.ada, 0, ["bob"], from_user="cy"), 0.1)
    assert broken(game) == {"I6"}
    game.book.receive(game.cy, event(game.ada, 0, ["bob"]), 0.1)
    assert broken(game) == {"I6", "I1"}


def test_an_event_that_was_changed_on_its_way_is_i1(game):
    game.book.send(game.ada, ["bob"], 3, 0.0, 0.0)
    game.book.receive(game.bob, event(game.ada, 0, ["bob"], text="xx"), 0.1)
    assert broken(game) == {"I1"}
