from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collab.policy.rate import Meter, Meters, Rate


def test_the_burst_may_be_used_at_once_and_then_only_what_time_gives_back() -> None:
    meter = Meter(Rate(per_second=10, burst=3))
    assert [meter.spend(1, 100.0) for _ in range(3)] == [0, 0, 0]
    assert round(meter.spend(1, 100.0), 6) == 0.1
    assert round(meter.spend(1, 100.04), 6) == 0.06
    assert meter.spend(1, 100.1) == 0
    assert meter.spend(1, 100.1) > 0


def test_what_was_refused_uses_nothing() -> None:
    meter = Meter(Rate(per_second=10, burst=3))
    for _ in range(100):
        assert round(meter.spend(4, 5.0), 6) == 0.1
    assert meter.spend(3, 5.0) == 0


def test_a_long_silence_saves_no_more_than_the_burst() -> None:
    meter = Meter(Rate(per_second=10, burst=3))
    assert meter.spend(1, 0.0) == 0
    assert meter.spend(3, 1e9) == 0
    assert meter.spend(1, 1e9) > 0


def test_a_rate_of_0_is_no_limit() -> None:
    meter = Meter(Rate.with_seconds_at_once(0, 10))
    assert meter.spend(10**9, 1.0) == 0


@given(
    per_second=st.integers(1, 1000),
    burst=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=100),
)
def test_in_any_time_at_most_the_burst_and_the_rate_times_the_time_are_used(
    per_second: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    meter = Meter(Rate(per_second, burst))
    now = 1000.0
    spent: list[tuple[float, int]] = []
    for pause, units in steps:
        now += pause
        wait = meter.spend(units, now)
        if not wait:
            spent.append((now, units))
        elif units <= burst:
            # Told how long to wait, and after that it fits.
            now += wait
            assert meter.spend(units, now) == 0
            spent.append((now, units))
    for first in range(len(spent)):
        total = 0
        for at, units in spent[first:]:
            total += units
            assert total <= burst + per_second * (at - spent[first][0]) + 1e-3


def test_each_key_has_a_meter_of_its_own() -> None:
    meters = Meters(Rate(per_second=1, burst=2))
    assert [meters.spend("a", 1, 5.0) for _ in range(2)] == [0, 0]
    assert round(meters.spend("a", 1, 5.0), 6) == 1
    assert meters.spend("b", 2, 5.0) == 0
    assert meters.spend("a", 1, 6.0) == 0


def test_more_than_the_burst_counts_as_the_burst_so_that_it_fits_at_some_time() -> None:
    meters = Meters(Rate(per_second=1, burst=2))
    assert meters.spend("a", 100, 5.0) == 0
    wait = meters.spend("a", 100, 5.0)
    assert round(wait, 6) == 2
    assert meters.spend("a", 100, 5.0 + wait) == 0


def test_a_million_keys_at_once_hold_bounded_memory_and_do_not_free_a_busy_one() -> None:
    meters = Meters(Rate(per_second=1, burst=3))
    assert meters.spend("abuser", 3, 0.0) == 0
    largest = 0
    for number in range(1_000_000):
        meters.spend(f"key-{number}", 1, number / 1_000_000)
        if number % 10_000 == 0:
            # Refused each time, and by that kept among those used last.
            assert meters.spend("abuser", 3, number / 1_000_000) > 0
        largest = max(largest, len(meters))
    assert largest <= 65_536 + 1


def test_keys_that_are_used_no_more_are_forgotten() -> None:
    meters = Meters(Rate(per_second=1, burst=3))
    for number in range(1000):
        meters.spend(f"key-{number}", 1, 0.0)
    assert len(meters) == 1000
    for number in range(1001):
        meters.spend("another", 1, 100.0 + 5 * number)
    assert len(meters) == 1


def test_a_crowd_that_comes_and_goes_gives_nobody_a_second_burst() -> None:
    meters = Meters(Rate(per_second=1, burst=10))
    assert meters.spend("ada", 10, 0.0) == 0
    for second in range(1, 10):
        for number in range(1000):
            meters.spend(f"{second}-{number}", 1, float(second))
        assert meters.spend("ada", 10, float(second)) > 0
    assert meters.spend("ada", 10, 10.0) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3), st.integers(1, 5)), max_size=60))
def test_many_meters_say_what_each_alone_would(steps: list[tuple[str, float, int]]) -> None:
    rate = Rate(per_second=2, burst=5)
    together, alone = Meters(rate), {key: Meter(rate) for key in "abc"}
    now = 10.0
    for key, pause, units in steps:
        now += pause
        assert abs(together.spend(key, units, now) - alone[key].spend(units, now)) < 1e-6


def test_to_ask_how_long_one_would_wait_uses_nothing() -> None:
    meters = Meters(Rate(per_second=1, burst=2))
    assert [meters.wait_seconds("a", 5.0) for _ in range(9)] == [0] * 9
    assert len(meters) == 0
    assert meters.spend("a", 2, 5.0) == 0
    assert [round(meters.wait_seconds("a", 5.0), 6) for _ in range(9)] == [1] * 9
    assert meters.wait_seconds("a", 6.0) == 0
    assert meters.spend("a", 1, 6.0) == 0
    assert meters.wait_seconds("b", 6.0) == 0


def test_to_ask_how_long_one_would_wait_finds_who_was_not_heard_of_late() -> None:
    meters = Meters(Rate(per_second=1, burst=2))
    meters.spend("b", 1, 5.0)
    meters.spend("a", 2, 6.9)
    # With this one the burst of the first is over, and a new generation begins.
    meters.spend("b", 1, 7.1)
    assert round(meters.wait_seconds("a", 7.1), 6) == 0.8
