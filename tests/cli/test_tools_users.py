"""`trio-collab users` and `top`: what they show, once and for as long as one looks."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from commands import PATIENCE_SECONDS, Command
from far_ends import HEALTH, answering, closed_port, http, refusal, site
from tokens import ADMIN_TOKEN, token
from websockets.sync.client import connect

from collab.cli.top import Look, _compared

ROW = {
    "user_id": "ada",
    "display_name": "Ada",
    "backend_url": "http://localhost:8000",
    "connected_at": "2025-11-01T10:00:00Z",
    "status": "online",
}
CONNECTION = {
    "id": 17,
    "user_id": "ada",
    "display_name": "Ada",
    "address": "192.0.2.7",
    "connected_at": "2025-11-01T10:00:00Z",
    "dialect": "plain",
    "queued_messages": 0,
    "queued_bytes": 0,
    "in_flight": 0,
}


def online(*rows):
    return http(200, {"users": list(rows), "count": len(rows)})


def queued(number, messages):
    return {**CONNECTION, "id": number, "queued_messages": messages, "queued_bytes": 2048 * messages}


def connected(url, user_id):
    return connect(f"{url}?user_id={user_id}&backend_url=http://localhost:8000&presence=none")


@contextmanager
def terminal():
    """A terminal: what a command writes to, and what a person has seen on it."""
    near, far = pty.openpty()
    seen = bytearray()

    def sees(pattern):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, seen.decode(errors="replace")):
            left = deadline - time.monotonic()
            assert select.select([near], [], [], max(left, 0))[0], seen
            seen.extend(os.read(near, 65536))
        return True

    try:
        yield far, sees
    finally:
        os.close(near)
        os.close(far)


def test_the_table_shows_who_is_online(run):
    with answering(site({"/api/users/online": online({**ROW, "user_id": "bob"}, ROW)})) as port:
        code, out, err = run("users", "--url", f"ws://127.0.0.1:{port}")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["user", "name", "backend", "since"],
        ["ada", "Ada", "http://localhost:8000", "2025-11-01T10:00:00Z"],
        ["bob", "Ada", "http://localhost:8000", "2025-11-01T10:00:00Z"],
        ["2", "users", "online"],
    ]


def test_json_is_what_the_service_says(run, service):
    with connected(service, "zoe"):
        code, out, _ = run("users", "--url", service, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["count"] == len(found["users"]) >= 1
    assert {**ROW, "user_id": "zoe", "display_name": "Unknown User"} in [
        {**row, "connected_at": ROW["connected_at"]} for row in found["users"]
    ]


def test_a_name_can_hold_no_markup_and_no_escape(run):
    row = {**ROW, "display_name": "[red]\x1b[2J\u202eAda[/red] :smile:"}
    with answering(site({"/api/users/online": online(row)})) as port:
        code, out, _ = run("users", "--url", f"ws://127.0.0.1:{port}")
    assert code == 0
    assert "[red]\\x1b[2J\\u202eAda[/red] :smile:" in out


def test_behind_a_proxy_the_path_of_the_url_comes_first(run):
    with answering(site({"/collab/api/users/online": online()})) as port:
        assert run("users", "--url", f"ws://127.0.0.1:{port}/collab/ws")[0] == 0


@pytest.mark.parametrize("flags", [[], ["--watch"]])
def test_who_may_not_ask_is_told_so_with_exit_code_1(run, service_with_tokens, flags):
    code, out, err = run("users", "--url", service_with_tokens, *flags)
    assert (code, out) == (1, "")
    assert "401 unauthenticated" in err
    assert run("users", "--url", service_with_tokens, "--token", token())[0] == 0


@pytest.mark.parametrize("answer", [{"users": 1}, {"users": [{"user_id": 1}]}, {}])
def test_an_answer_of_another_shape_is_not_from_the_service(run, answer):
    with answering(site({"/api/users/online": http(200, answer)})) as port:
        code, _, err = run("users", "--url", f"ws://127.0.0.1:{port}")
    assert code == 1
    assert "is not trio-collab" in err


def test_watching_tells_who_comes_and_goes_and_ends_by_ctrl_c_with_0(tmp_path, service):
    with Command(tmp_path, "users", "--watch", "--interval=0.1", "--url", service) as command:
        with connected(service, "comer"):
            command.line(r"\+ comer  Unknown User  http://localhost:8000")
        command.line("- comer")
        command.signal(signal.SIGINT)
        assert command.wait() == 0
        assert command.errors == ""


def test_watching_in_json_has_a_line_for_each_change_and_outlives_the_service(tmp_path):
    pages = {"/api/users/online": online(ROW)}
    is_up = threading.Event()
    is_up.set()

    def answer(head):
        return site(pages)(head) if is_up.is_set() else b""

    with answering(answer) as port:
        url = f"ws://127.0.0.1:{port}"
        with Command(tmp_path, "users", "--watch", "--json", "--interval=0.1", "--url", url) as command:
            command.line('"count": 1')
            is_up.clear()
            command.line("without an answer")
            pages["/api/users/online"] = online()
            is_up.set()
            command.line('"count": 0')
            command.signal(signal.SIGINT)
            assert command.wait() == 0
            assert [json.loads(line)["count"] for line in command.output.splitlines()] == [1, 0]


def test_on_a_terminal_the_table_is_drawn_anew(tmp_path, service):
    with terminal() as (screen, sees):
        arguments = ["users", "--watch", "--interval=0.1", "--url", service]
        with (
            Command(tmp_path, *arguments, stdout=screen, environ={"TERM": "xterm"}) as command,
            connected(service, "terry"),
        ):
            assert sees("terry")
            assert sees("Ctrl-C ends it")
            command.signal(signal.SIGINT)
            assert command.wait() == 0


def test_top_shows_rates_and_says_what_it_cannot_show(run):
    with answering(site({})) as port:
        code, out, err = run("top", "--url", f"ws://127.0.0.1:{port}", "--once", "--interval", "0.1")
    assert (code, err) == (0, "")
    assert re.search(r"events +0\.0 a second   4 in all", out)
    assert "queues and slow consumers: for operators, with --token or COLLAB_TOKEN" in out


def test_top_shows_operators_who_is_slow(run):
    rows = [queued(1, 0), queued(2, 3), queued(3, 1)]
    pages = {"/api/admin/connections": http(200, {"connections": rows, "count": 3})}
    with answering(site(pages)) as port:
        arguments = ["top", "--url", f"ws://127.0.0.1:{port}", "--token=x", "--once", "--interval=0.1"]
        code, out, _ = run(*arguments)
        assert code == 0
        assert re.search(r"queued +4 messages   8.0 KiB", out)
        assert re.search(r"slow +2 of 3 connections", out)
        assert [line.split()[3] for line in out.splitlines()[-3:]] == ["3", "1", "0"]
        code, out, _ = run(*arguments, "--json")
    found = json.loads(out)
    assert [row["id"] for row in found.pop("slow_consumers")] == [2, 3]
    assert found == {
        "healthy": True,
        "draining": False,
        **{name: value for name, value in HEALTH.items() if name != "status"},
        "events_per_second": 0.0,
        "connects_per_second": 0.0,
        "connections": 3,
        "queued_messages": 4,
        "queued_bytes": 8192,
        "in_flight": 0,
    }


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(401, "unauthenticated", "the token is not that of an operator"), "not for this token"),
        (refusal(403, "forbidden", "the token has not the scope admin"), "not the scope admin"),
        (refusal(404, "not_found"), "this service knows no operators; set its admin.token"),
    ],
)
def test_top_goes_on_without_what_is_not_for_this_token(run, answer, words):
    with answering(site({"/api/admin/connections": answer})) as port:
        url = f"ws://127.0.0.1:{port}"
        code, out, _ = run("top", "--url", url, "--token=x", "--once", "--interval=0.1")
        assert code == 0
        assert words in out
        code, out, _ = run("top", "--url", url, "--token=x", "--once", "--interval=0.1", "--json")
    assert json.loads(out)["slow_consumers"] is None


def test_top_of_a_real_service(run, service):
    arguments = ["top", "--url", service, "--token", ADMIN_TOKEN, "--once", "--interval=0.1", "--json"]
    with connected(service, "ada"):
        code, out, _ = run(*arguments)
    assert code == 0
    assert json.loads(out)["connections"] >= 1


def test_top_of_a_service_that_is_down_is_exit_code_1(run):
    code, out, err = run("top", "--url", f"ws://127.0.0.1:{closed_port()}")
    assert (code, out) == (1, "")
    assert "nothing listens there" in err


def test_rates_are_per_second_and_begin_anew_with_the_service():
    def look(at, uptime, events):
        counters = {"uptime": uptime, "total_events_routed": events, "total_connections": 0}
        return Look(at=at, counters=counters, connections=None, why_not="")

    assert _compared(look(10.0, 10, 100), None).events_per_second is None
    assert _compared(look(12.0, 12, 150), look(10.0, 10, 100)).events_per_second == 25.0
    assert _compared(look(12.0, 1, 3), look(10.0, 10, 100)).events_per_second is None


def test_top_on_a_terminal_is_drawn_anew(tmp_path, service):
    with terminal() as (screen, sees):
        arguments = ["top", "--interval=0.1", "--url", service]
        with Command(tmp_path, *arguments, stdout=screen, environ={"TERM": "xterm"}) as command:
            assert sees(r"\d a second")
            command.signal(signal.SIGINT)
            assert command.wait() == 0
