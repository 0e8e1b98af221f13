"""The words stay true: codes, defaults, examples and links of the pages, and the public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import attrs
import msgspec
import pytest

import collab
from collab import errors
from collab.errors import Draining, Forbidden, Unauthenticated
from collab.settings import Settings, options_of
from collab.wire import codec, messages
from collab.wire.close import CloseCode

ROOT = Path(__file__).parents[1]
PACKAGE = Path(collab.__file__).parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")

# What is an `error` over a WebSocket, and an answer of `POST /api/events`.
ERRORS_OF_EVENTS = (
    errors.InvalidJson,
    errors.InvalidEvent,
    errors.FromUserMismatch,
    errors.TooManyRecipients,
    errors.RateLimited,
)


def section(title):
    """The text of one section of docs/protocol.md."""
    _, _, rest = PROTOCOL.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def rows(title):
    """The cells of every table row in a section, without the heads."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(title).splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells[1:] if not set(row[0]) <= {"-"}]


def subclasses(base):
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


def refusals():
    """Status and code of every `Refused` that the source makes, and of the app's own answers."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused":
                status, code, *_ = node.args
                assert isinstance(status, ast.Constant), path
                assert isinstance(code, ast.Constant), path
                found.add((status.value, code.value))
    of_their_own = (Draining(1.0), Unauthenticated(""), Forbidden(""))
    found |= {(refusal.status, refusal.code) for refusal in of_their_own}
    found |= {(error.status, error.code) for error in ERRORS_OF_EVENTS}
    # Quart refuses a method by itself; the app answers its own faults.
    return found | {(405, "method_not_allowed"), (500, "internal")}


def examples():
    return [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", PROTOCOL, re.M | re.S)]


def test_every_close_code_is_explained():
    assert [int(row[0]) for row in rows("Closing")] == sorted(CloseCode)


def test_every_error_code_is_explained():
    codes = {error.code for error in subclasses(errors.MessageError)}
    assert {row[0].strip("`") for row in rows("Errors")} == codes


def test_every_refusal_is_explained():
    assert {(int(row[0]), row[1].strip("`")) for row in rows("Refusals")} == refusals()


def test_the_limits_have_the_defaults_that_are_shown():
    defaults = {option.path: str(option.default) for option in options_of(Settings)}
    shown = {row[0].strip("`"): row[1].partition(" (")[0] for row in rows("Limits")}
    assert shown == {path: defaults[path] for path in shown}
    assert set(shown) == {path for path in defaults if path.startswith(("limits.", "timeouts."))}


def test_every_setting_that_a_page_names_exists():
    groups = {option.path.partition(".")[0] for option in options_of(Settings)}
    paths = {option.path for option in options_of(Settings)}
    named = re.compile(rf"`((?:{'|'.join(groups)})\.[a-z_]+)`")
    for page in (ROOT / "README.md", ROOT / "docs" / "protocol.md"):
        assert set(named.findall(page.read_text())) <= paths


def test_the_messages_of_clients_are_accepted_as_they_are_shown():
    shown = [example for example in examples() if example.get("event") in ("collab_event", "ping", "refresh")]
    accepted = [codec.decode(msgspec.json.encode(example)) for example in shown]
    types = {message.event.type for message in accepted if isinstance(message, messages.RouteRequest)}
    assert types == {"position_shared", "comment_added", "position_updated", "share_revoked"}


def test_the_messages_of_the_service_are_shown_as_they_are():
    classes = {kind.event: kind for kind in messages.ServerMessage.__args__}
    shown = {example["event"]: example["data"] for example in examples() if example.get("event") in classes}
    assert shown.keys() == classes.keys()
    for event, data in shown.items():
        kind = classes[event]
        fields = attrs.fields_dict(kind)
        required = {name for name, field in fields.items() if field.default is not msgspec.UNSET}
        assert required <= set(data) <= set(fields), event
        fixed = {name: field.default for name, field in fields.items() if isinstance(field.default, str)}
        assert fixed.items() <= data.items(), event


def test_the_error_that_is_shown_is_a_real_one():
    shown = next(example["data"] for example in examples() if example.get("event") == "error")
    text = b'{"event":"collab_event","data":{"type":"x","to_users":["a",1]}}'
    with pytest.raises(errors.MessageError) as caught:
        codec.decode(text)
    error = caught.value
    assert shown == {"message": error.message, "error": error.detail, "code": error.code}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if fragment:
            assert fragment in anchors(linked), target


def anchors(page):
    """The fragments of a page's headings, as the usual renderers make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_the_machine_it_was_written_on(page):
    text = page.read_text()
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users)/", text)
    assert str(ROOT) not in text


@pytest.mark.parametrize(
    "name", ["collab", "collab.bench", "collab.cli", "collab.client", "collab.observe", "collab.settings"]
)
def test_public_names_equal_all(name):
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(dir(module))
    assert {attribute for attribute in dir(module) if is_own(module, attribute)} <= set(module.__all__)
    assert sorted(module.__all__) == list(module.__all__)


def is_own(module, attribute):
    """Whether a module offers this name, and does not just use it."""
    value = getattr(module, attribute)
    if attribute.startswith("_") or attribute == "TYPE_CHECKING" or inspect.ismodule(value):
        return False
    return getattr(value, "__module__", "collab").partition(".")[0] == "collab"


def test_every_package_that_offers_names_is_guarded():
    marked = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in PACKAGE.rglob("__init__.py")
        if re.search(r"^__all__ =", path.read_text(), re.MULTILINE)
    }
    assert marked == {
        "collab",
        "collab.bench",
        "collab.cli",
        "collab.client",
        "collab.observe",
        "collab.settings",
    }
