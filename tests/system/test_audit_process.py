"""The audit log of a real process: a full disk, a hangup, a file that cannot be opened."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal

import pytest
import trio
from test_command import Command
from wsproto.utilities import LocalProtocolError

from collab.testing import Closed, FakeBackend

ADA = "/?user_id=ada&backend_url=http://localhost:8000"


def audited(**settings):
    named = {f"COLLAB_AUDIT__{name.upper()}": value for name, value in settings.items()}
    return {"COLLAB_AUDIT__FILE": "audit.jsonl", "COLLAB_LOG__FILE": "", "COLLAB_SERVER__PORT": "0", **named}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def appears(path):
    while not path.exists():  # noqa: ASYNC110 - another process makes it
        await trio.sleep(0.01)


async def send_until_closed(backend, acked):
    """Send events one after the other; note the number of acks in a list."""
    while True:
        # The close frame may have come in one piece with the last ack.
        with contextlib.suppress(LocalProtocolError):
            await backend.send_event("t", ["ada"])
        await backend.receive("event_ack")
        acked[0] += 1


async def connected(address):
    backend = FakeBackend(await trio.open_tcp_stream(*address), far_end=None, timeout_seconds=10)
    await backend.open("localhost", ADA)
    await backend.receive("connected")
    return backend


def test_it_begins_with_start_and_ends_with_stop(tmp_path):
    with Command(tmp_path, "serve", environ=audited()) as command:
        command.address()
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert command.errors == ""
    start, stop = read(tmp_path / "audit.jsonl")
    assert (start["seq"], start["event"], start["settings"]["auth"]["mode"]) == (1, "start", "none")
    assert (stop["seq"], stop["event"], stop["reason"]) == (2, "stop", "drained")


@pytest.mark.trio
async def test_a_hangup_opens_the_audit_log_anew_and_the_numbers_go_on(tmp_path):
    path, former = tmp_path / "audit.jsonl", tmp_path / "former.jsonl"
    with Command(tmp_path, "serve", environ=audited()) as command:
        address = command.address()
        ada = await connected(address)
        await ada.send_event("before", ["ada"])
        await ada.receive("event_ack")
        path.rename(former)
        command.signal(signal.SIGHUP)
        command.line("Log reopened")
        with trio.fail_after(10):
            await appears(path)
        await ada.send_event("after", ["ada"])
        await ada.receive("event_ack")
        await ada.close()
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    assert [line.get("type") for line in read(former)] == [None, None, "before"]
    assert [line.get("type") for line in read(path)] == ["after", None, None]
    assert [line["seq"] for line in read(former) + read(path)] == list(range(1, 7))


def test_a_file_that_cannot_be_opened_is_one_line_and_exit_code_1(tmp_path):
    with Command(tmp_path, "serve", environ=audited(file="missing/audit.jsonl")) as command:
        assert command.wait() == 1
    assert command.errors == "trio-collab: Cannot open the audit log 'missing/audit.jsonl': " + (
        "No such file or directory\n"
    )


def test_with_stop_a_disk_that_is_full_from_the_start_ends_it_with_1(tmp_path):
    with Command(tmp_path, "serve", environ=audited(file="/dev/full", on_full="stop")) as command:
        assert command.wait() == 1
    assert command.errors == (
        "trio-collab: The audit log '/dev/full' could not be written: No space left on device; "
        "2 lines are lost\n"
    )


def test_with_continue_a_full_disk_ends_nothing(tmp_path):
    with Command(tmp_path, "serve", environ=audited(file="/dev/full")) as command:
        command.address()
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert command.errors == ""
    assert "Audit log cannot be written" in command.output


@pytest.mark.trio
async def test_with_stop_a_disk_that_fills_up_drains_the_service_and_ends_it_with_1(tmp_path):
    path = tmp_path / "audit.jsonl"
    with Command(tmp_path, "serve", environ=audited(on_full="stop")) as command:
        ada = await connected(command.address())
        for _ in range(3):
            await ada.send_event("t", ["ada"])
            await ada.receive("event_ack")
        room = path.stat().st_size + 1500
        resource.prlimit(command._process.pid, resource.RLIMIT_FSIZE, (room, room))
        acked = [3]
        with pytest.raises(Closed) as ended:
            await send_until_closed(ada, acked)
        assert ended.value.code == 1001
        assert command.wait() == 1
    message = (
        r"trio-collab: The audit log 'audit\.jsonl' could not be written: File too large; (\d+) lines .*\n"
    )
    lost = int(re.fullmatch(message, command.errors)[1])
    *whole, half = path.read_text().split("\n")
    lines = [json.loads(line) for line in whole]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    # Each event that was routed is in the file or counted as lost, with the disconnect and the stop.
    assert sum(line["event"] == "route" for line in lines) + lost == acked[0] + 2
    assert not half or half.startswith('{"seq":')
