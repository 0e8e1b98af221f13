"""Real clients, on asyncio in a thread of their own or on Trio, against a service on a real port."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import httpx
import pytest
import trio
import websockets
from websockets.sync.client import connect

from collab.testing import open_service

PATIENCE_SECONDS = 10
QUERY = "user_id={}&backend_url=http://localhost:8000&presence=none"


async def on_asyncio(function, *arguments):
    """What an asyncio client's coroutine function returns, run in a thread beside the service."""
    bounded = asyncio.wait_for(function(*arguments), PATIENCE_SECONDS)
    return await trio.to_thread.run_sync(asyncio.run, bounded)


def event(to_users, data, **members):
    content = {"type": "position_shared", "to_users": to_users, "data": data}
    return json.dumps({"event": "collab_event", "data": content, **members})


@pytest.mark.trio
async def test_aiohttp_asks_by_http_and_then_connects_in_one_session():
    async def client(http_url):
        seen = []
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.get(f"{http_url}/health") as response:
                    assert response.status == 200
                    seen.append((await response.json())["status"])
                registration = {"user_id": "ada", "backend_url": "http://localhost:8000"}
                async with session.post(f"{http_url}/api/register", json=registration) as response:
                    url = (await response.json())["collab_ws_url"]
                async with session.ws_connect(f"{url}?{QUERY.format('ada')}", compress=15) as backend:
                    seen.append((await backend.receive_json())["event"])
                    await backend.send_str(event(["ada"], {"n": 1}, id=7))
                    messages = [await backend.receive_json(), await backend.receive_json()]
                    seen += sorted(message["event"] for message in messages)
                    await backend.ping()
                    await backend.close()
                    assert backend.close_code == 1000
            async with session.get(f"{http_url}/api/users/ada") as response:
                seen.append(response.status)
        return seen

    async with open_service() as local:
        once = ["healthy", "connected", "collab_event", "event_ack"]
        assert await on_asyncio(client, local.service.http_url) == [*once * 3, 404]


@pytest.mark.trio
async def test_aiohttp_reads_a_refusal():
    async def client(http_url):
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{http_url}/health") as response:
                await response.read()
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{http_url}/?user_id=ada")
            return refused.value.status

    async with open_service() as local:
        assert await on_asyncio(client, local.service.http_url) == 400


@pytest.mark.trio
async def test_two_backends_built_on_websockets_exchange_events():
    async def client(url):
        async with (
            websockets.connect(f"{url}?{QUERY.format('ada')}") as ada,
            websockets.connect(f"{url}/ws/bob?backend_url=http://localhost:8001&presence=none") as bob,
        ):
            for backend in (ada, bob):
                assert json.loads(await backend.recv())["event"] == "connected"
            assert ada.protocol.extensions == []
            for number in range(100):
                await ada.send(event(["bob"], number, id=number))
            received = [json.loads(await bob.recv())["data"]["data"] for _ in range(100)]
            acks = [json.loads(await ada.recv())["id"] for _ in range(100)]
            # In pieces, as a client sends what it does not hold whole.
            whole = event(["bob"], "ä" * 100)
            await ada.send([whole[:50], whole[50:]])
            assert json.loads(await bob.recv())["data"]["data"] == "ä" * 100
            await (await ada.ping())
            return received, acks

    async with open_service() as local:
        received, acks = await on_asyncio(client, local.service.ws_url)
        assert received == acks == list(range(100))


@pytest.mark.trio
async def test_websockets_reads_refusals_and_close_codes():
    async def client(url):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{url}?user_id=ada")
        body = json.loads(refused.value.response.body)
        codes = []
        for wrong in (b"binary", "x" * 70_000):
            async with websockets.connect(f"{url}?{QUERY.format('ada')}") as backend:
                await backend.recv()
                await backend.send(wrong)
                with pytest.raises(websockets.ConnectionClosedError) as closed:
                    await backend.recv()
                codes.append(closed.value.rcvd.code)
        return refused.value.response.status_code, body["code"], codes

    async with open_service() as local:
        answer = await on_asyncio(client, local.service.ws_url)
        assert answer == (400, "missing_parameter", [1003, 1009])


@pytest.mark.trio
async def test_a_backend_on_websockets_reads_the_notice_of_a_drain_and_1001():
    connected = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def client(url):
        async with websockets.connect(f"{url}?{QUERY.format('ada')}") as backend:
            await backend.recv()
            token.run_sync_soon(connected.set)
            shutdown = json.loads(await backend.recv())
            with pytest.raises(websockets.ConnectionClosedOK) as closed:
                await backend.recv()
            return shutdown["event"], closed.value.rcvd.code

    async with open_service() as local, trio.open_nursery() as nursery:
        answers = []

        async def run():
            answers.append(await on_asyncio(client, local.service.ws_url))

        nursery.start_soon(run)
        await connected.wait()
        with trio.fail_after(5):
            await local.service.drain()
    assert answers == [("service_shutdown", 1001)]


@pytest.mark.trio
async def test_a_blocking_client_in_a_thread_connects():
    def client(url):
        with connect(f"{url}?{QUERY.format('ada')}") as backend:
            backend.recv()
            backend.send('{"event": "ping", "id": 1}')
            return json.loads(backend.recv())["id"]

    async with open_service() as local:
        assert await trio.to_thread.run_sync(client, local.service.ws_url) == 1


@pytest.mark.trio
async def test_httpx_on_trio_asks_many_times_over_one_client():
    async with open_service() as local, httpx.AsyncClient(base_url=local.service.http_url) as client:
        for _ in range(20):
            assert (await client.get("/health")).json()["status"] == "healthy"
        answer = await client.post("/api/register", json={"user_id": "ada", "backend_url": "http://x"})
        assert answer.json()["collab_ws_url"] == local.service.ws_url
        assert (await client.post("/api/register", json={})).status_code == 400
        assert (await client.post("/nowhere", content=b"x" * 60_000)).status_code == 404
        assert (await client.post("/api/register", content=b"x" * 600_000)).status_code == 413
        assert (await client.head("/health")).status_code == 200
        assert (await client.options("/health")).status_code == 200
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(client.get, "/api/users/online")


@pytest.mark.trio
async def test_httpx_sends_a_chunked_body():
    async def pieces():
        for piece in (b'{"user_id":"ada",', b'"backend_url":"http://x"}'):
            yield piece

    async with open_service() as local, httpx.AsyncClient(base_url=local.service.http_url) as client:
        assert (await client.post("/api/register", content=pieces())).json()["success"] is True


@pytest.mark.trio
async def test_trio_websocket_as_a_client_connects():
    from trio_websocket import open_websocket_url

    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_service() as local,
            open_websocket_url(f"{local.service.ws_url}/?{QUERY.format('ada')}") as backend,
        ):
            assert json.loads(await backend.get_message())["event"] == "connected"
            await backend.send_message(event(["ada"], 1))
            assert {json.loads(await backend.get_message())["event"] for _ in range(2)} == {
                "collab_event",
                "event_ack",
            }
            await backend.ping()
