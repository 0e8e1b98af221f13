"""docs/tools.md: its commands print what it shows, and it leaves no tool and no flag out."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import pytest
from commands import Command
from tokens import ADMIN_TOKEN
from websockets.sync.client import connect

from collab.cli.command import program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tools.md").read_text()
TOOLS = ("send", "listen", "users", "top", "health", "doctor")
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "<time>"),
    (re.compile(r"^\d\d:\d\d:\d\d", re.MULTILINE), "<time>"),
    (re.compile(r"up [\dsmin ]+\d s|up \d+ (s|min)"), "up <time>"),
    (re.compile(r'"uptime": \d+'), '"uptime": 0'),
    (re.compile(r"[\d.]+ ms"), "<time> ms"),
    # A machine may have both addresses.
    (re.compile(r"localhost is .*|(?<=takes connections) at .*"), "<addresses>"),
    (re.compile(r"(127\.0\.0\.1|::1|(?<=user  )address) +"), "<address> "),
    (re.compile(r" +$", re.MULTILINE), ""),
)


class Reader:
    """A reader who does what the page says, with a service that is in the state that it shows."""

    def __init__(self, run, directory, url, bob):
        self._run = run
        self._directory = directory
        self._url = url
        self._bob = bob
        self._host = url.removeprefix("ws://")

    def output_of(self, command):
        """What a command of the page prints on both outputs, as if its service had port 9000."""
        words = shlex.split(command.replace("localhost:9000", self._host))
        assert words.pop(0) == "trio-collab"
        if words[0] == "listen":
            printed = self._listen(*words[1:])
        else:
            if not any(self._host in word for word in words):
                words += ["--url", self._url]
            _, out, err = self._run(*words)
            printed = err + out
        return printed.replace(self._host, "localhost:9000").replace(self._host.rpartition(":")[2], "9000")

    def _listen(self, *arguments):
        with Command(self._directory, "listen", "--url", self._url, *arguments) as command:
            command.line("listening as")
            event = {"type": "comment_added", "to_users": ["ada"], "data": {"text": "Great setup!"}}
            self._bob.send(json.dumps({"event": "collab_event", "data": event}))
            assert command.wait() == 0
            return command.errors + command.output


@contextmanager
def backends(url):
    with ExitStack() as stack:
        found = []
        for name, port in (("ada", 8000), ("bob", 8001)):
            query = f"user_id={name}&display_name={name.title()}&backend_url=http://localhost:{port}"
            found.append(stack.enter_context(connect(f"{url}?{query}&presence=none")))
            found[-1].recv()
        yield found


@pytest.fixture
def reader(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "operator.token").write_text(ADMIN_TOKEN)
    environ = {"COLLAB_ADMIN__TOKEN": ADMIN_TOKEN}
    with Command(tmp_path, "serve", "--port=0", "--log-file=", environ=environ) as command:
        url = command.line(r'Listening {"ws":"([^"]+)"')[1]
        with backends(url) as (_, bob):
            yield Reader(run, tmp_path, url, bob)


def sessions():
    """Every command of the page with the output that it shows, from top to bottom."""
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = session.partition("\n")
            yield command, output


def masked(text):
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text.strip()


def test_the_commands_print_what_the_page_shows(reader):
    seen = set()
    for command, shown in sessions():
        assert masked(reader.output_of(command)) == masked(shown), command
        seen.add(command.split()[1])
    assert seen == set(TOOLS)


def test_every_tool_has_its_section_and_every_flag_is_named_or_common():
    for name in TOOLS:
        assert f"\n## {name}\n" in PAGE
        command = program.commands[name]
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(flag in PAGE for flag in option.opts), (name, option.opts)
                assert option.help, (name, option.opts)


def test_the_help_of_every_tool_tells_its_exit_codes(run):
    for name in TOOLS:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert "Exit code 0" in " ".join(out.split())


def test_the_steps_of_the_doctor_are_all_explained():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.partition("\n## doctor\n")[2], re.MULTILINE)
    assert rows == ["name", "tcp", "tls", "http", "upgrade", "auth", "ping", "send", "peers"]
