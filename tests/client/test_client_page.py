"""docs/client.md: its examples run, and its tables are true."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import anyio
import attrs
import httpx
import pytest
from commands import PACKAGE
from loops import on_both_loops

import collab.client
from collab.client import CommentAdded, Limits, connect, errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def environment(url):
    return {"PYTHONPATH": str(PACKAGE.parent), "COLLAB_URL": url}


def output_of(code, url):
    command = [sys.executable, "-X", "dev", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(url))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_example_is_run_by_a_test():
    assert set(EXAMPLES) == {"five_lines.py", "fastapi_backend.py", "trio_backend.py", "script.py"}
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_five_lines_run_as_they_are_on_both_loops(service_url, loop):
    code = EXAMPLES["five_lines.py"].replace("ws://localhost:9000", service_url)
    if loop == "trio":
        code = code.replace("import asyncio", "import trio").replace("asyncio.run(main())", "trio.run(main)")
    # asyncio's debug mode tells of every slow import.
    code = f"import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)\n{code}"
    assert output_of(code, service_url) == "1 ('bob',)\nposition_shared 42\n"


def test_the_script_that_blocks_runs(service_url):
    code = f"import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)\n{EXAMPLES['script.py']}"
    assert output_of(code, service_url) == "delivered to 1\nposition_shared from cleo\n"


def test_the_fastapi_backend_shares_and_stores_comments(service_url, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAB_URL", service_url)
    path = tmp_path / "fastapi_backend.py"
    path.write_text(EXAMPLES["fastapi_backend.py"])
    spec = importlib.util.spec_from_file_location("fastapi_backend", path)
    backend = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_backend", backend)
    spec.loader.exec_module(backend)

    async def main():
        async with (
            backend.app.router.lifespan_context(backend.app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(backend.app), base_url="http://backend"
            ) as browser,
            connect(service_url, user_id="bob", backend_url="http://b") as bob,
        ):
            answer = await browser.post("/positions/42/share", json=["bob", "cleo"])
            assert answer.json() == {"delivered_to": 1, "undelivered": ["cleo"]}
            shared = await anext(bob.events())
            assert shared.share_url == "http://localhost:8000/api/v1/positions/ideas/42"
            await bob.add_comment([shared.from_user], position_id=shared.position_id, text="Hm")
            stored = []
            while not stored:
                stored = (await browser.get("/comments")).json()
            assert stored == [{"position_id": "42", "by": "bob", "text": "Hm"}]

    asyncio.run(main())


@on_both_loops
async def test_the_trio_backend_comments_on_what_is_shared(service_url):
    command = [sys.executable, "-c", EXAMPLES["trio_backend.py"]]
    async with (
        connect(service_url, user_id="dora", backend_url="http://d") as dora,
        await anyio.open_process(command, env=environment(service_url), stderr=None) as process,
    ):
        changes = dora.presence()
        while (await anext(changes)).user_id != "bob":
            pass
        await dora.share_position(["bob"], position_id="42", share_url="http://d/42")
        event = await anext(dora.events())
        assert isinstance(event, CommentAdded)
        assert event.comment.text == "Great setup!"
        process.kill()


def test_the_bounds_are_those_of_the_client():
    shown = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE)
    fields = attrs.fields_dict(Limits)
    assert [name for name, _ in shown] == list(fields)
    assert {name: float(value) for name, value in shown} == {
        name: float(field.default) for name, field in fields.items()
    }


def test_every_error_that_is_raised_is_on_the_page():
    for name in vars(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.CollabClientError):
            assert f"`{name}`" in PAGE
            assert name in collab.client.__all__


def test_the_readme_shows_the_five_lines():
    assert EXAMPLES["five_lines.py"] in README
