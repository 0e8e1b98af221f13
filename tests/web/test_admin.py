"""The operator API: who may use it, what it shows, what it does to connections."""

from __future__ import annotations

import hmac
import itertools
import json
import logging
from urllib.parse import quote

import pytest
import trio
from peers import ask, until_end
from tokens import OTHER_SECRET, SECRET, token

from collab.edge.peer import Ends
from collab.errors import SettingsError
from collab.settings import AdminSettings, AuthSettings, Duration, LimitSettings, Settings, load_settings
from collab.testing import open_service

ADMIN_TOKEN = "the-admin-token-of-the-tests-0123456789"
AUTH = AuthSettings(mode="jwt", secret=SECRET)
BY_TOKEN = Settings(admin=AdminSettings(token=ADMIN_TOKEN))
BY_SCOPE = Settings(auth=AUTH)
BY_BOTH = Settings(auth=AUTH, admin=AdminSettings(token=ADMIN_TOKEN))

CONNECTIONS, NOTICE, LIMITS = "/api/admin/connections", "/api/admin/notice", "/api/admin/limits"
ENDPOINTS = [
    ("GET", CONNECTIONS, None),
    ("GET", LIMITS, None),
    ("POST", NOTICE, b'{"message":"hello"}'),
    ("POST", "/api/admin/users/ada/disconnect", None),
]


def bearing(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


OPERATOR = bearing(ADMIN_TOKEN)


async def act(local, method, target, body=None, headers=OPERATOR):
    data = None if body is None else json.dumps(body).encode()
    return await ask(local, method, target, data, headers)


@pytest.mark.trio
@pytest.mark.parametrize(("method", "target", "body"), ENDPOINTS)
async def test_without_operators_there_is_no_operator_api(method, target, body):
    async with open_service(in_memory=True) as local:
        await local.connect("ada")
        for headers in ({}, OPERATOR, bearing("")):
            answer = await ask(local, method, target, body, headers)
            nothing = await ask(local, method, "/api/nothing", body, headers)
            assert answer.refusal == (404, "not_found")
            assert answer.body == nothing.body
        assert local.online() == {"ada"}


@pytest.mark.trio
@pytest.mark.parametrize(("method", "target", "body"), ENDPOINTS)
@pytest.mark.parametrize(
    ("settings", "headers"),
    [(BY_TOKEN, OPERATOR), (BY_BOTH, OPERATOR), (BY_BOTH, bearing(token("root", scope="x admin")))],
)
async def test_an_operator_comes_by_the_admin_token_or_by_the_scope(settings, headers, method, target, body):
    async with open_service(settings, in_memory=True) as local:
        await local.connect("ada", headers=bearing(token("ada")))
        assert (await ask(local, method, target, body, headers)).status == 200


@pytest.mark.trio
@pytest.mark.parametrize(("method", "target", "body"), ENDPOINTS)
@pytest.mark.parametrize(
    ("settings", "headers", "refusal"),
    [
        (BY_TOKEN, {}, (401, "unauthenticated")),
        (BY_TOKEN, bearing(ADMIN_TOKEN[:-1]), (401, "unauthenticated")),
        (BY_TOKEN, bearing(ADMIN_TOKEN + "x"), (401, "unauthenticated")),
        (BY_TOKEN, bearing(ADMIN_TOKEN.upper()), (401, "unauthenticated")),
        (BY_TOKEN, bearing("\u00e9" * 39), (401, "unauthenticated")),
        (BY_TOKEN, {"authorization": f"Basic {ADMIN_TOKEN}"}, (401, "unauthenticated")),
        (BY_TOKEN, bearing(token("root", scope="admin")), (401, "unauthenticated")),
        (BY_SCOPE, {}, (401, "unauthenticated")),
        (BY_SCOPE, OPERATOR, (401, "unauthenticated")),
        (BY_SCOPE, bearing(token("ada")), (403, "forbidden")),
        (BY_SCOPE, bearing(token("admin")), (403, "forbidden")),
        (BY_SCOPE, bearing(token("ada", scope="administrator Admin xadmin")), (403, "forbidden")),
        (BY_SCOPE, bearing(token("ada", scope=["admin"])), (403, "forbidden")),
        (BY_SCOPE, bearing(token("ada", scope={"a": "b admin c"})), (403, "forbidden")),
        (BY_SCOPE, bearing(token("ada", scope="admin", key=OTHER_SECRET)), (401, "unauthenticated")),
        (BY_SCOPE, bearing(token("ada", scope="admin", seconds=-60)), (401, "unauthenticated")),
        (BY_BOTH, bearing(ADMIN_TOKEN[:-1]), (401, "unauthenticated")),
    ],
)
async def test_nobody_else_is_an_operator(settings, headers, refusal, method, target, body):
    async with open_service(settings, in_memory=True) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        answer = await ask(local, method, target, body, headers)
        assert answer.refusal == refusal
        assert ("www-authenticate" in answer.headers) == (answer.status == 401)
        assert await ada.echoes()


@pytest.mark.trio
async def test_an_operators_token_is_never_taken_from_the_query():
    sound = token("root", scope="admin")
    async with open_service(BY_BOTH, in_memory=True) as local:
        for each in (ADMIN_TOKEN, sound):
            answer = await ask(local, "GET", f"{CONNECTIONS}?token={each}")
            assert answer.refusal == (401, "unauthenticated")


@pytest.mark.trio
async def test_the_admin_token_is_no_users_token():
    async with open_service(BY_BOTH, in_memory=True) as local:
        assert (await ask(local, "GET", "/api/users/online", None, OPERATOR)).status == 401
        event = b'{"type":"t","from_user":"ada","to_users":[]}'
        assert (await ask(local, "POST", "/api/events", event, OPERATOR)).status == 401
    async with open_service(BY_TOKEN, in_memory=True) as local:
        assert (await ask(local, "GET", "/api/users/online")).status == 200


@pytest.mark.trio
async def test_the_path_of_an_operator_cannot_be_written_so_that_nobody_asks_who_comes():
    async with open_service(BY_BOTH, in_memory=True) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        # Each from an address of its own, for which it is the first failure.
        addresses = itertools.count(1)
        for target in (
            "/api/%61dmin/connections",
            "/api/admin/connections/",
            "/api/admin//connections",
            "//api/admin/connections",
            "/api//admin/connections",
            "/x/../api/admin/connections",
            "/API/ADMIN/connections",
            "/api/admin/connections%3Fa",
            "http://localhost/api/admin/connections",
        ):
            for method in ("GET", "HEAD", "POST"):
                stream, far_end = await local.open_stream()
                far_end.socket = Ends((f"10.0.0.{next(addresses)}", 50000), ("127.0.0.1", 9000))
                async with stream:
                    await stream.send_all(f"{method} {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                    status = (await stream.receive_some())[9:12]
                assert status in (b"401", b"404"), target
        assert await ada.echoes()


@pytest.mark.trio
async def test_the_admin_token_is_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with open_service(BY_TOKEN, in_memory=True) as local:
        for guess in ("x", ADMIN_TOKEN[:-1], ADMIN_TOKEN):
            await ask(local, "GET", LIMITS, None, bearing(guess))
    assert compared == [
        (guess.encode(), ADMIN_TOKEN.encode()) for guess in ("x", ADMIN_TOKEN[:-1], ADMIN_TOKEN)
    ]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("settings", "headers", "refusal"),
    [
        (BY_TOKEN, bearing("a-guess"), (401, "unauthenticated")),
        (BY_TOKEN, {}, (401, "unauthenticated")),
        (BY_SCOPE, bearing("a.b.c"), (401, "unauthenticated")),
        (BY_BOTH, bearing(token("ada")), (403, "forbidden")),
    ],
)
async def test_who_fails_too_often_is_told_to_wait_by_address(settings, headers, refusal, autojump_clock):
    async with open_service(settings, in_memory=True) as local:

        async def fail(address):
            return await ask(local, "GET", CONNECTIONS, None, headers, address=address)

        for number in range(10):
            assert (await fail(f"2001:db8::{number:x}")).refusal == refusal
        answer = await fail("2001:db8::ffff")
        assert answer.refusal == (429, "rate_limited")
        assert answer.headers["retry-after"] == "1"
        # Another's failures are not theirs, and an attempt is given back each second.
        assert (await fail("2001:db8:0:1::1")).refusal == refusal
        await trio.sleep(1)
        assert (await fail("2001:db8::1")).refusal == refusal
        assert (await fail("2001:db8::1")).refusal == (429, "rate_limited")


@pytest.mark.trio
async def test_who_fails_too_often_cannot_find_the_admin_token_by_trying_on(autojump_clock, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append(one)
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with open_service(BY_BOTH, in_memory=True) as local:
        for number in range(40):
            await ask(local, "GET", LIMITS, None, bearing(f"guess-{number}"))
        assert len(compared) == 10
        assert (await ask(local, "GET", LIMITS, None, OPERATOR)).refusal == (429, "rate_limited")
        assert len(compared) == 10
        # From elsewhere, with a token that cannot be guessed, and after a while an operator comes in.
        assert (await ask(local, "GET", LIMITS, None, OPERATOR, address="192.0.2.1")).status == 200
        by_scope = bearing(token("root", scope="admin"))
        assert (await ask(local, "GET", LIMITS, None, by_scope)).status == 200
        await trio.sleep(1)
        assert (await ask(local, "GET", LIMITS, None, OPERATOR)).status == 200


@pytest.mark.trio
async def test_an_operator_may_act_as_often_as_it_likes():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        for _ in range(30):
            assert (await act(local, "GET", LIMITS)).status == 200


@pytest.mark.parametrize(
    "text", ["x" * 31, "x" * 31 + " ", "x" * 32 + "\n", "é" * 32, "x" * 16 + " " + "x" * 16]
)
def test_an_admin_token_that_is_short_or_cannot_be_sent_is_refused_at_the_start(text):
    with pytest.raises(SettingsError, match="32 or more characters") as caught:
        AdminSettings(token=text)
    assert text.strip() not in str(caught.value)


def test_an_admin_token_of_32_characters_is_enough():
    assert AdminSettings(token="x" * 32).token == "x" * 32


@pytest.mark.trio
async def test_the_list_of_connections_has_a_row_for_each():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        assert (await act(local, "GET", CONNECTIONS)).json == {"connections": [], "count": 0}
        await local.connect("ada", display_name="Ada")
        await local.connect("bob")
        await local.connect("ada", display_name="Ada again")
        answer = (await act(local, "GET", CONNECTIONS)).json
        assert answer["count"] == 3
        rows = answer["connections"]
        assert len({row.pop("id") for row in rows}) == 3
        assert all(row.pop("connected_at").endswith("Z") for row in rows)
        assert [(row.pop("user_id"), row.pop("display_name")) for row in rows] == [
            ("ada", "Ada"),
            ("ada", "Ada again"),
            ("bob", "Unknown User"),
        ]
        assert (
            rows
            == [
                {
                    "address": "127.0.0.1",
                    "dialect": "plain",
                    "queued_messages": 0,
                    "queued_bytes": 0,
                    "in_flight": 0,
                }
            ]
            * 3
        )


@pytest.mark.trio
async def test_the_list_of_connections_shows_what_is_queued_and_in_flight(autojump_clock):
    limits = LimitSettings(mailbox_messages=2, slow_consumer=Duration("60s"))
    settings = Settings(admin=AdminSettings(token=ADMIN_TOKEN), limits=limits)
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
        await trio.sleep(1)
        rows = {row["user_id"]: row for row in (await act(local, "GET", CONNECTIONS)).json["connections"]}
        assert rows["bob"]["queued_messages"] == 2
        assert rows["bob"]["queued_bytes"] > 100
        assert rows["ada"]["in_flight"] == 3
        bob.resume()


@pytest.mark.trio
async def test_more_connections_than_are_listed_at_a_time_are_all_listed():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        for number in range(300):
            await local.connect(f"u{number}")
        answer = (await act(local, "GET", CONNECTIONS)).json
        assert [row["user_id"] for row in answer["connections"]] == [f"u{number}" for number in range(300)]


@pytest.mark.trio
async def test_disconnect_closes_every_connection_of_the_user_and_of_nobody_else(open_anyhow):
    async with open_anyhow(BY_TOKEN) as local:
        of_ada = [await local.connect("ada") for _ in range(3)]
        bob = await local.connect("bob", presence="all")
        answer = await act(local, "POST", "/api/admin/users/ada/disconnect")
        assert (answer.status, answer.json) == (200, {"user_id": "ada", "disconnected": 3})
        for backend in of_ada:
            closed = await backend.wait_closed()
            assert (closed.code, closed.reason) == (4004, "Disconnected by an operator")
        assert (await bob.receive("user_offline"))["data"] == {"user_id": "ada"}
        assert local.online() == {"bob"}
        assert await bob.echoes()
        again = await act(local, "POST", "/api/admin/users/ada/disconnect")
        assert again.refusal == (404, "not_found")


@pytest.mark.trio
async def test_who_was_disconnected_may_connect_again():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        ada = await local.connect("ada")
        await act(local, "POST", "/api/admin/users/ada/disconnect")
        assert (await ada.wait_closed()).code == 4004
        assert await (await local.connect("ada")).echoes()


@pytest.mark.trio
async def test_disconnect_ends_one_who_reads_nothing_too(autojump_clock):
    async with open_service(BY_TOKEN, in_memory=True, timeout_seconds=600) as local:
        ada = await local.connect("ada")
        ada.stall()
        answer = await act(local, "POST", "/api/admin/users/ada/disconnect")
        assert answer.json["disconnected"] == 1
        assert local.online() == set()
        await trio.sleep(60)
        assert local.service._acceptor.lives() == []


@pytest.mark.trio
@pytest.mark.parametrize(
    "user_id", ["/", "/a", "a/b", "a/disconnect", "//", "ä 🙂", "a?b#c%2F", "online", ".."]
)
async def test_no_user_has_an_id_that_is_out_of_reach(user_id):
    async with open_service(BY_TOKEN, in_memory=True) as local:
        backend = await local.connect(user_id)
        target = f"/api/admin/users/{quote(user_id, safe='')}/disconnect"
        assert (await act(local, "POST", target)).json["user_id"] == user_id
        assert (await backend.wait_closed()).code == 4004


@pytest.mark.trio
async def test_a_notice_reaches_every_connection(open_anyhow):
    async with open_anyhow(BY_TOKEN) as local:
        backends = [await local.connect(user_id) for user_id in ("ada", "ada", "bob")]
        answer = await act(local, "POST", NOTICE, {"message": "Maintenance at 22:00 🙂\nfor an hour"})
        assert (answer.status, answer.json) == (200, {"connections": 3})
        for backend in backends:
            message = {"message": "Maintenance at 22:00 🙂\nfor an hour"}
            assert await backend.receive() == {"event": "notice", "data": message}


@pytest.mark.trio
async def test_a_notice_may_have_1000_characters():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        ada = await local.connect("ada")
        assert (await act(local, "POST", NOTICE, {"message": "ä" * 1000})).status == 200
        assert (await ada.receive("notice"))["data"]["message"] == "ä" * 1000


@pytest.mark.trio
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "invalid_parameter"),
        (b'{"message":""}', "missing_parameter"),
        (b'{"message":7}', "invalid_parameter"),
        (b'{"message":null}', "invalid_parameter"),
        (b"[]", "invalid_parameter"),
        (b"", "invalid_json"),
        (b'{"message":"x"', "invalid_json"),
        (b'{"message":"\xff"}', "invalid_json"),
        (json.dumps({"message": "x" * 1001}).encode(), "invalid_parameter"),
        (b'{"message":"\\u001b[2J"}', "invalid_parameter"),
        (b'{"message":"a\\r\\nb"}', "invalid_parameter"),
    ],
)
async def test_a_notice_that_is_none_reaches_nobody(body, code):
    async with open_service(BY_TOKEN, in_memory=True) as local:
        ada = await local.connect("ada")
        assert (await ask(local, "POST", NOTICE, body, OPERATOR)).refusal == (400, code)
        assert await ada.echoes()


@pytest.mark.trio
async def test_notices_to_one_who_reads_nothing_end_with_4003_and_hold_up_nobody(autojump_clock):
    limits = LimitSettings(mailbox_messages=4)
    settings = Settings(admin=AdminSettings(token=ADMIN_TOKEN), limits=limits)
    async with open_service(settings, in_memory=True, timeout_seconds=600) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(10):
            assert (await act(local, "POST", NOTICE, {"message": f"{number}"})).json["connections"] == 2
            assert (await ada.receive("notice"))["data"]["message"] == f"{number}"
            (held,) = local.service.registry.of_user("bob")
            assert held.mailbox.messages <= 4
        await trio.sleep(5)
        assert local.online() == {"ada"}
        bob.resume()
        assert (await until_end(bob))[1][0] == 4003


@pytest.mark.trio
async def test_the_limits_are_shown_as_plain_numbers_and_no_secret_with_them():
    limits = LimitSettings(mailbox_messages=7)
    settings = Settings(auth=AUTH, admin=AdminSettings(token=ADMIN_TOKEN), limits=limits)
    async with open_service(settings, in_memory=True) as local:
        answer = await act(local, "GET", LIMITS)
        assert set(answer.json) == {"limits", "timeouts"}
        assert answer.json["limits"]["mailbox_messages"] == 7
        assert answer.json["limits"]["message_bytes"] == 65536
        assert answer.json["limits"]["slow_consumer"] == 2.0
        assert answer.json["timeouts"]["ping_interval"] == 25.0
        assert SECRET not in answer.body.decode()
        assert ADMIN_TOKEN not in answer.body.decode()


@pytest.mark.trio
async def test_while_the_service_drains_operators_get_503(autojump_clock):
    async with open_service(BY_TOKEN, in_memory=True) as local:
        local.service.status.draining = True
        for method, target, body in ENDPOINTS:
            assert (await ask(local, method, target, body, OPERATOR)).refusal == (503, "draining")


@pytest.mark.trio
async def test_every_act_is_noted_with_who_did_what_to_whom(caplog):
    caplog.set_level(logging.INFO)
    async with open_service(BY_BOTH, in_memory=True) as local:
        await local.connect("ada", headers=bearing(token("ada")))
        for method, target, body in ENDPOINTS:
            await ask(local, method, target, body, bearing(token("root", scope="admin")))
        await ask(local, "GET", LIMITS, None, OPERATOR)
        await ask(local, "GET", LIMITS, None, bearing(token("eve")))
    noted = [line for line in caplog.text.splitlines() if "Operator act" in line]
    assert len(noted) == 5
    for line, words in zip(
        noted,
        ["list connections", "show limits", "hello", "user_id", "admin.token"],
        strict=True,
    ):
        assert words in line
        assert "127.0.0.1" in line
    assert all("root" in line for line in noted[:4])


@pytest.mark.trio
async def test_the_admin_token_is_never_told_or_logged(caplog, capsys, open_over_sockets):
    caplog.set_level(logging.DEBUG)
    wrong = "wrong-admin-token-canary-0123456789-0123456789"
    said = repr(BY_BOTH)
    async with open_over_sockets(BY_BOTH) as local:
        for each in (ADMIN_TOKEN, wrong):
            for method, target, body in [
                *ENDPOINTS,
                ("GET", "/api/users/online", None),
                ("GET", "/nowhere", None),
            ]:
                for headers, query in (
                    (bearing(each), ""),
                    ({"authorization": each}, ""),
                    ({}, f"?token={each}"),
                ):
                    answer = await ask(local, method, target + query, body, headers)
                    said += answer.body.decode() + repr(answer.headers)
    out, err = capsys.readouterr()
    everything = said + caplog.text + out + err
    assert ADMIN_TOKEN not in everything
    assert wrong not in everything


@pytest.mark.parametrize("text", ["short-canary", ADMIN_TOKEN])
def test_a_setting_that_holds_the_admin_token_never_shows_it(text):
    environ = {"COLLAB_ADMIN__TOKEN": text}
    try:
        shown = repr(load_settings(None, environ, {}))
    except SettingsError as error:
        shown = str(error)
        assert "admin.token" in shown
    assert text not in shown
