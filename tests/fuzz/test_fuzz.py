"""Fuzzing: a few seconds of it, above a million inputs in the full run, any number by `scripts/fuzz`."""

from __future__ import annotations

import os
import random

import pytest
from counts import count

from fuzz import frames, heads, packets, sockets, texts
from fuzz.draw import dice, run_each

# A failure names the seed; where CI runs, it is the same every time.
SEED = 2025 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)

FRAME_STREAMS = count(1_500, 100_000)
HEADS = count(1_500, 50_000)
JSON_TEXTS = count(15_000, 1_000_000)
PAYLOADS = count(3_000, 200_000)
SOCKET_INPUTS = count(300, 20_000)


def test_every_stream_of_frames_is_read_by_the_rules_however_it_is_split():
    run_each(frames.AREA, frames.run, SEED, range(FRAME_STREAMS))


def test_every_request_is_a_head_or_a_listed_refusal_however_it_is_split():
    run_each(heads.AREA, heads.run, SEED, range(HEADS))


def test_every_text_is_a_message_that_means_what_was_written_or_a_listed_error():
    run_each(texts.AREA, texts.run, SEED, range(JSON_TEXTS))


def test_every_payload_of_socket_io_means_what_the_plain_dialect_says_or_is_refused():
    run_each(packets.AREA, packets.run, SEED, range(PAYLOADS))


@pytest.mark.trio
@pytest.mark.parametrize(
    "indexes",
    [
        range(start, min(start + sockets.INPUTS_A_SERVICE, SOCKET_INPUTS))
        for start in range(0, SOCKET_INPUTS, sockets.INPUTS_A_SERVICE)
    ],
    ids=str,
)
async def test_every_connection_ends_as_listed_and_a_healthy_pair_is_served_all_along(indexes):
    await sockets.run(SEED, indexes)


@pytest.mark.parametrize(
    "make",
    [
        lambda index: frames.stream(dice("frames", 7, index)),
        lambda index: heads.request(dice("heads", 7, index)),
        lambda index: texts.text(dice("json", 7, index)),
        lambda index: packets.payload(dice("packets", 7, index)),
        lambda index: sockets.make(7, index),
    ],
)
def test_a_seed_and_an_index_make_the_same_input_again(make):
    assert [make(index) for index in range(200)] == [make(index) for index in range(200)]
    assert make(1) != make(2)


def test_the_inputs_are_of_every_kind():
    """Enough are right, and every outcome comes up, so that the checks have something to check."""
    readings = [frames.read(frames.stream(dice("frames", 7, index)), 1000) for index in range(3_000)]
    assert {reading.code for reading in readings} == {None, 1002, 1003, 1007, 1008, 1009}
    assert sum(reading.code is None for reading in readings) > 500
    assert sum(reading.close is not None for reading in readings) > 100
    outcomes = [heads.read([heads.request(dice("heads", 7, index))]) for index in range(3_000)]
    assert sum(outcome.head is not None for outcome in outcomes) > 800
    refused = {outcome.refusal[0] for outcome in outcomes if outcome.refusal is not None}
    assert refused == {400, 431, 501, 505}
    replies = {sockets.reply("ada", texts.text(dice("json", 7, index))) for index in range(3_000)}
    # Those two are of services with rates and with authentication.
    assert replies == {"pong", "event_ack", *texts.ERROR_CODES} - {"rate_limited", "unauthenticated"}
    ends = [packets.end(packets.payload(dice("packets", 7, index))) for index in range(3_000)]
    assert {"no payload", "waiting", "connected", "left", "1002", "1003"} == {*ends}
    assert sum(end == "connected" for end in ends) > 300
    resets = sum(sockets.make(7, index).resets for index in range(1_000))
    assert 400 < resets < 600
