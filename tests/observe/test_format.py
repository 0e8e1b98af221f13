from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.observe.format import Line, json_line, plain, text_line

NOON = 1762000000.25  # 2025-11-01T12:26:40.250Z

any_text = st.text(st.characters(exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


def record(event: str, /, _level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    line = Line(event, {name: plain(value) for name, value in fields.items()})
    made = logging.LogRecord("collab", _level, __file__, 1, line, None, None)
    made.created = NOON
    return made


def joined(text: str) -> str:
    """`text` with the surrogates that happen to stand side by side joined, as JSON joins them."""
    decoded = json.loads(json.dumps(text))
    assert isinstance(decoded, str)
    return decoded


def test_a_text_line_is_what_the_readme_shows() -> None:
    made = record("Backend connected", user_id="uuid", backend_url="http://localhost:8000", total_active=1)
    assert text_line(made) == (
        "2025-11-01T12:26:40Z [INFO]: Backend connected "
        '{"user_id":"uuid","backend_url":"http://localhost:8000","total_active":1}'
    )


def test_a_text_line_without_fields_has_no_braces() -> None:
    assert text_line(record("Draining", logging.WARNING)) == "2025-11-01T12:26:40Z [WARNING]: Draining"


def test_a_json_line_is_one_object() -> None:
    assert json_line(record("Backend connected", user_id="ada", ok=True, wait=None)) == (
        '{"time":"2025-11-01T12:26:40.250Z","level":"info","event":"Backend connected",'
        '"user_id":"ada","ok":true,"wait":null}'
    )


def test_fields_never_replace_the_members_of_a_json_line() -> None:
    line = json.loads(json_line(record("Login", time=1, field_time=2, level=3, event=4)))
    assert line == {
        "time": "2025-11-01T12:26:40.250Z",
        "level": "info",
        "event": "Login",
        "field_field_time": 1,
        "field_time": 2,
        "field_level": 3,
        "field_event": 4,
    }


def test_a_traceback_is_a_field_of_the_same_line() -> None:
    made = record("Connection failed", logging.ERROR, user_id="ada", traceback="mine")
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        made.exc_info = sys.exc_info()
    for line in (text_line(made), json_line(made)):
        assert len(line.splitlines()) == 1
        fields = json.loads(line[line.index("{") :])
        assert fields["traceback"] == "mine"
        assert fields["field_traceback"].startswith("Traceback (most recent call last):\n")
        assert fields["field_traceback"].endswith("ValueError: bad\nnews")


def test_a_record_of_another_library_names_its_logger() -> None:
    made = logging.LogRecord("hypercorn.error", logging.WARNING, "", 1, "lost %s\n{", ("it",), None)
    made.created = NOON
    assert text_line(made) == (
        r'2025-11-01T12:26:40Z [WARNING]: lost it\u000a\u007b {"logger":"hypercorn.error"}'
    )


@pytest.mark.parametrize(
    "forger", ["\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\ud800"]
)
def test_a_control_character_shows_as_its_code(forger: str) -> None:
    line = text_line(record(f"a{forger}b", **{f"k{forger}": f"v{forger}"}))
    code = {"\n": r"\n", "\r": r"\r"}.get(forger, f"\\u{ord(forger):04x}")
    assert line.endswith(f'a\\u{ord(forger):04x}b {{"k{code}":"v{code}"}}')


def test_other_text_stays_readable() -> None:
    assert text_line(record("Grüße", name="Zoë 東京 🙂")).endswith('Grüße {"name":"Zoë 東京 🙂"}')


@given(any_text, st.dictionaries(any_text, any_text, max_size=3))
def test_any_text_is_one_line_that_reads_back(event: str, fields: dict[str, str]) -> None:
    made = record(event, **fields)

    text = text_line(made)
    text.encode()
    assert len(f"{text}|".splitlines()) == 1
    head, brace, rest = text.partition(" {")
    shown = head.removeprefix("2025-11-01T12:26:40Z [INFO]: ").replace('"', '\\"')
    assert json.loads(f'"{shown}"') == joined(event)
    expected = {joined(name): joined(value) for name, value in fields.items()}
    assert (json.loads(brace.strip() + rest) if fields else {}) == expected

    line = json_line(made)
    line.encode()
    assert len(f"{line}|".splitlines()) == 1
    assert json.loads(line)["event"] == joined(event)
    assert sorted(list(json.loads(line).values())[3:]) == sorted(expected.values())


@given(st.dictionaries(any_text, values, max_size=3))
def test_any_value_is_json(fields: dict[str, object]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(json_line(record("Any", **fields)), parse_constant=refuse)


def test_what_is_no_json_shows_as_text() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    endless: list[object] = []
    endless.append(endless)
    assert plain({1: (b"x", ValueError("no"))}) == {"1": ["b'x'", "no"]}
    assert plain(Broken()) == "<Broken>"
    assert plain(float("nan")) == "nan"
    assert plain("x" * 5000) == "x" * 4096 + "…"
    assert str(plain(10**5000)).startswith("0x")
    json.dumps(plain(endless))


def test_a_line_is_rendered_as_text_for_any_handler() -> None:
    assert str(Line("Backend connected", {"user_id": "ada"})) == 'Backend connected {"user_id":"ada"}'
