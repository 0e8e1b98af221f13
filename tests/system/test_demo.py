"""`scripts/demo`: the conversation runs, a part that goes wrong is noticed, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0

ADA_SEES = [
    "→ position_shared to bob",
    "← comment_added from bob: Great setup!",
    "→ comment_added to bob",
    "→ position_updated to bob",
    "Not connected to ws://localhost",
    "connected",
    "← comment_added from bob: Are you there?",
    "→ share_revoked to bob",
]
BOB_SEES = [
    "← position_shared from ada",
    "fetched “NVDA: breakout above the range” from ada",
    "→ comment_added to ada",
    "← comment_added from ada: Thanks. Watching the volume.",
    "← position_updated from ada: tags, notes",
    "Not connected to ws://localhost",
    "connected",
    "← share_revoked from ada",
]


@pytest.fixture
def environment(tmp_path):
    """An environment for `scripts/demo` that is this very Python, so that nothing is installed."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = subprocess.run(
        ["bash", "-c", 'echo "$PWD" && cksum pyproject.toml constraints.txt'],
        cwd=ROOT.resolve(),
        capture_output=True,
        check=True,
    )
    (venv / "installed-test").write_bytes(stamp.stdout)
    return {**os.environ, "TRIO_COLLAB_VENV": str(venv), "DEMO_SESSION": str(tmp_path)}


class Demo:
    """A demo that runs, read line by line. Owns the process."""

    def __init__(self, environment, *arguments, stdout=subprocess.PIPE):
        self._session = f"DEMO_SESSION={environment['DEMO_SESSION']}".encode()
        self._process = subprocess.Popen(
            [ROOT / "scripts/demo", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def signal(self, number):
        self._process.send_signal(number)

    def line(self, pattern):
        """The next line that matches, as a match object."""
        for line in self._process.stdout:
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"no line matches {pattern!r}: {self._process.stderr.read()}")

    def end(self):
        """Its exit code and errors, and nothing of it may be left."""
        _, errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self.processes() == {}
        return self._process.returncode, errors

    def processes(self):
        """The ids of the processes that it started, and their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if self._session in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
                except OSError:
                    continue
        return found


def in_order(expected, lines):
    """Whether the lines have those that begin like this, in this order."""
    rest = iter(lines)
    return all(any(line.startswith(start) for line in rest) for start in expected)


def test_the_conversation_ends_well_whatever_is_set_for_others(environment):
    environment |= {"PORT": "1", "COLLAB_SERVER__PROT": "1", "USER_ID": "eve", "DATABASE": "none/here"}
    done = subprocess.run(
        [ROOT / "scripts/demo"], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, expected in (("ada", ADA_SEES), ("bob", BOB_SEES)):
        assert in_order(expected, re.findall(rf"^{name} +│ (.*)$", done.stdout, re.MULTILINE)), done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.endswith("\nEveryone saw what they should.\n")


def test_in_a_terminal_it_shows_panels_and_stays_for_people_until_ctrl_c(environment):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    demo = Demo({**environment, "TERM": "xterm"}, "--web", stdout=follower)
    os.close(follower)
    shown = b""
    try:
        while not (urls := re.search(rb"Ada: (\S+) +Bob: (\S+) +Ctrl-C", shown)):
            shown += os.read(leader, 65536)
        for url in urls.groups():
            assert "<!doctype html>" in httpx.get(url.decode(), trust_env=False).text
        demo.signal(signal.SIGINT)
        while True:
            shown += os.read(leader, 65536)
    except OSError:
        pass  # the other side is closed
    finally:
        os.close(leader)
    assert demo.end() == (0, "")
    for title in ("Ada's backend", "Bob's backend", "trio-collab"):
        assert title.encode() in shown


def test_a_backend_that_ends_fails_the_demo(environment):
    demo = Demo(environment, "--web")
    demo.line(r"^Ada: ")
    (bob,) = [pid for pid, command in demo.processes().items() if is_backend_of("bob", pid, command)]
    os.kill(bob, signal.SIGKILL)
    assert demo.end() == (1, "demo: bob ended with exit code -9\n")


def is_backend_of(name, pid, command):
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return "demo_backend" in command and f"USER_ID={name}".encode() in environ


def test_something_that_is_not_seen_fails_the_demo(tmp_path):
    # Backends that take no comments; and a demo that does not wait long for them.
    shutil.copytree(ROOT / "scripts" / "_demo", tmp_path / "_demo")
    shutil.copytree(ROOT / "scripts" / "demo_backend", tmp_path / "demo_backend")
    for path, sound, faulty in (
        ("demo_backend/backend.py", "case CommentAdded(", "case CommentAdded(type='none', "),
        ("_demo/story.py", "_PATIENCE_SECONDS = 15.0", "_PATIENCE_SECONDS = 1.0"),
    ):
        text = (tmp_path / path).read_text()
        assert text.count(sound) == 1
        (tmp_path / path).write_text(text.replace(sound, faulty))
    done = subprocess.run(
        [sys.executable, tmp_path / "_demo" / "main.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (1, "demo: ada does not see the comments ('Great setup!',)\n")


def test_a_signal_ends_it_with_all_its_processes(environment):
    demo = Demo(environment)
    demo.line("Listening")
    assert len(demo.processes()) >= 2
    demo.signal(signal.SIGTERM)
    assert demo.end() == (128 + signal.SIGTERM, "demo: stopped\n")


def test_an_option_that_it_does_not_have_is_refused(environment):
    done = subprocess.run([ROOT / "scripts/demo", "fast"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/demo")
