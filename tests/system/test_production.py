"""The production start of the README, end to end: TLS, tokens, permissions, limits, validation, audit."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tokens
import websockets
from certificates import Certificates
from commands import Command

if TYPE_CHECKING:
    import ssl

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
README = (ROOT / "README.md").read_text()
PATIENCE_SECONDS = 20


@pytest.fixture
def production(tmp_path):
    """A directory as the README sets it up, with a certificate of a real authority, and the environment."""
    certificates = Certificates(tmp_path)
    (tmp_path / "jwt-private.pem").write_bytes(tokens.private_pem("EdDSA"))
    (tmp_path / "jwt-public.pem").write_bytes(tokens.public_pem("EdDSA"))
    shutil.copy(DEPLOY / "collab.toml", tmp_path)
    exported = re.search(r"^export (.*)$", README, re.MULTILINE)[1]
    environ = dict(part.split("=") for part in exported.split())
    # A free port on loopback; the rest is as it stands in the file.
    environ |= {"COLLAB_SERVER__HOST": "127.0.0.1", "COLLAB_SERVER__PORT": "0"}
    return tmp_path, certificates, environ


def run(directory, environ, *arguments) -> str:
    """What a command that succeeds prints."""
    with Command(directory, *arguments, environ=environ) as command:
        assert command.wait() == 0, command.errors
        return command.output


def token(directory, environ, user_id: str, *peers: str) -> str:
    wishes = [f"--peer={peer}" for peer in peers]
    signing = ("--config=collab.toml", "--private-key=jwt-private.pem", "--ttl=15m")
    return run(directory, environ, "token", "create", *signing, f"--user={user_id}", *wishes).strip()


async def exchange(url: str, context: ssl.SSLContext, ada_token: str, bob_token: str) -> None:
    """Two backends that use what is allowed, and try what is not."""

    async def connect(user_id: str, text: str):
        target = f"{url}?user_id={user_id}&backend_url=https://{user_id}.example.org"
        return await websockets.connect(
            target, ssl=context, additional_headers={"Authorization": f"Bearer {text}"}
        )

    async def say(ws, number: int, data: dict) -> dict:
        await ws.send(json.dumps({"event": "collab_event", "id": number, "data": data}))
        return json.loads(await ws.recv())

    with pytest.raises(websockets.InvalidStatus, match="401"):
        await connect("ada", "made.up.token")
    with pytest.raises(websockets.InvalidStatus, match="403"):
        await connect("bob", ada_token)
    ada, bob = await connect("ada", ada_token), await connect("bob", bob_token)
    assert json.loads(await ada.recv())["event"] == "connected"
    assert json.loads(await bob.recv())["event"] == "connected"
    assert json.loads(await ada.recv())["data"]["user_id"] == "bob"
    shared = {
        "position_id": "42",
        "share_url": "https://ada.example.org/positions/42",
        "secret": "payload-canary",
    }
    event = {"type": "position_shared", "to_users": ["bob", "eve"], "data": shared}
    ack = await say(ada, 1, event)
    assert ack["data"] == {
        "event_type": "position_shared",
        "delivered_to": 1,
        "total_recipients": 2,
        "undelivered": ["eve"],
    }
    assert json.loads(await bob.recv())["data"]["data"] == shared
    for number, wrong in enumerate(
        [
            {**event, "data": {**shared, "share_url": "javascript:alert(1)"}},
            {**event, "type": "unheard_of"},
            {**event, "from_user": "bob"},
        ],
        start=2,
    ):
        error = await say(ada, number, wrong)
        assert (error["event"], error["id"]) == ("error", number)
    # bob's token names nobody.
    ack = await say(bob, 9, {"type": "share_revoked", "to_users": ["ada"], "data": {"position_id": "42"}})
    assert ack["data"]["undelivered"] == ["ada"]
    codes = []
    for number in range(10, 260):
        reply = await say(ada, number, {**event, "to_users": []})
        codes.append(reply["data"].get("code", reply["event"]))
    assert codes[0] == "event_ack"
    assert codes[-1] == "rate_limited"
    await ada.close()
    await bob.close()


def asked(url: str, context: ssl.SSLContext, text: str = "") -> tuple[int, dict]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {text}"} if text else {})
    try:
        with urllib.request.urlopen(request, context=context, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_production_start_of_the_readme_holds_what_it_says(production):
    directory, certificates, environ = production
    assert run(directory, environ, "config", "check", "--config=collab.toml") == "ok\n"
    ada_token, bob_token = token(directory, environ, "ada", "bob"), token(directory, environ, "bob")
    with Command(directory, "serve", "--config=collab.toml", environ=environ) as service:
        port = service.line(r'"wss://[^"]*:(\d+)"')[1]
        context = certificates.client()
        asyncio.run(
            asyncio.wait_for(
                exchange(f"wss://localhost:{port}", context, ada_token, bob_token), PATIENCE_SECONDS
            )
        )
        online = f"https://localhost:{port}/api/users/online"
        assert asked(online, context)[0] == 401
        assert asked(online, context, ada_token) == (200, {"users": [], "count": 0})
        assert asked(f"https://localhost:{port}/health", context)[0] == 200
        service.signal(signal.SIGTERM)
        assert service.wait() == 0, service.errors
        said = service.output + service.errors
    lines = [json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    kinds = [line["event"] for line in lines]
    assert (kinds[0], kinds[-1]) == ("start", "stop")
    assert {"connect", "authenticate", "refuse", "route", "limit", "disconnect"} <= set(kinds)
    everything = said + (directory / "audit.jsonl").read_text()
    for secret in ("payload-canary", *ada_token.split("."), *bob_token.split(".")):
        # The header of a token is the same for everybody, and no secret.
        assert secret == ada_token.split(".")[0] or secret not in everything


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    unit = (DEPLOY / "trio-collab.service").read_text()
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parsed.optionxform = str
    parsed.read_string(unit)
    assert {"Unit", "Service", "Install"} == set(parsed.sections())
    assert parsed["Service"]["ExecStart"].split()[1:] == ["serve", "--config=/etc/trio-collab/collab.toml"]
    verify = shutil.which("systemd-analyze")
    assert verify, "install systemd, as scripts/test does where it may"
    # What it starts is not installed here: something that is stands for it.
    here = tmp_path / "trio-collab.service"
    here.write_text(unit.replace("/opt/trio-collab/bin/trio-collab", shutil.which("true")))
    done = subprocess.run(
        [verify, "verify", str(here)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
