"""Whatever answers a tool, it says so in a sentence: no traceback, no control character."""

from __future__ import annotations

import random

import pytest
from commands import Command
from counts import count
from far_ends import HEALTH, answering, http, site
from test_tools_doctor import CONNECTED, answered, pongs, speaking
from test_tools_users import CONNECTION, ROW, online
from tokens import claims, forged
from websockets.sync.client import connect

HUGE = 10**400


def broken(data, chance):
    """These bytes with some changed, taken away, or put twice."""
    found = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(found))
        what = chance.randrange(4)
        if what == 0:
            found[place] = chance.randrange(256)
        elif what == 1:
            del found[place : place + chance.randrange(1, 20)]
        elif what == 2:
            found[place:place] = found[place : place + chance.randrange(1, 200)]
        else:
            found[place:place] = chance.choice([b"\r\n\r\n", b"\x00", b"\x1b[2J", b"9" * 500, b"[" * 2000])
        found = found or bytearray(b"\n")
    return bytes(found)


@pytest.mark.parametrize("tool", ["health", "users", "top", "send", "doctor"])
def test_answers_with_broken_bytes_never_end_a_tool_with_a_traceback(run, tool):
    chance = random.Random(tool)
    whole = speaking(CONNECTED, *pongs(1), answered(event="event_ack", delivered_to=1))
    ack = {"event_type": "x", "delivered_to": 1, "total_recipients": 1}
    pages = {
        "/api/users/online": online(ROW),
        "/api/admin/connections": http(200, {"connections": [CONNECTION]}),
        "/api/events": http(200, ack),
    }

    def answer(head):
        sound = whole(head) if b"\r\nupgrade:" in head.lower() else site(pages)(head)
        return broken(sound, chance) if chance.random() < 0.5 else sound

    flags = {
        "health": ["--timeout=0.3"],
        "top": ["--once", "--interval=0.1", "--token=x"],
        "send": ["--from=a", "--to=b", "--type=x"],
        "doctor": ["--timeout=0.3"],
    }
    with answering(answer) as port:
        for _ in range(count(40, 500)):
            code, out, err = run(tool, "--url", f"ws://127.0.0.1:{port}", *flags.get(tool, []))
            assert code in (0, 1)
            assert err.count("\n") <= 1
            assert "unforeseen" not in out
            assert all(line.isprintable() for line in (out + err).splitlines())


def test_numbers_that_no_float_can_hold_are_not_from_the_service(run):
    for name in ("uptime", "total_events_routed"):
        with answering(site({"/health": http(200, {**HEALTH, name: HUGE})})) as port:
            url = f"ws://127.0.0.1:{port}"
            for tool in (["health"], ["top", "--once"], ["doctor"]):
                code, out, err = run(*tool, "--url", url)
                assert (code, "is not trio-collab" in out + err, "unforeseen" in out) == (1, True, False)


def test_a_token_and_a_pong_with_such_numbers_are_no_matter(run):
    odd = forged({"alg": "HS256"}, claims(exp=HUGE))
    frames = [CONNECTED, *pongs(HUGE // 10**330), answered(event="error", error="x", code="rate_limited")]
    with answering(speaking(*frames)) as port:
        code, out, _ = run("doctor", f"ws://127.0.0.1:{port}", "--token", odd)
    assert (code, "unforeseen" in out) == (0, False)


def test_an_event_that_is_nested_deeply_is_shown(service, tmp_path):

    depth = 900
    with (
        Command(tmp_path, "listen", "--url", service, "--user=lea", "--count=1", "--json") as as_json,
        Command(tmp_path, "listen", "--url", service, "--user=lea", "--count=1") as for_people,
        connect(f"{service}?user_id=ada&backend_url=http://localhost:8000&presence=none") as ada,
    ):
        as_json.line("listening")
        for_people.line("listening")
        data = "[" * depth + "]" * depth
        ada.send(
            '{"event":"collab_event","data":{"type":"x","to_users":["lea"],"data":' + data + "}}",
        )
        assert (as_json.wait(), for_people.wait()) == (0, 0)
        assert "[" * depth in as_json.output.replace(" ", "")
        assert "x  from ada" in for_people.output
