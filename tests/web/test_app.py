"""What holds for every HTTP answer: errors as JSON, CORS, methods."""

from __future__ import annotations

import threading

import pytest
from peers import ask, head, read_to_end

from collab.core.registry import Registry
from collab.settings import HttpSettings, Settings
from collab.testing import open_service

ROUTES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/api/users/online"),
    ("GET", "/api/users/ada"),
    ("POST", "/api/register"),
]


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/nowhere", "/health/", "/api", "/api/users/", "/%00", "/static/x"])
async def test_a_path_that_is_none_is_404_as_json(path):
    async with open_service(in_memory=True) as local:
        assert (await ask(local, "GET", path)).refusal == (404, "not_found")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/api/users/online", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/api/register", {"POST", "OPTIONS"}),
        ("TRACE", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/health", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_method_that_is_not_allowed_is_405_as_json_and_names_those_that_are(method, path, allowed):
    async with open_service(in_memory=True) as local:
        answer = await ask(local, method, path)
        assert answer.refusal == (405, "method_not_allowed")
        assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/api/users/online"])
async def test_head_is_get_without_the_body(path):
    async with open_service(in_memory=True) as local:
        expected = await ask(local, "GET", path)
        stream, _ = await local.open_stream()
        await stream.send_all(head("HEAD", path))
        raw = await read_to_end(stream)
        assert raw.startswith(b"HTTP/1.1 200")
        assert raw.endswith(b"\r\n\r\n")
        assert f"content-length: {len(expected.body)}".encode() in raw


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/nowhere", "/ws", "/api/users/nobody"])
async def test_head_of_an_error_has_no_body_either(path):
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(head("HEAD", path))
        raw = await read_to_end(stream)
        assert raw.endswith(b"\r\n\r\n")
        assert raw.count(b"\r\n\r\n") == 1


@pytest.mark.trio
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_may_be_read_from_any_origin_by_default(method, path):
    async with open_service(in_memory=True) as local:
        await local.connect("ada")
        body = b'{"user_id":"ada","backend_url":"http://x"}' if method == "POST" else None
        answer = await ask(local, method, path, body, {"origin": "https://page.example"})
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/nowhere", None), ("DELETE", "/health", None), ("POST", "/api/register", b"{")],
)
async def test_errors_may_be_read_from_any_origin_too(method, path, body):
    async with open_service(in_memory=True) as local:
        answer = await ask(local, method, path, body, {"origin": "https://page.example"})
        assert answer.status in (400, 404, 405)
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.trio
async def test_a_preflight_is_answered():
    async with open_service(in_memory=True) as local:
        fields = {
            "origin": "https://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
        answer = await ask(local, "OPTIONS", "/api/register", None, fields)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert "content-type" in allowed or allowed == "*"


@pytest.mark.trio
async def test_only_the_origins_that_are_set_may_read():
    settings = Settings(http=HttpSettings(cors_origins=("https://good.example",)))
    async with open_service(settings, in_memory=True) as local:
        good = await ask(local, "GET", "/health", None, {"origin": "https://good.example"})
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        assert "origin" in good.headers["vary"].lower()
        evil = await ask(local, "GET", "/health", None, {"origin": "https://evil.example"})
        assert evil.status == 200
        assert "access-control-allow-origin" not in evil.headers
        await local.connect("ada", headers={"origin": "https://evil.example"})


@pytest.mark.trio
async def test_options_of_a_route_names_its_methods():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "OPTIONS", "/health")
        assert answer.status == 200
        assert "GET" in answer.headers["allow"]


@pytest.mark.trio
async def test_options_of_the_whole_server_is_answered_as_json_or_empty():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "OPTIONS", "*")
        assert answer.status in (200, 204, 404)


@pytest.mark.trio
async def test_a_fault_of_the_service_is_500_as_json_without_its_details(monkeypatch):
    def fail(self):
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(Registry, "online_users", fail)
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", "/api/users/online")
        assert answer.refusal == (500, "internal")
        assert b"secret" not in answer.body
        assert (await ask(local, "GET", "/health")).status == 200


@pytest.mark.trio
async def test_no_answer_names_the_software_behind_it():
    async with open_service(in_memory=True) as local:
        for path in ("/", "/nowhere", "/health"):
            answer = await ask(local, "GET", path)
            assert "server" not in answer.headers
            assert b"hypercorn" not in answer.body.lower()


@pytest.mark.trio
async def test_no_thread_is_started_to_answer():
    before = threading.enumerate()
    async with open_service(in_memory=True) as local:
        for method, path in ROUTES:
            await ask(local, method, path, b"{}" if method == "POST" else None)
        await ask(local, "GET", "/nowhere")
        assert threading.enumerate() == before


@pytest.mark.trio
async def test_every_answer_but_the_page_is_json():
    async with open_service(in_memory=True) as local:
        await local.connect("ada")
        for method, path in [*ROUTES, ("GET", "/ws"), ("GET", "/nowhere"), ("DELETE", "/"), ("GET", "*")]:
            body = b'{"user_id":"ada","backend_url":"http://x"}' if method == "POST" else None
            answer = await ask(local, method, path, body)
            expected = "text/html; charset=utf-8" if (method, path) == ("GET", "/") else "application/json"
            assert answer.headers["content-type"] == expected, (method, path)
            if expected == "application/json":
                assert isinstance(answer.json, dict)
