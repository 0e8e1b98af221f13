"""Attacks on the HTTP half over real sockets. After each, the service is as it was before."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import trio
from baseline import unharmed
from peers import ADA, PATIENCE_SECONDS, UPGRADE, ask, head, read_answer, read_to_end, reset, small_receiver

from collab.core.connection import Connection
from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.settings import Duration, Settings, TimeoutSettings
from collab.testing import open_service
from collab.wire.identity import Identity
from collab.wire.plain import PLAIN

BRISK = Settings(
    timeouts=TimeoutSettings(handshake=Duration("1s"), write=Duration("500ms"), close=Duration("500ms"))
)
BOTH_LENGTHS = {"content-length": "5", "transfer-encoding": "chunked"}
POST = head("POST", "/api/register", {"content-length": "100"})


@pytest.mark.trio
@pytest.mark.parametrize(
    "said",
    [
        b"",
        head("GET", "/"),
        head("GET", ADA),
        b"\x00\xff junk \r\n\r\n",
        b"\x16\x03\x01\x00",
        head("GET", "/health")[:10],
        POST,
        POST + b"{",
    ],
)
async def test_a_peer_that_says_something_and_then_resets_ends_itself_alone(said):
    async with open_service(BRISK) as local, unharmed(local):
        for _ in range(10):
            stream, _ = await local.open_stream()
            if said:
                await stream.send_all(said)
            reset(stream)
        for _ in range(3):
            stream, _ = await local.open_stream()
            if said:
                await stream.send_all(said)
            await trio.testing.wait_all_tasks_blocked(0.01)
            reset(stream)


@pytest.mark.trio
async def test_a_peer_that_resets_before_its_address_was_read_ends_itself_alone():
    async with open_service(BRISK) as local, unharmed(local):
        # No checkpoint in this loop: the service has accepted none of them when they are gone.
        for _ in range(50):
            opened = socket.create_connection(local.service.addresses[0])
            opened.send(head("GET", ADA, UPGRADE))
            reset(opened)


@pytest.mark.trio
async def test_connections_that_say_nothing_are_ended_by_the_handshake_timeout():
    async with open_service(BRISK) as local, unharmed(local):
        streams = [(await local.open_stream())[0] for _ in range(50)]
        for stream in streams:
            answer = await read_answer(stream)
            assert answer.refusal == (408, "request_timeout")
            assert await read_to_end(stream) == b""
            await stream.aclose()


@pytest.mark.trio
async def test_a_connection_that_never_closes_its_side_is_closed_by_force():
    async with open_service(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        await stream.send_all(b"junk\r\n\r\n")
        assert (await read_answer(stream)).refusal == (400, "bad_request")
        await drip_until_broken(stream)
        await stream.aclose()


async def drip_until_broken(stream):
    with trio.fail_after(PATIENCE_SECONDS), suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(b"x")
            await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.trio
@pytest.mark.parametrize("first", [b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ", POST])
async def test_a_head_or_a_body_that_drips_is_cut_off(first):
    async with open_service(BRISK) as local, unharmed(local), trio.open_nursery() as nursery:
        stream, _ = await local.open_stream()
        await stream.send_all(first)

        async def drip():
            while True:
                await stream.send_all(b"x")
                await trio.testing.wait_all_tasks_blocked(0.01)

        nursery.start_soon(drip)
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (
            head("POST", "/api/register", {"content-length": "5", "transfer-encoding": "chunked"})
            + b"0\r\n\r\n",
            400,
        ),
        (head("GET", ADA, {**UPGRADE, "content-length": "5", "transfer-encoding": "chunked"}), 400),
        (b"GET /health HTTP/1.1\nhost: x\n\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: x\n\r\n", 400),
        (b"GET /health HTTP/1.1\rhost: x\r\r", 400),
        (
            head(
                "GET",
                "/",
                {"upgrade": "h2c", "connection": "upgrade, http2-settings", "http2-settings": "AA"},
            ),
            400,
        ),
        (head("GET", "/", {"upgrade": "h2c", "connection": "upgrade"}), 400),
        (head("GET", ADA, {**UPGRADE, "upgrade": "websocket, h2c"}), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
    ],
)
async def test_two_ways_to_read_a_request_and_http_2_are_refused(raw, status):
    async with open_service(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(raw)
            assert (await read_answer(stream)).refusal[0] == status
            assert await read_to_end(stream) == b""


@pytest.mark.trio
@pytest.mark.parametrize(
    "second",
    [
        head("GET", ADA, UPGRADE),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head("POST", "/api/register", BOTH_LENGTHS),
        b"GET /health HTTP/1.1\nhost: x\n\n",
    ],
)
@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_second_request_on_a_connection_never_passes_the_door_unchecked(second, pipelined):
    async with open_service(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        async with stream:
            first = head("GET", "/ready", {"connection": "keep-alive"})
            await stream.send_all(first + second if pipelined else first)
            answer = await read_answer(stream)
            assert answer.json == {"status": "ready"}
            assert "close" in answer.headers["connection"]
            if not pipelined:
                await stream.send_all(second)
            assert await read_to_end(stream) == b""
        assert "ada" not in local.online()


@pytest.mark.trio
async def test_an_upgrade_inside_the_body_of_a_request_is_a_body():
    inner = head("GET", ADA, UPGRADE)
    async with open_service(BRISK) as local, unharmed(local):
        answer = await ask(local, "POST", "/api/register", inner)
        assert answer.refusal == (400, "invalid_json")
        assert "ada" not in local.online()


@pytest.mark.trio
async def test_a_head_without_end_is_refused_before_it_fills_memory():
    async with open_service(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 17_000)
            assert (await read_answer(stream)).refusal == (431, "head_too_large")


@pytest.mark.trio
async def test_a_body_larger_than_allowed_may_be_sent_whole_and_its_answer_still_read():
    async with open_service(BRISK) as local, unharmed(local):
        stream, _ = await local.open_stream()
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(
                stream.send_all, head("POST", "/x", {"content-length": "500000"}) + b"x" * 500_000
            )
            assert (await read_answer(stream)).refusal == (413, "too_large")


@pytest.mark.trio
async def test_a_reader_that_stalls_in_the_middle_of_its_response_is_given_up():
    async with open_service(BRISK) as local:
        for number in range(1500):
            local.service.registry.add(invented(number))
        async with trio.open_nursery() as nursery:
            stream = await small_receiver(local)
            await stream.send_all(head("GET", "/api/users/online"))
            assert await stream.receive_some(100)
            nursery.start_soon(ends_without_the_rest, local, stream)
        for connection in list(local.service.registry.connections()):
            local.service.registry.remove(connection)
        async with unharmed(local):
            assert (await ask(local, "GET", "/api/users/online")).status == 200


async def ends_without_the_rest(local, stream):
    with trio.fail_after(5):
        while local.service._door._exchanges:
            await trio.testing.wait_all_tasks_blocked(0.01)
    rest = await read_to_end(stream)
    assert not rest.endswith(b"]}")
    await stream.aclose()


def invented(number):
    """A user without a socket, whose row is long."""
    return Connection(
        connection_id=-1 - number,
        identity=Identity(user_id=f"crowd-{number}", backend_url="http://x/" + "y" * 2000),
        address="127.0.0.1",
        dialect=PLAIN,
        connected_at=datetime.now(UTC),
        mailbox=Mailbox(Outbox(), max_messages=1, max_bytes=1),
        max_in_flight=1,
    )


@pytest.mark.trio
async def test_a_client_that_resets_while_its_response_is_written_ends_itself_alone():
    async with open_service(BRISK) as local:
        for number in range(1500):
            local.service.registry.add(invented(number))
        for _ in range(5):
            stream = await small_receiver(local)
            await stream.send_all(head("GET", "/api/users/online"))
            await stream.receive_some(100)
            reset(stream)
        for connection in list(local.service.registry.connections()):
            local.service.registry.remove(connection)
        async with unharmed(local):
            pass


@pytest.mark.trio
@pytest.mark.parametrize(
    "request_head",
    [
        pytest.param(head("GET", "/health", {"connection": "upgrade", "upgrade": "x"}), id="upgrade"),
        pytest.param(head("CONNECT", "/health"), id="connect"),
        pytest.param(head("GET", "/health"), id="plain"),
    ],
)
async def test_an_exchange_whose_peer_left_before_the_response_is_not_kept_for_ever(request_head):
    """An upgrade that nobody knows makes Hypercorn wait for the end of a response that never comes."""
    async with open_service(BRISK, in_memory=True) as local, unharmed(local):
        for _ in range(3):
            stream, _ = await local.open_stream()
            await stream.send_all(request_head)
            await stream.aclose()


@pytest.mark.trio
async def test_a_stalled_reader_that_asked_for_an_upgrade_nobody_knows_is_given_up():
    async with open_service(BRISK) as local:
        for number in range(1500):
            local.service.registry.add(invented(number))
        async with trio.open_nursery() as nursery:
            stream = await small_receiver(local)
            await stream.send_all(head("GET", "/api/users/online", {"connection": "upgrade", "upgrade": "x"}))
            assert await stream.receive_some(100)
            nursery.start_soon(ends_without_the_rest, local, stream)
        for connection in list(local.service.registry.connections()):
            local.service.registry.remove(connection)
        async with unharmed(local):
            assert (await ask(local, "GET", "/api/users/online")).status == 200


@pytest.mark.trio
async def test_a_hundred_connections_at_once_that_all_reset_leave_nothing():
    async with open_service(BRISK) as local, unharmed(local):
        opened = [socket.create_connection(local.service.addresses[0]) for _ in range(100)]
        for number, connection in enumerate(opened):
            connection.send((head("GET", "/health"), head("GET", ADA, UPGRADE), b"x")[number % 3])
        await trio.testing.wait_all_tasks_blocked(0.01)
        for connection in opened:
            reset(connection)


@pytest.mark.trio
async def test_no_descriptor_left_delays_newcomers_and_ends_nothing():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_service(BRISK) as local, unharmed(local):
        client = socket.socket()
        client.setblocking(False)
        try:
            # The lowest free number is beyond the limit: `client` took the last one.
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            with pytest.raises(BlockingIOError):
                client.connect(local.service.addresses[0])
            await trio.testing.wait_all_tasks_blocked(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        async with stream:
            await stream.send_all(head("GET", "/health"))
            assert (await read_answer(stream)).status == 200


@pytest.mark.trio
@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
@pytest.mark.parametrize("blank", [b"\xa0", b"\x85"])
async def test_an_upgrade_that_only_another_parser_would_find_is_none(upgrade, blank):
    raw = (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"upgrade: %b%b\r\n\r\n"
    )
    async with open_service() as local, unharmed(local):
        for _ in range(20):
            stream, _ = await local.open_stream()
            await stream.send_all(raw % (upgrade, blank))
            answer = await read_to_end(stream)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1") == 1
            await stream.aclose()
