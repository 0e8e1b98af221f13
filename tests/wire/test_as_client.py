"""What a client reads: everything that the service relays."""

from __future__ import annotations

import math

import pytest

from collab.wire.as_client import ReceivedEvent, Unreadable, decode


def event_with(data):
    members = f'"type":"note","from_user":"bob","to_users":["ada"],"data":{data}'
    return f'{{"event":"collab_event","data":{{{members}}}}}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e400", math.inf),
        ("-1e400", -math.inf),
        (str(10**30), 10**30),
        ("1" * 5000, math.inf),
        ('[{"é": 1e999}]', [{"é": math.inf}]),
    ],
)
def test_numbers_that_no_double_holds_are_read(text, value):
    message, _ = decode(event_with(text))
    assert isinstance(message, ReceivedEvent)
    assert message.data == value


@pytest.mark.parametrize("text", ["", "1e", '{"a":}'])
def test_what_is_no_json_is_unreadable(text):
    with pytest.raises(Unreadable):
        decode(event_with(text))


def test_what_is_no_event_is_unreadable():
    with pytest.raises(Unreadable):
        decode('{"event":"collab_event","data":{"type":1,"from_user":"bob","to_users":[],"data":1e400}}')
