"""Frames, sequences, latencies, costs: the parts by themselves."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from collab.bench.cost import NoSuchProcess, cpu_seconds, resident_bytes
from collab.bench.frames import EventFrames, client_frame, mark
from collab.bench.latency import Latencies
from collab.bench.order import Sequence


def received(frames):
    """What a server makes of these bytes."""
    server = Connection(ConnectionType.SERVER)
    server.receive_data(frames)
    return [event.data for event in server.events() if isinstance(event, TextMessage)]


@given(
    before=st.integers(0, 7),
    after=st.sampled_from([0, 1, 100, 70_000]),
    numbers=st.lists(st.tuples(st.integers(0, 10**10 - 1), st.integers(0, 10**16 - 1)), max_size=20),
)
def test_every_frame_of_an_event_is_its_text_with_the_digits_in_place(before, after, numbers):
    frames = EventFrames(b"a" * before + mark(42) + b"z" * after)
    texts = ["".join(received(frames.frame(sequence, time_ns))) for sequence, time_ns in numbers]
    assert texts == [
        f"{'a' * before}@bench:000042{sequence:010}{time_ns:016}{'z' * after}"
        for sequence, time_ns in numbers
    ]


def test_masks_differ_from_frame_to_frame():
    frames = EventFrames(mark(0))
    assert len({frames.frame(1, 1) for _ in range(16)}) > 8
    assert client_frame(b"text") != client_frame(b"text")


@given(st.permutations(range(8)), st.sets(st.integers(0, 7)), st.lists(st.integers(0, 7), max_size=4))
def test_a_sequence_knows_what_is_missing_late_or_there_twice(order, lost, again):
    sequence = Sequence()
    arrived = [number for number in order if number not in lost]
    repeated = [number for number in again if number in arrived]
    for number in arrived + repeated:
        sequence.take(number)
    late = sum(number < max(arrived[:i], default=-1) for i, number in enumerate(arrived))
    assert sequence.losses(8) == len(lost)
    assert sequence.reorders == late
    assert sequence.duplicates == len(repeated)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200))
def test_percentiles_are_at_most_a_hundredth_too_low(latencies_ns):
    latencies = Latencies()
    for start in range(0, len(latencies_ns), 7):
        latencies.add(latencies_ns[start : start + 7])
    found = latencies.percentiles()
    p50_us = statistics.median_high(latencies_ns) / 1000
    assert p50_us * 0.99 <= found.p50_us <= p50_us
    assert found.max_us == max(latencies_ns) / 1000
    assert found.p50_us <= found.p99_us <= found.p999_us <= found.max_us


def test_no_latency_has_no_percentile():
    assert Latencies().percentiles() is None


def test_the_costs_of_a_process_are_those_the_kernel_tells():
    before = time.process_time()
    assert before <= cpu_seconds(os.getpid()) <= time.process_time()
    assert resident_bytes(os.getpid()) > 1024 * 1024


def test_a_process_that_is_gone_has_no_costs():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(NoSuchProcess, match=str(gone.pid)):
        cpu_seconds(gone.pid)
    with pytest.raises(NoSuchProcess, match=str(gone.pid)):
        resident_bytes(gone.pid)
