"""The schemas of event types: what passes, what is refused and how it is said, and who is trusted."""

from __future__ import annotations

import json
import os
import socket
from functools import cache
from urllib.parse import urlsplit

import msgspec
import pytest
from counts import count
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.errors import InvalidEvent, SettingsError
from collab.policy import schemas
from collab.policy.schemas import MAX_DEPTH, EventSchemas
from collab.policy.validation import EventRules
from collab.settings import EventSettings, Settings
from collab.wire import codec
from collab.wire.identity import is_absolute_http_url

# The payloads of the seed's README, as they are there.
SEED = [
    ("position_shared", '{"position_id": "123"}'),
    (
        "position_shared",
        '{"position_id": "uuid", "share_url": "http://backend-a:8000/api/v1/positions/ideas/uuid"}',
    ),
    (
        "position_shared",
        '{"position_id": "uuid", "share_url": "http://localhost:8000/api/v1/positions/ideas/uuid",'
        ' "shared_at": "2025-11-01T10:00:00Z"}',
    ),
    (
        "comment_added",
        '{"position_id": "uuid", "comment": {"id": "uuid", "text": "Great setup!",'
        ' "user": {"id": "user_b_id", "display_name": "Jane"}, "created_at": "2025-11-01T10:05:00Z"}}',
    ),
    (
        "position_updated",
        '{"position_id": "uuid", "updates": {"tags": ["bullish", "momentum"], "notes": "Updated analysis"}}',
    ),
    ("share_revoked", '{"position_id": "uuid"}'),
]
POSITION = {"position_id": "p"}
COMMENT = {"id": "c", "text": "", "user": {"id": "bob"}}


@cache
def rules(validation: str, schema_dir: str | None = None) -> EventRules:
    return EventRules.from_settings(
        Settings(events=EventSettings(validation=validation, schema_dir=schema_dir))
    )


def check(of: EventRules, kind: str, payload: str | bytes) -> None:
    text = payload.encode() if isinstance(payload, str) else payload
    envelope = b'{"event":"collab_event","id":7,"data":{"type":%b,"to_users":["bob"],"data":%b}}'
    of.check(codec.decode(envelope % (json.dumps(kind).encode(), text)), "ada")


def fault(of: EventRules, kind: str, payload: str | bytes) -> str:
    with pytest.raises(InvalidEvent) as caught:
        check(of, kind, payload)
    assert caught.value.reply_id == b"7"
    return caught.value.detail


def passes(of: EventRules, kind: str, payload: str | bytes) -> bool:
    try:
        check(of, kind, payload)
    except InvalidEvent:
        return False
    return True


@pytest.mark.parametrize("validation", ["off", "known", "strict"])
@pytest.mark.parametrize(("kind", "payload"), SEED)
def test_what_the_seed_sends_passes(validation, kind, payload):
    check(rules(validation), kind, payload)


URL_EXPECTED = "data.data.share_url: expected an absolute http or https URL of at most 2,048 characters"


@pytest.mark.parametrize(
    ("kind", "payload", "detail"),
    [
        ("share_revoked", {}, "data.data.position_id: required"),
        ("share_revoked", {"position_id": ""}, "data.data.position_id: value is shorter than 1 character"),
        (
            "share_revoked",
            {"position_id": "x" * 257},
            "data.data.position_id: value is longer than 256 characters",
        ),
        ("share_revoked", {"position_id": 5}, "data.data.position_id: expected str"),
        ("share_revoked", {"position_id": None}, "data.data.position_id: expected str"),
        ("share_revoked", [POSITION], "data.data: expected object"),
        ("share_revoked", None, "data.data: expected object"),
        ("share_revoked", "p", "data.data: expected object"),
        ("position_shared", {"share_url": "http://a"}, "data.data.position_id: required"),
        ("position_shared", {**POSITION, "share_url": "javascript:alert(1)"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "/positions/1"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "http://"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "http:///path"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": " http://a"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "http://a/\n"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "http://a:99999/"}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": "http://a/" + "x" * 2040}, URL_EXPECTED),
        ("position_shared", {**POSITION, "share_url": ["http://a"]}, "data.data.share_url: expected str"),
        ("position_shared", {**POSITION, "share_url": None}, "data.data.share_url: expected str"),
        ("position_shared", {**POSITION, "shared_at": 1730455200}, "data.data.shared_at: expected str"),
        ("comment_added", POSITION, "data.data.comment: required"),
        ("comment_added", {**POSITION, "comment": "hi"}, "data.data.comment: expected object"),
        (
            "comment_added",
            {**POSITION, "comment": {"text": "", "user": {"id": "b"}}},
            "data.data.comment.id: required",
        ),
        (
            "comment_added",
            {**POSITION, "comment": COMMENT | {"text": 1}},
            "data.data.comment.text: expected str",
        ),
        (
            "comment_added",
            {**POSITION, "comment": COMMENT | {"user": "bob"}},
            "data.data.comment.user: expected object",
        ),
        (
            "comment_added",
            {**POSITION, "comment": COMMENT | {"user": {}}},
            "data.data.comment.user.id: required",
        ),
        ("position_updated", POSITION, "data.data.updates: required"),
        ("position_updated", {**POSITION, "updates": ["a"]}, "data.data.updates: expected object"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named(kind, payload, detail):
    for validation in ("known", "strict"):
        assert fault(rules(validation), kind, msgspec.json.encode(payload)) == detail
    check(rules("off"), kind, msgspec.json.encode(payload))


def test_a_payload_that_is_left_out_is_an_empty_object():
    text = b'{"event":"collab_event","data":{"type":"share_revoked","to_users":[]}}'
    with pytest.raises(InvalidEvent, match="position_id: required"):
        rules("known").check(codec.decode(text), "ada")


@pytest.mark.parametrize("kind", ["price_alert", "Position_shared", "position_shared ", "../position_shared"])
def test_another_type_passes_unless_validation_is_strict(kind):
    # With `known` it is not even looked at.
    check(rules("known"), kind, '{"a": 1, "a": 2}')
    assert fault(rules("strict"), kind, "{}") == "data.type: expected a type that has a schema"


# Valid and mutated payloads, held against the rules written out in plain Python.


def is_text(value: object, least: int = 0, most: int | None = None) -> bool:
    return isinstance(value, str) and least <= len(value) and (most is None or len(value) <= most)


def is_url(value: object) -> bool:
    if not is_text(value, 1, 2048) or any(char == " " or not char.isprintable() for char in value):
        return False
    try:
        url = urlsplit(value)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 0) >= 0
    except ValueError:
        return False


def is_user(value: object) -> bool:
    return (
        isinstance(value, dict)
        and is_text(value.get("id"), 1, 128)
        and is_text(value.get("display_name", ""), 0, 128)
    )


def is_comment(value: object) -> bool:
    return (
        isinstance(value, dict)
        and is_text(value.get("id"), 1, 256)
        and is_text(value.get("text"))
        and is_user(value.get("user"))
        and is_text(value.get("created_at", ""), 0, 64)
    )


PLAIN_RULES = {
    "position_shared": lambda data: (
        is_url(data.get("share_url", "http://a")) and is_text(data.get("shared_at", ""), 0, 64)
    ),
    "comment_added": lambda data: is_comment(data.get("comment")),
    "position_updated": lambda data: isinstance(data.get("updates"), dict),
    "share_revoked": lambda data: True,
}


def is_right(kind: str, value: object) -> bool:
    return isinstance(value, dict) and is_text(value.get("position_id"), 1, 256) and PLAIN_RULES[kind](value)


letters = st.characters(exclude_categories=["Cs"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(letters, max_size=300)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(letters, max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ids = st.text(letters, min_size=1, max_size=300)
urls = st.sampled_from(
    ["http://a", "https://b.example.org:8443/x?y#z", "HTTP://A", "http://ü", "http://[::1]/", "http://[::1",
     "ftp://a", "//a", "a", "", "http://:80", "http://a:b", "http://a b", "http://a\\b", "http://a:65536/",
     "http://a:1000", "http://.", "http://u:p@a/", "http://?", "https:a", "http://a\u2028"]
) | st.text(letters, max_size=20).map(lambda text: "http://" + text)  # fmt: skip
users = st.fixed_dictionaries({"id": ids}, optional={"display_name": st.text(letters, max_size=140)})
comments = st.fixed_dictionaries(
    {"id": ids, "text": st.text(letters), "user": users},
    optional={"created_at": st.text(letters, max_size=70)},
)
WHOLE = {
    "position_shared": st.fixed_dictionaries(
        {"position_id": ids}, optional={"share_url": urls, "shared_at": st.text(letters, max_size=70)}
    ),
    "comment_added": st.fixed_dictionaries({"position_id": ids, "comment": comments}),
    "position_updated": st.fixed_dictionaries(
        {"position_id": ids, "updates": st.dictionaries(st.text(letters, max_size=9), anything, max_size=3)}
    ),
    "share_revoked": st.fixed_dictionaries({"position_id": ids}),
}


@st.composite
def payloads(draw: st.DrawFn) -> tuple[str, object]:
    """A type and a payload that is nearly right: up to two of its members are dropped or replaced."""
    kind = draw(st.sampled_from(list(WHOLE)))
    value = draw(WHOLE[kind])
    for _ in range(draw(st.integers(0, 2))):
        node = value
        while (inner := [key for key in node if isinstance(node[key], dict)]) and draw(st.booleans()):
            node = node[draw(st.sampled_from(inner))]
        if not node:
            break
        key = draw(st.sampled_from(sorted(node)))
        if draw(st.booleans()):
            del node[key]
        else:
            node[key] = draw(anything)
    if draw(st.booleans()) and isinstance(value, dict):
        value["x-" + draw(st.text(letters, max_size=5))] = draw(anything)
    return kind, value


def text_of(value: object, ensure_ascii: bool, spaced: bool) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, separators=None if spaced else (",", ":"), allow_nan=False
    )


@settings(max_examples=count(300, 5000), deadline=None)
@given(payloads(), st.booleans(), st.booleans())
def test_a_payload_passes_as_plain_rules_say(payload, ensure_ascii, spaced):
    kind, value = payload
    text = text_of(value, ensure_ascii, spaced)
    assert passes(rules("known"), kind, text) is is_right(kind, value)
    assert passes(rules("strict"), kind, text) is is_right(kind, value)


@settings(max_examples=count(100, 2000), deadline=None)
@given(st.from_regex(schemas._PLAIN_URL, fullmatch=True))
def test_a_url_that_is_plainly_right_is_right(url):
    assert is_absolute_http_url(url)


# One meaning for every parser


class Twice(Exception):
    pass


def no_twice(pairs):
    if len(dict(pairs)) < len(pairs):
        raise Twice
    return dict(pairs)


names = st.sampled_from(["a", "b", "position_id", ":,", '"', "{", "é", "\\", ""])


def spelled(name: str, escaped: bool) -> str:
    """A name as JSON, with every character escaped or as usual."""
    if not escaped:
        return json.dumps(name, ensure_ascii=False)
    return '"' + "".join(f"\\u{ord(char):04x}" for char in name) + '"'


def objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as JSON texts, whose names may come twice."""
    member = st.builds(
        lambda name, escaped, value, space: f"{spelled(name, escaped)}{space}:{space}{value}",
        names, st.booleans(), inner, st.sampled_from(["", " ", "\n\t"]),
    )  # fmt: skip
    return st.lists(member, max_size=4).map(lambda members: "{" + ",".join(members) + "}")


texts = st.recursive(
    st.sampled_from(["1", "-0.0", "1E3", "null", "true", '"a,b:c"', '"\\u003a\\""', "[ ]", "{ }"]),
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda parts: f"[{' , '.join(parts)}]"),
    max_leaves=12,
)


@settings(max_examples=count(500, 10_000), deadline=None)
@given(texts)
def test_a_member_that_is_given_twice_is_refused_wherever_it_is(text):
    try:
        json.loads(text, object_pairs_hook=no_twice)
        expected = None
    except Twice:
        expected = "data.data: an object has the same member twice"
    payload = f'{{"position_id":"p","x":{text}}}'
    if expected is None:
        check(rules("known"), "share_revoked", payload)
    else:
        assert fault(rules("known"), "share_revoked", payload) == expected


@pytest.mark.parametrize(
    "payload",
    [
        '{"position_id":"p","share_url":"javascript:alert(1)","share_url":"http://a"}',
        '{"position_id":"p","share_url":"http://a","share_url":"javascript:alert(1)"}',
        '{"position_id":"p","share_url":"javascript:alert(1)","share\\u005furl":"http://a"}',
        '{"position_id":"p","position_id":"p"}',
        '{"position_id":"p","x":[{"y":{},"y":{}}]}',
    ],
)
def test_a_recipient_that_takes_the_first_of_two_is_not_fooled(payload):
    assert not passes(rules("known"), "position_shared", payload)
    assert not passes(rules("strict"), "position_shared", payload)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 5000])
def test_a_number_that_is_not_the_same_everywhere_is_refused(number):
    for payload in (number, f'{{"position_id": "p", "x": [{number}]}}'):
        assert "out of range" in fault(rules("known"), "share_revoked", payload)


@pytest.mark.parametrize("number", ["1e308", "1" * 4000, "18446744073709551616", "-0", "1e-5000", "1.50"])
def test_any_other_number_passes(number):
    check(rules("known"), "share_revoked", f'{{"position_id": "p", "x": {number}}}')


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[ {"a" :[', "]}]")])
def test_a_payload_has_at_most_64_levels(opening, closing, tmp_path):
    any_schema = tmp_path / "t.json"
    any_schema.write_text("true")
    of = rules("known", str(tmp_path))
    fits = MAX_DEPTH // (opening.count("[") + opening.count("{"))
    check(of, "t", opening * fits + "1" + closing * fits)
    for levels in (fits + 1, fits * 2, 300):
        text = opening * levels + "1" + closing * levels
        assert fault(of, "t", text) == "data.data: nested too deeply"
    # Wide is not deep.
    check(of, "t", "[" + ",".join(['{"a":[[]]}'] * 3000) + "]")


def test_a_schema_that_recurses_does_so_no_deeper_than_its_payload(tmp_path):
    wrapped: dict[str, object] = {"items": {"$ref": "#"}}
    for _ in range(20):
        wrapped = {"allOf": [wrapped]}
    (tmp_path / "t.json").write_text(json.dumps(wrapped))
    of = rules("known", str(tmp_path))
    check(of, "t", "[" * 64 + "]" * 64)
    assert fault(of, "t", "[" * 900 + "]" * 900) == "data.data: nested too deeply"


FULL = 64 * 1024 - 200


@pytest.mark.parametrize(
    "payload",
    [
        "[" + ",".join(["{}"] * (FULL // 3)) + "]",
        "[ " + ",".join(["1"] * (FULL // 2)) + "]",
        "{ " + ",".join(f'"{number}":1' for number in range(FULL // 10)) + "}",
        '"' + "\\u003a" * (FULL // 6) + '"',
        "[ " + ",".join(["1" * 4300] * (FULL // 4301)) + "]",
    ],
    ids=["objects", "numbers", "members", "escapes", "digits"],
)
def test_a_payload_that_fills_its_message_is_checked_to_its_end(payload):
    check(rules("known"), "position_updated", f'{{"position_id":"p","updates":{{"x":{payload}}}}}')


# What the sender is told


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        ({"additionalProperties": False}, {"secret " * 400: 1}),
        ({"propertyNames": {"maxLength": 3}}, {"secret " * 400: 1}),
        ({"additionalProperties": {"type": "string"}}, {"secret " * 400: 1}),
        ({"const": "x" * 400}, "secret"),
        ({"enum": ["a", "b"]}, "secret"),
        ({"pattern": "^a*$"}, "secret"),
        ({"not": {"type": "string"}}, "secret"),
        ({"anyOf": [{"type": "null"}, {"maxLength": 3}]}, "secret"),
        ({"items": {"format": "date-time"}}, ["secret"]),
        ({"unevaluatedProperties": False}, {"secret " * 400: 1}),
        ({"contains": {"type": "null"}}, ["secret"]),
        (False, "secret"),
    ],
)
def test_what_the_sender_is_told_is_short_and_holds_no_value_of_its_payload(tmp_path, schema, payload):
    (tmp_path / "t.json").write_text(json.dumps(schema))
    detail = fault(rules("known", str(tmp_path)), "t", json.dumps(payload))
    assert detail.startswith("data.data")
    assert len(detail) < 300
    assert isinstance(payload, dict) or "secret" not in detail


def test_types_and_formats_are_told_in_the_words_of_the_protocol(tmp_path):
    properties = {
        "a": {"type": ["integer", "null"]},
        "b": {"items": {"type": "boolean"}},
        "c": {"format": "date-time"},
        "d": {"format": "http-url"},
    }
    (tmp_path / "t.json").write_text(json.dumps({"properties": properties}))
    of = rules("known", str(tmp_path))
    assert fault(of, "t", '{"a":"x"}') == "data.data.a: expected null or int"
    assert fault(of, "t", '{"b":[true,"x"]}') == "data.data.b[1]: expected bool"
    assert fault(of, "t", '{"c":"x"}') == "data.data.c: expected date-time"
    assert fault(of, "t", '{"d":"x"}').startswith("data.data.d: expected an absolute http or https URL")
    check(of, "t", '{"a":null,"b":[],"c":"2025-11-01T10:00:00Z","d":"https://a"}')


class Panic(BaseException):
    """Like pyo3's PanicException, which is no Exception."""


def test_a_panic_of_the_validator_is_an_error_of_one_connection():
    class Panicking:
        def validate(self, value: object) -> None:
            raise Panic

    of = EventRules(max_recipients=3, schemas=EventSchemas({"t": Panicking()}, strict=True))
    with pytest.raises(RuntimeError, match="panicked"):
        check(of, "t", "{}")


# The directory


def test_a_file_adds_its_type(tmp_path):
    (tmp_path / "price_alert.json").write_text('{"required": ["symbol"]}')
    (tmp_path / "Preis: größer.json").write_text('{"$schema":"http://json-schema.org/draft-07/schema#"}')
    (tmp_path / "README.md").write_text("not looked at")
    of = rules("strict", str(tmp_path))
    check(of, "price_alert", '{"symbol": 1}')
    check(of, "Preis: größer", "{}")
    assert fault(of, "price_alert", "{}") == "data.data.symbol: required"
    # The built-in types are still there.
    assert fault(of, "share_revoked", "{}") == "data.data.position_id: required"
    check(rules("known", str(tmp_path)), "other", "{}")


def test_a_file_replaces_the_schema_of_a_built_in_type(tmp_path):
    (tmp_path / "share_revoked.json").write_text('{"required": ["reason"]}')
    of = rules("known", str(tmp_path))
    assert fault(of, "share_revoked", '{"position_id": "p"}') == "data.data.reason: required"
    check(of, "share_revoked", '{"reason": 1}')


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ('"text"', "not a JSON Schema"),
        ("[]", "not a JSON Schema"),
        ("7", "not a JSON Schema"),
        ('{"type": "object", "type": "array"}', "twice"),
        ("[" * 5000, "nested too deeply"),
        ('{"properties": {"a": {"type": "strin"}}}', "properties.a.type: "),
        ('{"required": "a"}', "required: "),
        ('{"format": "http_url"}', "'http_url'"),
        ('{"pattern": "("}', "pattern: "),
        ('{"pattern": "(?=a)"}', "pattern: "),
        ('{"pattern": "(a)\\\\1"}', "pattern: "),
        ('{"patternProperties": {"(?!a)": {}}}', "patternProperties"),
        ('{"pattern": "((a{1000}){1000}){1000}"}', "pattern: "),
        ('{"$ref": "#/nowhere"}', "/nowhere"),
        ('{"$schema": "https://example.org/mine"}', "https://example.org/mine"),
        ('{"$ref": "share_revoked.json"}', "share_revoked.json"),
        ('{"$ref": "file:///etc/hostname"}', "file:///etc/hostname"),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path, content, reason):
    file = tmp_path / "t.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SettingsError) as caught:
        EventRules.from_settings(Settings(events=EventSettings(validation="known", schema_dir=str(tmp_path))))
    assert str(caught.value).startswith(f"events.schema_dir: {file}: ")
    assert reason in str(caught.value)


NESTED = {"$id": "http://127.0.0.1:1/", "$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "URL"},
        {"$dynamicRef": "URL"},
        {"$schema": "URL"},
        {"$id": "URL", "$ref": "b"},
        {**NESTED, "$defs": {"a": {"$id": "URL", "$ref": "b"}}},
        {**NESTED, "$defs": {"a": {"$id": "URL", "$dynamicRef": "b"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "URL", "$ref": "b"},
    ],
)
def test_nothing_is_fetched(tmp_path, schema):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        (tmp_path / "t.json").write_text(json.dumps(schema).replace("URL", url))
        with pytest.raises(SettingsError, match=r"t\.json: "):
            EventSchemas.load(EventSettings(validation="known", schema_dir=str(tmp_path)))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_reference_within_the_file_holds(tmp_path):
    schema = {"$id": "urn:t", "$defs": {"id": {"type": "string"}}, "items": {"$ref": "#/$defs/id"}}
    (tmp_path / "t.json").write_text(json.dumps(schema))
    assert fault(rules("known", str(tmp_path)), "t", '["a",1]') == "data.data[1]: expected str"


def test_a_pattern_that_makes_others_backtrack_is_matched_without(tmp_path):
    (tmp_path / "t.json").write_text('{"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}')
    detail = fault(rules("known", str(tmp_path)), "t", json.dumps("a" * FULL))
    assert detail.startswith("data.data: value does not match")


def test_a_directory_that_gives_nothing_is_a_mistake(tmp_path):
    def message(schema_dir) -> str:
        with pytest.raises(SettingsError) as caught:
            EventSchemas.load(EventSettings(validation="strict", schema_dir=str(schema_dir)))
        return str(caught.value)

    missing = tmp_path / "missing"
    assert message(missing) == f"events.schema_dir: cannot read {missing}: No such file or directory"
    assert message(tmp_path) == f"events.schema_dir: {tmp_path} holds no file TYPE.json"
    (tmp_path / "t.txt").write_text("{}")
    assert "holds no file" in message(tmp_path)
    assert "Not a directory" in message(tmp_path / "t.txt")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_not_a_file_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / "t.json")
    with pytest.raises(SettingsError, match=r"t\.json: not a file"):
        EventSchemas.load(EventSettings(validation="known", schema_dir=str(tmp_path)))


def test_a_file_whose_type_nobody_can_send_is_named(tmp_path):
    (tmp_path / ("x" * 65 + ".json")).write_text("{}")
    with pytest.raises(SettingsError, match="at most 64 characters"):
        EventSchemas.load(EventSettings(validation="known", schema_dir=str(tmp_path)))


def test_without_validation_the_directory_is_not_looked_at(tmp_path):
    check(rules("off", str(tmp_path / "missing")), "share_revoked", '{"a":1,"a":2}')
