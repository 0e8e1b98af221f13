from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from collab.errors import InvalidEvent, InvalidJson, InvalidMessage, MessageError, UnknownEvent
from collab.wire import codec
from collab.wire.messages import (
    CollabEvent,
    Connected,
    ErrorReply,
    EventAck,
    PingRequest,
    Pong,
    RouteRequest,
    ServiceShutdown,
    UserOffline,
    UserOnline,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = {"type": "comment_added", "to_users": ["bob"], "data": {"text": "hi"}}


def collab_event(data: str, **members: str) -> bytes:
    """The text of a `collab_event`, its members as JSON texts."""
    extra = "".join(f',"{name}":{value}' for name, value in members.items())
    return f'{{"event":"collab_event","data":{data}{extra}}}'.encode()


def members(**texts: str) -> str:
    """An event's data, its members as JSON texts; the two that are needed where not given."""
    given = {"type": '"t"', "to_users": "[]", **texts}
    return "{" + ",".join(f'"{name}":{text}' for name, text in given.items()) + "}"


def route(text: bytes) -> RouteRequest:
    request = codec.decode(text)
    assert isinstance(request, RouteRequest)
    return request


def decoded(text: bytes) -> RouteRequest | PingRequest | MessageError:
    try:
        return codec.decode(text)
    except MessageError as error:
        return error


def fault(text: bytes) -> MessageError:
    with pytest.raises(MessageError) as caught:
        codec.decode(text)
    return caught.value


def relayed(data: str) -> bytes:
    """What a recipient gets of an event whose `data` is this JSON text."""
    text = f'{{"type":"t","to_users":["bob"],"data":{data}}}'
    return codec.encode_event(route(collab_event(text)).event, "ada")


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """Any JSON value in any of its spellings: white space, escapes, exponents."""
    blank = st.text(" \t\r\n", max_size=3)

    def spelt(value: object) -> str:
        if isinstance(value, list):
            inner = ",".join(draw(blank) + spelt(item) + draw(blank) for item in value)
            return f"[{inner or draw(blank)}]"
        if isinstance(value, dict):
            inner = ",".join(
                f"{draw(blank)}{spelt(name)}{draw(blank)}:{draw(blank)}{spelt(item)}{draw(blank)}"
                for name, item in value.items()
            )
            return f"{{{inner or draw(blank)}}}"
        if isinstance(value, str) and draw(st.booleans()):
            spellings = {"a": "\\u0061", "/": "\\/"}
            spelt_out = "".join(spellings.get(c) or json.dumps(c)[1:-1] for c in value)
            return f'"{spelt_out}"'
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
        return text.replace("e", "E") if isinstance(value, float) and draw(st.booleans()) else text

    return spelt(draw(json_values))


# The client's messages


def test_an_event_is_read() -> None:
    assert route(collab_event(json.dumps({**EVENT, "from_user": "ada"}))) == RouteRequest(
        CollabEvent("comment_added", ["bob"], "ada", Raw(b'{"text": "hi"}'))
    )


def test_an_event_may_leave_out_its_sender_and_its_data() -> None:
    event = route(collab_event('{"type":"t","to_users":[]}')).event
    assert event == CollabEvent("t", [], UNSET, Raw(b"{}"))


@pytest.mark.parametrize(
    "text", [b'{"event":"ping"}', b'{"event":"ping","data":{}}', b' {"event" : "ping"}\n']
)
def test_a_ping_may_leave_out_its_data(text: bytes) -> None:
    assert codec.decode(text) == PingRequest()


@pytest.mark.parametrize("type", ["a", "x" * 64, "ü" * 64, "😀" * 64])
def test_a_type_has_1_to_64_characters(type: str) -> None:
    assert route(collab_event(json.dumps({"type": type, "to_users": []}))).event.type == type


def test_recipients_are_kept_as_sent() -> None:
    to_users = ["b", "a", "b", "x" * 128, "ü" * 128]
    assert route(collab_event(json.dumps({"type": "t", "to_users": to_users}))).event.to_users == to_users


@pytest.mark.parametrize(
    ("text", "error", "detail"),
    [
        (b"", InvalidJson, "truncated"),
        (b"{", InvalidJson, "truncated"),
        (b"nope", InvalidJson, "invalid character"),
        (b"{'event':'ping'}", InvalidJson, "byte 1"),
        (b'{"event":"ping"} {}', InvalidJson, "trailing characters"),
        (b'{"event":"ping",}', InvalidJson, "trailing comma"),
        (b'\xef\xbb\xbf{"event":"ping"}', InvalidJson, "byte 0"),
        (b'{"event":"ping","data":NaN}', InvalidJson, "invalid character"),
        (b"null", InvalidMessage, "message: expected object, got null"),
        (b"[]", InvalidMessage, "message: expected object, got array"),
        (b'"ping"', InvalidMessage, "message: expected object, got str"),
        (b"7", InvalidMessage, "message: expected object, got int"),
        (b"{}", InvalidMessage, "event: required"),
        (b'{"event":5}', InvalidMessage, "event: expected str, got int"),
        (b'{"event":null}', InvalidMessage, "event: expected str, got null"),
        (b'{"event":["ping"]}', InvalidMessage, "event: expected str, got array"),
        (b'{"event":"ping","id":null}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"ping","id":true}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"ping","id":1.5}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"ping","id":1.0}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"ping","id":{}}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"ping","id":[1]}', InvalidMessage, "id: expected str or int"),
        (b'{"event":"nope"}', UnknownEvent, "event: nope is not"),
        (b'{"event":""}', UnknownEvent, "event:  is not"),
        (b'{"event":"connected"}', UnknownEvent, "event: connected is not"),
        (b'{"event":"Ping"}', UnknownEvent, "event: Ping is not"),
        (b'{"event":"collab_event"}', InvalidEvent, "data: required"),
        (collab_event("null"), InvalidEvent, "data: expected object, got null"),
        (collab_event("[]"), InvalidEvent, "data: expected object, got array"),
        (collab_event("{}"), InvalidEvent, "data.type: required"),
        (collab_event('{"type":"t"}'), InvalidEvent, "data.to_users: required"),
        (collab_event('{"type":5,"to_users":[]}'), InvalidEvent, "data.type: expected str, got int"),
        (collab_event('{"type":"","to_users":[]}'), InvalidEvent, "data.type: expected str of length >= 1"),
        (
            collab_event('{"type":"%s","to_users":[]}' % ("x" * 65)),
            InvalidEvent,
            "data.type: expected str of length <= 64",
        ),
        (collab_event('{"type":"t","to_users":"b"}'), InvalidEvent, "data.to_users: expected array, got str"),
        (
            collab_event('{"type":"t","to_users":{}}'),
            InvalidEvent,
            "data.to_users: expected array, got object",
        ),
        (
            collab_event('{"type":"t","to_users":["b",5]}'),
            InvalidEvent,
            "data.to_users[1]: expected str, got int",
        ),
        (
            collab_event('{"type":"t","to_users":["b","c",null]}'),
            InvalidEvent,
            "data.to_users[2]: expected str, got null",
        ),
        (
            collab_event('{"type":"t","to_users":[""]}'),
            InvalidEvent,
            "data.to_users[0]: expected str of length >= 1",
        ),
        (
            collab_event('{"type":"t","to_users":["%s"]}' % ("x" * 129)),
            InvalidEvent,
            "data.to_users[0]: expected str of length <= 128",
        ),
        (
            collab_event('{"type":"t","to_users":[],"from_user":null}'),
            InvalidEvent,
            "data.from_user: expected str, got null",
        ),
        (
            collab_event('{"type":"t","to_users":[],"from_user":7}'),
            InvalidEvent,
            "data.from_user: expected str, got int",
        ),
    ],
)
def test_an_error_names_the_field_at_fault(text: bytes, error: type[MessageError], detail: str) -> None:
    found = fault(text)
    assert type(found) is error
    assert detail in found.detail
    if not detail[:1].isspace() and ":" in detail:
        assert found.detail.startswith(detail)
    assert "`" not in found.detail
    assert "$" not in found.detail


def test_the_name_of_an_unknown_event_is_cut() -> None:
    found = fault(b'{"event":"%b"}' % (b"x" * 60_000))
    assert len(found.detail) < 200


# Ids


@pytest.mark.parametrize(
    "id",
    [
        "7",
        "0",
        "-0",
        "-5",
        "9" * 64,
        '""',
        '"a"',
        '"%s"' % ("x" * 64),
        '"%s"' % ("é" * 64),
        '"%s"' % ("\\u00e9" * 64),
        '"\\ud83d\\ude00"',
        '"\\/\\n\\""',
    ],
)
def test_an_id_comes_back_byte_for_byte(id: str) -> None:
    raw = id.encode()
    assert codec.decode(b'{"event":"ping","id": %b }' % raw) == PingRequest(raw)
    assert route(collab_event(json.dumps(EVENT), id=id)).reply_id == raw
    answer = codec.encode(Pong(timestamp=1), raw)
    assert answer == b'{"event":"pong","id":%b,"data":{"timestamp":1}}' % raw
    assert json.loads(answer)["id"] == json.loads(id)


@pytest.mark.parametrize("id", ["1" * 65, "-" + "1" * 64, '"%s"' % ("x" * 65), '"%s"' % ("\\u0041" * 65)])
def test_an_id_over_64_characters_is_refused(id: str) -> None:
    found = fault(b'{"event":"ping","id":%b}' % id.encode())
    assert isinstance(found, InvalidMessage)
    assert found.detail == "id: longer than 64 characters"
    assert found.reply_id == b""


@pytest.mark.parametrize(
    "text",
    [
        b'{"event":"nope","id":"x"}',
        b'{"event":"collab_event","id":"x"}',
        b'{"id":"x"}',
        b'{"event":5,"id":"x"}',
        b'{"id":"x","event":[]}',
        collab_event("{}", id='"x"'),
        collab_event('{"type":"t","to_users":[5]}', id='"x"'),
        collab_event("5", id='"x"'),
    ],
)
def test_an_error_carries_the_id_of_its_message(text: bytes) -> None:
    assert fault(text).reply_id == b'"x"'


@pytest.mark.parametrize(
    "text",
    [
        b"nope",
        b'{"id":"x"',
        b'{"event":5}',
        b'{"event":5,"id":null}',
        b'{"event":5,"id":1.5}',
        b'{"event":5,"id":"%b"}' % (b"x" * 65),
        b'["id"]',
        b'{"event":5,"id":7,"data":%b%b}' % (b"[" * 5000, b"]" * 5000),
    ],
)
def test_an_error_has_no_id_where_none_can_be_told(text: bytes) -> None:
    assert fault(text).reply_id == b""


# What is relayed


def test_an_event_is_relayed_with_its_sender_filled_in() -> None:
    event = route(collab_event(json.dumps(EVENT))).event
    assert json.loads(codec.encode_event(event, "ada")) == {
        "event": "collab_event",
        "data": {**EVENT, "from_user": "ada"},
    }


@given(json_texts())
@example("[ 1 , 1.0 , 1e0 , 1E+0 , -0 , -0.0 ]")
@example("1" * 500)
@example("1" * 10_000)
@example("1e999")
@example('"\\u0000\\ud83d\\ude00\\u2028"')
@example('{"a":1,"a":2}')
@example("null")
def test_the_data_reaches_a_recipient_byte_for_byte(data: str) -> None:
    text = f'{{"type":"t", "data" :\t{data}\r\n, "to_users":["bob"]}}'
    frame = codec.encode_event(route(collab_event(text)).event, "ada")
    assert frame == (
        b'{"event":"collab_event","data":{"type":"t","from_user":"ada","to_users":["bob"],"data":%b}}'
        % data.encode()
    )


def test_a_relayed_event_stays_json_where_its_data_is_the_deepest_that_is_taken() -> None:
    depth = 400
    frame = relayed("[" * depth + "]" * depth)
    assert isinstance(codec.decode(frame), RouteRequest)


@given(
    st.text(min_size=1, max_size=64),
    st.lists(st.text(min_size=1, max_size=20), max_size=4),
    st.text(min_size=1, max_size=20),
)
def test_type_and_users_of_any_characters_survive(type: str, to_users: list[str], from_user: str) -> None:
    text = json.dumps({"type": type, "to_users": to_users})
    frame = codec.encode_event(route(collab_event(text)).event, from_user)
    assert json.loads(frame)["data"] == {
        "type": type,
        "from_user": from_user,
        "to_users": to_users,
        "data": {},
    }
    again = route(frame).event
    assert (again.type, again.from_user, again.to_users) == (type, from_user, to_users)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"first","type":"t","to_users":["eve"],"to_users":["bob"],"data":1,"data":2}',
        '{"from_user":"eve","type":"t","to_users":["bob"],"from_user":"ada","data":2}',
        '{"\\u0074ype":"first","type":"t","to_users":["bob"],"data":2}',
    ],
)
def test_a_key_given_twice_means_one_thing_to_us_and_to_the_recipient(text: str) -> None:
    event = route(collab_event(text)).event
    assert codec.encode_event(event, "ada") == (
        b'{"event":"collab_event","data":{"type":"t","from_user":"ada","to_users":["bob"],"data":2}}'
    )


def test_an_envelope_with_keys_given_twice_goes_by_the_last() -> None:
    assert codec.decode(b'{"event":"collab_event","id":1,"event":"ping","id":2}') == PingRequest(b"2")


def test_unknown_members_are_dropped() -> None:
    text = collab_event('{"type":"t","to_users":[],"admin":true,"event":"x"}', extra='{"a":[1]}')
    assert codec.encode_event(route(text).event, "ada") == (
        b'{"event":"collab_event","data":{"type":"t","from_user":"ada","to_users":[],"data":{}}}'
    )


def test_a_sender_cannot_write_past_its_own_members() -> None:
    type = 't","from_user":"eve","x":"'
    frame = codec.encode_event(CollabEvent(type, ['"]'], UNSET, Raw(b"{}")), 'a"da')
    assert json.loads(frame)["data"] == {"type": type, "from_user": 'a"da', "to_users": ['"]'], "data": {}}


# What would hurt


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'[{"a":' * 20_000,
    ],
)
def test_a_text_that_is_nested_too_deeply_is_refused(bomb: bytes) -> None:
    for text in (
        bomb,
        b'{"event":"ping","data":%b}' % bomb,
        b'{"event":%b}' % bomb,
        b'{"event":"ping","id":%b}' % bomb,
        b'{"event":"ping","unknown":%b}' % bomb,
        collab_event(members(data=bomb.decode())),
        collab_event(members(to_users=bomb.decode())),
        collab_event(members(unknown=bomb.decode())),
    ):
        assert isinstance(fault(text), InvalidJson | InvalidMessage)


@pytest.mark.parametrize("depth", range(150, 1100, 7))
def test_at_whatever_depth_the_line_is_an_event_is_routed_or_refused(depth: int) -> None:
    text = collab_event(members(data="[" * depth + "]" * depth))
    outcome = decoded(text)
    if isinstance(outcome, MessageError):
        assert isinstance(outcome, InvalidJson | InvalidEvent)
        assert outcome.detail.endswith("nested too deeply")


@pytest.mark.parametrize("number", ["1" * 5_000, "-" + "9" * 60_000, "1e999999999", "0." + "1" * 60_000])
def test_a_huge_number_is_opaque_in_data_and_refused_where_it_is_read(number: str) -> None:
    assert number.encode() in relayed(number)
    for text in (
        b'{"event":%b}' % number.encode(),
        b'{"event":"ping","id":%b}' % number.encode(),
        collab_event(members(type=number)),
        collab_event(members(to_users=f"[{number}]")),
        collab_event(members(from_user=number)),
    ):
        assert isinstance(fault(text), InvalidMessage | InvalidEvent)


@pytest.mark.parametrize(
    "escape", ["\\ud800", "\\udc00", "\\ud800\\u0041", "\\ud800\\ud800", "\\udc00\\ud800", "x\\udfff"]
)
def test_a_lone_surrogate_is_refused_wherever_it_is(escape: str) -> None:
    for text in (
        b'{"event":"%b"}' % escape.encode(),
        b'{"event":"ping","id":"%b"}' % escape.encode(),
        b'{"event":"ping","%b":1}' % escape.encode(),
        collab_event(members(type=f'"{escape}"')),
        collab_event(members(to_users=f'["{escape}"]')),
        collab_event(members(data=f'"{escape}"')),
        collab_event(members(data=f'{{"{escape}":1}}')),
    ):
        assert isinstance(fault(text), InvalidJson)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b'{"event":"\xff"}',
        b'{"\xff":1,"event":"ping"}',
        b'{"event":5,"id":"\xff"}',
        b'{"event":"ping","id":"\xff"}',
        b'{"event":"collab_event","data":{"type":"\xff","to_users":[]}}',
        b'{"event":"collab_event","data":{"type":"t","to_users":["\xc3"]}}',
        b'{"event":"collab_event","data":{"type":"t","to_users":[],"from_user":"\xed\xa0\x80"}}',
    ],
)
def test_bytes_that_are_not_utf8_raise_nothing_but_a_message_error(text: bytes) -> None:
    # The scanner lets none of these through; a caller that forgets must not end a connection for it.
    decoded(text)


@given(st.text())
def test_any_text_is_a_message_or_a_message_error(text: str) -> None:
    decoded(text.encode())


@given(st.binary())
def test_any_bytes_are_a_message_or_a_message_error(text: bytes) -> None:
    decoded(text)


@given(
    st.dictionaries(st.sampled_from(["event", "id", "data", "x"]), json_values),
    st.dictionaries(st.sampled_from(["type", "to_users", "from_user", "data", "x"]), json_values),
    st.integers(0, 200),
    st.binary(max_size=3),
)
def test_any_damaged_message_is_a_message_or_a_message_error(
    members: dict[str, object], event: dict[str, object], at: int, damage: bytes
) -> None:
    for message in (members, {**members, "event": "collab_event", "data": event}):
        text = json.dumps(message).encode()
        decoded(text)
        decoded(text[:at] + damage + text[at + len(damage) :])


@pytest.mark.parametrize("data", [b"", b"null", b"{", b"[" * 5000, b'{"type":"\xff"}', b'{"type":1}'])
def test_the_data_of_an_event_by_itself_is_refused_as_an_event(data: bytes) -> None:
    with pytest.raises(InvalidEvent, match=r"^data"):
        codec.decode_event(data)


# The service's messages


@pytest.mark.parametrize(
    ("message", "event", "data"),
    [
        (
            Connected(user_id="ü", active_users=3),
            "connected",
            {"user_id": "ü", "message": "Connected to collaboration service", "active_users": 3},
        ),
        (
            EventAck(event_type="t", delivered_to=1, total_recipients=1),
            "event_ack",
            {"event_type": "t", "delivered_to": 1, "total_recipients": 1},
        ),
        (
            EventAck(event_type="t", delivered_to=0, total_recipients=1, undelivered=["b"]),
            "event_ack",
            {"event_type": "t", "delivered_to": 0, "total_recipients": 1, "undelivered": ["b"]},
        ),
        (
            UserOnline(user_id="a", display_name='A "B"'),
            "user_online",
            {"user_id": "a", "display_name": 'A "B"'},
        ),
        (UserOffline(user_id="a"), "user_offline", {"user_id": "a"}),
        (Pong(timestamp=1700000000000), "pong", {"timestamp": 1700000000000}),
        (
            ErrorReply(message="m", error="e", code="c"),
            "error",
            {"message": "m", "error": "e", "code": "c"},
        ),
        (
            ServiceShutdown(timestamp="2024-01-01T00:00:00Z", reconnect_in_ms=500),
            "service_shutdown",
            {
                "message": "Collaboration service is shutting down",
                "timestamp": "2024-01-01T00:00:00Z",
                "reconnect_in_ms": 500,
            },
        ),
    ],
)
def test_a_message_of_the_service_has_the_documented_shape(
    message: Connected, event: str, data: dict[str, object]
) -> None:
    assert json.loads(codec.encode(message)) == {"event": event, "data": data}
    assert json.loads(codec.encode(message, b"7")) == {"event": event, "id": 7, "data": data}


def test_messages_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Pong(timestamp=1).timestamp = 2
    assert msgspec.json.decode(codec.encode(Pong(timestamp=1)))


# The short ways, against the long ones


@given(
    st.text(max_size=64),
    st.integers(0, 1000),
    st.lists(st.text(max_size=10), max_size=5),
    st.sampled_from([b"", b"7", b'"id"']),
)
def test_an_ack_written_out_is_the_ack_as_it_is_encoded(
    event_type: str, reached: int, undelivered: list[str], reply_id: bytes
) -> None:
    recipients = reached + len(undelivered)
    ack = EventAck(
        event_type=event_type,
        delivered_to=reached,
        total_recipients=recipients,
        undelivered=undelivered or UNSET,
    )
    assert codec.encode_ack(event_type, recipients, undelivered, reply_id) == codec.encode(ack, reply_id)


def told(decode: Callable[[bytes], object], text: bytes) -> object:
    try:
        return decode(text)
    except MessageError as error:
        return type(error), error.code, error.detail, error.reply_id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
event_members = st.fixed_dictionaries(
    {},
    optional={
        "type": st.text(max_size=66) | json_values,
        "to_users": st.lists(st.text(max_size=5) | st.none(), max_size=3) | json_values,
        "from_user": st.text(max_size=5) | json_values,
        "data": json_values,
        "more": json_values,
    },
)
whole_messages = st.fixed_dictionaries(
    {},
    optional={
        "event": st.sampled_from(["collab_event", "ping", "other"]) | json_values,
        "id": st.text(max_size=66) | st.integers() | json_values,
        "data": event_members | json_values,
        "more": json_values,
    },
)


@given(whole_messages.map(lambda message: json.dumps(message).encode()), st.data())
def test_decoding_in_one_pass_and_step_by_step_say_the_same(text: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    for piece in (text, text[:cut], text[:cut] + b" " + text[cut:], text + text[cut:]):
        assert told(codec.decode, piece) == told(codec._decode_step_by_step, piece)


@given(st.text(max_size=60) | st.text('{}[]",:ecvdatinolb_ ', max_size=60))
def test_garbage_is_the_same_garbage_both_ways(garbage: str) -> None:
    text = garbage.encode()
    assert told(codec.decode, text) == told(codec._decode_step_by_step, text)
