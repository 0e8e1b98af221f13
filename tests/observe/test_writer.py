from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest

from collab.observe.format import Line
from collab.observe.outputs import Console, LogFile
from collab.observe.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class FakeOutput:
    """Takes lines while `error` is None. `gate` holds back the thread that writes."""

    def __init__(self, name: str = "file") -> None:
        self.name = name
        self.lines: list[str] = []
        self.error: OSError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.closed = False

    def write(self, line: bytes) -> None:
        self.waiting.set()
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.lines.append(line.decode().removesuffix("\n"))

    def reopen(self) -> None:
        self.lines.append("reopened")

    def close(self) -> None:
        self.closed = True


def record(event: str) -> logging.LogRecord:
    return logging.LogRecord("collab", logging.INFO, "", 0, Line(event, {}), None, None)


@contextlib.contextmanager
def running(*outputs: FakeOutput | LogFile | Console, queue_lines: int = 100) -> Iterator[LogWriter]:
    writer = LogWriter(outputs, lambda record: record.getMessage(), queue_lines=queue_lines)
    writer.start()
    try:
        yield writer
    finally:
        assert writer.stop()


def test_what_finds_the_queue_full_is_counted_and_told_once() -> None:
    output = FakeOutput()
    output.gate.clear()
    with running(output, queue_lines=3) as writer:
        writer.put(record("first"))
        assert output.waiting.wait(5)
        for number in range(10):
            writer.put(record(f"{number}"))
        assert writer.dropped == 7
        assert not writer.flush(0)
        output.gate.set()
        assert writer.flush(5)
        writer.put(record("last"))
    told = 'Log lines dropped {"count":7,"error":"queue full"}'
    assert sorted(output.lines) == sorted(["first", "0", "1", "2", told, "last"])
    assert output.closed


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    console, file = FakeOutput("console"), FakeOutput("file")
    with running(console, file) as writer:
        file.error = OSError(28, "No space left on device")
        for event in ("one", "two"):
            writer.put(record(event))
        assert writer.flush(5)
        assert writer.dropped == 2
        assert file.lines == []
        file.error = None
        writer.put(record("three"))
    error = '"output":"file","error":"No space left on device"}'
    assert console.lines == ["one", "Log output failed {" + error, "two", "three"]
    assert file.lines == ["three", 'Log lines dropped {"count":2,' + error]


def test_a_disk_that_is_full_again_at_once_does_not_end_the_thread() -> None:
    class Flapping(FakeOutput):
        def write(self, line: bytes) -> None:
            if b"dropped" in line:
                raise OSError(28, "full")
            super().write(line)

    file, console = Flapping(), FakeOutput("console")
    file.error = OSError(28, "full")
    with running(file, console) as writer:
        writer.put(record("one"))
        assert writer.flush(5)
        file.error = None
        writer.put(record("two"))
        writer.put(record("three"))
    assert file.lines == ["two", "three"]
    assert "three" in console.lines


def test_a_line_that_cannot_be_rendered_is_counted() -> None:
    output = FakeOutput()
    with running(output) as writer:
        writer.put(logging.LogRecord("quart", logging.WARNING, "", 0, "%d", ("x",), None))
        writer.put(record("fine"))
    assert output.lines == ["fine"]
    assert writer.dropped == 1


def test_stop_does_not_wait_for_ever() -> None:
    output = FakeOutput()
    output.gate.clear()
    writer = LogWriter([output], str)
    writer.start()
    writer.put(record("stuck"))
    assert not writer.stop(timeout_seconds=0.01)
    output.gate.set()
    assert writer.stop()


def test_reopen_comes_after_what_is_queued() -> None:
    output = FakeOutput()
    with running(output) as writer:
        writer.put(record("one"))
        writer.reopen()
        writer.put(record("two"))
    assert output.lines == ["one", "reopened", "two"]


def test_a_real_full_device_only_counts() -> None:
    file = LogFile("/dev/full")
    console = FakeOutput("console")
    with running(file, console) as writer:
        writer.put(record("one"))
        assert writer.flush(5)
        assert writer.dropped == 1
    assert console.lines == ['Log output failed {"output":"file","error":"No space left on device"}', "one"]


def test_a_broken_pipe_only_counts() -> None:
    reading, writing = os.pipe()
    file = FakeOutput()
    with open(writing, "w", encoding="utf-8") as stream:
        console = Console(stream)
        os.close(reading)
        with running(console, file) as writer:
            writer.put(record("one"))
            writer.put(record("two"))
    assert writer.dropped == 2
    assert file.lines == ['Log output failed {"output":"console","error":"Broken pipe"}', "one", "two"]


def test_a_reader_that_stops_does_not_hold_up_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collab.observe.outputs._STALL_MS", 10)
    reading, writing = os.pipe()
    file = FakeOutput()
    with open(writing, "w", encoding="utf-8") as stream, open(reading, "rb") as reader:
        with running(Console(stream), file) as writer:
            for _ in range(100):
                writer.put(record("x" * 4000))
            assert writer.flush(10)
            assert file.lines.count("x" * 4000) == 100
            lost = writer.dropped
            assert 0 < lost < 100
            os.read(reading, 1 << 20)
            writer.put(record("y"))
        stream.close()
        rest = reader.read().decode().splitlines()
    assert rest[-2:] == [
        "y",
        f'Log lines dropped {{"count":{lost},"output":"console","error":"nobody reads it"}}',
    ]


def test_a_torn_line_ends_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collab.observe.outputs._STALL_MS", 10)
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream, open(reading, "rb") as reader:
        console = Console(stream)
        with pytest.raises(TimeoutError):
            console.write(b"x" * (1 << 20) + b"\n")
        head = os.read(reading, 1 << 20)
        console.write(b"whole\n")
        console.close()
        stream.close()
        lines = (head + reader.read()).split(b"\n")
    assert lines == [b"x" * len(head), b"whole", b""]


def test_a_file_rotates_by_size(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_text("before\n")
    file = LogFile(str(path), max_bytes=20, backups=2)
    for number in range(8):
        file.write(b"line %d\n" % number)
    file.close()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["service.log", "service.log.1", "service.log.2"]
    assert path.read_text() == "line 7\n"
    assert (tmp_path / "service.log.1").read_text() == "line 5\nline 6\n"
    assert (tmp_path / "service.log.2").read_text() == "line 3\nline 4\n"


def test_a_file_that_cannot_rotate_goes_on_growing_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    (tmp_path / "service.log.1").mkdir()
    console = FakeOutput("console")
    with running(LogFile(str(path), max_bytes=10, backups=1), console) as writer:
        writer.put(record("one"))
        writer.put(record("two long"))
    assert path.read_text() == "one\ntwo long\n"
    assert writer.dropped == 0
    assert console.lines[1].startswith('Log file not rotated {"output":"file"')


def test_handlers_queue_records_as_they_are() -> None:
    seen: list[logging.LogRecord] = []

    def render(record: logging.LogRecord) -> str:
        seen.append(record)
        return record.getMessage()

    writer = LogWriter([FakeOutput()], render)
    handler = writer.handler(logging.WARNING)
    given = record("as it is")
    handler.handle(given)
    writer.start()
    assert writer.stop()
    assert seen[0] is given
    assert handler.level == logging.WARNING
