"""One port: what the door lets through to which half, and what it refuses itself."""

from __future__ import annotations

import pytest
import trio
from peers import ADA, UPGRADE, ask, head, read_answer, read_to_end, say, upgrade

from collab.settings import Duration, LimitSettings, Settings, Size, TimeoutSettings
from collab.testing import open_service


@pytest.mark.trio
async def test_http_and_websocket_are_served_on_one_port():
    async with open_service() as local:
        assert (await ask(local, "GET", "/health")).json["active_users"] == 0
        backend = await local.connect("ada")
        assert (await ask(local, "GET", "/health")).json["active_users"] == 1
        await backend.close()


@pytest.mark.trio
async def test_the_root_without_an_upgrade_is_a_page():
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", "/")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/html")
        for link in ("/health", "/ready", "/api/users/online", "/api/register"):
            assert link.encode() in answer.body


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/ws", "/ws/ada", "/ws?user_id=ada&backend_url=http://x"])
async def test_the_websocket_path_without_an_upgrade_is_426(path):
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", path)
        assert answer.refusal == (426, "upgrade_required")
        assert answer.headers["upgrade"] == "websocket"


@pytest.mark.trio
async def test_every_http_response_closes_its_connection():
    async with open_service(in_memory=True) as local:
        for target in ("/", "/health", "/nowhere", "/ws"):
            stream, _ = await local.open_stream()
            await stream.send_all(head("GET", target, {"connection": "keep-alive"}))
            answer = await read_answer(stream)
            assert "close" in answer.headers["connection"], target
            assert await read_to_end(stream) == b""


@pytest.mark.trio
async def test_the_address_of_the_peer_is_right_in_the_websocket_half():
    async with open_service() as local:
        await local.connect("ada")
        (connection,) = local.service.registry.connections()
        assert connection.address == "127.0.0.1"


@pytest.mark.trio
@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
async def test_a_head_may_come_in_pieces_of_any_size(size):
    request = head("GET", "/health", {"x-padding": "p" * 4000})
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        for start in range(0, len(request), size):
            await stream.send_all(request[start : start + size])
        assert (await read_answer(stream)).status == 200


@pytest.mark.trio
@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (b"\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\nhost: x\n\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\r\nhost: x\n\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\r\nhost : x\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n", (400, "bad_request")),
        (b"GET  /health HTTP/1.1\r\nhost: x\r\n\r\n", (400, "bad_request")),
        (b"GET health HTTP/1.1\r\nhost: x\r\n\r\n", (400, "bad_request")),
        (b"CONNECT host:80 HTTP/1.1\r\nhost: x\r\n\r\n", (400, "bad_request")),
        (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", (505, "http_version_not_supported")),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx: \x00\r\n\r\n", (400, "bad_request")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400, "bad_request")),
        (head("POST", "/api/register", {"content-length": "+5"}), (400, "bad_request")),
        (head("POST", "/api/register", {"content-length": "5, 5"}), (400, "bad_request")),
        (head("POST", "/api/register", {"content-length": "-1"}), (400, "bad_request")),
        (head("POST", "/api/register", {"transfer-encoding": "gzip, chunked"}), (501, "not_implemented")),
        (head("GET", "/", {"x": "y" * 17000}), (431, "head_too_large")),
        (head("GET", "/", {f"x-{number}": "y" for number in range(100)}), (431, "head_too_large")),
    ],
)
async def test_a_malformed_head_is_refused_as_json(raw, refusal):
    async with open_service(in_memory=True) as local:
        assert (await say(local, raw)).refusal == refusal


@pytest.mark.trio
async def test_a_head_of_just_under_16_kib_and_100_headers_passes():
    async with open_service(in_memory=True) as local:
        fields = {f"x-{number}": "y" * 150 for number in range(99)}
        request = head("GET", "/health", fields)
        assert 15_000 < len(request) <= 16 * 1024
        assert (await say(local, request)).status == 200


@pytest.mark.trio
async def test_http_1_0_is_served():
    async with open_service(in_memory=True) as local:
        answer = await say(local, b"GET /health HTTP/1.0\r\n\r\n")
        assert answer.status == 200
        assert answer.json["status"] == "healthy"


@pytest.mark.trio
async def test_a_target_in_absolute_form_is_understood():
    async with open_service(in_memory=True) as local:
        assert (await ask(local, "GET", "http://localhost:9000/health")).json["status"] == "healthy"


@pytest.mark.trio
async def test_a_refused_upgrade_by_head_has_no_body():
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(head("HEAD", ADA, UPGRADE))
        answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.trio
async def test_a_head_that_does_not_arrive_in_time_is_408(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=100) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(b"GET / HT")
        start = trio.current_time()
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert trio.current_time() - start == pytest.approx(5, abs=0.5)
        assert await read_to_end(stream) == b""


@pytest.mark.trio
async def test_a_silent_connection_is_ended_after_the_handshake_timeout(autojump_clock):
    settings = Settings(timeouts=TimeoutSettings(handshake=Duration("3s")))
    async with open_service(settings, in_memory=True) as local:
        stream, _ = await local.open_stream()
        start = trio.current_time()
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert trio.current_time() - start == pytest.approx(3, abs=0.5)


@pytest.mark.trio
async def test_a_dripped_head_is_408_however_steadily_it_drips(autojump_clock):
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        stream, _ = await local.open_stream()
        start = trio.current_time()

        async def drip():
            for byte in head("GET", "/health", {"x": "y" * 1000}):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.5)

        nursery.start_soon(drip)
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert trio.current_time() - start == pytest.approx(5, abs=0.5)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_peer_that_leaves_in_the_middle_of_its_head_is_forgotten(autojump_clock):
    async with open_service(in_memory=True) as local:
        stream, far_end = await local.open_stream()
        await stream.send_all(b"GET /hea")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await far_end.send_all(b"x")


@pytest.mark.trio
async def test_a_body_over_the_message_limit_is_413_before_it_is_read():
    settings = Settings(limits=LimitSettings(message_bytes=Size("1KiB")))
    async with open_service(settings, in_memory=True) as local:
        fields = {"content-length": "1025"}
        assert (await say(local, head("POST", "/api/register", fields))).refusal == (413, "too_large")
        chunked = head("POST", "/api/register", {"transfer-encoding": "chunked"})
        chunked += b"401\r\n" + b"x" * 0x401 + b"\r\n"
        assert (await say(local, chunked)).refusal == (413, "too_large")


@pytest.mark.trio
async def test_a_refusal_of_an_upgrade_closes_the_connection():
    async with open_service(in_memory=True) as local:
        assert (await upgrade(local, "/?user_id=ada")).headers["connection"] == "close"
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", "/nowhere", UPGRADE))
        assert (await read_answer(stream)).refusal == (404, "not_found")
        assert await read_to_end(stream) == b""
