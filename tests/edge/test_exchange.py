"""A request's body, and the one response of an HTTP connection."""

from __future__ import annotations

import json

import pytest
import trio
from peers import ask, head, read_answer, read_to_end, say

from collab.edge.exchange import Exchange
from collab.edge.peer import Ends
from collab.testing import open_service

BODY = json.dumps({"user_id": "ada", "backend_url": "http://x"}).encode()


def post(body=b"", **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return head("POST", "/api/register", fields) + body


@pytest.mark.trio
async def test_a_body_with_a_length_is_read():
    async with open_service(in_memory=True) as local:
        answer = await say(local, post(BODY, content_length=str(len(BODY))))
        assert answer.json["success"] is True


@pytest.mark.trio
@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_chunked_body_is_read(size):
    pieces = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    async with open_service(in_memory=True) as local:
        answer = await say(local, post(chunks + b"0\r\n\r\n", transfer_encoding="chunked"))
        assert answer.json["success"] is True
        extended = b"%x;name=value\r\n%b\r\n0\r\nx-trailer: y\r\n\r\n" % (len(BODY), BODY)
        assert (await say(local, post(extended, transfer_encoding="Chunked"))).status == 200


@pytest.mark.trio
@pytest.mark.parametrize("chunks", [b"zz\r\n", b"-1\r\nx\r\n", b"5\r\nabcdeXX0\r\n\r\n", b"5\nabcde\n0\n\n"])
async def test_a_malformed_chunk_is_400(chunks):
    async with open_service(in_memory=True) as local:
        answer = await say(local, post(chunks + b"\r\n\r\n", transfer_encoding="chunked"))
        assert answer.refusal == (400, "bad_request")


@pytest.mark.trio
@pytest.mark.parametrize("how", ["length", "chunked"])
async def test_expect_100_continue_is_answered_before_the_body(how):
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        if how == "length":
            await stream.send_all(post(content_length=str(len(BODY)), expect="100-continue"))
            body = BODY
        else:
            await stream.send_all(post(transfer_encoding="chunked", expect="100-Continue"))
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        with trio.fail_after(5):
            assert await stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(body)
        assert (await read_answer(stream)).json["success"] is True


@pytest.mark.trio
async def test_expect_100_continue_with_a_body_too_large_is_413_at_once():
    async with open_service(in_memory=True) as local:
        answer = await say(local, post(content_length="10000000", expect="100-continue"))
        assert answer.refusal == (413, "too_large")


@pytest.mark.trio
async def test_a_body_that_stops_halfway_is_408(autojump_clock):
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(post(BODY[:10], content_length=str(len(BODY))))
        start = trio.current_time()
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert trio.current_time() - start == pytest.approx(5, abs=0.5)


@pytest.mark.trio
async def test_a_dripped_body_is_408_however_steadily_it_drips(autojump_clock):
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        stream, _ = await local.open_stream()
        await stream.send_all(post(content_length="1000"))

        async def drip():
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.5)

        nursery.start_soon(drip)
        start = trio.current_time()
        assert (await read_answer(stream)).refusal == (408, "request_timeout")
        assert trio.current_time() - start == pytest.approx(5, abs=0.5)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_client_that_leaves_before_the_end_of_its_body_gets_no_answer():
    async with open_service(in_memory=True) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(post(BODY[:10], content_length=str(len(BODY))))
        await stream.send_eof()
        assert await read_to_end(stream) == b""


@pytest.mark.trio
async def test_a_client_that_half_closes_after_its_request_still_gets_its_response():
    async with open_service() as local:
        for request in (head("GET", "/health"), post(BODY, content_length=str(len(BODY)))):
            stream, _ = await local.open_stream()
            async with stream:
                await stream.send_all(request)
                await stream.send_eof()
                assert (await read_answer(stream)).status == 200
                assert await read_to_end(stream) == b""


@pytest.mark.trio
@pytest.mark.parametrize("target", ["/nowhere", "/health"])
async def test_404_and_405_are_answered_whole_although_the_body_comes_later(target):
    async with open_service() as local:
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(head("POST", target, {"content-length": "1000"}))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.send_all(b"x" * 1000)
            answer = await read_answer(stream)
            assert answer.status in (404, 405)
            assert await read_to_end(stream) == b""
        assert (await ask(local, "GET", "/health")).status == 200


@pytest.mark.trio
async def test_of_pipelined_requests_the_first_is_answered_and_the_connection_closed():
    async with open_service() as local:
        stream, _ = await local.open_stream()
        async with stream:
            await stream.send_all(head("GET", "/ready") + head("GET", "/health") * 100)
            answer = await read_answer(stream)
            assert answer.json == {"status": "ready"}
            assert "close" in answer.headers["connection"]
            assert await read_to_end(stream) == b""


@pytest.mark.trio
async def test_a_body_on_get_is_read_and_ignored():
    async with open_service(in_memory=True) as local:
        assert (await ask(local, "GET", "/health", b"surprise")).status == 200


@pytest.mark.trio
async def test_a_response_that_is_not_read_is_given_up_after_the_write_timeout(autojump_clock):
    async with open_service(in_memory=True) as local:
        stream, far_end = await local.open_stream()
        far_end.hold()
        await stream.send_all(head("GET", "/health"))
        start = trio.current_time()
        assert await read_to_end_slowly(stream) == b""
        assert 10 <= trio.current_time() - start <= 12.5


async def read_to_end_slowly(stream):
    data = b""
    with trio.fail_after(60):
        while piece := await stream.receive_some():
            data += piece
    return data


class Pieces(trio.abc.SendStream):
    """Keeps each piece that is sent."""

    def __init__(self):
        self.sent = []

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        self.sent.append(bytes(data))

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        await trio.lowlevel.checkpoint()


@pytest.mark.trio
async def test_the_head_of_a_response_goes_out_with_the_first_of_its_body():
    pieces = Pieces()
    ends = Ends(("127.0.0.1", 50000), ("127.0.0.1", 9000))
    exchange = Exchange(pieces, b"GET / HTTP/1.1\r\n\r\n", ends, write_seconds=5)
    for data in (b"head ", b"body ", b"more"):
        await exchange.send_all(data)
    await exchange.aclose()
    assert pieces.sent == [b"head body ", b"more"]


@pytest.mark.trio
async def test_a_head_without_a_body_goes_out_at_the_end():
    pieces = Pieces()
    ends = Ends(("127.0.0.1", 50000), ("127.0.0.1", 9000))
    exchange = Exchange(pieces, b"GET / HTTP/1.1\r\n\r\n", ends, write_seconds=5)
    await exchange.send_all(b"head")
    assert pieces.sent == []
    await exchange.aclose()
    assert pieces.sent == [b"head"]
