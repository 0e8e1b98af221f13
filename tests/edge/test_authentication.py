"""Tokens at the door: who comes in, as whom, and until when."""

from __future__ import annotations

import logging
import time

import attrs
import pytest
import trio
from peers import ADA, UPGRADE, ask, text, until_end, upgrade
from tokens import OTHER_SECRET, SECRET, token

from collab.settings import AuthSettings, Duration, HttpSettings, LimitSettings, Settings
from collab.testing import Closed, Rejected, open_service

SETTINGS = Settings(auth=AuthSettings(mode="jwt", secret=SECRET, leeway=Duration("0s")))


def bearing(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@pytest.mark.trio
async def test_a_token_in_the_header_or_in_the_query_lets_its_user_in(open_anyhow):
    async with open_anyhow(SETTINGS) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        bob = await local.connect("bob", token=token("bob"))
        await ada.send_event("t", ["bob"], 1)
        assert (await bob.receive())["data"]["from_user"] == "ada"


@pytest.mark.trio
async def test_the_user_need_not_be_said_again(open_anyhow):
    async with open_anyhow(SETTINGS) as local:
        answer = await upgrade(local, "/?backend_url=http://x", bearing(token("ada")))
        assert answer.status == 101


@pytest.mark.trio
@pytest.mark.parametrize(
    ("target", "headers", "refusal"),
    [
        (ADA, {}, (401, "unauthenticated")),
        (ADA + "&token=", {}, (401, "unauthenticated")),
        (ADA, bearing(token("ada", key=OTHER_SECRET)), (401, "unauthenticated")),
        (ADA, bearing(token("ada", seconds=-5)), (401, "unauthenticated")),
        (ADA, {"authorization": "Basic YWRhOnB3"}, (401, "unauthenticated")),
        (ADA, {"authorization": "Bearer"}, (401, "unauthenticated")),
        (ADA, bearing(token("eve")), (403, "forbidden")),
        ("/ws/ada?backend_url=http://x", bearing(token("eve")), (403, "forbidden")),
        (ADA + f"&token={token('eve')}", {}, (403, "forbidden")),
        (ADA + f"&token={token('ada')}", bearing(token("ada")), (400, "invalid_parameter")),
        (ADA + "&token=a&token=b", {}, (400, "invalid_parameter")),
        ("/?backend_url=http://x", bearing(token("x" * 129)), (401, "unauthenticated")),
        ("/?backend_url=http://x", bearing(token("e\u202eve")), (401, "unauthenticated")),
    ],
)
async def test_whoever_is_not_who_they_say_is_refused(target, headers, refusal):
    async with open_service(SETTINGS, in_memory=True) as local:
        answer = await upgrade(local, target, headers)
        assert answer.refusal == refusal
        assert ("www-authenticate" in answer.headers) == (answer.status == 401)
        assert local.online() == set()


@pytest.mark.trio
async def test_a_header_given_twice_is_refused():
    async with open_service(SETTINGS, in_memory=True) as local:
        stream, _ = await local.open_stream()
        lines = [f"{name}: {value}" for name, value in UPGRADE.items()]
        lines += [f"authorization: Bearer {token('ada')}", f"authorization: Bearer {token('eve')}"]
        await stream.send_all("\r\n".join([f"GET {ADA} HTTP/1.1", *lines, "", ""]).encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.trio
async def test_the_user_of_another_cannot_be_taken_by_a_reconnect(open_anyhow):
    async with open_anyhow(SETTINGS) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        with pytest.raises(Rejected) as caught:
            await local.connect("ada", headers=bearing(token("eve")))
        assert (caught.value.status, caught.value.code) == (403, "forbidden")
        await ada.drop()
        with pytest.raises(Rejected):
            await local.connect("ada", headers=bearing(token("eve")))


@pytest.mark.trio
async def test_a_connection_ends_with_4001_when_its_token_does(autojump_clock):
    async with open_service(SETTINGS, in_memory=True, timeout_seconds=100) as local:
        ada = await local.connect("ada", headers=bearing(token("ada", seconds=20)))
        observer = await local.connect("bob", presence="all", headers=bearing(token("bob", seconds=9000)))
        with pytest.raises(Closed) as caught:
            await ada.receive()
        assert caught.value.code == 4001
        assert 18 < trio.current_time() < 23
        assert (await observer.receive("user_offline"))["data"] == {"user_id": "ada"}


@pytest.mark.trio
async def test_refresh_lets_a_connection_stay(autojump_clock):
    async with open_service(SETTINGS, in_memory=True, timeout_seconds=1000) as local:
        ada = await local.connect("ada", headers=bearing(token("ada", seconds=60)))
        await ada.send("refresh", {"token": token("ada", seconds=300)}, id=5)
        answer = await ada.receive()
        assert (answer["event"], answer["id"]) == ("refreshed", 5)
        end = time.strptime(answer["data"]["expires_at"], "%Y-%m-%dT%H:%M:%SZ")
        assert abs(time.mktime(end) - time.mktime(time.gmtime()) - 300) < 3
        with pytest.raises(Closed) as caught:
            await ada.receive()
        assert caught.value.code == 4001
        assert 295 < trio.current_time() < 305


@pytest.mark.trio
@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"token": "x"}, "unauthenticated"),
        ({"token": token("eve")}, "unauthenticated"),
        ({"token": token("ada", seconds=-60)}, "unauthenticated"),
        ({"token": 7}, "invalid_message"),
        ({}, "invalid_message"),
        ([], "invalid_message"),
    ],
)
async def test_a_refresh_with_a_bad_token_changes_nothing(autojump_clock, data, code):
    async with open_service(SETTINGS, in_memory=True, timeout_seconds=100) as local:
        ada = await local.connect("ada", headers=bearing(token("ada", seconds=60)))
        await ada.send("refresh", data, id="r")
        answer = await ada.receive("error")
        assert (answer["data"]["code"], answer["id"]) == (code, "r")
        assert await ada.echoes()
        with pytest.raises(Closed) as caught:
            await ada.receive()
        assert caught.value.code == 4001


@pytest.mark.trio
async def test_guessing_tokens_over_one_connection_ends_it():
    settings = attrs.evolve(SETTINGS, limits=LimitSettings(errors=1))
    async with open_service(settings, in_memory=True) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        for _ in range(11):
            await ada.send("refresh", {"token": token("ada", key=OTHER_SECRET)})
            assert (await ada.receive("error"))["data"]["code"] == "unauthenticated"
        with pytest.raises(Closed) as caught:
            await ada.receive()
        assert caught.value.code == 1008


@pytest.mark.trio
async def test_refresh_is_unknown_where_authentication_is_off():
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.send("refresh", {"token": "x"})
        assert (await ada.receive("error"))["data"]["code"] == "unknown_event"


@pytest.mark.trio
async def test_the_http_api_asks_for_the_same_tokens():
    async with open_service(SETTINGS, in_memory=True) as local:
        for target in ("/api/users/online", "/api/users/ada", "/api/nothing"):
            assert (await ask(local, "GET", target)).refusal == (401, "unauthenticated")
        online = "/api/users/online"
        assert (await ask(local, "GET", online, headers=bearing(token("ada")))).status == 200
        assert (await ask(local, "GET", f"{online}?token={token('ada')}")).status == 200
        assert (await ask(local, "GET", online, headers=bearing(token(seconds=-60)))).status == 401
        for target in ("/health", "/ready", "/"):
            assert (await ask(local, "GET", target)).status == 200


@pytest.mark.trio
async def test_register_is_for_oneself():
    body = b'{"user_id":"ada","backend_url":"http://x"}'
    async with open_service(SETTINGS, in_memory=True) as local:
        assert (await ask(local, "POST", "/api/register", body)).status == 401
        answer = await ask(local, "POST", "/api/register", body, bearing(token("eve")))
        assert answer.refusal == (403, "forbidden")
        assert (await ask(local, "POST", "/api/register", body, bearing(token("ada")))).status == 200


@pytest.mark.trio
async def test_a_preflight_needs_no_token():
    settings = attrs.evolve(SETTINGS, http=HttpSettings(cors_origins=("https://a.example",)))
    wishes = {"origin": "https://a.example", "access-control-request-method": "GET"}
    async with open_service(settings, in_memory=True) as local:
        answer = await ask(local, "OPTIONS", "/api/users/online", headers=wishes)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.trio
async def test_no_token_is_ever_told_or_logged(caplog, capsys, open_over_sockets):
    caplog.set_level(logging.DEBUG)
    sound, bad, late = token("ada"), token("ada", key=OTHER_SECRET), token("ada", seconds=-60)
    said = b""
    async with open_over_sockets(SETTINGS) as local:
        for each in (sound, bad, late):
            for target, headers in ((ADA, bearing(each)), (f"{ADA}&token={each}", {})):
                said += (await upgrade(local, target, headers)).body
                answer = await ask(local, "GET", f"/api/users/online?token={each}")
                said += answer.body + repr(answer.headers).encode()
                said += (await ask(local, "GET", "/api/users/ada", headers=headers)).body
        ada = await local.connect("ada", headers=bearing(sound))
        for each in (bad, late):
            await ada.send("refresh", {"token": each})
            said += repr(await ada.receive("error")).encode()
        await ada.stream.send_all(text("refresh", {"token": [bad]}))
        said += repr(await ada.receive("error")).encode()
    out, err = capsys.readouterr()
    everything = said.decode() + caplog.text + out + err
    for each in (sound, bad, late):
        for part in each.split("."):
            if len(part) > 10 and part != sound.split(".")[0]:
                assert part not in everything


@pytest.mark.trio
async def test_refreshes_without_end_are_refused_and_end_the_connection(autojump_clock):
    async with open_service(SETTINGS, in_memory=True) as local:
        ada = await local.connect("ada", headers=bearing(token("ada")))
        for _ in range(10):
            await ada.send("refresh", {"token": token("ada")})
            assert (await ada.receive())["event"] == "refreshed"
        await ada.send("refresh", {"token": token("ada")})
        assert (await ada.receive("error"))["data"]["code"] == "unauthenticated"
        await trio.sleep(1)
        await ada.send("refresh", {"token": token("ada")})
        assert (await ada.receive())["event"] == "refreshed"
        for _ in range(300):
            await ada.send("refresh", {"token": token("ada")})
        _, end = await until_end(ada)
        assert end[0] == 1008
