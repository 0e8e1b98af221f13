"""docs/security.md stays true: the tests, the settings and the options that it names exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from collab.settings import Settings, options_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
TESTS = sorted(set(re.findall(r"`((?:tests/)?[a-z]+/[a-z_]+\.py(?:::\w+)?|test_\w+\.py::\w+)`", PAGE)))
FILES = r"py|md|toml|service|txt|pem"


@cache
def functions(path):
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("named", TESTS)
def test_every_test_that_the_page_names_exists(named):
    path, _, name = named.partition("::")
    path = ROOT / "tests" / path.removeprefix("tests/")
    assert path.is_file()
    assert not name or name in functions(path)


def test_the_page_names_a_test_for_nearly_every_attack():
    assert len(TESTS) > 50
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    attacks = rows[: rows.index("| setting | why |")]
    assert all("test_" in row for row in attacks if not re.match(r"\|( attack |-)", row))


def test_every_setting_that_the_page_names_exists():
    paths = {option.path for option in options_of(Settings)}
    named = {
        name for name in re.findall(r"`([a-z]+\.[a-z_]+)`", PAGE) if not re.search(rf"\.({FILES})$", name)
    }
    assert len(named) > 20
    assert named <= paths


def test_the_page_explains_every_option_of_the_unit_that_hardens_it():
    unit = (ROOT / "scripts" / "deploy" / "trio-collab.service").read_text()
    service = unit.partition("[Service]")[2].partition("[Install]")[0]
    options = set(re.findall(r"^([A-Za-z]+)=", service, re.MULTILINE))
    explained = set(re.findall(r"`([A-Z][A-Za-z]+)`", PAGE.partition("\n## The unit\n")[2]))
    plain = {"Type", "ExecStart", "ExecReload", "WorkingDirectory", "Environment", "LogsDirectoryMode"}
    assert explained == options - plain
