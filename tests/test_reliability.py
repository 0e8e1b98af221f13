"""Holds docs/reliability.md to the tests and scripts that it names."""

from __future__ import annotations

import re
from pathlib import Path

import invariants

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_each_promise_has_a_check_of_its_name_that_tests_use():
    promises = re.findall(r"^\| (I\d) \|.*\| `(check_\w+)` \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in promises] == [f"I{number}" for number in range(1, 8)]
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    for name, check in promises:
        assert check.startswith(f"check_{name.lower()}_")
        assert hasattr(invariants, check) or hasattr(invariants.Ledger, check)
        # Once where it is defined, and where it is called.
        assert sum(text.count(f"{check}(") for text in texts) > 1, check
    assert any("ledger.check()" in text for text in texts)


def test_every_place_that_the_page_names_exists():
    named = set(re.findall(r"`((?:tests|scripts)/[\w/.]+)", PAGE))
    assert len(named) > 15
    assert [place for place in named if not (ROOT / place).exists()] == []
