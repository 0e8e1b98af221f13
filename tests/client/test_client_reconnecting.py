"""Connections that end, services that say no, and what a client makes of it."""

from __future__ import annotations

import asyncio

import anyio
import attrs
import pytest
from fake_service import QUICK, fake_service
from loops import on_both_loops
from test_client_sending import Outcome, client
from wsproto import events as ws

from collab.client import NotConnected, State, Stopped, connect
from collab.client.redial import End, Redial


def redial(fresh_tokens=False, uniform=lambda low, high: high):
    return Redial(first_seconds=0.5, longest_seconds=20.0, fresh_tokens=fresh_tokens, uniform=uniform)


def test_delays_double_from_half_a_second_to_twenty():
    delays = redial()
    waits = [delays.after(End(reason="gone")) for _ in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 20, 20]


def test_delays_are_a_random_part_of_the_bound():
    asked = []

    def uniform(low, high):
        asked.append((low, high))
        return 0.1

    delays = redial(uniform=uniform)
    assert [delays.after(End(reason="gone")) for _ in range(2)] == [0.1, 0.1]
    assert asked == [(0.0, 0.5), (0.0, 1.0)]


def test_delays_begin_anew_after_a_connection_that_lasted_and_not_after_one_that_did_not():
    delays = redial()
    assert [delays.after(End(reason="gone")) for _ in range(3)] == [0.5, 1, 2]
    assert delays.after(End(reason="gone", lived=1.0)) == 4
    assert delays.after(End(reason="gone", lived=11.0)) == 0.5


def test_thousands_of_tries_do_not_overflow():
    delays = redial()
    assert [delays.after(End(reason="gone")) for _ in range(5000)][-1] == 20


@pytest.mark.parametrize(
    "end", [End(reason="r", come_back_in=7.0), End(reason="r", status=503, come_back_in=7)]
)
def test_what_the_service_asks_for_is_waited_at_least(end):
    assert redial(uniform=lambda low, high: 0.0).after(end) == 7


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refusals_that_stay_the_same_stop(status):
    with pytest.raises(Stopped, match="the reason") as caught:
        redial().after(End(reason="the reason", status=status, word="w"))
    assert (caught.value.status, caught.value.close_code, caught.value.code) == (status, None, "w")


@pytest.mark.parametrize("code", [4002, 4004])
def test_closes_that_say_stay_away_stop(code):
    with pytest.raises(Stopped) as caught:
        redial().after(End(reason="r", code=code))
    assert (caught.value.status, caught.value.close_code) == (None, code)


@pytest.mark.parametrize(
    "end", [End(reason="r", code=code) for code in (1000, 1001, 1006, 1011, 4001, 4003, 4005)]
)
def test_other_closes_do_not_stop(end):
    assert redial().after(end) == 0.5


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503])
def test_other_refusals_do_not_stop(status):
    assert redial().after(End(reason="r", status=status)) == 0.5


def test_a_second_fresh_token_that_is_refused_stops():
    delays = redial(fresh_tokens=True)
    refused = End(reason="r", status=401)
    delays.after(refused)
    delays.after(End(reason="taken", lived=1.0))
    delays.after(refused)
    with pytest.raises(Stopped):
        delays.after(refused)


# Over sockets


@on_both_loops
async def test_a_lost_connection_is_replaced_and_the_states_are_told():
    states = []

    def on_state(state, reason):
        states.append((state, reason))

    async with fake_service() as service, client(service, on_state=on_state) as collab:
        peer = await service.welcome()
        await collab.wait_connected()
        peer.vanish()
        peer = await service.welcome()
        events = collab.events()
        await peer.send_event("note", "again")
        assert (await anext(events)).data == "again"
        assert collab.reason == ""
    assert [state for state, _ in states] == [
        State.CONNECTED,
        State.CONNECTING,
        State.CONNECTED,
        State.CLOSED,
    ]
    assert states[1][1] == "the service went away"


@on_both_loops
async def test_closed_is_the_last_state():
    states = []
    limits = attrs.evolve(QUICK, close_seconds=0.2)
    async with fake_service() as service:
        async with client(service, limits, on_state=lambda state, reason: states.append(state)) as collab:
            peer = await service.welcome()
            await collab.wait_connected()
            await peer.write(ws.BytesMessage(b"x"))
            # The client has closed, and waits for an answer that does not come.
            assert (await peer.receive()).code == 1003
        assert states == [State.CONNECTED, State.CLOSED]
        assert (collab.state, collab.reason) == (State.CLOSED, "the client was closed")


@on_both_loops
async def test_a_connection_that_is_lost_before_the_block_begins_is_not_the_one_it_begins_with():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        service.online = ["ada", "bob"]
        is_asked = anyio.Event()

        async def never():
            is_asked.set()
            await anyio.sleep_forever()

        async def serve():
            service.before_online = never
            peer = await service.welcome()
            await is_asked.wait()
            service.before_online = None
            peer.vanish()
            await service.welcome()

        tasks.start_soon(serve)
        async with connect(service.url, user_id="ada", backend_url="http://a", limits=QUICK) as collab:
            assert collab.state is State.CONNECTED
            assert set(collab.online) == {"ada", "bob"}
        tasks.cancel_scope.cancel()


@on_both_loops
async def test_a_close_for_good_before_the_block_begins_is_raised_at_once():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        service.before_online = anyio.sleep_forever

        async def serve():
            await (await service.welcome()).close(4004, "stay away")

        tasks.start_soon(serve)
        with pytest.raises(Stopped, match="stay away"):
            async with connect(service.url, user_id="ada", backend_url="http://a", limits=QUICK):
                pytest.fail("the block began")
        tasks.cancel_scope.cancel()


@on_both_loops
async def test_a_state_callback_that_raises_is_logged(caplog):
    def fails(state, reason):
        raise ValueError("in the callback")

    async with fake_service() as service, client(service, on_state=fails) as collab:
        await service.welcome()
        await collab.wait_connected()
    assert "in the callback" in caplog.text


@on_both_loops
async def test_a_service_that_is_not_there_is_waited_for():
    async with fake_service() as service:
        url = service.url
    with pytest.raises(NotConnected, match="not connected to ws://") as caught:
        async with connect(url, user_id="ada", backend_url="http://a", start_seconds=0.1, limits=QUICK):
            pytest.fail("the block began")
    assert not isinstance(caught.value, Stopped)


@pytest.mark.parametrize("status", [400, 401, 403])
@on_both_loops
async def test_a_refusal_for_good_is_raised_at_the_start(status):
    async with fake_service() as service, anyio.create_task_group() as tasks:

        async def refuse():
            await (await service.upgrade()).refuse(status, "a_code", sentence="backend_url is missing")

        tasks.start_soon(refuse)
        with pytest.raises(Stopped, match=f"{status}: backend_url is missing") as caught:
            async with connect(service.url, user_id="ada", backend_url="x", token="t", limits=QUICK):
                pytest.fail("the block began")
        assert (caught.value.status, caught.value.code) == (status, "a_code")


@pytest.mark.parametrize("code", [4002, 4004])
@on_both_loops
async def test_a_close_for_good_is_raised_to_whoever_waits(code):
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()
        await collab.wait_connected()
        await peer.send_event("note", "last")
        taken = []

        async def take(items):
            async for item in items:
                taken.append(item)

        waiting = [
            Outcome(tasks, take, collab.events()),
            Outcome(tasks, take, collab.presence()),
        ]
        assert await peer.close(code, "stay away") == code
        for outcome in waiting:
            await outcome.done.wait()
            assert isinstance(outcome.error, Stopped)
            assert (outcome.error.close_code, str(outcome.error)) == (code, "stay away")
        assert [event.data for event in taken] == ["last"]
        for call in (collab.wait_connected(), collab.send("note", ["bob"])):
            with pytest.raises(Stopped):
                await call
        assert (collab.state, collab.reason) == (State.STOPPED, "stay away")


@on_both_loops
async def test_sends_that_wait_hear_that_the_service_says_no():
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        sent = Outcome(tasks, collab.send, "note", ["bob"])
        await (await service.upgrade()).refuse(403, "origin_not_allowed")
        await sent.done.wait()
        assert isinstance(sent.error, Stopped)


@on_both_loops
async def test_retry_after_is_obeyed():
    async with fake_service() as service, client(service) as collab:
        began = anyio.current_time()
        await (await service.upgrade()).refuse(503, "draining", ["retry-after: 1"])
        await service.welcome()
        await collab.wait_connected()
        assert anyio.current_time() - began >= 1


@on_both_loops
async def test_the_time_that_the_service_asks_for_as_it_goes_down_is_obeyed():
    async with fake_service() as service, client(service):
        peer = await service.welcome()
        began = anyio.current_time()
        await peer.send("service_shutdown", {"message": "m", "timestamp": "t", "reconnect_in_ms": 300})
        assert await peer.close(1001, "going down") == 1001
        await service.welcome()
        assert anyio.current_time() - began >= 0.3


@on_both_loops
async def test_each_try_has_a_fresh_token():
    numbers = iter(range(10))

    async def get_token():
        return f"token-{next(numbers)}"

    async with fake_service() as service, client(service, token=get_token) as collab:
        peer = await service.upgrade()
        assert peer.headers["authorization"] == "Bearer token-0"
        assert "token" not in peer.query
        await peer.refuse(401, "unauthenticated")
        peer = await service.upgrade()
        assert peer.headers["authorization"] == "Bearer token-1"
        await peer.welcome()
        await collab.wait_connected()
        await peer.close(4001, "the token expired")
        peer = await service.upgrade()
        assert peer.headers["authorization"] == "Bearer token-2"


def test_a_token_whose_task_of_asyncio_was_cancelled_is_asked_for_again(caplog):
    async def main():
        tokens = [asyncio.create_task(asyncio.sleep(60)), asyncio.create_task(asyncio.sleep(0, "good"))]
        tokens[0].cancel()
        async with fake_service() as service, client(service, token=lambda: tokens.pop(0)) as collab:
            async with asyncio.timeout(10):
                peer = await service.welcome()
            await collab.wait_connected()
            assert peer.headers["authorization"] == "Bearer good"

    asyncio.run(main())
    assert "was cancelled" in caplog.text


@on_both_loops
async def test_two_fresh_tokens_in_a_row_that_are_refused_stop():
    async with fake_service() as service, client(service, token=lambda: "t") as collab:
        for _ in range(2):
            await (await service.upgrade()).refuse(401, "unauthenticated")
        with pytest.raises(Stopped):
            await collab.wait_connected()


@on_both_loops
async def test_a_token_that_cannot_be_had_is_asked_for_again(caplog):
    answers = iter([ValueError("no token today"), "a\r\nhost: elsewhere", "good"])

    def get_token():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with fake_service() as service, client(service, token=get_token) as collab:
        peer = await service.welcome()
        await collab.wait_connected()
        assert peer.headers["authorization"] == "Bearer good"
    assert "no token today" in caplog.text
    assert "elsewhere" not in caplog.text


@on_both_loops
async def test_a_service_that_does_not_answer_is_tried_again():
    limits = attrs.evolve(QUICK, connect_seconds=0.2)
    async with fake_service() as service, client(service, limits) as collab:
        await service.upgrade()
        # This one does not say `connected`.
        await (await service.upgrade()).accept()
        await service.welcome()
        await collab.wait_connected()


@on_both_loops
async def test_what_is_no_service_is_tried_again(caplog):
    async with fake_service() as service, client(service) as collab:
        peer = await service.upgrade()
        await peer.stream.send(b"HTTP/1.1 101 Fine\r\nsec-websocket-accept: none\r\n\r\n")
        peer = await service.upgrade()
        await peer.stream.send(b"nonsense\r\n\r\n")
        peer.vanish()
        peer = await service.upgrade()
        await peer.accept()
        await peer.send("hello", {})
        peer = await service.upgrade()
        await peer.refuse(302, headers=["location: http://elsewhere"])
        await service.welcome()
        await collab.wait_connected()
    assert "not that of a WebSocket server" in caplog.text
    assert "the first message is not that of the service" in caplog.text


@on_both_loops
async def test_the_block_ends_with_a_close_frame_1000_and_its_answer():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        limits = attrs.evolve(QUICK, close_seconds=10)
        async with client(service, limits) as collab:
            peer = await service.welcome()
            await collab.wait_connected()
            closed = Outcome(tasks, peer.answer_close)
        await closed.done.wait()
        assert closed.value == 1000


@on_both_loops
async def test_a_cancelled_block_ends_with_a_close_frame_as_well():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        limits = attrs.evolve(QUICK, close_seconds=10)
        with anyio.CancelScope() as scope:
            async with client(service, limits) as collab:
                peer = await service.welcome()
                await collab.wait_connected()
                closed = Outcome(tasks, peer.answer_close)
                scope.cancel()
                await anyio.sleep_forever()
        await closed.done.wait()
        assert closed.value == 1000


def test_a_task_of_asyncio_that_is_cancelled_in_the_block_leaves_nothing_behind():
    async def main():
        async with fake_service() as service:
            is_in = asyncio.Event()

            async def live():
                async with client(service) as collab:
                    await collab.wait_connected()
                    is_in.set()
                    await collab.send("note", ["bob"])

            task = asyncio.create_task(live())
            peer = await service.welcome()
            await is_in.wait()
            await peer.receive()
            task.cancel()
            assert await peer.answer_close() == 1000
            with pytest.raises(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@on_both_loops
async def test_an_error_in_the_block_comes_out_as_it_is():
    async with fake_service() as service:
        with pytest.raises(ValueError, match="mine"):
            async with client(service):
                raise ValueError("mine")


@pytest.mark.parametrize("url", ["localhost:9000", "ftp://a", "ws://", "ws://a:99999", "ws://a:b"])
@on_both_loops
async def test_what_is_no_url_of_a_service_is_refused(url):
    with pytest.raises(ValueError, match="must be ws://"):
        async with connect(url, user_id="ada", backend_url="http://a"):
            pytest.fail("the block began")
