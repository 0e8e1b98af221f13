"""`trio-collab send`: the ack, what was not delivered, and every way in which it cannot be done."""

from __future__ import annotations

import io
import json

import pytest
from far_ends import answering, closed_port, refusal, site
from tokens import ADMIN_TOKEN, token
from websockets.sync.client import connect

EVENT = ["send", "--from", "ada", "--type", "comment_added"]


@pytest.fixture
def bob(service):
    with connect(f"{service}?user_id=bob&backend_url=http://localhost:8000&presence=none") as socket:
        socket.recv()
        yield socket


def test_an_event_that_everybody_got_is_exit_code_0(run, service, bob):
    code, out, err = run(*EVENT, "--url", service, "--to", "bob", "--data", '{"text": "Great setup!"}')
    assert (code, out, err) == (0, "comment_added reached 1 of 1 user\n", "")
    assert json.loads(bob.recv())["data"]["data"] == {"text": "Great setup!"}


def test_data_arrives_byte_for_byte(run, service, bob):
    run(*EVENT, "--url", service, "--to", "bob", "--data", ' {"a":  1.00, "b": 12345678901234567890123} ')
    assert '"data":{"a":  1.00, "b": 12345678901234567890123}}' in bob.recv()


def test_who_did_not_get_it_is_named_and_is_exit_code_1(run, service, bob):
    code, out, _ = run(*EVENT, "--url", service, "--to", "bob,carol", "--to", "zoe")
    assert code == 1
    assert out.splitlines() == [
        "comment_added reached 1 of 3 users",
        "not reached: carol and zoe; offline, too slow, spelt otherwise, or not allowed",
    ]


def test_json_is_the_ack_with_the_same_members_each_time(run, service, bob):
    code, out, _ = run(*EVENT, "--url", service, "--to", "bob", "--json")
    ack = {"event_type": "comment_added", "delivered_to": 1, "total_recipients": 1, "undelivered": []}
    assert (code, json.loads(out)) == (0, ack)
    code, out, _ = run(*EVENT, "--url", service, "--to", "zoe", "--json")
    assert (code, json.loads(out)) == (1, {**ack, "delivered_to": 0, "undelivered": ["zoe"]})


def test_data_comes_from_a_file_or_from_standard_input(run, service, bob, tmp_path, monkeypatch):
    file = tmp_path / "data.json"
    file.write_text('{"from": "file"}\n')
    assert run(*EVENT, "--url", service, "--to", "bob", "--data", f"@{file}")[0] == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"from": "stdin"}\n')))
    assert run(*EVENT, "--url", service, "--to", "bob", "--data", "-")[0] == 0
    assert [json.loads(bob.recv())["data"]["data"]["from"] for _ in range(2)] == ["file", "stdin"]


def test_nobody_is_told_of_a_sender(run, service):
    with connect(f"{service}?user_id=bob&backend_url=http://localhost:8000") as bob:
        bob.recv()
        run(*EVENT, "--url", service, "--to", "bob")
        assert json.loads(bob.recv())["event"] == "collab_event"


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_the_url_may_be_of_http_and_come_from_the_environment(run, environment, service, bob, scheme):
    environment.setenv("COLLAB_URL", service.replace("ws://", f"{scheme}://") + "/ws?user_id=x")
    assert run(*EVENT, "--to", "bob")[0] == 0


def test_a_token_says_who_sends(run, environment, service_with_tokens):
    environment.setenv("COLLAB_TOKEN", token("ada"))
    code, out, _ = run("send", "--url", service_with_tokens, "--to", "zoe", "--type", "x", "--json")
    assert (code, json.loads(out)["undelivered"]) == (1, ["zoe"])


def test_a_token_comes_from_a_file(run, service_with_tokens, tmp_path):
    file = tmp_path / "token"
    file.write_text(token("ada") + "\n")
    arguments = ["send", "--url", service_with_tokens, "--to", "zoe", "--type", "x", "--token", f"@{file}"]
    assert run(*arguments)[1].startswith("x reached 0 of 1 user")
    file.unlink()
    code, out, err = run(*arguments)
    assert (code, out, err) == (
        1,
        "",
        f"trio-collab: cannot read the token from {file}: No such file or directory\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "bob", "--data", "{"], "--data: expected JSON: "),
        (["--to", "bob", "--data", "NaN"], "--data: expected JSON: "),
        (["--to", "bob", "--data", "@/nothing/here"], "--data: cannot read /nothing/here: No such file"),
        (["--to", ","], "--to: expected the id of a user"),
        ([], "Missing option '--to'"),
        (["--to", "bob", "--url", "localhost"], "expected ws://HOST:PORT"),
        (["--to", "bob", "--url", "ws://localhost:port"], "expected ws://HOST:PORT"),
        (["--to", "bob", "--url", "ws://host name"], "expected ws://HOST:PORT"),
        (["--to", "bob", "--url", "ftp://localhost"], "expected ws://HOST:PORT"),
        (["--to", "bob", "--url", "wss://localhost", "--cacert", __file__], "holds no certificate"),
        (["--to", "bob", "--url", "wss://localhost", "--cert", __file__], "expected a certificate and its"),
        (["--to", "bob", "--url", "wss://localhost", "--key", __file__], "--key: needs --cert"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, arguments, words):
    code, out, err = run(*EVENT, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_who_sends_must_be_said(run):
    code, _, err = run("send", "--to", "bob", "--type", "x")
    assert (code, err) == (2, "trio-collab: --from: needed where no token says who sends\n")


def test_a_refusal_is_a_sentence_and_exit_code_1(run, service, service_with_tokens):
    code, out, err = run("send", "--url", service, "--from", "ada", "--to", "bob", "--type", "x" * 65)
    assert (code, out) == (1, "")
    assert err.startswith("trio-collab: the service refused: data.type: expected str of length <= 64")
    assert err.endswith("(400 invalid_event)\n")
    code, out, err = run(*EVENT, "--url", service_with_tokens, "--to", "bob")
    assert (code, out) == (1, "")
    assert err.endswith("(401 unauthenticated); give a token with --token or COLLAB_TOKEN\n")


def test_a_rate_limit_says_when_to_try_again(run):
    limited = refusal(429, "rate_limited", "too fast", retry_after_ms=250)
    with answering(site({"/api/events": limited})) as port:
        code, _, err = run(*EVENT, "--url", f"ws://127.0.0.1:{port}", "--to", "bob")
    assert (code, err) == (
        1,
        "trio-collab: the service refused: too fast (429 rate_limited); try again in 0.25 s\n",
    )


def test_a_service_that_is_down_is_a_sentence_and_exit_code_1(run):
    url = f"ws://127.0.0.1:{closed_port()}"
    code, out, err = run(*EVENT, "--url", url, "--to", "bob")
    assert (code, out) == (1, "")
    assert err == (
        f"trio-collab: cannot reach {url}: nothing listens there (trio-collab doctor {url} says more)\n"
    )


def test_a_token_is_never_shown(run):
    with answering(lambda head: refusal(403, "forbidden", f"you sent {head.decode()}")) as port:
        for flags in (["--token", ADMIN_TOKEN], []):
            url = f"ws://127.0.0.1:{port}" + ("" if flags else f"?token={ADMIN_TOKEN}")
            code, out, err = run(*EVENT, "--url", url, *flags, "--to", "bob")
            assert code == 1
            assert ADMIN_TOKEN not in out + err
            assert "Bearer ***" in err
    code, out, err = run(*EVENT, "--token", "to ken", "--to", "bob")
    assert (code, err) == (1, "trio-collab: the token holds characters that no token has\n")


def test_what_others_say_cannot_move_the_cursor(run):
    with answering(refusal(400, "invalid_event", "\x1b[2J\u202e")) as port:
        _, _, err = run(*EVENT, "--url", f"ws://127.0.0.1:{port}", "--to", "bob")
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\nhello"])
def test_another_program_on_the_port_is_a_sentence_and_exit_code_1(run, answer):
    with answering(lambda head: answer) as port:
        code, out, err = run(*EVENT, "--url", f"ws://127.0.0.1:{port}", "--to", "bob")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("trio-collab: cannot reach")
