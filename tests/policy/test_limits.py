from __future__ import annotations

import resource
from contextlib import ExitStack

import pytest

from collab.errors import Refused
from collab.policy.limits import Admission, network_of
from collab.settings import LimitSettings


def refusal(admission: Admission, address: str) -> Refused:
    with pytest.raises(Refused) as caught, admission.admit(address):
        pass
    return caught.value


def test_without_limits_connections_are_let_in_from_anywhere() -> None:
    admission = Admission(LimitSettings())
    with ExitStack() as open:
        for _ in range(100):
            open.enter_context(admission.admit("a"))


def test_a_connection_over_the_limit_of_its_address_is_refused_for_now() -> None:
    admission = Admission(LimitSettings(connections_per_address=2))
    with admission.admit("a"), admission.admit("a"):
        error = refusal(admission, "a")
        assert (error.status, error.code, error.retry_after_seconds) == (429, "too_many_connections", 5)
        with admission.admit("b"):
            pass


def test_a_connection_over_the_total_limit_is_refused_for_now_from_any_address() -> None:
    admission = Admission(LimitSettings(connections=2))
    with admission.admit("a"), admission.admit("b"):
        for address in ("a", "c"):
            error = refusal(admission, address)
            assert (error.status, error.code, error.retry_after_seconds) == (503, "overloaded", 5)


def test_a_place_is_free_again_once_its_connection_ended_however_it_ended() -> None:
    admission = Admission(LimitSettings(connections=1, connections_per_address=1))
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), admission.admit("a"):
            raise error
    with admission.admit("a"):
        refusal(admission, "a")
    with admission.admit("b"):
        pass


def test_a_refused_connection_takes_no_place() -> None:
    admission = Admission(LimitSettings(connections=3, connections_per_address=1))
    with admission.admit("a"):
        for _ in range(5):
            refusal(admission, "a")
        with admission.admit("b"), admission.admit("c"):
            assert refusal(admission, "d").status == 503


def test_below_the_limit_on_open_files_there_is_room_kept_for_other_things(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (66, 100))
    admission = Admission(LimitSettings())
    with admission.admit("a"), admission.admit("b"):
        assert refusal(admission, "c").code == "overloaded"


def test_a_tiny_limit_on_open_files_still_lets_one_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10))
    admission = Admission(LimitSettings())
    with admission.admit("a"):
        refusal(admission, "a")


def test_an_unlimited_number_of_open_files_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with Admission(LimitSettings()).admit("a"):
        pass


def test_addresses_that_left_are_forgotten() -> None:
    admission = Admission(LimitSettings(connections_per_address=1))
    for i in range(100):
        with admission.admit(str(i)):
            pass
    assert not admission._by_network


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_an_ipv6_address_counts_by_its_64_and_a_mapped_one_as_ipv4(address: str, network: str) -> None:
    assert network_of(address) == network


def test_the_addresses_of_one_ipv6_network_share_their_places() -> None:
    admission = Admission(LimitSettings(connections_per_address=2))
    with admission.admit("2001:db8::1"):
        with admission.admit("2001:db8::2:3:4:5"):
            assert refusal(admission, "2001:db8::ffff").code == "too_many_connections"
            with admission.admit("2001:db8:0:1::1"), admission.admit("192.0.2.1"):
                pass
        with admission.admit("2001:db8::7"):
            refusal(admission, "2001:db8::1")
    assert not admission._by_network
