from __future__ import annotations

import logging

import pytest

from collab.observe import EventLog


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []
        self.level = logging.INFO

    def info(self, event: str, /, **fields: object) -> None:
        assert self.level <= logging.INFO
        self.lines.append((event, fields))

    def is_enabled_for(self, level: int) -> bool:
        return level >= self.level


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def test_each_event_is_a_line_within_the_budget(log: FakeLog) -> None:
    events = EventLog(log, per_second=2)
    events.routed("position_updated", "ada", ("bob", "eve"))
    events.tick()
    assert log.lines == [("Routing event", {"type": "position_updated", "from": "ada", "to": ("bob", "eve")})]


def test_what_is_over_the_budget_shows_as_a_number(log: FakeLog) -> None:
    events = EventLog(log, per_second=2)
    for _ in range(5):
        events.routed("moved", "ada", ["bob"])
    assert len(log.lines) == 2
    events.tick()
    assert log.lines[2:] == [("Routed events", {"count": 5, "not_logged": 3})]
    events.tick()
    assert len(log.lines) == 3
    events.routed("moved", "ada", ["bob"])
    assert len(log.lines) == 4


def test_a_budget_of_none_leaves_the_summaries(log: FakeLog) -> None:
    events = EventLog(log, per_second=0)
    events.routed("moved", "ada", ["bob"])
    events.tick()
    assert log.lines == [("Routed events", {"count": 1, "not_logged": 1})]


def test_many_recipients_are_counted(log: FakeLog) -> None:
    users = [f"user{number}" for number in range(21)]
    events = EventLog(log, per_second=2)
    events.routed("moved", "ada", users[:20])
    events.routed("moved", "ada", users)
    assert log.lines[0][1] == {"type": "moved", "from": "ada", "to": users[:20]}
    assert log.lines[1][1] == {"type": "moved", "from": "ada", "to": users[:20], "to_count": 21}


def test_nothing_is_written_while_the_level_is_off(log: FakeLog) -> None:
    log.level = logging.WARNING
    events = EventLog(log, per_second=2)
    for _ in range(5):
        events.routed("moved", "ada", ["bob"])
    events.tick()
    assert log.lines == []
    log.level = logging.INFO
    events.tick()
    events.routed("moved", "ada", ["bob"])
    assert len(log.lines) == 1
