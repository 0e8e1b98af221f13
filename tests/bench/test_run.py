"""Whole runs, against the service and against a peer that does not do what it should."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed

from collab.bench import Options, Unreachable, run_bench
from collab.testing import open_service
from tests.bench.fakes import FakePeer, listening

QUICK = {"seconds": 20.0, "pairs": 2}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits that end when nothing more comes are short."""
    monkeypatch.setattr("collab.bench.standing.QUIET_SECONDS", 0.1)
    monkeypatch.setattr("collab.bench.traffic.PATIENCE_SECONDS", 0.3)


async def run_against_service(**given):
    async with open_service() as local:
        host, port = local.service.addresses[0]
        options = Options(url=f"ws://{host}:{port}", pid=os.getpid(), **{**QUICK, **given})
        report = await trio.to_thread.run_sync(run_bench, options)
        assert report.faults == dict.fromkeys(report.faults, 0)
        return report, local.service.status


@pytest.mark.trio
@pytest.mark.parametrize("in_flight", [1, 16])
async def test_every_event_of_the_pairs_is_counted(in_flight):
    report, status = await run_against_service(events=301, in_flight=in_flight)
    traffic = report.traffic
    assert (traffic.sent, traffic.events, traffic.deliveries) == (301, 301, 301)
    assert report.connections == 4
    assert report.server_us_per_event > 0
    assert report.own_us_per_event > 0
    assert traffic.ack_latency.max_us >= traffic.ack_latency.p50_us > 0
    assert status.total_events_routed == 301


@pytest.mark.trio
async def test_over_tls_everything_is_counted_as_without(certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.root_file))
    async with certificates.open_service() as local:
        _, port = local.service.addresses[0]
        options = Options(
            url=f"wss://127.0.0.1:{port}", events=300, in_flight=8, payload_bytes=20_000, **QUICK
        )
        report = await trio.to_thread.run_sync(run_bench, options)
        assert report.faults == dict.fromkeys(report.faults, 0)
        assert report.traffic.deliveries == local.service.status.total_events_routed == 300


@pytest.mark.trio
async def test_a_certificate_that_is_not_trusted_lets_nobody_in(certificates):
    async with certificates.open_service() as local:
        _, port = local.service.addresses[0]
        options = Options(url=f"wss://127.0.0.1:{port}", events=1, **QUICK)
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await trio.to_thread.run_sync(run_bench, options)


@pytest.mark.trio
async def test_every_recipient_of_a_fanout_is_counted():
    report, _ = await run_against_service(workload="fanout", recipients=7, events=20)
    assert (report.traffic.events, report.traffic.deliveries) == (20, 140)
    assert report.connections == 8


@pytest.mark.trio
async def test_an_open_loop_keeps_its_rate():
    report, _ = await run_against_service(workload="open-loop", rate=500, events=100)
    assert report.traffic.deliveries == 100
    # It may be late on a busy machine, but never early.
    assert report.seconds >= 99 / 500


@pytest.mark.trio
async def test_a_run_by_time_measures_only_what_follows_the_warmup():
    report, _ = await run_against_service(seconds=0.2, warmup_seconds=0.1)
    assert 0 < report.traffic.events < report.traffic.sent
    assert report.seconds >= 0.2


@pytest.mark.trio
@pytest.mark.parametrize("payload_bytes", [75, 130, 5000, 65000])
async def test_payloads_of_all_sizes_arrive(payload_bytes):
    report, _ = await run_against_service(payload_bytes=payload_bytes, events=10)
    assert report.traffic.deliveries == 10


@pytest.mark.trio
async def test_idle_connections_are_held_and_weighed():
    report, status = await run_against_service(workload="idle", connections=40, seconds=0.1)
    assert status.total_connections == 40
    assert report.memory.half_connections == 20
    assert report.memory.all_bytes > 0


@pytest.mark.trio
async def test_a_storm_loses_no_notice():
    report, status = await run_against_service(workload="storm", connections=30)
    assert [phase.name for phase in report.phases] == ["connecting", "dropping", "returning"]
    assert [phase.notices for phase in report.phases] == [30, 30, 30]
    assert status.total_connections == 61


def run_against(peer, **given):
    with listening(peer) as url:
        return run_bench(Options(url=url, **{**QUICK, "events": 40, **given}))


@pytest.mark.parametrize("dialect", ["plain", "socketio"])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_a_peer_that_does_the_work_has_no_faults(dialect, in_flight):
    peer = FakePeer(dialect)
    report = run_against(peer, dialect=dialect, in_flight=in_flight)
    assert not report.has_faults
    assert report.traffic.deliveries == peer.routed == 40


def lose(number, event):
    return [] if number == 7 else [event]


def repeat(number, event):
    return [event, event] if number == 7 else [event]


class Swap:
    """Holds one event back until the next has gone."""

    def __init__(self):
        self.held = None

    def __call__(self, number, event):
        if number == 7:
            self.held = event
            return []
        if self.held is None:
            return [event]
        held, self.held = self.held, None
        return [event, held]


@pytest.mark.parametrize("dialect", ["plain", "socketio"])
@pytest.mark.parametrize(
    ("mischief", "fault"), [(lose, "losses"), (repeat, "duplicates"), (Swap(), "reorders")]
)
def test_a_lost_repeated_or_swapped_event_is_a_fault(dialect, mischief, fault):
    report = run_against(FakePeer(dialect, mischief), dialect=dialect, pairs=1, in_flight=4)
    assert report.faults == {**dict.fromkeys(report.faults, 0), fault: 1}
    assert report.has_faults


@pytest.mark.parametrize(("acks", "fault"), [(0, "missing acks"), (2, "surplus acks")])
def test_an_ack_too_few_or_too_many_is_a_fault(acks, fault):
    peer = FakePeer(acks=lambda number: acks if number == 39 else 1)
    assert run_against(peer, in_flight=4).faults[fault] == 1


def test_an_event_for_somebody_else_is_a_fault():
    def misroute(number, event):
        mark = event["data"]["mark"].replace(":00000", ":00001")
        return [{**event, "data": {"mark": mark}}] if number == 7 else [event]

    report = run_against(FakePeer(mischief=misroute), pairs=1)
    assert report.faults["misrouted"] == 1


def test_a_connection_that_ends_is_a_fault_and_its_reason_is_kept():
    class Closing(FakePeer):
        def route(self, socket, event):
            socket.close(4003, "Slow consumer")

    report = run_against(Closing(), pairs=1)
    assert report.faults["connections lost"] == 1
    assert report.first_end == "4003 Slow consumer"


def test_an_error_is_a_fault_and_its_text_is_kept():
    class Refusing(FakePeer):
        def route(self, socket, event):
            self.say(socket, "error", {"message": "Too fast", "code": "rate_limited"})

    report = run_against(Refusing(), pairs=1)
    assert report.faults["errors"] == 1
    assert "rate_limited" in report.traffic.first_error


def test_a_service_that_is_down_is_unreachable():
    with listening(FakePeer()) as url:
        pass
    with pytest.raises(Unreachable, match="cannot reach"):
        run_bench(Options(url=url))


@pytest.mark.trio
async def test_a_refused_connection_says_why():
    async with open_service() as local:
        host, port = local.service.addresses[0]
        options = Options(url=f"ws://{host}:{port}/elsewhere", events=1)
        with pytest.raises(Unreachable, match="404"):
            await trio.to_thread.run_sync(run_bench, options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:9000"},
        {"url": "ftp://localhost"},
        {"seconds": 301},
        {"pairs": 10_001},
        {"connections": 20_000},
        {"payload_bytes": 10},
        {"in_flight": 0},
        {"dialect": "morse"},
    ],
)
def test_options_have_bounds(wrong):
    with pytest.raises(ValueError, match=r".+"):
        attrs.evolve(Options(url="ws://localhost:9000"), **wrong)


class GossipingPeer(FakePeer):
    """Tells everybody all the time who else comes."""

    def say(self, socket, event, data):
        super().say(socket, event, data)
        if event == "connected":
            threading.Thread(target=self._gossip, args=(socket,)).start()

    def _gossip(self, socket):
        with suppress(ConnectionClosed):
            while True:
                socket.send('{"event":"user_online","data":{"user_id":"x","display_name":"x"}}')
                time.sleep(0.01)


def test_a_run_ends_although_others_come_and_go_all_the_time(monkeypatch):
    monkeypatch.setattr("collab.bench.traffic._LONGEST_LINGER_SECONDS", 0.3)
    monkeypatch.setattr("collab.bench.crowd._SETTLE_SECONDS", 10**6)
    with listening(GossipingPeer()) as url:
        report = run_bench(Options(url=url, **QUICK, events=10))
    assert not report.has_faults
    assert report.traffic.deliveries == 10
