"""`trio-collab health`: its exit codes, with all that can be in the way."""

from __future__ import annotations

import json

import pytest
from far_ends import HEALTH, answering, closed_port, http, site
from tokens import token


def test_a_healthy_service_is_exit_code_0(run, service):
    code, out, err = run("health", "--url", service)
    assert (code, err) == (0, "")
    assert out.startswith("healthy: up ")


def test_json_has_the_counters(run):
    with answering(site({})) as port:
        code, out, _ = run("health", "--url", f"http://127.0.0.1:{port}", "--json")
    assert code == 0
    assert json.loads(out) == {"healthy": True, "draining": False, **without_status(HEALTH)}


def without_status(counters):
    return {name: value for name, value in counters.items() if name != "status"}


def test_going_down_is_told_and_is_exit_code_1_for_those_who_ask_whether_it_is_ready(run):
    with answering(site({"/ready": http(503, {"status": "draining"})})) as port:
        url = f"ws://127.0.0.1:{port}"
        code, out, _ = run("health", "--url", url)
        assert (code, out) == (
            0,
            "healthy, but going down, so nobody new is let in: up 1 min 1 s, 2 users online, "
            "4 events routed\n",
        )
        assert run("health", "--url", url, "--ready")[0] == 1
        code, out, _ = run("health", "--url", url, "--ready", "--json")
        assert (code, json.loads(out)["draining"]) == (1, True)


def test_a_service_that_is_down_is_exit_code_1_in_json_too(run):
    url = f"ws://127.0.0.1:{closed_port()}"
    assert run("health", "--url", url)[0] == 1
    code, out, err = run("health", "--url", url, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert found.keys() == {"healthy", "error"}
    assert found["healthy"] is False
    assert "nothing listens there" in found["error"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda head: None,
        lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        http(502, b"<html>Bad Gateway</html>", [("Server", "nginx")]),
        http(200, b"<html>"),
        http(200, {"status": "healthy"}),
        http(200, b"[" * 100_000),
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"\x00" * 100_000,
    ],
)
def test_anything_else_is_exit_code_1_within_its_time(run, answer):
    with answering(answer) as port:
        code, out, err = run("health", "--url", f"ws://127.0.0.1:{port}", "--timeout", "0.5")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_no_token_is_sent(run, environment):
    heads = []

    def answer(head):
        heads.append(head)
        return site({})(head)

    environment.setenv("COLLAB_TOKEN", token())
    with answering(answer) as port:
        assert run("health", "--url", f"ws://127.0.0.1:{port}")[0] == 0
    assert len(heads) == 2
    assert all(b"authorization" not in head.lower() for head in heads)


def test_over_tls_the_certificate_counts_unless_told_otherwise(run, service_with_tls, certificates):
    code, _, err = run("health", "--url", service_with_tls)
    assert code == 1
    assert "the certificate is of an authority that this machine does not trust" in err
    assert run("health", "--url", service_with_tls, "--cacert", str(certificates.root_file))[0] == 0
    assert run("health", "--url", service_with_tls, "--insecure")[0] == 0
