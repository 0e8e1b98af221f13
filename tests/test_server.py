"""A service as a whole: its start, its drain, its cancellation, several in one process."""

from __future__ import annotations

import math
import socket
import threading
from datetime import UTC, datetime

import attrs
import pytest
import trio
from baseline import Holdings, serves_a_healthy_pair, settles_at
from peers import (
    ADA,
    PATIENCE_SECONDS,
    ask,
    event_text,
    head,
    read_answer,
    read_to_end,
    small_receiver,
    until_end,
    upgrade,
)

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.errors import CannotStart
from collab.server import serve
from collab.settings import Duration, LimitSettings, ServerSettings, Settings, TimeoutSettings
from collab.testing import FakeBackend, Rejected, open_service
from collab.wire.identity import Identity
from collab.wire.plain import PLAIN

LOOPBACK = Settings(server=ServerSettings(host="127.0.0.1", port=0))
# Whoever waits for a peer here waits for longer than the test does.
WAITING_LONG = Settings(timeouts=TimeoutSettings(write=Duration("60s"), close=Duration("60s")))


def draining_for(drain, **limits):
    server = attrs.evolve(LOOPBACK.server, drain=Duration(drain))
    return Settings(server=server, limits=LimitSettings(**limits))


def data_of(messages):
    return [message["data"]["data"] for message in messages if message["event"] == "collab_event"]


async def start_draining(local, nursery):
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(local.service.drain)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.trio
async def test_a_started_service_knows_its_urls_and_serves_at_them():
    async with trio.open_nursery() as nursery:
        service = await nursery.start(serve, LOOPBACK)
        ((host, port),) = service.addresses
        assert host == "127.0.0.1"
        assert port > 0
        assert service.http_url == f"http://127.0.0.1:{port}"
        assert service.ws_url == f"ws://127.0.0.1:{port}"
        stream = await trio.open_tcp_stream(host, port)
        async with stream:
            await stream.send_all(head("GET", "/ready"))
            assert (await read_answer(stream)).json == {"status": "ready"}
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_localhost_is_both_address_families_on_one_port():
    settings = Settings(server=ServerSettings(host="localhost", port=0))
    async with trio.open_nursery() as nursery:
        service = await nursery.start(serve, settings)
        assert [host for host, _ in service.addresses] == ["127.0.0.1", "::1"]
        assert len({port for _, port in service.addresses}) == 1
        assert service.http_url == f"http://localhost:{service.addresses[0][1]}"
        for host, port in service.addresses:
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(head("GET", "/health"))
                assert (await read_answer(stream)).status == 200
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_backend_that_comes_over_ipv6_is_served_and_its_address_known():
    settings = Settings(server=ServerSettings(host="::1", port=0))
    async with trio.open_nursery() as nursery:
        service = await nursery.start(serve, settings)
        port = service.addresses[0][1]
        assert service.ws_url == f"ws://[::1]:{port}"
        async with await trio.open_tcp_stream("::1", port) as stream:
            ada = FakeBackend(stream, far_end=None, timeout_seconds=5)
            await ada.open(f"[::1]:{port}", ADA)
            assert (await ada.receive())["event"] == "connected"
            (connection,) = service.registry.connections()
            assert connection.address == "::1"
            await ada.close()
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_port_in_use_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = Holdings.now()
        with pytest.raises(CannotStart, match=f"cannot listen on 127.0.0.1:{port}: the port is in use"):
            await serve(Settings(server=ServerSettings(host="127.0.0.1", port=port)))
        await settles_at(before)


@pytest.mark.trio
async def test_two_services_in_one_process_share_nothing():
    async with open_service() as first, open_service() as second:
        assert first.service.addresses != second.service.addresses
        ada, bob = await first.connect("ada"), await second.connect("bob")
        assert (first.online(), second.online()) == ({"ada"}, {"bob"})
        await ada.send_event("t", ["bob"])
        assert (await ada.receive())["data"]["undelivered"] == ["bob"]
        assert (await ask(first, "GET", "/health")).json["total_events_routed"] == 1
        assert (await ask(second, "GET", "/health")).json["total_events_routed"] == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.service.drain)
            _, (code, _) = await until_end(ada)
            assert code == 1001
        assert (await ask(second, "GET", "/ready")).status == 200
        assert await bob.echoes()
        await serves_a_healthy_pair(second)


@pytest.mark.trio
async def test_a_service_can_be_started_again_on_the_port_of_one_that_ended():
    async with open_service() as first:
        ada = await first.connect("ada")
        port = first.service.addresses[0][1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.service.drain)
            await until_end(ada)
    settings = Settings(server=ServerSettings(host="127.0.0.1", port=port))
    async with trio.open_nursery() as nursery:
        service = await nursery.start(serve, settings)
        assert service.addresses == [("127.0.0.1", port)]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_cancelling_leaves_no_task_no_socket_and_no_thread():
    before = Holdings.now()
    threads = threading.enumerate()
    streams = []
    async with trio.open_nursery() as nursery:
        service = await nursery.start(serve, LOOPBACK)
        address = service.addresses[0]
        for raw in (
            head("GET", ADA, {"upgrade": "websocket"})[:40],
            head("POST", "/api/register", {"content-length": "10"}) + b"{",
            b"",
        ):
            stream = await trio.open_tcp_stream(*address)
            streams.append(stream)
            await stream.send_all(raw)
        stream = await trio.open_tcp_stream(*address)
        streams.append(stream)
        await stream.send_all(head("GET", "/health"))
        assert (await read_answer(stream)).status == 200
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    for stream in streams:
        assert await read_to_end(stream) == b""
        await stream.aclose()
    await settles_at(before)
    assert threading.enumerate() == threads
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(*address)


async def clog(local, user_id):
    """Send to a backend that reads nothing until its socket is full and its mailbox holds something."""
    sender = await local.connect("sender")
    (connection,) = local.service.registry.of_user(user_id)
    while connection.mailbox.messages < 4:
        await sender.send_event("t", [user_id], "x" * 60000)
        await sender.receive("event_ack")


@pytest.mark.trio
async def test_cancelling_with_live_and_stalled_backends_leaves_nothing():
    before = Holdings.now()
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_service(WAITING_LONG) as local:
            ada, _ = await local.connect("ada"), await local.connect("bob")
            await clog(local, "bob")
            assert await ada.echoes()
            await ask(local, "GET", "/api/users/online")
    assert local.online() == set()
    await settles_at(before)


@pytest.mark.trio
async def test_cancelling_while_an_http_response_is_not_read_ends_at_once():
    before = Holdings.now()
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_service(WAITING_LONG) as local:
            crowd(local, 1500)
            stream = await small_receiver(local)
            await stream.send_all(head("GET", "/api/users/online"))
            assert await stream.receive_some(100)
    await stream.aclose()
    await settles_at(before)


@pytest.mark.trio
async def test_draining_tells_everyone_when_to_come_back_and_closes_with_1001():
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        backends = [await local.connect(f"u{number}", presence="all") for number in range(20)]
        for backend in backends:
            assert await backend.echoes()
        nursery.start_soon(local.service.drain)
        delays = []
        for backend in backends:
            messages, (code, reason) = await until_end(backend)
            # The last tick of presence may still have been on its way; nobody is said to have left.
            messages = [message for message in messages if message["event"] != "user_online"]
            assert [message["event"] for message in messages] == ["service_shutdown"]
            data = messages[0]["data"]
            assert set(data) == {"message", "timestamp", "reconnect_in_ms"}
            assert data["message"]
            came = datetime.strptime(data["timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            assert abs((datetime.now(UTC) - came).total_seconds()) < 60
            assert 500 <= data["reconnect_in_ms"] <= 5000
            delays.append(data["reconnect_in_ms"])
            assert (code, reason) == (1001, "The service is going down")
        assert len(set(delays)) > 5


@pytest.mark.trio
async def test_reconnects_are_spread_over_the_time_that_is_set():
    settings = Settings(server=ServerSettings(reconnect_spread=Duration("600ms")))
    async with open_service(settings, in_memory=True) as local, trio.open_nursery() as nursery:
        backends = [await local.connect(f"u{number}") for number in range(5)]
        nursery.start_soon(local.service.drain)
        for backend in backends:
            ((shutdown,), _) = await until_end(backend)
            assert 500 <= shutdown["data"]["reconnect_in_ms"] <= 600


@pytest.mark.trio
async def test_draining_ends_early_once_nobody_is_left(autojump_clock):
    async with open_service(in_memory=True) as local:
        start = trio.current_time()
        await local.service.drain()
        assert trio.current_time() == start
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        ada = await local.connect("ada")
        start = trio.current_time()
        nursery.start_soon(until_end, ada)
        await local.service.drain()
        assert trio.current_time() - start < 1


@pytest.mark.trio
async def test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=60) as local, trio.open_nursery() as nursery:
        ada = await local.connect("ada")
        ada.stall()
        await start_draining(local, nursery)
        assert (await ask(local, "GET", "/health")).json["status"] == "healthy"
        ready = await ask(local, "GET", "/ready")
        assert (ready.status, ready.json) == (503, {"status": "draining"})
        for method, target in (
            ("GET", "/"),
            ("GET", "/api/users/online"),
            ("GET", "/api/users/ada"),
            ("POST", "/api/register"),
            ("GET", "/ws"),
        ):
            answer = await ask(local, method, target, b"{}" if method == "POST" else None)
            assert answer.refusal == (503, "draining"), target
            assert answer.headers["retry-after"] == "5"
        answer = await upgrade(local, "/?user_id=bob&backend_url=http://x")
        assert answer.refusal == (503, "draining")
        assert answer.headers["retry-after"] == "5"


@pytest.mark.trio
async def test_while_draining_the_port_still_answers():
    async with open_service(draining_for("1s")) as local, trio.open_nursery() as nursery:
        stalled = await local.connect("ada")
        nursery.start_soon(local.service.drain)
        assert (await stalled.receive())["event"] == "service_shutdown"
        assert (await ask(local, "GET", "/health")).status == 200
        assert (await ask(local, "GET", "/ready")).status == 503
        with pytest.raises(Rejected) as refused:
            await local.connect("bob")
        assert (refused.value.status, refused.value.code) == (503, "draining")


@pytest.mark.trio
async def test_events_taken_before_the_drain_are_routed_and_acknowledged():
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        ada, bob = await local.connect("ada"), await local.connect("bob", presence="all")
        await ada.stream.send_all(b"".join(event_text(["bob"], number, id=number) for number in range(50)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(local.service.drain)
        acks, (code, _) = await until_end(ada)
        events, _ = await until_end(bob)
        assert code == 1001
        assert [ack["id"] for ack in acks if ack["event"] == "event_ack"] == list(range(50))
        assert [event["data"]["data"] for event in events if event["event"] == "collab_event"] == list(
            range(50)
        )
        assert events[-1]["event"] == "service_shutdown"


@pytest.mark.trio
async def test_events_that_wait_for_room_at_the_drain_reach_a_backend_that_reads_on(
    autojump_clock,
):
    settings = Settings(limits=LimitSettings(mailbox_messages=2))
    async with (
        open_service(settings, in_memory=True, timeout_seconds=60) as local,
        trio.open_nursery() as nursery,
    ):
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        await ada.stream.send_all(b"".join(event_text(["bob"], number, id=number) for number in range(20)))
        await start_draining(local, nursery)
        await trio.sleep(1)
        bob.resume()
        events, (code, _) = await until_end(bob)
        assert [event["data"]["data"] for event in events if event["event"] == "collab_event"] == list(
            range(20)
        )
        assert events[-1]["event"] == "service_shutdown"
        assert code == 1001
        acks, _ = await until_end(ada)
        assert [ack["data"]["delivered_to"] for ack in acks if ack["event"] == "event_ack"] == [1] * 20


@pytest.mark.trio
async def test_acks_that_wait_for_room_at_the_drain_go_out_and_so_does_the_notice(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=2))
    async with (
        open_service(settings, in_memory=True, timeout_seconds=60) as local,
        trio.open_nursery() as nursery,
    ):
        ada = await local.connect("ada")
        ada.stall()
        await ada.stream.send_all(b"".join(event_text([], id=number) for number in range(20)))
        await start_draining(local, nursery)
        await trio.sleep(1)
        ada.resume()
        messages, (code, _) = await until_end(ada)
        assert [message.get("id") for message in messages] == [*range(20), None]
        assert messages[-1]["event"] == "service_shutdown"
        assert code == 1001


@pytest.mark.trio
@pytest.mark.parametrize("drain", ["500ms", "1s", "10s"])
async def test_a_stalled_recipient_does_not_cost_the_others_their_close_frame(autojump_clock, drain):
    settings = draining_for(drain, mailbox_messages=1, slow_consumer=Duration("60s"))
    async with (
        open_service(settings, in_memory=True, timeout_seconds=60) as local,
        trio.open_nursery() as nursery,
    ):
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob", "cyd"], number, id=number)
        await start_draining(local, nursery)
        ended = {}
        async with trio.open_nursery() as readers:

            async def read(name, backend):
                ended[name] = await until_end(backend)

            readers.start_soon(read, "ada", ada)
            readers.start_soon(read, "cyd", cyd)
        assert ended["ada"][1][0] == ended["cyd"][1][0] == 1001
        acks = [message for message in ended["ada"][0] if message["event"] == "event_ack"]
        assert [ack["id"] for ack in acks] == [0, 1, 2]
        assert acks[-1]["data"]["undelivered"] == ["bob"]


@pytest.mark.trio
async def test_what_comes_in_after_the_drain_began_is_not_routed(autojump_clock):
    settings = Settings(limits=LimitSettings(mailbox_messages=1))
    async with (
        open_service(settings, in_memory=True, timeout_seconds=60) as local,
        trio.open_nursery() as nursery,
    ):
        ada, bob, cyd = [await local.connect(user_id) for user_id in ("ada", "bob", "cyd")]
        bob.stall()
        for number in range(3):
            await ada.send_event("t", ["bob"], number)
        await start_draining(local, nursery)
        assert local.service.status.draining
        # The event of before is still undecided, so that everybody is still connected.
        assert local.online() == {"ada", "bob", "cyd"}
        await ada.send_event("t", ["cyd"], "too late")
        messages, (code, _) = await until_end(cyd)
        assert [message["event"] for message in messages] == ["service_shutdown"]
        assert code == 1001


@pytest.mark.trio
async def test_nobody_goes_offline_when_the_service_does():
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        backends = [await local.connect(f"u{number}", presence="all") for number in range(5)]
        for backend in backends:
            assert await backend.echoes()
        nursery.start_soon(local.service.drain)
        for backend in backends:
            messages, _ = await until_end(backend)
            assert "user_offline" not in [message["event"] for message in messages]


@pytest.mark.trio
async def test_a_second_drain_waits_for_the_same_end():
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        ada = await local.connect("ada")
        nursery.start_soon(local.service.drain)
        nursery.start_soon(local.service.drain)
        messages, _ = await until_end(ada)
        assert len(messages) == 1
    await local.service.drain()


@pytest.mark.trio
async def test_a_drained_service_listens_no_more_and_leaves_nothing():
    before = Holdings.now()
    async with open_service() as local:
        ada = await local.connect("ada")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.service.drain)
            await until_end(ada)
        with pytest.raises(OSError, match="all attempts to connect"):
            await local.open_stream()
    await settles_at(before)


@pytest.mark.trio
async def test_a_backend_that_answers_no_close_frame_holds_the_drain_no_longer_than_the_close_timeout(
    autojump_clock,
):
    async with open_service(in_memory=True, timeout_seconds=60) as local:
        await local.connect("ada")
        start = trio.current_time()
        await local.service.drain()
        assert trio.current_time() - start <= 4.1


@pytest.mark.trio
async def test_a_request_in_flight_is_finished(autojump_clock):
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        stream, far_end = await local.open_stream()
        far_end.hold()
        await stream.send_all(head("GET", "/api/users/online"))
        await trio.testing.wait_all_tasks_blocked()
        await start_draining(local, nursery)
        await trio.sleep(1)
        far_end.release()
        assert (await read_answer(stream)).json == {"users": [], "count": 0}


def crowd(local, size):
    """Put users without a socket into the registry, so that the online list is some megabytes long."""
    for number in range(size):
        user_id = f"crowd-{number}"
        connection = Connection(
            connection_id=-number,
            identity=Identity(user_id=user_id, backend_url="http://x/" + "y" * 2000, display_name="z" * 128),
            address="127.0.0.1",
            dialect=PLAIN,
            connected_at=datetime.now(UTC),
            mailbox=Mailbox(Outbox(), max_messages=10, max_bytes=10**6),
            max_in_flight=1,
        )
        local.service.registry.add(connection)


@pytest.mark.trio
async def test_readers_that_stall_hold_the_drain_no_longer_than_it_may_take():
    before = Holdings.now()
    async with open_service(draining_for("1s")) as local:
        crowd(local, 1500)
        http = await small_receiver(local)
        await http.send_all(head("GET", "/api/users/online"))
        assert await http.receive_some(10)
        stalled = await local.connect("stalled")
        await clog(local, "stalled")
        healthy = await local.connect("healthy")
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(local.service.drain)
                _, (code, _) = await until_end(healthy)
        assert code == 1001
        await stalled.drop()
    await http.aclose()
    await settles_at(before)


@pytest.mark.trio
async def test_a_drain_of_no_time_still_ends():
    async with open_service(draining_for("0s")) as local:
        ada = await local.connect("ada")
        with trio.fail_after(PATIENCE_SECONDS):
            await local.service.drain()
        assert math.isfinite((await ada.wait_closed()).code)


@pytest.mark.trio
async def test_a_drain_ends_early_although_newcomers_keep_knocking() -> None:
    settings = Settings(timeouts=TimeoutSettings(close=Duration("500ms")))
    async with open_service(settings) as local, trio.open_nursery() as nursery:
        # It never answers the close frame, and so is there for a while after the drain began.
        await local.connect("deaf")

        async def knock() -> None:
            while True:
                try:
                    stream, _ = await local.open_stream()
                    with trio.move_on_after(0.4):
                        await stream.receive_some(1)
                    await trio.aclose_forcefully(stream)
                except OSError:
                    return

        for _ in range(8):
            nursery.start_soon(knock)
            # Out of step, so that there is never a moment without one of them.
            await trio.sleep(0.05)
        with trio.fail_after(PATIENCE_SECONDS):
            await local.service.drain()
        nursery.cancel_scope.cancel()
