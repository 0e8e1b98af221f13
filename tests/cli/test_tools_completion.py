"""Shell completion: the scripts, and what they then offer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import PACKAGE, PATIENCE_SECONDS

from collab.cli.command import program

COMMANDS = sorted(program.commands)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert f"_TRIO_COLLAB_COMPLETE={shell}_complete" in out


def test_another_shell_is_wrong_usage(run):
    assert run("completion", "csh")[0] == 2


def test_bash_completes_commands_and_flags(run, tmp_path):
    _, script, _ = run("completion", "bash")
    program = tmp_path / "trio-collab"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from collab.cli import main; main()" "$@"\n')
    program.chmod(0o755)

    def completed(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = (
            f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
            "_trio_collab_completion trio-collab; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(PACKAGE.parent)},
        )
        return done.stdout.split()

    assert completed("trio-collab", "") == COMMANDS
    assert {"send", "listen", "users", "top", "health", "doctor"} < set(COMMANDS)
    assert completed("trio-collab", "users", "--w") == ["--watch"]
