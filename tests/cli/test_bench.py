"""`trio-collab bench`: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest

from collab.cli import main
from tests.bench.fakes import FakePeer, listening

SHORT = ["--events", "20", "--pairs", "2"]


def bench(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *arguments])
    return exit_info.value.code


def test_json_is_one_object_with_the_figures(capsys):
    with listening(FakePeer()) as url:
        assert bench(url, "--json", *SHORT) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["traffic"]["deliveries"] == 20
    assert report["faults"]["losses"] == 0
    assert report["server_us_per_event"] is None
    assert output.err == ""


def test_a_table_is_for_people(capsys):
    with listening(FakePeer("socketio")) as url:
        assert bench(url, "--dialect", "socketio", *SHORT) == 0
    output = capsys.readouterr().out
    assert "p50 / p99 / p99.9" in output
    assert "losses" in output


def test_a_duplicate_is_exit_code_1(capsys):
    with listening(FakePeer(mischief=lambda number, event: [event] * (1 + (number == 3)))) as url:
        assert bench(url, "--json", *SHORT) == 1
    assert json.loads(capsys.readouterr().out)["faults"]["duplicates"] == 1


def test_a_service_that_is_down_is_one_line_and_exit_code_1(capsys):
    with listening(FakePeer()) as url:
        pass
    assert bench(url) == 1
    assert capsys.readouterr().err.startswith("trio-collab: cannot reach 127.0.0.1:")


@pytest.mark.parametrize("wrong", [["nonsense"], ["ws://localhost", "--seconds", "999"], []])
def test_wrong_usage_is_exit_code_2(wrong, capsys):
    assert bench(*wrong) == 2
    assert "trio-collab: " in capsys.readouterr().err
