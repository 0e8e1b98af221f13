"""The faults that `scripts/mutants` plants: each still fits the source, and changes it."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("planted_faults", ROOT / "scripts" / "_mutants" / "faults.py")
faults = sys.modules["planted_faults"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


@pytest.fixture
def copy(tmp_path):
    """The package, to be harmed."""
    shutil.copytree(ROOT / "collab", tmp_path / "collab", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_fits_the_source_and_changes_what_it_does(copy, fault):
    fault.apply(copy)
    touched = {edit.path for edit in fault.edits}
    for path in touched:
        whole, harmed = (ast.dump(ast.parse((root / path).read_text())) for root in (ROOT, copy))
        assert whole != harmed, path
    for path in (ROOT / "collab").rglob("*.py"):
        name = path.relative_to(ROOT)
        assert (path.read_bytes() == (copy / name).read_bytes()) == (str(name) not in touched)


def test_a_fault_that_fits_the_source_no_more_is_told_and_changes_nothing(copy):
    (copy / "collab" / "x.py").write_text("one = 1\ntwo = 1\n")
    for old, times in (("three", 0), ("= 1", 2)):
        edits = (faults.Edit("collab/x.py", "one", "uno"), faults.Edit("collab/x.py", old, "= 3"))
        with pytest.raises(faults.Stale, match=f"collab/x.py has {times} times"):
            faults.Fault("stale", "", edits).apply(copy)
    assert (copy / "collab" / "x.py").read_text() == "one = 1\ntwo = 1\n"


def test_there_are_ten_planted_faults_at_least_each_with_a_name_and_its_harm():
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names) >= 10
    assert all(fault.harm.endswith(".") and fault.edits for fault in faults.FAULTS)
