"""What audit lines say, and that nothing a client sends can break or forge one."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collab.errors import AuditFailed, Refused
from collab.observe.audit import Audit
from collab.settings import AuditSettings

if TYPE_CHECKING:
    from pathlib import Path

COMMON = ["seq", "time", "event", "connection_id", "user_id", "address"]


@attrs.frozen
class Somebody:
    connection_id: int = 7
    user_id: str = "ada"
    address: str = "192.0.2.1"
    token_id: str | None = "t1"
    issuer: str | None = None
    expires_at_text: str = "2030-01-01T00:00:00Z"


ADA = Somebody()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def opened(path: Path, **given: Any) -> Audit:
    audit = Audit(AuditSettings(file=str(path), **given))
    audit.open(lambda: None, version="1")
    return audit


def read(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    assert re.fullmatch(rb"([\x20-\x7e]+\n)*", raw)
    lines = [json.loads(line) for line in raw.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert list(line)[: len(COMMON)] == COMMON
    return lines


def test_every_event_has_its_line(path: Path) -> None:
    audit = opened(path)
    refusal = Refused(429, "rate_limited", "too many", retry_after_seconds=3)
    refusal.claimed_user_id = "eve"
    audit.connected(ADA, dialect="plain", backend_url="http://x", display_name="Ada")
    audit.authenticated(ADA, by="connect", address="192.0.2.1", connection_id=7)
    audit.refused("192.0.2.2", refusal)
    audit.refresh_refused(ADA, "the token has expired")
    audit.routed(ADA, "t", ["bob", "cy"], ["cy"])
    audit.limited(ADA, "limits.events_per_second", 20)
    audit.evicted(ADA, 4002, "Replaced")
    audit.evicted(ADA, 1001, "The service is going down")
    audit.disconnected(ADA, 4002, "Replaced")
    audit.administered("disconnect", "192.0.2.3", target="ada")
    audit.close(reason="drained")
    told = [[line["event"], *list(line.values())[3:]] for line in read(path)]
    ada, nobody = [7, "ada", "192.0.2.1"], [None, None, None]
    assert told == [
        ["start", *nobody, "1"],
        ["connect", *ada, "plain", "http://x", "Ada"],
        ["authenticate", *ada, True, "connect", "t1", None, "2030-01-01T00:00:00Z"],
        ["refuse", None, None, "192.0.2.2", "eve", 429, "rate_limited", "too many", 3],
        ["authenticate", *ada, False, "refresh", "the token has expired"],
        ["route", *ada, "t", ["bob", "cy"], 1, ["cy"]],
        ["limit", *ada, "limits.events_per_second", 20],
        ["evict", *ada, 4002, "Replaced"],
        ["disconnect", *ada, 4002, "Replaced"],
        ["admin", None, None, "192.0.2.3", "disconnect", "ada"],
        ["stop", *nobody, "drained"],
    ]


def test_the_time_is_utc_with_milliseconds_and_does_not_go_back(path: Path) -> None:
    before = datetime.now(UTC)
    audit = opened(path)
    for _ in range(3000):
        audit.routed(ADA, "t", [], [])
    audit.close()
    times = [line["time"] for line in read(path)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each) for each in times)
    assert times == sorted(times)
    assert len(set(times)) > 1
    assert -0.01 < (datetime.fromisoformat(times[0]) - before).total_seconds() < 60


@pytest.mark.parametrize(
    "name",
    [
        'ada"}\r\n{"seq":2,"event":"stop"}',
        "\x1b[2J\x1b]0;owned\x07",
        "\x7f\x80\x85\x9b31m",
        "a\u202egnp.exe\u2066\u200f\u061c",
        "line\u2028paragraph\u2029",
        '\\u0022,"event":"admin"',
        "é😀\U0010ffff\ufeff",
        "\ud800 half a pair \udfff\x7f",
        "\x00",
        "",
    ],
)
def test_no_name_can_break_a_line_or_forge_a_field(path: Path, name: str) -> None:
    audit = opened(path)
    refusal = Refused(400, "invalid_parameter", name)
    refusal.claimed_user_id = name
    audit.routed(Somebody(user_id=name), name, [name, "bob"], [name])
    audit.refused(name, refusal, path=name)
    audit.connected(ADA, dialect="plain", backend_url=name, display_name=name)
    audit.close()
    start, route, refuse, connect, stop = read(path)
    assert [each["event"] for each in (start, stop)] == ["start", "stop"]
    assert (route["event"], route["user_id"], route["type"]) == ("route", name, name)
    assert (route["to"], route["undelivered"]) == ([name, "bob"], [name])
    assert (refuse["event"], refuse["claimed_user_id"], refuse["path"]) == ("refuse", name, name)
    assert (connect["backend_url"], connect["display_name"]) == (name, name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.text(st.characters()), max_size=5))
def test_any_text_comes_back_as_it_was(path: Path, names: list[str]) -> None:
    path.unlink(missing_ok=True)
    audit = opened(path)
    audit.routed(ADA, "".join(names), names, [])
    audit.close()
    line = read(path)[1]
    assert (line["type"], line["to"]) == ("".join(names), names)


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (None, ""):
        audit = Audit(AuditSettings(file=file))
        audit.open(lambda: None, version="1")
        audit.routed(ADA, "t", ["bob"], [])
        audit.disconnected(ADA, 1000, "left")
        audit.reopen()
        audit.tick()
        audit.close()
        assert not audit.is_on
        assert not audit.routes
        assert not audit.has_failed
    assert list(tmp_path.iterdir()) == []


def test_lines_that_are_lost_with_stop_are_said_at_the_end() -> None:
    failures: list[bool] = []
    audit = Audit(AuditSettings(file="/dev/full", on_full="stop"))
    audit.open(lambda: failures.append(True), version="1")
    audit.routed(ADA, "t", ["bob"], [])
    message = "The audit log '/dev/full' could not be written: No space left on device; 3 lines are lost"
    with pytest.raises(AuditFailed, match=f"^{message}$"):
        audit.close()
    assert failures == [True]


def test_lines_that_are_dropped_are_counted() -> None:
    audit = Audit(AuditSettings(file="/dev/full"))
    audit.open(lambda: None, version="1")
    assert audit._writer is not None
    writer = audit._writer
    audit.routed(ADA, "t", ["bob"], [])
    assert writer.flush(5)
    assert audit.dropped == 2
    audit.close()
