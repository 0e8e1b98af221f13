"""`scripts/demo`: the story runs, and a part that goes wrong is noticed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0

ADA_SEES = [
    "connected",
    "user_online",
    "event_ack position_shared",
    "comment_added",
    "event_ack position_updated",
    "event_ack share_revoked",
    "user_offline",
    "user_online",
    "service_shutdown",
    "closed with 1001",
]
BOB_SEES = [
    "connected",
    "position_shared",
    "event_ack comment_added",
    "position_updated",
    "share_revoked",
    "connected",
    "service_shutdown",
    "closed with 1001",
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
    (venv / "installed-base").write_bytes(stamp.stdout)
    return {**os.environ, "TRIO_COLLAB_VENV": str(venv)}


def seen_by(name, output):
    return re.findall(rf"^{name} +│ ← (.*)$", output, re.MULTILINE)


def processes_of(session):
    """The ids of the processes that the demo with this marker in its environment started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if session.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_everyone_sees_what_they_should_in_order(environment):
    # The service of the demo is its own: what is set for another one does not reach it.
    environment |= {"PORT": "1", "COLLAB_SERVER__PROT": "1"}
    done = subprocess.run(
        [ROOT / "scripts/demo"], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, expected in (("ada", ADA_SEES), ("bob", BOB_SEES)):
        seen = seen_by(name, done.stdout)
        assert len(seen) == len(expected)
        assert all(line.startswith(start) for line, start in zip(seen, expected, strict=True))
    assert "\x1b" not in done.stdout
    assert done.stdout.count("Routing event") == 4


def test_a_wrong_message_fails_the_demo(tmp_path):
    for name in ("_demo.py", "_demo_backend.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path)
    backend = tmp_path / "_demo_backend.py"
    text = backend.read_text()
    assert text.count('"delivered_to": 1') == 1
    backend.write_text(text.replace('"delivered_to": 1', '"delivered_to": 2'))
    done = subprocess.run(
        [sys.executable, tmp_path / "_demo.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert "✗ expected event_ack" in done.stdout
    assert re.fullmatch(r"demo: (ada|bob) ended with exit code 1\n", done.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_its_processes(environment, number, tmp_path):
    environment["DEMO_SESSION"] = str(tmp_path)
    demo = subprocess.Popen(
        [ROOT / "scripts/demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Listening" in demo.stdout.readline()
    assert len(processes_of(f"DEMO_SESSION={tmp_path}")) >= 2
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=PATIENCE_SECONDS)
    assert (demo.returncode, errors) == (128 + number, "demo: stopped\n")
    assert processes_of(f"DEMO_SESSION={tmp_path}") == []


def test_it_takes_no_arguments():
    done = subprocess.run([ROOT / "scripts/demo", "fast"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/demo")
