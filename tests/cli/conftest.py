"""Runs the command as a shell would, without the environment of whoever runs the tests."""

from __future__ import annotations

import pytest
from commands import Command
from tokens import ADMIN_TOKEN, SECRET

from collab.cli import main
from collab.settings import Settings, options_of

_VARIABLES = ("PORT", "COLLAB_URL", "COLLAB_TOKEN", *(option.variable for option in options_of(Settings)))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No setting comes from the environment of whoever runs the tests."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def run(capsys):
    """Runs the command in-process and gives its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The URL of a service with defaults, and with operators."""
    environ = {"COLLAB_ADMIN__TOKEN": ADMIN_TOKEN}
    with Command(tmp_path_factory.mktemp("service"), *_SERVE, environ=environ) as command:
        yield _url(command)


@pytest.fixture(scope="session")
def service_with_tokens(tmp_path_factory):
    """The URL of a service that asks for tokens."""
    environ = {
        "COLLAB_AUTH__MODE": "jwt",
        "COLLAB_AUTH__SECRET": SECRET,
        "COLLAB_ORIGINS__ALLOWED": "https://ok.example",
    }
    with Command(tmp_path_factory.mktemp("service"), *_SERVE, environ=environ) as command:
        yield _url(command)


@pytest.fixture(scope="session")
def service_with_tls(tmp_path_factory, certificates):
    """The URL of a service that speaks TLS."""
    environ = {
        "COLLAB_TLS__CERT_FILE": str(certificates.cert_file),
        "COLLAB_TLS__KEY_FILE": str(certificates.key_file),
    }
    with Command(tmp_path_factory.mktemp("service"), *_SERVE, environ=environ) as command:
        yield _url(command)


_SERVE = ("serve", "--port=0", "--log-file=")


def _url(command):
    return command.line(r'Listening {"ws":"([^"]+)"')[1]
