"""The example's backends as child processes, and what their users do."""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import httpx
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
POSITIONS = "/api/v1/positions/ideas"
PATIENCE_SECONDS = 30.0


class Backend:
    """One backend and its user. Owns the process; the database stays."""

    def __init__(self, directory, user_id, collab_url, port=0):
        self.user_id = user_id
        self._database = directory / f"{user_id}.sqlite"
        self._collab_url = collab_url
        self._port = port
        self._start()

    def _start(self):
        environ = {
            **os.environ,
            "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{SCRIPTS.parent}",
            "USER_ID": self.user_id,
            "PORT": str(self._port),
            "COLLAB_URL": self._collab_url,
            "DATABASE": str(self._database),
        }
        self._output = []
        self._listening = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo_backend"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._output.append(line)
            if found := re.match(r"Listening (\S+)", line):
                self._listening.put(found[1])
        self._listening.put(None)

    def __enter__(self):
        self.url = self._listening.get(timeout=PATIENCE_SECONDS)
        assert self.url, self.output
        self._port = int(self.url.rpartition(":")[2])
        self.user = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)
        return self

    def __exit__(self, *exc_info):
        self.end(signal.SIGKILL)

    def end(self, number):
        self.user.close()
        self._process.send_signal(number)
        self._process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        self._process.stdout.close()
        return self._process.returncode

    def start_again(self):
        self._start()
        self.__enter__()

    @property
    def output(self):
        return "".join(self._output)

    def ask(self, method, path, **arguments):
        answer = self.user.request(method, path, **arguments)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create(self, title="NVDA breakout", **members):
        return self.ask("POST", POSITIONS, json={"title": title, **members})["id"]

    def share(self, id, *users):
        self.ask("POST", f"{POSITIONS}/{id}/share", json={"to_users": users})

    def revoke(self, id, user):
        self.ask("DELETE", f"{POSITIONS}/{id}/share/{user}")

    def update(self, id, **updates):
        self.ask("PATCH", f"{POSITIONS}/{id}", json=updates)

    def comment(self, id, text):
        return self.ask("POST", f"{POSITIONS}/{id}/comments", json={"text": text})["id"]

    def state(self):
        return self.ask("GET", "/api/state")

    def position(self, id):
        """What this user sees of a position; None where there is none."""
        return next((seen for seen in self.state()["positions"] if seen["id"] == id), None)

    def texts(self, id):
        """The comments that this user sees on it; None where it is not there."""
        position = self.position(id)
        return position and [comment["text"] for comment in position["comments"]]

    def rows(self, query):
        """What is in the database itself."""
        with closing(connect(self._database)) as database:
            return database.execute(query).fetchall()

    def execute(self, statement, *values):
        """Change the database behind the backend's back."""
        with closing(connect(self._database)) as database, database:
            assert database.execute(statement, values).rowcount == 1

    def until(self, condition, *arguments):
        """Wait until the user sees what the condition asks for."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(self, *arguments):
            if time.monotonic() > deadline:
                pytest.fail(f"{self.user_id} waits in vain: {self.state()}\n{self.output}")
            time.sleep(0.02)


def is_connected(backend):
    return backend.state()["collab"]["state"] == "connected"


def sees(backend, id):
    """It knows the position, and has fetched it."""
    position = backend.position(id)
    return position is not None and position["title"] != ""


def sees_not(backend, id):
    return backend.position(id) is None


def sees_comments(backend, id, texts):
    return backend.texts(id) == texts


def free_port():
    """A port that no outgoing connection is given, so that a service finds it free again."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
