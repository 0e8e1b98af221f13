from __future__ import annotations

import json
import logging
import os
import re
import threading
from typing import TYPE_CHECKING

import pytest

from collab.errors import CannotStart
from collab.observe import configure, get_logger
from collab.settings import LogSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from collab.observe import Logger


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    logger = logging.getLogger("collab.tests")
    handler = Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def log(kept: Kept) -> Logger:
    return get_logger("collab.tests")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "collab-log"]


def test_a_line_reads_well_in_any_handler(log: Logger, kept: Kept) -> None:
    log.info("Backend connected", user_id="ada", total_active=1)
    (record,) = kept.records
    assert record.getMessage() == 'Backend connected {"user_id":"ada","total_active":1}'
    assert (record.levelname, record.funcName) == ("INFO", "test_a_line_reads_well_in_any_handler")
    assert record.filename == "test_log.py"


def test_a_level_that_is_off_makes_no_record(log: Logger, kept: Kept) -> None:
    log.debug("Unseen")
    assert kept.records == []
    assert not log.is_enabled_for(logging.DEBUG)
    assert log.is_enabled_for(logging.INFO)


def test_bound_fields_come_first(log: Logger, kept: Kept) -> None:
    log.bind(node="n1").warning("Slow consumer", user_id="ada")
    assert kept.records[0].getMessage() == 'Slow consumer {"node":"n1","user_id":"ada"}'


def test_fields_may_have_any_name(log: Logger, kept: Kept) -> None:
    log.error("Odd", **{"event": 1, "self": 2, "": 3})
    assert kept.records[0].getMessage() == 'Odd {"event":1,"self":2,"":3}'


def test_fields_are_copied_at_the_call(log: Logger, kept: Kept) -> None:
    users = ["ada"]
    log.info("Online", users=users)
    users.append("bob")
    assert kept.records[0].getMessage() == 'Online {"users":["ada"]}'


def test_an_exception_goes_with_the_record(log: Logger, kept: Kept) -> None:
    error = ValueError("no")
    log.warning("Given", exc_info=error)
    try:
        raise error
    except ValueError:
        log.exception("Being handled")
    log.exception("None is")
    assert [record.exc_info and record.exc_info[1] for record in kept.records] == [error, error, None]
    assert kept.records[0].getMessage() == "Given"


def test_configure_writes_to_the_console_and_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "service.log"
    with configure(LogSettings(file=str(path))) as writer:
        get_logger().info("Backend connected", user_id="Zoë")
        get_logger("collab.edge").debug("Unseen")
        logging.getLogger("hypercorn.error").warning("Odd request")
        logging.getLogger("hypercorn.error").info("Unseen")
        assert threads()
    assert threads() == []
    assert writer.dropped == 0
    written = path.read_text(encoding="utf-8")
    assert capfd.readouterr().out == written
    assert re.sub(r"[0-9]", "0", written) == (
        '0000-00-00T00:00:00Z [INFO]: Backend connected {"user_id":"Zoë"}\n'
        '0000-00-00T00:00:00Z [WARNING]: Odd request {"logger":"hypercorn.error"}\n'
    )


def test_configure_writes_json_where_stdout_is_no_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    with configure(LogSettings(file="", format="json", level="error")) as writer:
        get_logger().warning("Unseen")
        get_logger().error("Broken", wait_seconds=1.5)
        assert writer.flush(5)
        line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["event"], line["wait_seconds"]) == ("error", "Broken", 1.5)


def test_configure_restores_the_loggers(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("collab", "hypercorn", "quart")]
    former = Kept()
    loggers[0].addHandler(former)
    try:
        before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
        with configure(LogSettings(file=str(tmp_path / "x.log"), level="debug")):
            assert former not in loggers[0].handlers
            assert loggers[0].level == logging.DEBUG
        assert [(logger.handlers, logger.level, logger.propagate) for logger in loggers] == before
    finally:
        loggers[0].removeHandler(former)
    assert threads() == []


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none" / "x.log", tmp_path, tmp_path / "pipe", "\0"):
        with pytest.raises(CannotStart) as caught, configure(LogSettings(file=str(path))):
            pass
        assert repr(str(path)) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert threads() == []


def test_reopen_follows_a_renamed_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "service.log"
    log = get_logger()
    with configure(LogSettings(file=str(path))) as writer:
        log.info("First")
        assert writer.flush(5)
        path.rename(tmp_path / "old.log")
        log.info("Second")
        writer.reopen()
        log.info("Third")
    assert [line.split(": ")[1] for line in (tmp_path / "old.log").read_text().splitlines()] == [
        "First",
        "Second",
    ]
    assert path.read_text().endswith("[INFO]: Third\n")
    assert path.read_text().count("\n") == 1


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "logs" / "service.log"
    path.parent.mkdir()
    with configure(LogSettings(file=str(path))) as writer:
        path.parent.rename(tmp_path / "moved")
        writer.reopen()
        get_logger().info("Still here")
    lines = (tmp_path / "moved" / "service.log").read_text().splitlines()
    assert 'Log file not reopened {"error":"No such file or directory"}' in lines[0]
    assert lines[1].endswith("Still here")
    assert writer.dropped == 0
