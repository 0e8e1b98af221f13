"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import collab
from collab.errors import CollabError
from collab.settings import Settings


def test_the_public_names_are_there():
    assert collab.__all__ == ["CollabError", "Settings", "__version__", "serve"]
    assert collab.CollabError is CollabError
    assert collab.Settings is Settings
    assert callable(collab.serve)
    assert set(collab.__all__) <= set(dir(collab))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = collab.nothing


def test_every_file_of_the_package_that_is_no_module_is_installed():
    package = Path(collab.__file__).parent
    project = tomllib.loads((package.parent / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["collab"]
    installed = {path for pattern in globs for path in package.glob(pattern)}
    others = (path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    assert set(others) == installed


def test_importing_the_package_imports_no_server():
    heavy = ("trio", "quart", "hypercorn", "trio_websocket", "click", "collab.settings")
    code = f"import collab, sys; print([name for name in {heavy!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
