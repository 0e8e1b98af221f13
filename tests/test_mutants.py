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


def copied(fault, place):
    """The files that a fault changes, in a checkout of their own."""
    for edit in fault.edits:
        (place / edit.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / edit.path, place / edit.path)
    return place


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_fits_the_source_and_changes_what_it_does(tmp_path, fault):
    fault.apply(copied(fault, tmp_path))
    for edit in fault.edits:
        whole, harmed = (ast.dump(ast.parse((root / edit.path).read_text())) for root in (ROOT, tmp_path))
        assert whole != harmed, edit.path


def test_a_fault_that_fits_the_source_no_more_is_told_and_changes_nothing(tmp_path):
    (tmp_path / "x.py").write_text("one = 1\ntwo = 1\n")
    for old, times in (("three", 0), ("= 1", 2)):
        edits = (faults.Edit("x.py", "one", "uno"), faults.Edit("x.py", old, "= 3"))
        with pytest.raises(faults.Stale, match=f"x.py has {times} times"):
            faults.Fault("stale", "", edits).apply(tmp_path)
    assert (tmp_path / "x.py").read_text() == "one = 1\ntwo = 1\n"


def test_there_are_ten_planted_faults_at_least_each_with_a_name_and_its_harm():
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names) >= 10
    assert all(fault.harm.endswith(".") and fault.edits for fault in faults.FAULTS)
