"""One WebSocket: what the network and an odd service can do to it."""

from __future__ import annotations

import threading

import anyio
import attrs
import pytest
import trio
from fake_service import QUICK, fake_service
from loops import on_both_loops
from test_client_sending import Outcome, client
from wsproto import events as ws

from collab.client import PositionShared, connect
from collab.client.address import address_of


@on_both_loops
async def test_a_pong_that_nobody_asked_for_is_ignored():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        await peer.write(ws.Pong(b"unasked"))
        await peer.send_event("note", "after")
        assert (await anext(collab.events())).data == "after"


@on_both_loops
async def test_pings_are_answered_while_nobody_takes_events():
    async with fake_service() as service, client(service):
        peer = await service.welcome()
        await peer.write(ws.Ping(b"one"))
        while not isinstance(event := await peer.next_event(), ws.Pong):
            pass
        assert event.payload == b"one"


@on_both_loops
async def test_a_message_in_fragments_is_put_together():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        data = '{"type":"note","from_user":"b","to_users":["ada"],"data":"é"}'
        text = f'{{"event":"collab_event","data":{data}}}'
        for part in text:
            await peer.write(ws.TextMessage(part, message_finished=False))
        await peer.write(ws.TextMessage(""))
        assert (await anext(collab.events())).data == "é"


@on_both_loops
async def test_a_message_without_an_end_is_cut_off():
    async with fake_service() as service, client(service):
        peer = await service.welcome()
        with anyio.move_on_after(10):
            try:
                for _ in range(1000):
                    await peer.write(ws.TextMessage("x" * 10_000, message_finished=False))
            except anyio.BrokenResourceError:
                pass
        await service.welcome()


@pytest.mark.parametrize("frame", [b"\x83\x00", b"\x81\x02\xff\xff", b"\xf1\x00", b"\x82\x01x"])
@on_both_loops
async def test_a_breach_of_the_protocol_ends_that_connection_alone(frame):
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        events = collab.events()
        await peer.send_event("note", "before")
        await peer.stream.send(frame)
        peer = await service.welcome()
        await peer.send_event("note", "after")
        assert [(await anext(events)).data for _ in range(2)] == ["before", "after"]


@on_both_loops
async def test_a_silent_service_is_pinged_and_left_when_it_does_not_answer():
    limits = attrs.evolve(QUICK, ping_seconds=0.05, pong_seconds=0.05)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        await collab.wait_connected()
        while not isinstance(await peer.next_event(), ws.Ping):
            pass
        await service.welcome()


@on_both_loops
async def test_a_silent_service_that_answers_pings_is_kept():
    limits = attrs.evolve(QUICK, ping_seconds=0.02, pong_seconds=5)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        for _ in range(5):
            while not isinstance(event := await peer.next_event(), ws.Ping):
                pass
            await peer.write(event.response())
        await peer.send_event("note", "still here")
        assert (await anext(collab.events())).data == "still here"


@on_both_loops
async def test_while_reading_pauses_the_service_hears_that_the_client_lives():
    limits = attrs.evolve(QUICK, queued_events=2, ping_seconds=0.05, pong_seconds=0.05)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        events = collab.events()
        for number in range(10):
            await peer.send_event("note", number)
        for _ in range(5):
            while not isinstance(await peer.next_event(), ws.Ping):
                pass
        assert [(await anext(events)).data for _ in range(10)] == list(range(10))


@on_both_loops
async def test_a_service_that_takes_nothing_is_left_in_time():
    limits = attrs.evolve(QUICK, write_seconds=0.1, ack_seconds=20)
    async with (
        fake_service() as service,
        client(service, limits) as collab,
        anyio.create_task_group() as tasks,
    ):
        await service.welcome()
        for _ in range(300):
            Outcome(tasks, collab.send, "note", ["bob"], "x" * 60_000)
        await service.welcome()
        tasks.cancel_scope.cancel()


@on_both_loops
async def test_the_block_ends_in_time_even_if_the_service_takes_nothing():
    # Longer than the test may take.
    limits = attrs.evolve(QUICK, write_seconds=600, close_seconds=0.1)
    async with (
        fake_service() as service,
        anyio.create_task_group() as tasks,
        client(service, limits) as collab,
    ):
        await service.welcome()
        for _ in range(300):
            Outcome(tasks, collab.send, "note", ["bob"], "x" * 60_000)
        await anyio.wait_all_tasks_blocked()


@on_both_loops
async def test_a_service_with_tls_is_reached(certificates):
    # The service lives on Trio, in a thread of its own.
    is_up, urls, stop = threading.Event(), [], []

    def serve():
        async def main():
            async with certificates.open_service() as local:
                urls.append(local.ws_url)
                stop.append((trio.lowlevel.current_trio_token(), trio.Event()))
                is_up.set()
                await stop[0][1].wait()

        trio.run(main)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, serve)
        await anyio.to_thread.run_sync(is_up.wait)
        token, event = stop[0]
        try:
            secure = urls[0].replace("127.0.0.1", "localhost")
            async with connect(
                secure, user_id="ada", backend_url="http://a", ssl_context=certificates.client()
            ) as collab:
                assert set(collab.online) == {"ada"}
                await collab.share_position(["ada"], position_id="1", share_url="http://a/1")
                assert isinstance(await anext(collab.events()), PositionShared)
        finally:
            token.run_sync_soon(event.set)


@pytest.mark.parametrize(
    ("url", "websocket", "online"),
    [
        ("ws://h:1", "ws://h:1/?user_id=a+b&backend_url=http%3A%2F%2Fb", "http://h:1/api/users/online"),
        ("wss://h/ws", "wss://h/ws?user_id=a+b&backend_url=http%3A%2F%2Fb", "https://h/api/users/online"),
        ("http://h/", "ws://h/?user_id=a+b&backend_url=http%3A%2F%2Fb", "http://h/api/users/online"),
        (
            "wss://h/x/ws?k=v",
            "wss://h/x/ws?k=v&user_id=a+b&backend_url=http%3A%2F%2Fb",
            "https://h/x/api/users/online",
        ),
    ],
)
def test_the_urls_of_a_service(url, websocket, online):
    address = address_of(url, user_id="a b", backend_url="http://b", display_name="", wants_presence=True)
    assert (address.websocket, address.online) == (websocket, online)
