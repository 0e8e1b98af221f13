"""What the import of the client loads, and what it says where the extra is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["collab.client", "collab.client.blocking"])
def test_the_import_loads_no_server_and_no_trio(module):
    heavy = ("trio", "trio_websocket", "quart", "hypercorn", "click", "collab.settings", "collab.server")
    # On asyncio, as an application would.
    code = f"""
import asyncio, sys
async def main():
    import {module}
    print([name for name in {heavy!r} if name in sys.modules])
asyncio.run(main())
"""
    answer = run(code)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


@pytest.mark.parametrize("missing", ["anyio", "httpx", "httpx_ws"])
def test_a_missing_extra_is_named(missing):
    code = f"""
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find_spec(name, *rest)
import collab.client
"""
    answer = run(code)
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last == (
        f"ImportError: collab.client needs {missing}: install it with pip install 'trio-collab[client]'"
    )
