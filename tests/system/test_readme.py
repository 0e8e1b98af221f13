"""The README: its code runs, its commands print what it shows, its scripts are there."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import websockets.sync.client

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PATIENCE_SECONDS = 30.0
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UPTIME = re.compile(r'"uptime":\d+')


class Reader:
    """A new user who does what the README says, in an empty directory. Owns the service."""

    def __init__(self, directory):
        self.directory = directory
        # Without these, nothing that is set for this run of the tests reaches the service.
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if name != "PORT" and not name.startswith("COLLAB_")
        }
        self._service = self._popen("-m", "collab", "serve", "--port=0")
        self._listening = self._service.stdout.readline()
        self.port = int(re.search(r"ws://localhost:(\d+)", self._listening)[1])
        self._started = False
        self._backends = ExitStack()
        self._ada = None

    def close(self):
        self._backends.close()
        self._service.terminate()
        _, errors = self._service.communicate(timeout=PATIENCE_SECONDS)
        assert (self._service.returncode, errors) == (0, "")

    def run(self, command):
        """What a command of the README prints, as if its service had port 9000."""
        return self._run(shlex.split(self._here(command))).replace(str(self.port), "9000")

    def write_programs(self):
        """Make the files that the README shows."""
        for language, text in BLOCKS:
            if language == "python":
                name = re.match(r"# (\w+\.py)\n", text)[1]
                (self.directory / name).write_text(self._here(text))

    def python(self, *arguments):
        process = self._popen(*arguments)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        return output + errors

    def _here(self, text):
        return text.replace("localhost:9000", f"localhost:{self.port}")

    def _run(self, words):
        match words:
            case ["scripts/serve"] if not self._started:
                self._started = True
                return self._listening
            case ["scripts/serve"]:
                return self.python("-m", "collab", "serve", "--port", str(self.port))
            case [".venv/bin/python", program]:
                return self.python(program)
            case ["curl", *arguments]:
                self._connect_ada()
                return curl(arguments)
        pytest.fail(f"no test knows how to run this command of the README: {words}")

    def _connect_ada(self):
        if self._ada is None:
            query = "user_id=ada&backend_url=http://localhost:8000&display_name=Ada"
            connecting = websockets.sync.client.connect(f"ws://localhost:{self.port}?{query}")
            self._ada = self._backends.enter_context(connecting)
            self._ada.recv()

    def _popen(self, *arguments):
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**self._environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def curl(arguments):
    """What curl prints; a machine without it gets the same request from httpx."""
    if shutil.which("curl"):
        command = ["curl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS)
        return done.stdout
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-d")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("url")
    options = parser.parse_args(arguments)
    headers = dict(header.split(": ", 1) for header in options.H)
    return httpx.request("POST" if options.d else "GET", options.url, content=options.d, headers=headers).text


def masked(text):
    return UPTIME.sub('"uptime":0', TIME.sub("<time>", text)).strip()


@pytest.fixture
def reader(tmp_path):
    reader = Reader(tmp_path)
    try:
        reader.write_programs()
        yield reader
    finally:
        reader.close()


def console_sessions():
    """Every command of the README with the output that it shows, from top to bottom."""
    for language, text in BLOCKS:
        if language == "console":
            for session in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = session.partition("\n")
                yield command, output


def test_the_commands_print_what_the_readme_shows(reader):
    seen = 0
    for command, shown in console_sessions():
        assert masked(reader.run(command)) == masked(shown), command
        seen += 1
    assert seen >= 8


def test_the_log_file_is_where_the_readme_looks_for_it(reader):
    assert "tail -f collaboration-service.log" in README
    assert (reader.directory / "collaboration-service.log").is_file()


def test_the_tests_of_a_backend_run(reader):
    output = reader.python("-m", "pytest", "-W", "error", "-p", "no:cacheprovider")
    assert "2 passed" in output, output


def test_every_block_says_what_it_is():
    # Those that no test runs: pictures, servers that stay, and what needs root.
    assert {language for language, _ in BLOCKS} <= {"console", "python", "text", "sh", "ini"}
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("script", sorted(set(re.findall(r"\bscripts/\w+\b(?!/)", README))))
def test_every_script_is_there_and_tells_its_usage(script):
    done = subprocess.run(
        [ROOT / script, "--help"], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.startswith(f"usage: {script}")


def test_the_client_is_short():
    client = next(text for language, text in BLOCKS if text.startswith("# client.py"))
    lines = [line for line in client.splitlines()[1:] if line]
    assert len(lines) <= 15


def test_the_unit_starts_the_command_with_flags_that_exist():
    unit = next(text for language, text in BLOCKS if language == "ini")
    flags = re.search(r"^ExecStart=\S+/trio-collab serve (.*)$", unit, re.MULTILINE)[1]
    done = subprocess.run(
        [sys.executable, "-m", "collab", "serve", *shlex.split(flags), "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert all(flag.partition("=")[0] in done.stdout for flag in shlex.split(flags))
