"""What every HTTP answer says to browsers: nothing to store, to guess, to frame or to run."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from peers import ADA, ask, say, upgrade
from test_app import ROUTES

from collab.settings import AdminSettings, LimitSettings, Settings
from collab.testing import open_service

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
EXPECTED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": NOTHING,
}


def of(answer):
    return {name: answer.headers.get(name) for name in EXPECTED}


@pytest.mark.trio
async def test_every_answer_of_the_api_has_them():
    async with open_service(Settings(admin=AdminSettings(token="x" * 32)), in_memory=True) as local:
        await local.connect("ada")
        body = b'{"user_id":"ada","backend_url":"http://x","type":"t","from_user":"ada","to_users":[]}'
        for method, path in [
            *ROUTES[1:],
            ("POST", "/api/events"),
            ("GET", "/api/admin/limits"),
            ("GET", "/nowhere"),
            ("GET", "/ws"),
            ("DELETE", "/health"),
            ("OPTIONS", "/health"),
            ("HEAD", "/health"),
        ]:
            answer = await ask(local, method, path, body if method == "POST" else None)
            assert of(answer) == EXPECTED, (method, path)


@pytest.mark.trio
async def test_a_fault_of_the_service_and_a_preflight_have_them(monkeypatch):
    def fail(self):
        raise ZeroDivisionError

    monkeypatch.setattr("collab.core.registry.Registry.online_users", fail)
    wishes = {"origin": "https://a.example", "access-control-request-method": "GET"}
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", "/api/users/online")
        assert (answer.status, of(answer)) == (500, EXPECTED)
        preflight = await ask(local, "OPTIONS", "/api/users/online", None, wishes)
        assert (preflight.status, of(preflight)) == (200, EXPECTED)


@pytest.mark.trio
async def test_the_refusals_of_the_door_have_them():
    async with open_service(Settings(limits=LimitSettings(message_bytes=9)), in_memory=True) as local:
        for answer in (
            await say(local, b"nonsense\r\n\r\n"),
            await say(local, b"GET / HTTP/2.0\r\nhost: x\r\n\r\n"),
            await ask(local, "POST", "/api/register", b"more than nine bytes"),
            await upgrade(local, "/?user_id=ada"),
            await upgrade(local, ADA, {"origin": "null"}),
            await upgrade(local, ADA, {"sec-websocket-version": "12"}),
        ):
            assert answer.status >= 400
            assert of(answer) == EXPECTED


@pytest.mark.trio
async def test_the_page_may_use_its_own_style_and_nothing_else():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", "/")
    page = answer.body.decode()
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"{NOTHING}; style-src 'sha256-{digest}'"
    assert of(answer) == {**EXPECTED, "content-security-policy": policy}
    assert not re.search(r"<script|<img|<link|<iframe|<form|style=|\son\w+=|javascript:", page, re.IGNORECASE)


@pytest.mark.trio
async def test_a_page_of_another_origin_reads_the_answers_all_the_same():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", "/health", None, {"origin": "https://page.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert of(answer) == EXPECTED
