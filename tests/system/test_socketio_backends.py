"""Two backends written as the existing ones are, unchanged, against `trio-collab serve`, over its restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from commands import Command
from socketio_players import DIRECTORY

SERVE = ["serve", "--host=127.0.0.1", "--log-file="]
PATIENCE_SECONDS = 15


class Backend:
    """One backend. Owns its process."""

    def __init__(self, user_id, collab_url):
        self._process = subprocess.Popen(
            [sys.executable, str(DIRECTORY / "backend.py")],
            env={**os.environ, "USER_ID": user_id, "COLLAB_URL": collab_url},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.user_id = user_id
        port = self._process.stdout.readline()
        assert port, "the backend has ended"
        self.url = f"http://127.0.0.1:{int(port)}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Let it vanish."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def do(self, path, **body):
        """Have its user do something, as a frontend does."""
        return self._ask(urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode()))

    def on_position(self, act, other, **body):
        return self.do(f"/api/v1/positions/ideas/42/{act}/{other.user_id}", **body)

    def until(self, is_so):
        """Wait until what it has seen is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so(seen := self._ask(f"{self.url}/seen")):
            if time.monotonic() > deadline:
                pytest.fail(f"{self.user_id} has seen {seen}")
            time.sleep(0.02)
        return seen

    def _ask(self, request):
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)


def exchange(ada, bob, title):
    """Share, fetch, comment both ways, update, revoke."""
    acks = len(ada.until(lambda seen: True)["acks"])
    ada.on_position("share", bob, title=title, tags=[])
    bob.until(lambda seen: seen["shared"] == {"42": {"title": title, "tags": [], "comments": []}})
    bob.on_position("comment", ada, text="Great setup!")
    ada.until(lambda seen: seen["positions"]["42"]["comments"] == ["Great setup!"])
    ada.on_position("comment", bob, text="Thanks")
    bob.until(lambda seen: seen["shared"]["42"]["comments"] == ["Thanks"])
    ada.on_position("update", bob, tags=["bullish", "momentum"], notes="Updated analysis")
    bob.until(lambda seen: seen["shared"]["42"].get("notes") == "Updated analysis")
    ada.on_position("revoke", bob)
    bob.until(lambda seen: seen["shared"] == {})
    types = ["position_shared", "comment_added", "position_updated", "share_revoked"]
    ada.until(lambda seen: seen["acks"][acks:] == [[type, 1, 1] for type in types])
    ada.do("/ping")
    assert ada.until(lambda seen: seen["life"][-1] == "pong")["errors"] == []


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_backends_go_on_by_themselves_after_a_restart_of_the_service(end, tmp_path):
    with Command(tmp_path, *SERVE, "--port=0") as before:
        host, port = before.address()
        url = f"http://{host}:{port}"
        with Backend("ada", url) as ada, Backend("bob", url) as bob:
            ada.until(lambda seen: seen["online"] == ["bob"])
            exchange(ada, bob, "first")
            before.signal(end)
            before.wait()
            told = ["service_shutdown"] if end == signal.SIGTERM else []
            for backend in (ada, bob):
                backend.until(lambda seen: seen["life"][-1] == "disconnect")
            with Command(tmp_path, *SERVE, f"--port={port}") as after:
                after.address()
                for backend in (ada, bob):
                    seen = backend.until(lambda seen: seen["life"][-1] == "connected")
                    assert [word for word in seen["life"] if word != "pong"] == [
                        "connect",
                        "connected",
                        *told,
                        "disconnect",
                        "connect",
                        "connected",
                    ]
                exchange(ada, bob, "second")
                bob.end()
                ada.until(lambda seen: seen["offline"][-1:] == ["bob"])
                after.signal(signal.SIGTERM)
                assert after.wait() == 0
