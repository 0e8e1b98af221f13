"""The dialect of an HTTP request: the ack's data as the body, and nothing else of its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.errors import InvalidEvent, InvalidJson
from collab.wire import codec
from collab.wire.answer import ANSWER

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(TEXTS, st.lists(TEXTS, unique=True), st.integers(0, 1000))
def test_the_answer_is_the_data_of_the_ack_that_a_socket_would_get(event_type, undelivered, delivered):
    recipients = delivered + len(undelivered)
    answer = json.loads(ANSWER.ack_frame(event_type, recipients, undelivered, b""))
    over_a_socket = json.loads(codec.encode_ack(event_type, recipients, undelivered, b""))
    assert answer == over_a_socket["data"]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_error(text):
    try:
        codec.decode_event_text(text)
    except (InvalidEvent, InvalidJson) as error:
        assert error.detail.startswith("data")  # noqa: PT017 - it need not be raised at all


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (b'{"type":"t","to_users":[1]}', "data.to_users[0]: expected str, got int"),
        (b'{"type":"t"}', "data.to_users: required"),
        (b'"t"', "data: expected object, got str"),
    ],
)
def test_an_error_names_the_field_as_over_a_socket(text, detail):
    with pytest.raises(InvalidEvent) as caught:
        codec.decode_event_text(text)
    assert caught.value.detail == detail
