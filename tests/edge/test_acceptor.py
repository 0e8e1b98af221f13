"""Who may come in by WebSocket: docs/protocol.md, "Connecting", row by row."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import attrs
import pytest
import trio
from peers import ADA, UPGRADE, head, read_answer, say, upgrade

from collab.settings import LimitSettings, OriginSettings, Settings
from collab.testing import Closed, Rejected, open_service

URL = "http://localhost:8000"


def target(path="/", **parameters):
    return f"{path}?{urlencode(parameters)}"


async def refusal_of(request_target, headers=None, settings=None):
    async with open_service(settings, in_memory=True) as local:
        answer = await upgrade(local, request_target, headers)
        assert answer.headers["connection"] == "close"
        assert local.service.status.total_connections == 0
        return answer.refusal


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/", "/ws"])
async def test_the_user_comes_from_the_query(path):
    async with open_service(in_memory=True) as local:
        backend = await local.open(target(path, user_id="ada", backend_url=URL))
        connected = await backend.receive()
        assert connected == {
            "event": "connected",
            "data": {
                "user_id": "ada",
                "message": "Connected to collaboration service",
                "active_users": 1,
            },
        }
        assert local.online() == {"ada"}


@pytest.mark.trio
async def test_the_user_comes_from_the_path():
    async with open_service(in_memory=True) as local:
        for user_id in ("ada", "ada lovelace", "a/b", "ä", "online"):
            backend = await local.open(target(f"/ws/{quote(user_id, safe='')}", backend_url=URL))
            assert (await backend.receive())["data"]["user_id"] == user_id


@pytest.mark.trio
async def test_the_user_may_be_in_path_and_query_if_both_agree():
    async with open_service(in_memory=True) as local:
        backend = await local.open(target("/ws/a%20b", user_id="a b", backend_url=URL))
        assert (await backend.receive())["data"]["user_id"] == "a b"
    differing = target("/ws/ada", user_id="bob", backend_url=URL)
    assert await refusal_of(differing) == (400, "invalid_parameter")


@pytest.mark.trio
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"user_id": "ada"},
        {"backend_url": URL},
        {"user_id": "", "backend_url": URL},
        {"user_id": "ada", "backend_url": ""},
    ],
)
async def test_user_id_and_backend_url_are_needed(query):
    async with open_service(in_memory=True) as local:
        answer = await upgrade(local, target(**query))
        assert answer.status == 400
        assert answer.json == {
            "error": "user_id and backend_url are required",
            "code": "missing_parameter",
        }


@pytest.mark.trio
@pytest.mark.parametrize("user_id", ["a", "a" * 128, "ä" * 128, "Ada Lovelace", "a+b&c=d", "🙂"])
async def test_a_user_id_has_1_to_128_characters(user_id):
    async with open_service(in_memory=True) as local:
        await local.connect(user_id)
        assert local.online() == {user_id}


@pytest.mark.trio
@pytest.mark.parametrize(
    "user_id", ["a" * 129, "a\nb", "a\x00", "a\x7f", "a\x85b", "a\u202eb", "a\u2066b", "a\u200fb", "a\u2028b"]
)
async def test_a_user_id_has_no_control_or_bidi_characters_and_is_not_longer(user_id):
    assert await refusal_of(target(user_id=user_id, backend_url=URL)) == (400, "invalid_parameter")
    in_path = target("/ws/" + quote(user_id), backend_url=URL)
    assert await refusal_of(in_path) == (400, "invalid_parameter")


@pytest.mark.trio
@pytest.mark.parametrize("url", ["https://a.example/x?y=z", "http://[::1]:80", "http://a/" + "x" * 2039])
async def test_a_backend_url_is_absolute_http_or_https_of_at_most_2048_characters(url):
    async with open_service(in_memory=True) as local:
        await local.connect("ada", backend_url=url)
        assert local.service.registry.online_user("ada").backend_url == url


@pytest.mark.trio
@pytest.mark.parametrize(
    "url",
    [
        "http://a/" + "x" * 2040,
        "localhost:8000",
        "/relative",
        "//host/x",
        "ftp://host",
        "ws://host",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://ho st",
        "http://host\n",
        "http://host/\u202e",
    ],
)
async def test_another_backend_url_is_refused(url):
    assert await refusal_of(target(user_id="ada", backend_url=url)) == (400, "invalid_parameter")


@pytest.mark.trio
async def test_a_display_name_is_taken_and_is_unknown_user_where_it_is_absent_or_empty():
    async with open_service(in_memory=True) as local:
        for user_id, query, name in (
            ("a", {}, "Unknown User"),
            ("b", {"display_name": ""}, "Unknown User"),
            ("c", {"display_name": "Ada Lovelace ä🙂"}, "Ada Lovelace ä🙂"),
            ("d", {"display_name": "n" * 128}, "n" * 128),
        ):
            await local.open(target(user_id=user_id, backend_url=URL, **query))
            assert local.service.registry.online_user(user_id).display_name == name


@pytest.mark.trio
@pytest.mark.parametrize("name", ["n" * 129, "a\nb", "a\x1b[2J", "\x00"])
async def test_a_display_name_has_at_most_128_characters_and_no_control_characters(name):
    query = target(user_id="ada", backend_url=URL, display_name=name)
    assert await refusal_of(query) == (400, "invalid_parameter")


@pytest.mark.trio
@pytest.mark.parametrize("presence", ["some", "ALL", "0"])
async def test_presence_is_all_or_none(presence):
    query = target(user_id="ada", backend_url=URL, presence=presence)
    assert await refusal_of(query) == (400, "invalid_parameter")


@pytest.mark.trio
@pytest.mark.parametrize(
    "again", ["user_id=ada", "user_id=bob", "backend_url=http://x", "display_name=&display_name=", "x=1&x=1"]
)
async def test_a_parameter_given_twice_is_refused(again):
    query = f"{ADA}&{again}"
    assert await refusal_of(query) == (400, "invalid_parameter")


@pytest.mark.trio
@pytest.mark.parametrize("bad", ["user_id=%ff", "display_name=%C3%28", "user_id=%ED%A0%80"])
async def test_a_query_that_is_not_utf8_is_refused(bad):
    name = bad.partition("=")[0]
    others = {"user_id": "ada", "backend_url": URL}
    others.pop(name, None)
    assert await refusal_of(f"/?{urlencode(others)}&{bad}") == (400, "invalid_parameter")


@pytest.mark.trio
async def test_an_unknown_parameter_is_ignored():
    async with open_service(in_memory=True) as local:
        backend = await local.open(f"{ADA}&EIO=4&colour=green")
        assert (await backend.receive())["event"] == "connected"


@pytest.mark.trio
async def test_a_refusal_names_the_parameter_at_fault():
    async with open_service(in_memory=True) as local:
        for query, named in (
            ({"user_id": "a\n", "backend_url": URL}, "user_id"),
            ({"user_id": "a", "backend_url": "x"}, "backend_url"),
            ({"user_id": "a", "backend_url": URL, "display_name": "\n"}, "display_name"),
            ({"user_id": "a", "backend_url": URL, "presence": "x"}, "presence"),
        ):
            assert named in (await upgrade(local, target(**query))).json["error"]


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/nowhere", "/health", "/ws/a/b", "/wss", "/api/users/online", "/WS"])
async def test_an_upgrade_anywhere_else_is_404(path):
    assert await refusal_of(target(path, user_id="ada", backend_url=URL)) == (404, "not_found")


@pytest.mark.trio
@pytest.mark.parametrize("version", ["12", "8", "0", "13, 8", "", None])
async def test_a_websocket_version_other_than_13_is_426_and_names_13(version):
    async with open_service(in_memory=True) as local:
        answer = await upgrade(local, ADA, {"sec-websocket-version": version})
        assert answer.refusal == (426, "upgrade_required")
        assert answer.headers["sec-websocket-version"] == "13"
        assert answer.headers["upgrade"] == "websocket"


@pytest.mark.trio
@pytest.mark.parametrize(
    "headers",
    [
        {"connection": "keep-alive"},
        {"connection": None},
        {"connection": "upgrade, close"},
        {"sec-websocket-key": None},
        {"sec-websocket-key": "c2hvcnQ="},
        {"sec-websocket-key": "not base64 at all!!!!!!!"},
        {"content-length": "5"},
        {"transfer-encoding": "chunked"},
    ],
)
async def test_a_malformed_opening_handshake_is_400(headers):
    assert await refusal_of(ADA, headers) == (400, "bad_request")


@pytest.mark.trio
async def test_an_upgrade_by_post_is_400():
    async with open_service(in_memory=True) as local:
        answer = await say(local, head("POST", ADA, UPGRADE), "POST")
        assert answer.refusal == (400, "bad_request")


@pytest.mark.trio
async def test_the_upgrade_headers_may_be_spelt_and_listed_as_clients_do():
    headers = {"upgrade": "WebSocket", "connection": "keep-alive, Upgrade", "content-length": "0"}
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(head("GET", ADA, {**UPGRADE, **headers}))
            answer = await read_answer(stream)
            assert answer.status == 101
            assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.trio
async def test_compression_is_never_agreed_to():
    async with open_service(in_memory=True) as local:
        offer = {"sec-websocket-extensions": "permessage-deflate; client_max_window_bits"}
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(head("GET", ADA, {**UPGRADE, **offer}))
            answer = await read_answer(stream)
            assert answer.status == 101
            assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.trio
async def test_every_origin_but_null_may_connect_by_default():
    async with open_service(in_memory=True) as local:
        await local.connect("ada", headers={"origin": "https://anywhere.example"})
        with pytest.raises(Rejected) as refused:
            await local.connect("bob", headers={"origin": "null"})
        assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


@pytest.mark.trio
async def test_only_an_allowed_origin_may_connect():
    settings = Settings(origins=OriginSettings(allowed=("https://good.example",)))
    async with open_service(settings, in_memory=True) as local:
        await local.connect("ada", headers={"origin": "https://good.example"})
        await local.connect("bob")
        for origin in ("https://good.example.evil.example", "http://good.example", "null"):
            with pytest.raises(Rejected) as refused:
                await local.connect("cyd", headers={"origin": origin})
            assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


@pytest.mark.trio
async def test_a_client_without_an_origin_can_be_refused():
    settings = Settings(origins=OriginSettings(allow_absent=False))
    async with open_service(settings, in_memory=True) as local:
        with pytest.raises(Rejected) as refused:
            await local.connect("ada")
        assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


@pytest.mark.trio
async def test_too_many_connections_of_one_address_are_429_with_retry_after():
    settings = Settings(limits=LimitSettings(connections_per_address=2))
    async with open_service(settings, in_memory=True) as local:
        ada, _ = await local.connect("ada"), await local.connect("bob")
        answer = await upgrade(local, ADA)
        assert answer.refusal == (429, "too_many_connections")
        assert int(answer.headers["retry-after"]) > 0
        await ada.close()
        await local.connect("cyd")


@pytest.mark.trio
async def test_too_many_connections_in_total_are_503_with_retry_after():
    settings = Settings(limits=LimitSettings(connections=1))
    async with open_service(settings, in_memory=True) as local:
        ada = await local.connect("ada")
        answer = await upgrade(local, target(user_id="bob", backend_url=URL))
        assert answer.refusal == (503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
        await ada.close()
        await local.connect("bob")


@pytest.mark.trio
async def test_a_refused_upgrade_takes_no_place():
    settings = Settings(limits=LimitSettings(connections=1, connections_per_address=1))
    async with open_service(settings, in_memory=True) as local:
        for _ in range(3):
            assert (await upgrade(local, "/?user_id=ada")).status == 400
        await local.connect("ada")


@pytest.mark.trio
async def test_over_the_limit_of_one_user_the_oldest_connection_is_closed_with_4002():
    settings = Settings(limits=LimitSettings(connections_per_user=2))
    async with open_service(settings, in_memory=True) as local:
        observer = await local.connect("observer", presence="all")
        oldest, second = await local.connect("ada"), await local.connect("ada")
        assert (await observer.receive())["event"] == "user_online"
        newest = await local.connect("ada")
        closed = await oldest.wait_closed()
        assert closed.code == 4002
        assert closed.reason
        assert await second.echoes()
        assert await newest.echoes()
        assert len(local.service.registry.of_user("ada")) == 2
        assert await observer.echoes()
        with pytest.raises(Closed):
            await oldest.receive()


@pytest.mark.trio
async def test_the_limit_of_one_user_can_be_taken_away():
    settings = Settings(limits=LimitSettings(connections_per_user=0))
    async with open_service(settings, in_memory=True) as local:
        for _ in range(20):
            await local.connect("ada")
        assert len(local.service.registry.of_user("ada")) == 20


@pytest.mark.trio
async def test_by_default_one_user_holds_eight_connections():
    async with open_service(in_memory=True) as local:
        first = await local.connect("ada")
        for _ in range(7):
            await local.connect("ada")
        assert await first.echoes()
        await local.connect("ada")
        assert (await first.wait_closed()).code == 4002


@pytest.mark.trio
async def test_while_the_service_drains_an_upgrade_is_503_with_retry_after():
    async with open_service(in_memory=True) as local:
        local.service.status.draining = True
        answer = await upgrade(local, ADA)
        assert answer.refusal == (503, "draining")
        assert int(answer.headers["retry-after"]) == attrs.evolve(Settings()).server.reconnect_spread


@pytest.mark.trio
async def test_a_peer_that_does_not_take_the_answer_to_its_handshake_is_dropped_in_time(autojump_clock):
    async with open_service(in_memory=True) as local:
        stream, far_end = await local.open_stream()
        far_end.hold()
        await stream.send_all(head("GET", ADA, UPGRADE))
        await trio.sleep(8)
        with trio.fail_after(0.1):
            assert await stream.receive_some() == b""
        assert local.service.status.total_connections == 0


@pytest.mark.trio
async def test_an_empty_value_counts_as_none():
    async with open_service(in_memory=True) as local:
        backend = await local.open(f"/ws/ada?user_id=&backend_url={URL}&display_name=&presence=&token=")
        assert (await backend.receive())["data"]["user_id"] == "ada"
        assert local.service.registry.online_user("ada").display_name == "Unknown User"
        await local.connect("bob")
        assert (await backend.receive())["event"] == "user_online"
        backend = await local.open(f"/ws/?user_id=cyd&backend_url={URL}")
        assert (await backend.receive())["data"]["user_id"] == "cyd"
    assert await refusal_of(f"/ws/?backend_url={URL}") == (400, "missing_parameter")


@pytest.mark.trio
async def test_ids_are_compared_character_by_character():
    alike = {"Ada", "ada", "ADA", "ada ", "a\u0301da", "\u00e1da"}
    async with open_service(in_memory=True) as local:
        backends = {user_id: await local.connect(user_id) for user_id in alike}
        assert local.online() == alike
        await backends["Ada"].send_event("comment_added", ["ada", "aDa"])
        assert (await backends["Ada"].receive())["data"]["undelivered"] == ["aDa"]
        assert (await backends["ada"].receive())["data"]["from_user"] == "Ada"
        for user_id in alike - {"Ada", "ada"}:
            await backends[user_id].send("ping")
            assert (await backends[user_id].receive())["event"] == "pong"


@pytest.mark.trio
async def test_no_subprotocol_is_agreed_to():
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        async with stream:
            offer = {"sec-websocket-protocol": "chat, v1.collab"}
            await stream.send_all(head("GET", ADA, {**UPGRADE, **offer}))
            answer = await read_answer(stream)
            assert answer.status == 101
            assert "sec-websocket-protocol" not in answer.headers
