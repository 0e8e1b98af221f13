"""Runs the command as a shell would, without the environment of whoever runs the tests."""

from __future__ import annotations

import pytest

from collab.cli import main
from collab.settings import Settings, options_of


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No setting comes from the environment of whoever runs the tests."""
    for option in options_of(Settings):
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv("PORT", raising=False)
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
