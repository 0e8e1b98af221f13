"""How audit lines get into their file: numbers, rotation, a full disk, a queue that is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from collab.errors import CannotStart
from collab.observe.audit_writer import AuditWriter
from collab.settings import AuditSettings, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTINUE = AuditSettings()
STOP = AuditSettings(on_full="stop")


class Disk:
    """Holds back, cuts off or fails the writes of a writer's file."""

    def __init__(self, writer: AuditWriter) -> None:
        self.room: float = float("inf")
        """Bytes that still go out."""
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self._write_some = writer._file.write_some
        writer._file.write_some = self.write_some  # type: ignore[method-assign] # the disk is what is faked

    def write_some(self, data: memoryview) -> int:
        self.waiting.set()
        self.gate.wait(10)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.room < len(data):
            data = data[: int(self.room)]
        self.room -= len(data)
        return self._write_some(data)


@attrs.define
class Running:
    writer: AuditWriter
    disk: Disk
    failures: list[str]
    path: Path
    number: int = 0

    def put(self, *names: str) -> None:
        """Put lines and wait until they were written, or could not be."""
        for name in names:
            self.queue(name)
        assert self.writer.flush(5)

    def queue(self, name: str) -> None:
        self.number += 1
        self.writer.put({"seq": self.number, "event": name}, self.number)

    def block(self, name: str = "a") -> None:
        """Put a line whose write does not end before the gate is open."""
        self.disk.gate.clear()
        self.queue(name)
        assert self.disk.waiting.wait(5)

    def lines(self, number: int | None = None) -> list[dict[str, Any]]:
        path = self.path if number is None else self.path.with_name(f"{self.path.name}.{number}")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def told(self) -> list[tuple[int, str, int]]:
        """Number, event and count of each line."""
        return [(line["seq"], line["event"], line.get("count", 0)) for line in self.lines()]


@contextlib.contextmanager
def running(path: Path, settings: AuditSettings = CONTINUE, **given: Any) -> Iterator[Running]:
    failures: list[str] = []
    writer = AuditWriter(str(path), settings, lambda: failures.append("failed"), **given)
    disk = Disk(writer)
    writer.start()
    try:
        yield Running(writer, disk, failures, path)
    finally:
        disk.gate.set()
        assert writer.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_lines_are_numbered_from_1_in_a_file_for_its_owner_alone(path: Path) -> None:
    with running(path) as audit:
        audit.put("a", "b")
        audit.put("c")
    assert audit.told() == [(1, "a", 0), (2, "b", 0), (3, "c", 0)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_there_stays_and_half_a_line_is_ended(path: Path) -> None:
    path.write_text('{"whole": 1}\n{"half')
    with running(path) as audit:
        audit.put("a")
    assert path.read_text() == '{"whole": 1}\n{"half\n{"seq":1,"event":"a"}\n'


def test_a_file_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"^Cannot open the audit log '.*missing/audit': No such file"):
        AuditWriter(str(tmp_path / "missing" / "audit"), CONTINUE, lambda: None)


def test_rotation_keeps_every_line_and_its_number(path: Path) -> None:
    settings = AuditSettings(max_bytes=Size(400), backups=30)
    with running(path, settings) as audit:
        for number in range(100):
            audit.queue(str(number))
            if number % 7 == 0:
                assert audit.writer.flush(5)
    names = sorted(path.parent.iterdir(), key=lambda each: -int(each.suffix[1:]) if each != path else 0)
    assert 5 < len(names) <= 31
    assert all(each.stat().st_size <= 600 for each in names)
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in names)
    lines = [json.loads(line) for each in names for line in each.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 101))
    assert [line["event"] for line in lines] == [str(number) for number in range(100)]


def test_only_as_many_renamed_files_are_kept_as_the_settings_say(path: Path) -> None:
    with running(path, AuditSettings(max_bytes=Size(50), backups=2)) as audit:
        for name in "abcdefgh":
            audit.put(name * 20)
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert [line["seq"] for number in (2, 1, None) for line in audit.lines(number)] == [6, 7, 8]


def test_a_file_of_size_0_is_never_rotated(path: Path) -> None:
    with running(path, AuditSettings(max_bytes=Size(0))) as audit:
        audit.put(*("x" * 1000 for _ in range(200)))
    assert [each.name for each in path.parent.iterdir()] == ["audit.jsonl"]
    assert len(audit.lines()) == 200


def test_a_file_that_cannot_be_rotated_loses_nothing(path: Path) -> None:
    path.with_name("audit.jsonl.1").mkdir()
    with running(path, AuditSettings(max_bytes=Size(50), backups=1)) as audit:
        audit.put("a" * 30)
        audit.put("b" * 30)
    assert [seq for seq, _, _ in audit.told()] == [1, 2]
    assert audit.writer.dropped == 0


def test_a_file_that_was_renamed_is_made_anew_and_the_numbers_go_on(path: Path) -> None:
    with running(path) as audit:
        audit.put("a")
        path.rename(path.with_name("audit.jsonl.1"))
        audit.put("b")
        audit.writer.reopen()
        assert audit.writer.flush(5)
        audit.put("c")
    assert [line["seq"] for line in audit.lines(1)] == [1, 2]
    assert [line["seq"] for line in audit.lines()] == [3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lines_for_a_full_disk_are_dropped_and_their_number_told(path: Path) -> None:
    with running(path) as audit:
        audit.put("a")
        audit.disk.room = 0
        audit.put("b", "c")
        audit.put("d")
        assert audit.writer.dropped == 3
        audit.disk.room = float("inf")
        audit.put("e")
    assert audit.told() == [(1, "a", 0), (4, "drop", 3), (5, "e", 0)]
    drop = audit.lines()[1]
    assert list(drop) == ["seq", "time", "event", "connection_id", "user_id", "address", "count", "since"]
    assert drop["since"] <= drop["time"]
    assert audit.failures == []


def test_a_drop_is_told_when_there_is_room_though_nothing_else_happens(path: Path) -> None:
    with running(path) as audit:
        audit.disk.room = 0
        audit.put("a")
        audit.disk.waiting.clear()
        audit.disk.room = float("inf")
        assert audit.disk.waiting.wait(5)
        assert audit.writer.flush(5)
        assert audit.told() == [(1, "drop", 1)]


@pytest.mark.parametrize("room", range(1, 75, 7))
def test_a_line_that_was_cut_off_is_finished_before_another_follows(path: Path, room: int) -> None:
    with running(path) as audit:
        audit.block("first")
        for name in "abc":
            audit.queue(name)
        audit.disk.room = len('{"seq":1,"event":"first"}\n') + room
        audit.disk.gate.set()
        assert audit.writer.flush(5)
        audit.disk.room = 1
        audit.put("d")
        audit.disk.room = float("inf")
        audit.put("e")
    told = audit.told()
    last = 0
    for seq, event, count in told:
        assert seq == last + (count if event == "drop" else 1)
        last = seq
    assert last == 6
    assert sum(count for _, _, count in told) == audit.writer.dropped


def test_what_finds_the_queue_full_is_dropped_and_told_where_it_is_missing(path: Path) -> None:
    with running(path, queue_weight=6) as audit:
        audit.block()
        for name in "bcdefg":
            audit.queue(name)
        assert audit.writer.dropped == 3
        audit.writer.tell_overflow()
        audit.disk.gate.set()
        assert audit.writer.flush(5)
        assert [event for _, event, _ in audit.told()] == ["a", "b", "c", "d"]
        audit.writer.tell_overflow()
        audit.put("h")
    assert audit.told()[4:] == [(7, "drop", 3), (8, "h", 0)]


def test_the_last_line_finds_room_in_a_full_queue(path: Path) -> None:
    with running(path, queue_weight=0) as audit:
        audit.block()
        audit.queue("b")
        audit.queue("c")
        audit.writer.put_last({"seq": 4, "event": "stop"}, 4)
    assert audit.told() == [(1, "a", 0), (3, "drop", 2), (4, "stop", 0)]


def test_with_stop_a_full_disk_is_told_once_and_every_line_is_kept(path: Path) -> None:
    with running(path, STOP) as audit:
        audit.put("a")
        audit.disk.room = 20
        audit.put("b", "c")
        assert audit.writer.has_failed
        assert audit.writer.error == "No space left on device"
        assert audit.failures == ["failed"]
        audit.put("d")
        assert audit.failures == ["failed"]
        assert audit.writer.unwritten == 3
        audit.disk.room = float("inf")
    assert audit.told() == [(1, "a", 0), (2, "b", 0), (3, "c", 0), (4, "d", 0)]
    assert audit.writer.unwritten == audit.writer.dropped == 0


def test_with_stop_a_sender_that_is_too_fast_is_held_up_and_ends_nothing(path: Path) -> None:
    with running(path, STOP, queue_weight=4) as audit:
        for number in range(3000):
            audit.queue(f"event-{number}")
        assert audit.failures == []
    assert len(audit.told()) == 3000
    assert audit.writer.dropped == 0


def test_with_stop_a_queue_that_stays_full_is_told_and_nothing_is_dropped(path: Path) -> None:
    with running(path, STOP, queue_weight=0) as audit:
        audit.block()
        assert audit.failures == []
        audit.queue("b")
        audit.queue("c")
        assert audit.failures == ["failed"]
        assert audit.writer.error == "queue full"
    assert [event for _, event, _ in audit.told()] == ["a", "b", "c"]


def test_with_stop_lines_that_never_got_out_are_counted(path: Path) -> None:
    with running(path, STOP) as audit:
        audit.disk.room = 5
        audit.put("a", "b", "c")
    assert audit.writer.unwritten == 3


def test_a_hung_disk_holds_nobody_up_and_what_is_queued_is_counted(path: Path) -> None:
    with running(path, STOP) as audit:
        audit.block()
        audit.queue("b")
        assert not audit.writer.stop(timeout_seconds=0.01)
        assert audit.writer.unwritten >= 1


def test_a_real_full_device_only_counts() -> None:
    writer = AuditWriter("/dev/full", CONTINUE, lambda: None)
    writer.start()
    for _ in range(3):
        writer.put({"seq": 1, "event": "a"}, 1)
    assert writer.flush(5)
    assert writer.dropped == 3
    assert writer.stop()


def test_a_rotation_waits_for_the_end_of_a_line_that_was_cut_off(path: Path) -> None:
    with running(path, AuditSettings(max_bytes=Size(30), backups=9)) as audit:
        audit.disk.room = 10
        audit.put("a" * 30)
        audit.disk.room = float("inf")
        audit.put("b" * 30)
    assert [line["seq"] for line in audit.lines(1)] == [1]
    assert [line["seq"] for line in audit.lines()] == [2]


def test_a_line_that_was_cut_off_before_the_file_was_opened_anew_counts_as_dropped(path: Path) -> None:
    with running(path) as audit:
        audit.put("a")
        audit.disk.room = 10
        audit.put("b")
        path.rename(path.with_name("audit.jsonl.1"))
        audit.writer.reopen()
        assert audit.writer.flush(5)
        audit.disk.room = float("inf")
        audit.put("c")
    assert audit.told() == [(2, "drop", 1), (3, "c", 0)]
