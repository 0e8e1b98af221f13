"""Real Socket.IO clients against `trio-collab serve`: socket.io-client on Node, and python-socketio twice."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import time
import urllib.request

import pytest
import tokens
from certificates import Certificates
from commands import Command
from socketio_players import (
    DIRECTORY,
    DISCONNECTED_BY_SERVICE,
    LIBRARIES,
    PATIENCE_SECONDS,
    TRANSPORTS,
    Players,
    check_installed,
)

SERVE = ["serve", "--host=127.0.0.1", "--log-file="]
ADMIN_TOKEN = "a-token-of-the-operators-for-tests"
ADMIN = {"COLLAB_ADMIN__TOKEN": ADMIN_TOKEN}
NUMBERS = itertools.count(1)


def user(name):
    """A user id that no other test has."""
    return f"{name}-{next(NUMBERS)}"


@pytest.fixture(scope="module")
def all_players():
    """The players of each library."""
    opened = {library: Players(library) for library in LIBRARIES}
    yield opened
    for players in opened.values():
        players.close()


@pytest.fixture(params=LIBRARIES)
def players(request, all_players):
    """The players of one library after the other."""
    yield all_players[request.param]
    all_players[request.param].disconnect_all()


@pytest.fixture(params=TRANSPORTS)
def transports(request):
    return request.param


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Command(tmp_path_factory.mktemp("service"), *SERVE, "--port=0", environ=ADMIN) as command:
        host, port = command.address()
        command.url = f"http://{host}:{port}"
        yield command


@pytest.fixture
def url(service):
    return service.url


def online(url):
    with urllib.request.urlopen(f"{url}/api/users/online", timeout=PATIENCE_SECONDS) as answer:
        return {row["user_id"] for row in json.load(answer)["users"]}


def connections_so_far(url):
    with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)["total_connections"]


def as_operator(url, path, **body):
    request = urllib.request.Request(
        f"{url}/api/admin/{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


def until(is_done):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_stays_away(player):
    """It was told to go, knows that, and does not try to come back."""
    assert player.hear("<disconnect>") == DISCONNECTED_BY_SERVICE[player.players.library]
    player.until(connected=False, comes_back=False)


def in_order(player, values):
    """What was heard, as far as the client tells the order: python-socketio's threads each have an event."""
    return sorted(values) if player.players.library == "threads" else values


def expected_transport(transports):
    return "polling" if transports == "polling" else "websocket"


@pytest.mark.parametrize("how", ["auth", "query"])
def test_two_clients_connect_by_any_transport_and_exchange_events(players, transports, how, url):
    ada, bob = user("ada"), user("bob")
    first = players.connect(url, ada, how=how, transports=transports)
    assert first.hear("connected")["user_id"] == ada
    second = players.connect(url, bob, how=how, transports=transports)
    assert second.hear("connected") == {
        "user_id": bob,
        "message": "Connected to collaboration service",
        "active_users": 2,
    }
    assert {ada, bob} <= online(url)
    data = {"position_id": "42", "share_url": "http://localhost:8000/ä/42", "shared_at": None}
    event = {"type": "position_shared", "from_user": ada, "to_users": [bob, "nobody"], "data": data}
    ack = {"event_type": "position_shared", "delivered_to": 1, "total_recipients": 2}
    assert first.call("collab_event", event) == {**ack, "undelivered": ["nobody"]}
    # As an event too, for those who listen for it.
    assert first.hear("event_ack") == {**ack, "undelivered": ["nobody"]}
    assert second.hear("collab_event") == event
    for number in range(40):
        second.send_event([ada], number)
    heard = [event["data"] for event in first.hear_many("collab_event", 40)]
    assert in_order(first, heard) == list(range(40))
    assert second.hear_many("event_ack", 40) == [{**ack, "total_recipients": 1}] * 40
    for player in (first, second):
        player.until(transport=expected_transport(transports))
    # Over the transport that it has by now, both ways.
    assert first.call("collab_event", {**event, "to_users": [bob]})["delivered_to"] == 1
    assert second.hear("collab_event")["to_users"] == [bob]


def test_every_event_of_the_service_is_heard_by_its_name(players, transports, url):
    ada, bob = user("ada"), user("bob")
    first = players.connect(url, ada, transports=transports)
    first.hear("connected")
    second = players.connect(url, bob, transports=transports)
    assert first.hear("user_online") == {"user_id": bob, "display_name": bob}
    first.emit("ping", {})
    assert abs(first.hear("pong")["timestamp"] / 1000 - time.time()) < PATIENCE_SECONDS
    assert set(first.call("ping", {})) == {"timestamp"}
    first.emit("collab_event", {"type": 5, "to_users": []})
    error = {
        "message": "Invalid event format",
        "error": "data.type: expected str, got int",
        "code": "invalid_event",
    }
    assert first.hear("error") == error
    assert first.call("collab_event", {"type": 5, "to_users": []}) == error
    first.emit("unheard_of", {})
    first.hear("error")
    assert first.hear("error")["code"] == "unknown_event"
    as_operator(url, "notice", message="Maintenance at 22:00 UTC")
    assert second.hear("notice") == {"message": "Maintenance at 22:00 UTC"}
    second.act("disconnect")
    assert first.hear("user_offline") == {"user_id": bob}
    until(lambda: bob not in online(url))


def test_presence_is_told_only_to_those_who_want_it(players, url):
    first = players.connect(url, user("ada"), query={"presence": "none"})
    second = players.connect(url, user("bob"), auth={"presence": "none"})
    first.hear("connected")
    second.hear("connected")
    third = players.connect(url, user("cleo"))
    third.hear("connected")
    third.send_event([first.user_id, second.user_id])
    for player in (first, second):
        player.hear("collab_event")
        assert player.of("user_online") == []


def test_identity_in_auth_wins_over_none_in_the_query_and_a_conflict_is_refused(players, url):
    ada = user("ada")
    shared = players.connect(url, query={"user_id": ada}, auth={"backend_url": "http://localhost:8000"})
    assert shared.hear("connected")["user_id"] == ada
    other = players.connect(url, ada, query={"user_id": "eve"})
    assert other.hear("<connect_error>")["data"]["code"] == "invalid_parameter"
    other.until(connected=False, comes_back=False)


def test_who_does_not_say_who_it_is_hears_why_and_stays_away(players, transports, url):
    before = connections_so_far(url)
    player = players.connect(url, transports=transports)
    assert player.hear("error") == {"message": "user_id and backend_url are required"}
    check_stays_away(player)
    assert [name for name, _ in player.heard if name[0] != "<"] == ["error"]
    assert player.of("<connect>") in (["polling"], ["websocket"])
    assert connections_so_far(url) == before


@pytest.mark.parametrize("transports", ["websocket", "polling"])
def test_another_namespace_is_refused(players, transports, url):
    player = players.connect(url, user("ada"), transports=transports, namespace="/chat")
    assert player.hear("<connect_error>")["message"] == "Invalid namespace"
    player.until(connected=False, comes_back=False)
    assert player.of("<connect>") == []


def test_binary_data_is_answered_with_an_error_and_the_connection_goes_on(players, transports, url):
    ada = players.connect(url, user("ada"), transports=transports)
    ada.hear("connected")
    ada.until(transport=expected_transport(transports))
    ada.act("emit_binary", event="collab_event", data={"type": "t", "to_users": [ada.user_id]})
    assert ada.hear("error") == {
        "message": "Invalid event format",
        "error": "data: binary attachments are not taken",
        "code": "invalid_event",
    }
    ada.send_event([ada.user_id], "still here")
    assert ada.hear("collab_event")["data"] == "still here"
    assert ada.of("<disconnect>") == []


def test_who_is_disconnected_by_an_operator_stays_away(players, transports, url):
    ada = players.connect(url, user("ada"), transports=transports)
    ada.hear("connected")
    assert as_operator(url, f"users/{ada.user_id}/disconnect")["disconnected"] == 1
    check_stays_away(ada)
    assert ada.user_id not in online(url)
    # By its own wish it may.
    again = players.connect(url, ada.user_id, transports=transports)
    again.hear("connected")


def test_the_oldest_of_too_many_connections_of_one_user_stays_away(players, transports, url):
    ada = user("ada")
    opened = []
    for _ in range(9):
        opened.append(players.connect(url, ada, transports=transports))
        opened[-1].hear("connected")
    check_stays_away(opened[0])
    assert opened[-1].call("collab_event", {"type": "t", "to_users": [ada]})["delivered_to"] == 1
    for player in opened[1:]:
        player.hear("collab_event")


def serve_at(directory, port, **settings):
    return Command(directory, *SERVE, f"--port={port}", environ={**ADMIN, **settings})


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_restart_every_client_comes_back_by_itself(end, all_players, tmp_path):
    with serve_at(tmp_path, 0) as before:
        host, port = before.address()
        url = f"http://{host}:{port}"
        opened = [
            players.connect(url, f"{library}-{transports}", transports=transports)
            for library, players in all_players.items()
            for transports in TRANSPORTS
        ]
        for player in opened:
            player.hear("connected")
            player.until(transport=expected_transport(player.user_id.partition("-")[2]))
        before.signal(end)
        if end == signal.SIGTERM:
            for player in opened:
                notice = player.hear("service_shutdown")
                assert set(notice) == {"message", "timestamp", "reconnect_in_ms"}
        for player in opened:
            assert player.hear("<disconnect>") != DISCONNECTED_BY_SERVICE[player.players.library]
        code = before.wait()
        assert code == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    with serve_at(tmp_path, port) as after:
        after.address()
        for player in opened:
            player.hear("connected")
        everybody = [player.user_id for player in opened]
        for player in opened:
            ack = player.call("collab_event", {"type": "t", "to_users": everybody, "data": player.user_id})
            assert (ack["delivered_to"], "undelivered" in ack) == (len(opened), False)
        for player in opened:
            heard = [event["data"] for event in player.hear_many("collab_event", len(opened))]
            assert in_order(player, heard) == in_order(player, everybody)
    for players in all_players.values():
        players.disconnect_all()


def test_the_manual_test_of_the_original_service_runs_as_written(url, tmp_path):
    check_installed()
    written = (DIRECTORY / "manual_test.js").read_text()
    assert written.count("ws://localhost:9000") == 1
    program = tmp_path / "manual_test.js"
    program.write_text(written.replace("ws://localhost:9000", url.replace("http", "ws")))
    running = subprocess.Popen(
        ["node", program],
        env={**os.environ, "NODE_PATH": str(DIRECTORY / "node_modules")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed = ""
        while printed.count("}") < 2 and (line := running.stdout.readline()):
            printed += line
    finally:
        running.kill()
        running.communicate()
    assert re.fullmatch(
        r"Connected: \{\s*user_id: 'test-user',\s*message: 'Connected to collaboration service',"
        r"\s*active_users: \d+\s*\}\s*"
        r"Event acknowledged: \{\s*event_type: 'position_shared',\s*delivered_to: 0,"
        r"\s*total_recipients: 1,\s*undelivered: \[ 'other-user' \]\s*\}\s*",
        printed,
    ), printed


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The URL of a service that wants tokens."""
    environ = {**ADMIN, "COLLAB_AUTH__MODE": "jwt", "COLLAB_AUTH__SECRET": tokens.SECRET}
    environ |= {"COLLAB_AUTH__LEEWAY": "0s"}
    with Command(tmp_path_factory.mktemp("guarded"), *SERVE, "--port=0", environ=environ) as command:
        host, port = command.address()
        yield f"http://{host}:{port}"


TOKEN_PLACES = {
    "auth": lambda token: {"auth": {"token": token}},
    "query": lambda token: {"query": {"token": token}},
    "header": lambda token: {"headers": {"Authorization": f"Bearer {token}"}},
}


@pytest.mark.parametrize("place", TOKEN_PLACES)
def test_a_token_is_taken_from_where_a_client_can_put_it(players, transports, place, guarded):
    ada = user("ada")
    player = players.connect(guarded, ada, transports=transports, **TOKEN_PLACES[place](tokens.token(ada)))
    assert player.hear("connected")["user_id"] == ada
    player.send_event([ada])
    assert player.hear("collab_event")["from_user"] == ada


@pytest.mark.parametrize("transports", ["websocket", "polling"])
@pytest.mark.parametrize(
    "bad", [{}, {"auth": {"token": tokens.token("ada", key=tokens.OTHER_SECRET)}}], ids=["none", "forged"]
)
def test_a_client_without_a_good_token_hears_that_it_is_unauthenticated(players, transports, bad, guarded):
    player = players.connect(guarded, "ada", transports=transports, **bad)
    error = player.hear("<connect_error>")
    assert error["data"] == {"code": "unauthenticated"}
    assert error["message"]
    player.until(connected=False, comes_back=False)
    assert player.of("connected") == []


def test_a_token_that_ends_disconnects_for_good_and_a_new_one_in_time_does_not(all_players, guarded):
    opened = []
    for players in all_players.values():
        for transports in TRANSPORTS:
            ada, bob = user("ada"), user("bob")
            # In whole seconds: they live for two to three.
            for name in (ada, bob):
                opened.append(
                    players.connect(
                        guarded, name, transports=transports, auth={"token": tokens.token(name, seconds=3)}
                    )
                )
    staying, leaving = opened[::2], opened[1::2]
    for player in opened:
        player.hear("connected")
    for ada, bob in zip(staying, leaving, strict=True):
        assert set(ada.call("refresh", {"token": tokens.token(ada.user_id)})) == {"expires_at"}
        ada.hear("refreshed")
        assert ada.call("refresh", {"token": tokens.token(bob.user_id)})["code"] == "unauthenticated"
    for player in leaving:
        check_stays_away(player)
    for player in staying:
        player.send_event([player.user_id], "still here")
        assert player.hear("collab_event")["data"] == "still here"
        assert player.of("<disconnect>") == []
    for players in all_players.values():
        players.disconnect_all()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """The URL of a service with TLS, and the file of its authority."""
    directory = tmp_path_factory.mktemp("encrypted")
    certificates = Certificates(directory)
    environ = {
        "COLLAB_TLS__CERT_FILE": str(certificates.cert_file),
        "COLLAB_TLS__KEY_FILE": str(certificates.key_file),
    }
    with Command(directory, *SERVE, "--port=0", environ=environ) as command:
        port = command.line(r'"wss://[^"]*:(\d+)"')[1]
        yield f"https://localhost:{port}", certificates.root_file


def test_clients_connect_over_tls(players, transports, encrypted):
    url, ca = encrypted
    ada = players.connect(url, user("ada"), transports=transports, ca=ca)
    ada.hear("connected")
    for number in range(20):
        ada.send_event([ada.user_id], number)
    heard = [event["data"] for event in ada.hear_many("collab_event", 20)]
    assert in_order(ada, heard) == list(range(20))
    ada.until(transport=expected_transport(transports))


def test_the_client_for_node_is_bounded_and_nothing_of_npm_is_committed():
    package = json.loads((DIRECTORY / "package.json").read_text())
    assert re.fullmatch(r"\^4\.\d+\.\d+", package["dependencies"]["socket.io-client"])
    assert not (DIRECTORY / "package-lock.json").exists()
