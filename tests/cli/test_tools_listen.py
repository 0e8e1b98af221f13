"""`trio-collab listen`: what it prints, how it ends, and what becomes of it without its extra."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from commands import PACKAGE, PATIENCE_SECONDS, Command
from far_ends import closed_port
from tokens import token
from websockets.sync.client import connect

from collab.cli.far import far_of

READY = "listening as "


def backend(url, user_id, **more):
    query = "".join(f"&{name}={value}" for name, value in more.items())
    return connect(f"{url}?user_id={user_id}&backend_url=http://localhost:8000{query}")


def event(socket, *to_users, type="comment_added", data=None):
    message = {"type": type, "to_users": list(to_users), "data": data}
    socket.send(json.dumps({"event": "collab_event", "data": message}))


def test_json_is_one_line_for_each_event_and_count_ends_it(tmp_path, service):
    arguments = ["listen", "--url", service, "--user", "lea", "--json", "--count=2", "--types=a,b"]
    with Command(tmp_path, *arguments) as command, backend(service, "ada", presence="none") as ada:
        command.line(READY)
        for type in ("a", "other", "b"):
            event(ada, "lea", "bob", type=type, data={"ünder": [1, None]})
        assert command.wait() == 0
        assert [json.loads(line) for line in command.output.splitlines()] == [
            {
                "event": "collab_event",
                "type": type,
                "from_user": "ada",
                "to_users": ["lea", "bob"],
                "data": {"ünder": [1, None]},
            }
            for type in ("a", "b")
        ]


def test_a_person_sees_events_and_who_comes_and_goes_until_ctrl_c(tmp_path, service):
    arguments = ["listen", "--url", service, "--user", "lea", "--presence"]
    with Command(tmp_path, *arguments) as command:
        command.line(READY)
        with backend(service, "ada", display_name="Ada[/]") as ada:
            command.line(r"\d\d:\d\d:\d\d  user_online  ada \(Ada\[/\]\)")
            event(ada, "lea", "bob", data={"text": "\x1b[2J\u202eGreat"})
            command.line(r"comment_added  from ada, to 1 more")
            command.line(r'"text": "\\u001b\[2J\\u202eGreat"')
        command.line("user_offline  ada")
        command.signal(signal.SIGINT)
        assert command.wait() == 0


def test_the_end_of_the_reader_is_its_end(tmp_path, service):
    arguments = ["listen", "--url", service, "--user", "lea", "--json"]
    with (
        Command(tmp_path, *arguments, redirect="| head -n 1") as command,
        backend(service, "ada", presence="none") as ada,
    ):
        command.line(READY)
        event(ada, "lea", data=1)
        # Without a second event that would find out.
        assert command.wait() == 0
        assert len(command.output.splitlines()) == 1
        assert "Traceback" not in command.errors


def test_others_go_on_seeing_the_backend_of_the_user(tmp_path, service):
    with (
        backend(service, "lea", display_name="Lea") as lea,
        Command(tmp_path, "listen", "--url", service, "--user", "lea", "--presence", "--json") as command,
    ):
        command.line(READY)
        event(lea, "lea")
        command.line("collab_event")
        asked = subprocess.run(
            [sys.executable, "-m", "collab", "users", "--url", service, "--json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
            env={"PYTHONPATH": str(PACKAGE.parent)},
        )
        rows = {row["user_id"]: row for row in json.loads(asked.stdout)["users"]}
        assert (rows["lea"]["display_name"], rows["lea"]["backend_url"]) == ("Lea", "http://localhost:8000")


def test_a_token_in_a_file_is_read_anew_at_each_try(tmp_path):
    file = tmp_path / "token"
    far = far_of("ws://localhost:9000", token=f"@{file}")
    assert far.token_may_change
    for text in ("one", "two"):
        file.write_text(text + "\n")
        assert far.token() == text


def test_it_connects_again_once_the_service_is_back(tmp_path):
    serving = ["serve", "--log-file=", "--port"]
    soon = {"COLLAB_SERVER__RECONNECT_SPREAD": "0.5s"}
    with Command(tmp_path, *serving, "0", environ=soon) as first:
        host, port = first.address()
        url = f"ws://{host}:{port}"
        command = Command(tmp_path, "listen", "--url", url, "--user=lea")
        with command:
            command.line(READY)
            first.signal(signal.SIGTERM)
            assert first.wait() == 0
            command.line("Next try in")
            with Command(tmp_path, *serving, str(port)) as second:
                second.address()
                command.line("connected again")
                command.signal(signal.SIGINT)
                assert command.wait() == 0


def test_it_listens_over_tls(tmp_path, service_with_tls, certificates):
    root = str(certificates.root_file)
    arguments = ["listen", "--url", service_with_tls, "--cacert", root, "--user=lea", "--count=1"]
    with Command(tmp_path, *arguments) as command:
        command.line(READY)
        send = ["send", "--url", service_with_tls, "--cacert", root, "--from=ada", "--to=lea", "--type=x"]
        with Command(tmp_path, *send) as sending:
            assert sending.wait() == 0
        assert command.wait() == 0


def test_who_is_not_let_in_is_told_so_with_exit_code_1(run, service_with_tokens):
    for flags in ([], ["--token", token("bob")]):
        code, out, err = run("listen", "--url", service_with_tokens, "--user", "ada", *flags)
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith("trio-collab: 40")


def test_a_service_that_is_down_is_exit_code_1(run):
    url = f"ws://127.0.0.1:{closed_port()}"
    code, out, err = run("listen", "--url", url, "--user", "ada", "--timeout", "0.3")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"trio-collab: not connected to {url} within 0.3 s")


def test_whose_events_must_be_said(run):
    code, _, err = run("listen")
    assert (code, "Missing option '--user'" in err) == (2, True)


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("anyio", "httpx", "httpx_ws", "httpcore"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
from collab.cli import main
main(sys.argv[1:])
"""


def without_the_extra(*arguments):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )


def test_without_the_extra_it_says_what_to_install_with_exit_code_2(service):
    done = without_the_extra("listen", "--url", service, "--user", "ada")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "trio-collab: listen needs the extra [client]: pip install 'trio-collab[client]'\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["health"],
        ["users"],
        ["top", "--once", "--interval=0.1"],
        ["doctor"],
        ["send", "--from=ada", "--to=ada", "--type=x"],
    ],
)
def test_the_other_tools_need_no_extra(service, arguments):
    done = without_the_extra(*arguments, "--url", service)
    assert (done.returncode, done.stderr) == (1 if arguments[0] == "send" else 0, "")


def test_the_help_loads_nothing_that_only_a_command_needs():
    heavy = ("trio", "httpx", "anyio", "rich", "h11", "wsproto", "quart", "collab.client", "collab.server")
    code = f"import collab.cli, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
