"""`trio-collab doctor`: what it finds wrong, at which step, and what it says to do about it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from certificates import Certificates
from commands import Command
from far_ends import answering, closed_port, http, refusal, site
from tokens import OTHER_SECRET, token
from websockets.sync.client import connect

STEPS = ["name", "tcp", "tls", "http", "upgrade", "auth", "ping", "send", "peers"]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@pytest.fixture
def examine(run):
    """Runs the doctor and gives its exit code, its steps by name, and the one that failed."""

    def examine(url, *arguments):
        code, out, err = run("doctor", url, "--json", "--timeout", "5", *arguments)
        assert err == ""
        report = json.loads(out)
        assert [step["name"] for step in report["steps"]] == STEPS
        failed = [step for step in report["steps"] if step["status"] == "failed"]
        assert (code, report["ok"]) == ((1, False) if failed else (0, True))
        assert len(failed) <= 1
        return {step["name"]: step for step in report["steps"]}, failed[0] if failed else None

    return examine


@pytest.fixture
def at(examine):
    """Examines what answers so; gives the step that failed, with its finding and its advice."""

    def at(answer, *arguments, context=None, scheme="ws"):
        with answering(answer, context) as port:
            _, failed = examine(f"{scheme}://127.0.0.1:{port}", *arguments)
        return failed["name"], failed["finding"], failed["advice"]

    return at


def server_context(authority, **issued):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*issued.pop("names", ["127.0.0.1"]), **issued).configure_cert(context)
    return context


def speaking(*frames):
    """A WebSocket server that says these texts at once, and nothing after them."""

    def answer(head):
        if b"\r\nupgrade:" not in head.lower():
            return site({})(head)
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)[1]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        response = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        return response + b"".join(frames)

    return answer


def text_frame(value):
    text = json.dumps(value).encode()
    assert len(text) < 126
    return bytes([0x81, len(text)]) + text


# All is well


def test_all_is_well_with_a_service_on_this_machine(examine, service):
    steps, failed = examine(service)
    assert failed is None
    assert {name: step["status"] for name, step in steps.items()} == {
        **dict.fromkeys(STEPS, "ok"),
        "tls": "skipped",
        "peers": "skipped",
    }


def test_a_person_reads_one_line_for_each_step(run, service):
    code, out, err = run("doctor", service)
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == STEPS


def test_a_person_is_told_what_to_do_and_nothing_of_what_was_not_tried(run):
    code, out, err = run("doctor", f"ws://127.0.0.1:{closed_port()}")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["ok", "failed"]
    assert len(lines) == 3
    assert lines[2].startswith(" " * 18 + "is the service running")


def test_tls_and_a_token_are_looked_at(examine, service_with_tls, service_with_tokens, certificates):
    steps, failed = examine(service_with_tls, "--cacert", str(certificates.root_file))
    assert failed is None
    assert re.match(r"TLSv1\.\d; the certificate is good for [\d,]+ days more", steps["tls"]["finding"])
    steps, failed = examine(service_with_tokens, "--token", token("ada"))
    assert failed is None
    assert steps["auth"]["finding"].startswith("let in as ada; the token is good for 59 min")


def test_the_url_may_come_from_the_environment_and_the_argument_is_stronger(run, environment, service):
    environment.setenv("COLLAB_URL", service)
    assert run("doctor", "--json")[0] == 0
    assert run("doctor", "--json", f"ws://127.0.0.1:{closed_port()}")[0] == 1


def test_a_user_who_is_online_gets_no_event_of_the_doctor(examine, service):
    with connect(f"{service}?user_id=ada&backend_url=http://localhost:8000&presence=none") as ada:
        ada.recv()
        steps, failed = examine(service, "--user", "ada")
        assert failed is None
        assert steps["send"]["status"] == "skipped"
        with pytest.raises(TimeoutError):
            ada.recv(timeout=0)


def test_peers_who_are_online_are_told_from_those_who_are_not(examine, service):
    with connect(f"{service}?user_id=Bob&backend_url=http://localhost:8000&presence=none"):
        steps, failed = examine(service, "--peer", "Bob")
        assert failed is None
        assert steps["peers"]["finding"] == "Bob is online"
        _, failed = examine(service, "--peer", "bob")
        assert failed["finding"] == "bob is not online: events do not reach them"
        assert failed["advice"] == "ids are compared letter by letter: Bob is online"


# On the way


def test_a_name_that_nobody_knows(examine):
    for url in ("ws://no-such-host.invalid:9000", "ws://" + "a" * 300 + ":9000", "ws://a..b:9000"):
        steps, failed = examine(url)
        assert (failed["name"], steps["tcp"]["status"]) == ("name", "not tried")
        assert "is it spelt right in COLLAB_URL?" in failed["advice"]


def test_a_port_where_nothing_listens(examine):
    _, failed = examine(f"ws://127.0.0.1:{closed_port()}")
    assert (failed["name"], "refused" in failed["finding"]) == ("tcp", True)
    assert "trio-collab serve" in failed["advice"]
    assert "lsof -i :" in failed["advice"]


def test_a_url_without_a_port(examine):
    _, failed = examine("ws://127.0.0.1")
    assert failed["name"] == "tcp"
    assert failed["advice"].startswith("the URL names no port, so it is 80; the service's own is 9000")


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers there does not speak HTTP"),
        (lambda head: b"\x00" * 100_000, "what answers there does not speak HTTP"),
        (lambda head: b"", "connections are taken, and get no answer"),
        (lambda head: None, "connections are taken, and get no answer"),
        (lambda head: http(200, b"<html>", [("Server", "nginx")]), "what answers there (nginx) is not"),
        (lambda head: http(404, b"<html>"), "an HTTP server that is not trio-collab answers 404"),
    ],
)
def test_another_program_on_the_port(at, answer, finding):
    step, found, advice = at(answer, "--timeout", "0.5")
    assert (step, found[: len(finding)]) == ("http", finding)
    assert "lsof -i :" in advice


def test_a_proxy_without_a_service_behind_it(at):
    step, finding, advice = at(lambda head: http(502, b"<html>", [("Server", "nginx")]))
    assert (step, finding) == (
        "http",
        "a proxy (nginx) answers 502 Bad Gateway: it does not reach the service behind it",
    )
    assert "is the service running" in advice


def test_a_redirect(at):
    step, finding, advice = at(lambda head: http(301, b"", [("Location", "https://x.example/")]))
    assert (step, finding) == ("http", "a server there sends us on to https://x.example/")
    assert "use that URL" in advice


def test_a_service_that_goes_down(at):
    step, finding, _ = at(site({"/ready": http(503, {"status": "draining"})}))
    assert (step, finding) == ("http", "the service is going down")


# TLS


def test_tls_on_a_plain_port(examine, service):
    _, failed = examine(service.replace("ws://", "wss://"))
    assert (failed["name"], failed["finding"]) == (
        "tls",
        "there is no TLS on this port: it speaks plain HTTP",
    )
    assert failed["advice"].startswith("use ws://")


def test_a_plain_url_for_a_port_with_tls(examine, service_with_tls):
    _, failed = examine(service_with_tls.replace("wss://", "ws://"))
    assert (failed["name"], failed["finding"]) == ("http", "this port speaks TLS")
    assert failed["advice"].startswith("use wss://")


def test_a_certificate_that_has_expired(at, tmp_path):
    authority = trustme.CA()
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(root)
    now = datetime.now(UTC)
    context = server_context(authority, not_before=now - timedelta(9), not_after=now - timedelta(2))
    step, finding, advice = at(site({}), "--cacert", str(root), context=context, scheme="wss")
    assert (step, finding) == (
        "tls",
        f"the certificate has expired, on {now - timedelta(2):%Y-%m-%d}",
    )
    assert advice.startswith("renew it")


def test_a_certificate_that_ends_soon_is_a_warning(examine, tmp_path):
    authority = trustme.CA()
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(root)
    soon = datetime.now(UTC) + timedelta(3, 60)
    with answering(site({}, upgrade=b""), server_context(authority, not_after=soon)) as port:
        steps, _ = examine(f"wss://127.0.0.1:{port}", "--cacert", str(root))
    assert steps["tls"]["status"] == "warning"
    assert "good for 3 days more" in steps["tls"]["finding"]


def test_a_certificate_of_another_host(at, tmp_path):
    authority = trustme.CA()
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(root)
    context = server_context(authority, names=["collab.example.org"])
    step, finding, advice = at(site({}), "--cacert", str(root), context=context, scheme="wss")
    assert (step, finding) == (
        "tls",
        "the certificate is not for 127.0.0.1; it is for collab.example.org",
    )
    assert "use such a name in the URL" in advice


def test_a_certificate_that_this_machine_does_not_trust(at):
    step, finding, advice = at(site({}), context=server_context(trustme.CA()), scheme="wss")
    assert (step, finding) == (
        "tls",
        "the certificate is of an authority that this machine does not trust",
    )
    assert "--cacert FILE" in advice


def test_a_service_that_wants_a_certificate_of_its_clients(examine, tmp_path):
    own = Certificates(tmp_path)
    pem = tmp_path / "client.pem"
    own.authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(pem)
    environ = {
        "COLLAB_TLS__CERT_FILE": str(own.cert_file),
        "COLLAB_TLS__KEY_FILE": str(own.key_file),
        "COLLAB_TLS__CLIENT_CA_FILE": str(own.root_file),
    }
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        url = command.line(r'Listening {"ws":"([^"]+)"')[1]
        _, failed = examine(url, "--cacert", str(own.root_file))
        assert failed["name"] == "http"
        assert "--cert FILE" in failed["advice"]
        _, failed = examine(url, "--cacert", str(own.root_file), "--cert", str(pem))
        assert failed is None


# The upgrade, and who one is


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (http(200, b"<html>"), "the service sees no upgrade: it answers 200 OK"),
        (refusal(426, "upgrade_required", "an upgrade"), "the service sees no upgrade: it answers 426"),
        (refusal(400, "bad_request", "no key"), "the upgrade arrives damaged: 400 no key"),
        (http(403, b"<html>"), "something before the service answers the upgrade with 403"),
        (b"", "the connection ended"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the answer is not that of a WebSocket server"),
        (b"HTTP/1.1 101 x\r\nConnection: \xec\r\n\r\n", "the answer is not that of a WebSocket server"),
        (b"\x00" * 99, "the answer is not that of a WebSocket server"),
        (None, "no answer to it within 0.3 s"),
    ],
)
def test_a_proxy_that_lets_no_upgrade_through(at, answer, finding):
    patience = ["--timeout", "0.3" if answer is None else "5"]
    step, found, advice = at(site({}, upgrade=answer), *patience)
    assert (step, found[: len(finding)]) == ("upgrade", finding)
    assert "proxy_set_header Upgrade" in advice


@pytest.mark.parametrize(
    ("status", "word", "advice"),
    [
        (404, "not_found", "use the URL without a path"),
        (429, "rate_limited", "try again in 7 s; or raise limits.connects_per_second"),
        (429, "too_many_connections", "try again in 7 s; or raise limits.connections_per_address"),
        (503, "draining", "try again in 7 s"),
        (503, "overloaded", "try again in 7 s; or raise limits.connections"),
        (503, "unavailable", "try again in 7 s; does it reach auth.jwks_url?"),
        (500, "internal", "try again in 7 s; the service's log says more"),
    ],
)
def test_a_service_that_lets_nobody_in_says_when(at, status, word, advice):
    step, _, found = at(site({}, upgrade=refusal(status, word, retry_after=7)))
    assert (step, found[: len(advice)]) == ("upgrade", advice)


def test_no_token_where_one_is_needed(examine, service_with_tokens):
    steps, failed = examine(service_with_tokens)
    assert (failed["name"], steps["upgrade"]["status"]) == ("auth", "ok")
    assert "(401 unauthenticated)" in failed["finding"]
    assert failed["advice"].startswith("give a token, with --token or COLLAB_TOKEN")


@pytest.mark.parametrize(
    ("bad", "flags", "advice"),
    [
        (token("ada", seconds=-3600), [], "the token ended 1 h"),
        (token("ada", key=OTHER_SECRET), [], "is it made for this service"),
        ("nonsense", [], "is it made for this service"),
        ("a.b.c", [], "is it made for this service"),
        (token("ada"), ["--user", "bob"], "the token is another user's"),
        (token("ada"), ["--origin", "https://evil.example"], "add it to origins.allowed"),
    ],
)
def test_a_token_that_is_not_taken(examine, service_with_tokens, bad, flags, advice):
    steps, failed = examine(service_with_tokens, "--token", bad, *flags)
    assert (failed["name"], steps["upgrade"]["status"]) == ("auth", "ok")
    assert failed["advice"].startswith(advice)
    assert bad not in json.dumps(steps)


def test_an_origin_that_is_wanted(at):
    step, _, advice = at(site({}, upgrade=refusal(403, "origin_not_allowed")))
    assert (step, "try --origin" in advice) == ("auth", True)


def test_a_token_file_that_is_not_there(examine, service):
    _, failed = examine(service, "--token", "@/nothing/here")
    assert failed["finding"] == "cannot read the token from /nothing/here: No such file or directory"


# What is said over the WebSocket


CONNECTED = text_frame({"event": "connected", "data": {"user_id": "ada"}})


@pytest.mark.parametrize(
    ("frames", "step", "finding"),
    [
        ([text_frame({"hello": 1})], "auth", "the first message is not that of trio-collab"),
        ([text_frame([])], "auth", "the first message is not that of trio-collab"),
        ([b"\x88\x04\x03\xf5no"], "auth", "the connection ends at once: the service closed it with 1013, no"),
        ([b"\xff\xff\xff"], "auth", "the connection ends at once: what comes is not"),
        ([], "auth", "the connection ends at once"),
        ([CONNECTED, b"\x88\x02\x03\xe9"], "ping", "the service closed it with 1001"),
        ([CONNECTED], "ping", "the connection ended"),
        ([CONNECTED, *[text_frame({"event": "pong", "id": i, "data": 1}) for i in range(3)]], "ping", ""),
    ],
)
def test_what_is_no_service_behind_the_upgrade(at, frames, step, finding):
    found = at(speaking(*frames), "--user", "ada")
    assert (found[0], found[1][: len(finding)]) == (step, finding)


def pongs(timestamp):
    return [text_frame({"event": "pong", "id": i, "data": {"timestamp": timestamp}}) for i in range(3)]


def answered(**data):
    return text_frame({"event": data.pop("event"), "id": "doctor", "data": data})


def test_a_clock_that_is_wrong_is_a_warning(examine):
    frames = [CONNECTED, *pongs(1_000_000_000_000), answered(event="error", error="x", code="internal")]
    with answering(speaking(*frames)) as port:
        steps, failed = examine(f"ws://127.0.0.1:{port}")
    assert (failed["name"], failed["finding"]) == ("send", "the event was refused: x (internal)")
    assert steps["ping"]["status"] == "warning"
    assert "ahead of the service's" in steps["ping"]["finding"]


@pytest.mark.parametrize(
    ("answer", "status", "finding"),
    [
        (answered(event="error", error="x", code="rate_limited"), "warning", "the event was refused"),
        (answered(event="error", error="x", code="invalid_event"), "warning", "the event was refused"),
        (answered(event="event_ack", delivered_to=0), "failed", "the service did not deliver"),
        (answered(event="event_ack", delivered_to=1), "failed", "the connection ended"),
    ],
)
def test_an_event_that_does_not_come_back(examine, answer, status, finding):
    with answering(speaking(CONNECTED, *pongs(1), answer)) as port:
        steps, _ = examine(f"ws://127.0.0.1:{port}")
    assert (steps["send"]["status"], steps["send"]["finding"][: len(finding)]) == (status, finding)


def test_a_token_that_is_repeated_is_not_shown(run):
    secret = "hunter2hunter2"
    with answering(site({}, upgrade=refusal(401, "unauthenticated", f"not {secret}"))) as port:
        code, out, err = run("doctor", f"ws://127.0.0.1:{port}", "--token", secret)
    assert code == 1
    assert secret not in out + err
    assert "not ***" in out


def test_an_error_that_nobody_foresaw_is_a_finding(examine, service, monkeypatch):
    async def broken(*arguments, **others):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("collab.cli.taking_part.Speaker.connect", broken)
    _, failed = examine(service)
    assert failed["finding"] == "unforeseen: ZeroDivisionError: oh"


def test_what_can_be_read_on_the_way_is_a_warning_off_this_machine(examine, service, monkeypatch):
    monkeypatch.setattr("collab.cli.reaching._LOCAL", ())
    steps, failed = examine(service)
    assert failed is None
    assert (steps["tls"]["status"], steps["auth"]["status"]) == ("warning", "warning")
    assert "the events can be read on the way: use wss://" in steps["tls"]["advice"]
    assert "set auth.mode" in steps["auth"]["advice"]


def test_an_address_that_does_not_answer_is_a_warning_off_this_machine(examine, service, monkeypatch):
    port = int(service.rpartition(":")[2])
    rows = [(0, 0, 0, "", (host, port)) for host in ("127.0.0.1", "127.0.0.9")]

    async def two_addresses(*arguments, **others):
        return rows

    monkeypatch.setattr("trio.socket.getaddrinfo", two_addresses)
    steps, _ = examine(f"ws://127.0.0.1:{port}")
    assert re.fullmatch(
        rf"port {port} takes connections at 127.0.0.1; not at 127.0.0.9 \(refused\)", steps["tcp"]["finding"]
    )
    monkeypatch.setattr("collab.cli.reaching._LOCAL", ())
    steps, _ = examine(f"ws://127.0.0.1:{port}")
    assert steps["tcp"]["status"] == "warning"
    assert steps["tcp"]["finding"].endswith("but not at 127.0.0.9 (refused)")
