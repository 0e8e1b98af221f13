"""The endpoints: docs/protocol.md, "HTTP", with the bodies of the seed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from urllib.parse import quote

import attrs
import pytest
import trio
from peers import ask, say

from collab.settings import ServerSettings, Settings
from collab.testing import open_service
from collab.web.api import websocket_url


async def get(local, target):
    answer = await ask(local, "GET", target)
    assert answer.status == 200
    return answer.json


async def register(local, body, headers=None):
    return await ask(local, "POST", "/api/register", json.dumps(body).encode(), headers)


@pytest.mark.trio
async def test_health_has_the_body_of_the_seed():
    async with open_service(in_memory=True) as local:
        assert await get(local, "/health") == {
            "status": "healthy",
            "uptime": 0,
            "active_users": 0,
            "total_connections": 0,
            "total_events_routed": 0,
        }


@pytest.mark.trio
async def test_uptime_is_whole_seconds(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=10**6) as local:
        await trio.sleep(3.9)
        assert (await ask(local, "GET", "/health")).body.startswith(b'{"status":"healthy","uptime":3,')
        await trio.sleep(60)
        assert (await get(local, "/health"))["uptime"] == 63


@pytest.mark.trio
async def test_health_counts_distinct_users_connections_since_the_start_and_acknowledged_events():
    async with open_service(in_memory=True) as local:
        ada, again, bob = [await local.connect(user_id) for user_id in ("ada", "ada", "bob")]
        for _ in range(3):
            await ada.send_event("t", ["bob", "ada"])
            await ada.receive("event_ack")
        await ada.send_event("t", "not a list")
        assert (await ada.receive("error"))["data"]["code"] == "invalid_event"
        await again.close()
        await bob.close()
        health = await get(local, "/health")
        del health["uptime"]
        assert health == {
            "status": "healthy",
            "active_users": 1,
            "total_connections": 3,
            "total_events_routed": 3,
        }


@pytest.mark.trio
async def test_ready_says_so():
    async with open_service(in_memory=True) as local:
        assert await get(local, "/ready") == {"status": "ready"}


@pytest.mark.trio
async def test_the_online_list_has_the_body_of_the_seed():
    async with open_service(in_memory=True) as local:
        assert await get(local, "/api/users/online") == {"users": [], "count": 0}
        await local.connect("ada", backend_url="http://localhost:8000", display_name="Ada ä🙂")
        await local.connect("bob", backend_url="http://localhost:8001")
        listed = await get(local, "/api/users/online")
        assert listed["count"] == 2
        assert [list(row) for row in listed["users"]] == [
            ["user_id", "display_name", "backend_url", "connected_at", "status"]
        ] * 2
        for row in listed["users"]:
            connected_at = row.pop("connected_at")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", connected_at)
            moment = datetime.strptime(connected_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
        assert listed["users"] == [
            {
                "user_id": "ada",
                "display_name": "Ada ä🙂",
                "backend_url": "http://localhost:8000",
                "status": "online",
            },
            {
                "user_id": "bob",
                "display_name": "Unknown User",
                "backend_url": "http://localhost:8001",
                "status": "online",
            },
        ]


@pytest.mark.trio
async def test_a_user_has_one_row_with_the_time_of_the_first_connection_and_the_rest_of_the_newest():
    async with open_service(in_memory=True) as local:
        await local.connect("ada", backend_url="http://first", display_name="First")
        (first,) = local.service.registry.of_user("ada")
        first.connected_at = datetime(2025, 11, 1, 10, 0, 0, 999_999, tzinfo=UTC)
        newest = await local.connect("ada", backend_url="http://newest", display_name="Newest")
        row = {
            "user_id": "ada",
            "display_name": "Newest",
            "backend_url": "http://newest",
            "connected_at": "2025-11-01T10:00:00Z",
            "status": "online",
        }
        assert await get(local, "/api/users/online") == {"users": [row], "count": 1}
        assert await get(local, "/api/users/ada") == row
        await newest.close()
        assert await get(local, "/api/users/ada") == {
            **row,
            "display_name": "First",
            "backend_url": "http://first",
        }


@pytest.mark.trio
async def test_a_user_who_is_offline_is_404():
    async with open_service(in_memory=True) as local:
        ada = await local.connect("ada")
        assert (await ask(local, "GET", "/api/users/ada")).status == 200
        await ada.close()
        for user_id in ("ada", "nobody", "%00", "%ff", "a" * 500):
            assert (await ask(local, "GET", f"/api/users/{user_id}")).refusal == (404, "not_found")


@pytest.mark.trio
@pytest.mark.parametrize("user_id", ["ada lovelace", "ä🙂", "a/b", "a//b", "a?b#c", "a%2Fb", "..", "a+b"])
async def test_a_user_with_an_unusual_id_has_a_row(user_id):
    async with open_service(in_memory=True) as local:
        await local.connect(user_id)
        assert (await get(local, f"/api/users/{quote(user_id, safe='')}"))["user_id"] == user_id


@pytest.mark.trio
async def test_register_answers_how_to_connect_and_registers_nothing():
    async with open_service(in_memory=True) as local:
        for extra in ({}, {"display_name": "Ada"}, {"display_name": None}, {"unknown": [1]}):
            answer = await register(local, {"user_id": "ada", "backend_url": "http://x", **extra})
            assert answer.status == 200
            assert set(answer.json) == {"success", "collab_ws_url", "message"}
            assert answer.json["success"] is True
            assert answer.json["message"].startswith("Connect via WebSocket")
        assert local.online() == set()
        assert (await get(local, "/health"))["total_connections"] == 0


@pytest.mark.trio
@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost:9000", "ws://localhost:9000"),
        ("collab.example", "ws://collab.example"),
        ("[::1]:9000", "ws://[::1]:9000"),
        ("evil/path", "ws://localhost:9000"),
        ("user@evil", "ws://localhost:9000"),
        ("", "ws://localhost:9000"),
    ],
)
async def test_the_url_to_connect_to_is_made_of_the_host_that_was_asked(host, url):
    async with open_service(in_memory=True) as local:
        answer = await register(local, {"user_id": "ada", "backend_url": "http://x"}, {"host": host})
        assert answer.json["collab_ws_url"] == url


@pytest.mark.trio
async def test_the_url_to_connect_to_is_the_services_own_where_no_host_was_said():
    async with open_service() as local:
        body = b'{"user_id":"ada","backend_url":"http://x"}'
        raw = b"POST /api/register HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        assert (await say(local, raw)).json["collab_ws_url"] == local.service.ws_url


@pytest.mark.trio
async def test_the_url_to_connect_to_really_reaches_the_service():
    async with open_service() as local:
        host, port = local.service.addresses[0]
        answer = await register(
            local, {"user_id": "ada", "backend_url": "http://x"}, {"host": f"{host}:{port}"}
        )
        assert answer.json["collab_ws_url"] == local.service.ws_url == f"ws://{host}:{port}"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("public_url", "url"),
    [
        ("https://collab.example", "wss://collab.example"),
        ("https://collab.example/", "wss://collab.example"),
        ("http://collab.example:8080/base/", "ws://collab.example:8080/base"),
        ("wss://collab.example", "wss://collab.example"),
    ],
)
async def test_the_url_to_connect_to_is_the_public_one_where_it_is_set(public_url, url):
    settings = Settings(server=ServerSettings(public_url=public_url))
    async with open_service(settings, in_memory=True) as local:
        answer = await register(local, {"user_id": "ada", "backend_url": "http://x"}, {"host": "other"})
        assert answer.json["collab_ws_url"] == url == websocket_url(public_url)


@pytest.mark.trio
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user_id": "ada"},
        {"backend_url": "http://x"},
        {"user_id": "", "backend_url": "http://x"},
        {"user_id": "ada", "backend_url": ""},
        {"user_id": None, "backend_url": None},
    ],
)
async def test_register_without_user_id_or_backend_url_is_400(body):
    async with open_service(in_memory=True) as local:
        answer = await register(local, body)
        assert answer.status == 400
        assert answer.json == {
            "error": "user_id and backend_url are required",
            "code": "missing_parameter",
        }


@pytest.mark.trio
@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": 7},
        {"user_id": ["ada"]},
        {"backend_url": {}},
        {"display_name": 7},
        {"user_id": "a" * 129},
        {"user_id": "a\u202eb"},
        {"backend_url": "not a url"},
        {"backend_url": "ftp://x"},
        {"display_name": "n" * 129},
        {"display_name": "a\nb"},
    ],
)
async def test_register_checks_what_a_connection_would_have_to_say(changed):
    async with open_service(in_memory=True) as local:
        answer = await register(local, {"user_id": "ada", "backend_url": "http://x", **changed})
        assert answer.refusal == (400, "invalid_parameter")
        assert next(iter(changed)) in answer.json["error"]


@pytest.mark.trio
@pytest.mark.parametrize(
    "body", [b"", b"{", b"user_id=ada", b"\xff", b'{"x":' + b"[" * 5000, b'{"user_id": "\xff"}']
)
async def test_register_with_a_body_that_is_not_json_is_400(body):
    async with open_service(in_memory=True) as local:
        assert (await ask(local, "POST", "/api/register", body)).refusal == (400, "invalid_json")


@pytest.mark.trio
@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"7"])
async def test_register_with_json_of_another_kind_is_400(body):
    async with open_service(in_memory=True) as local:
        assert (await ask(local, "POST", "/api/register", body)).refusal == (400, "invalid_parameter")


@pytest.mark.trio
async def test_register_takes_json_whatever_its_content_type_is():
    async with open_service(in_memory=True) as local:
        body = {"user_id": "ada", "backend_url": "http://x"}
        for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded", None):
            answer = await register(local, body, {"content-type": content_type})
            assert answer.status == 200


def test_a_row_holds_nothing_that_the_seed_does_not_have():
    from collab.core.registry import OnlineUser

    names = [field.name for field in attrs.fields(OnlineUser)]
    assert names == ["user_id", "display_name", "backend_url", "connected_at", "status"]


@pytest.mark.trio
@pytest.mark.parametrize("user_id", ["online", "/", "/ada"])
async def test_a_user_called_online_or_beginning_with_a_slash_is_found_in_the_list_only(user_id):
    async with open_service(in_memory=True) as local:
        await local.connect(user_id)
        listed = await get(local, "/api/users/online")
        assert [row["user_id"] for row in listed["users"]] == [user_id]
        alone = await ask(local, "GET", f"/api/users/{quote(user_id, safe='')}")
        assert alone.status == 404 or alone.json == listed
