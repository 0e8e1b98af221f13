"""Attacks on the handshake of TLS over real sockets. After each, the service is as it was before."""

from __future__ import annotations

import random
import ssl
from contextlib import suppress

import attrs
import pytest
import trio
from baseline import Holdings, unharmed
from clients import open_files
from counts import count
from peers import ADA, UPGRADE, head, read_answer, read_to_end, reset

from collab.settings import Duration, Settings, TimeoutSettings

BRISK = Settings(
    timeouts=TimeoutSettings(handshake=Duration("1s"), write=Duration("500ms"), close=Duration("500ms"))
)
STALLED = 500


@pytest.fixture(autouse=True)
def enough_files():
    """Both ends of every connection are in this process."""
    with open_files(2 * STALLED + 256):
        yield


def hello(context):
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.trio
@pytest.mark.parametrize("said", ["nothing", "half a hello", "a hello"])
async def test_500_stalled_handshakes_are_ended_and_hold_nobody_up(certificates, said):
    settings = attrs.evolve(
        BRISK, timeouts=attrs.evolve(BRISK.timeouts, handshake=Duration("3s"), close=Duration("100ms"))
    )
    first = hello(certificates.client())
    first = {"nothing": b"", "half a hello": first[: len(first) // 2], "a hello": first}[said]
    async with certificates.open_service(settings, timeout_seconds=20) as local, unharmed(local):
        cyd, dan = await local.connect("cyd"), await local.connect("healthy-dan-2")
        streams = []
        for _ in range(STALLED):
            stream = await trio.open_tcp_stream(*local.service.addresses[0])
            if first:
                await stream.send_all(first)
            streams.append(stream)
        # All of them stand in the middle of it: a pair goes on, and a newcomer shakes hands.
        await cyd.send_event("comment_added", ["healthy-dan-2"], {}, id=1)
        assert (await dan.receive("collab_event"))["data"]["from_user"] == "cyd"
        late = await local.connect("late")
        assert await late.echoes()
        assert Holdings.now().tasks["trio._highlevel_serve_listeners._run_handler"] >= STALLED
        for backend in (cyd, dan, late):
            await backend.close()
        with trio.fail_after(20):
            for stream in streams:
                answer = await read_to_end(stream)
                assert bool(answer) == (said == "a hello")
                await stream.aclose()


async def drip(stream, data):
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.trio
async def test_a_handshake_that_drips_is_cut_off(certificates):
    first = hello(certificates.client())
    async with certificates.open_service(BRISK) as local, unharmed(local):
        stream = await trio.open_tcp_stream(*local.service.addresses[0])
        async with stream:
            # All of it takes five seconds. Without its last byte, as what is behind a whole one is refused.
            with pytest.raises(trio.BrokenResourceError):
                await drip(stream, first[:-1])


@pytest.mark.trio
async def test_a_handshake_cut_anywhere_by_a_reset_ends_itself_alone(certificates):
    first = hello(certificates.client())
    async with certificates.open_service(BRISK) as local, unharmed(local):
        for end in range(0, len(first) + 1, count(25, 1)):
            stream = await trio.open_tcp_stream(*local.service.addresses[0])
            await stream.send_all(first[:end])
            if end % 2:
                await trio.testing.wait_all_tasks_blocked(0.001)
            reset(stream)


@pytest.mark.trio
async def test_a_mutated_hello_ends_itself_alone(certificates):
    seed = random.randrange(2**32)
    print(f"{seed=}")
    draw = random.Random(seed)
    first = hello(certificates.client())
    settings = attrs.evolve(BRISK, timeouts=attrs.evolve(BRISK.timeouts, handshake=Duration("200ms")))
    async with certificates.open_service(settings) as local, unharmed(local):
        for _ in range(count(20, 1000)):
            said = bytearray(first)
            for _ in range(draw.randrange(1, 4)):
                said[draw.randrange(len(said))] = draw.randrange(256)
            stream = await trio.open_tcp_stream(*local.service.addresses[0])
            with suppress(trio.BrokenResourceError):
                await stream.send_all(bytes(said))
                await stream.send_eof()
            assert b"HTTP" not in await read_to_end(stream)
            await stream.aclose()


@pytest.mark.trio
async def test_records_that_are_tampered_with_end_their_connection_alone(certificates):
    seed = random.randrange(2**32)
    print(f"{seed=}")
    draw = random.Random(seed)
    async with certificates.open_service(BRISK) as local, unharmed(local):
        for _ in range(count(10, 300)):
            ada = await local.connect("ada")
            observer = await local.connect("observer", presence="all")
            await ada.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x30" + draw.randbytes(0x30))
            assert await observer.receive("user_offline") == {
                "event": "user_offline",
                "data": {"user_id": "ada"},
            }
            assert (await ada.wait_closed()).code == 1006
            await trio.aclose_forcefully(ada.stream)
            await observer.close()


@pytest.mark.trio
@pytest.mark.parametrize("said", [b"", head("GET", "/")[:10], head("GET", ADA, UPGRADE)])
async def test_a_peer_that_shakes_hands_and_then_resets_ends_itself_alone(certificates, said):
    async with certificates.open_service(BRISK) as local, unharmed(local):
        for number in range(10):
            stream, _ = await local.open_stream()
            await stream.do_handshake()
            if said:
                await stream.send_all(said)
            if number % 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            reset(stream)


@pytest.mark.trio
@pytest.mark.parametrize("said", [b"", head("GET", "/")[:10]])
async def test_a_peer_that_shakes_hands_and_then_stalls_gets_its_408(certificates, said):
    async with certificates.open_service(BRISK) as local, unharmed(local):
        streams = [(await local.open_stream())[0] for _ in range(10)]
        for stream in streams:
            await stream.do_handshake()
            if said:
                await stream.send_all(said)
        for stream in streams:
            assert (await read_answer(stream)).refusal == (408, "request_timeout")
            assert await read_to_end(stream) == b""
            await trio.aclose_forcefully(stream)
