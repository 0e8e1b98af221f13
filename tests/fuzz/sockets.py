"""Owns the fuzzing of a real service: heads, frames and texts over sockets, half of them ending in RST.

What may be answered to each is known beforehand, from the readers that the other areas are held against.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import peer_frames as peer
import trio
from baseline import Holdings, exchange
from invariants import check_i4_registry, check_i5_bounds, check_i7_baseline
from peers import reset
from test_docs import rows

from collab.errors import MessageError
from collab.policy.validation import EventRules
from collab.settings import LimitSettings, Settings
from collab.testing import open_service
from collab.wire.codec import decode
from collab.wire.messages import RouteRequest
from fuzz import frames, heads, texts
from fuzz.draw import Found, cut, dice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from collab.testing import LocalService

AREA = "sockets"
AT_ONCE = 16
"""Connections that fuzz at the same time."""
INPUTS_A_SERVICE = 2_000
"""After so many inputs the invariants are checked and another service takes over."""

_INPUTS_AN_EXCHANGE = 100
_PATIENCE_SECONDS = 20.0
_USERS = ("ada", "bob", "a", "t")
_HEALTHY = ["healthy-cyd", "healthy-dan"]
_MAX_RECIPIENTS = 20
_RULES = EventRules(max_recipients=_MAX_RECIPIENTS)
_SETTINGS = Settings(limits=LimitSettings(max_recipients=_MAX_RECIPIENTS, connections_per_user=0))
_MESSAGE_BYTES = int(_SETTINGS.limits.message_bytes)
_UPGRADE = (
    "GET /?user_id={user_id}&backend_url=http://localhost:8000&presence={presence} HTTP/1.1\r\n"
    "Host: localhost\r\n"
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
CLOSE_CODES = frozenset(int(row[0]) for row in rows("Closing"))
STATUSES = frozenset({200, 101} | {status for status, _ in heads.REFUSALS})
_FAULTS = {500, 1011}
"""Listed, but a crash all the same."""
_EVENTS = {"connected", "collab_event", "event_ack", "pong", "error", "user_online", "user_offline"}


@attrs.frozen
class Input:
    """What one connection says, and how it ends."""

    user_id: str
    data: bytes
    pieces: list[bytes]
    resets: bool
    waits: bool
    """Whether it lets the service run between the pieces."""


def make(seed: int, index: int) -> Input:
    """The input of this seed and index."""
    draw = dice(AREA, seed, index)
    user_id = draw.choice(_USERS)
    kind = draw.random()
    if kind < 0.3:
        data = heads.request(draw, user_id)
    else:
        presence = "all" if draw.random() < 0.1 else "none"
        data = _UPGRADE.format(user_id=user_id, presence=presence).encode()
        payloads = [texts.text(draw) for _ in range(int(draw.random() * 8))]
        if kind < 0.65:
            data += frames.stream(draw, payloads)
        else:
            data += frames.right_stream(draw, [_valid(payload) for payload in payloads])
            if draw.random() < 0.8:
                data += peer.close(draw.choice((1000, 1001, 3000, None)))
    resets = draw.random() < 0.5
    if resets and draw.random() < 0.5:
        data = data[: int(draw.random() * (len(data) + 1))]
    return Input(user_id, data, cut(draw, data, 8), resets, draw.random() < 0.5)


def _valid(payload: bytes) -> bytes:
    return payload.decode(errors="replace").encode()


# One connection


async def play(local: LocalService, said: Input) -> str:
    """Say it on a connection of its own, and check what came back: in a word, how it ended."""
    stream, _ = await local.open_stream()
    assert isinstance(stream, trio.SocketStream)
    if said.resets:
        await _send(stream, said)
        reset(stream)
        return "reset"
    expected = _expect(said.data)
    heard = _Heard()
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(_talk, stream, said, expected.breaks_off)
        with trio.move_on_after(_PATIENCE_SECONDS) as patience:
            while not heard.close_frame:
                try:
                    data = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    break
                if not data:
                    break
                heard.feed(data)
        assert not patience.cancelled_caught, f"no end in sight: {heard=} {expected=}"
        nursery.cancel_scope.cancel()
    return _check(said, expected, heard)


async def _talk(stream: trio.SocketStream, said: Input, breaks_off: bool) -> None:
    if await _send(stream, said) and breaks_off:
        try:
            await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def _send(stream: trio.SocketStream, said: Input) -> bool:
    """Whether all of it could be sent."""
    try:
        for piece in said.pieces:
            await stream.send_all(piece)
            if said.waits:
                await trio.lowlevel.checkpoint()
    except trio.BrokenResourceError:
        return False
    return True


@attrs.frozen
class _Expected:
    """What the service must make of an input, as far as it can be told beforehand."""

    outcome: heads.Outcome
    reading: frames.Reading | None
    breaks_off: bool
    """Whether the peer leaves something unfinished, so that its own end must be the end."""


def _expect(data: bytes) -> _Expected:
    outcome = heads.read([data])
    if outcome.head is None:
        return _Expected(outcome, None, outcome.refusal is None)
    if "websocket" not in outcome.head.tokens("upgrade"):
        return _Expected(outcome, None, True)
    reading = frames.read(outcome.rest, _MESSAGE_BYTES)
    return _Expected(outcome, reading, reading.code is None and reading.close is None)


@attrs.define
class _Heard:
    """What the service said: an HTTP answer, or 101 and frames."""

    _buffer: bytearray = attrs.field(factory=bytearray)
    status: int = 0
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    close_frame: bytes = b""
    """The payload of the close frame behind its opcode, so that it is never empty."""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while not self.status and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            match = _STATUS_LINE.match(self._buffer)
            assert match, bytes(self._buffer[:200])
            status = int(match[1])
            if status == 100:
                del self._buffer[: end + 4]
                continue
            self.status = status
            if status == 101:
                del self._buffer[: end + 4]
        while self.status == 101 and not self.close_frame and self._take_frame():
            pass

    def _take_frame(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        assert buffer[1] < 128, "the service masked a frame"
        extended = {126: 2, 127: 8}.get(buffer[1], 0)
        start = 2 + extended
        size = int.from_bytes(buffer[2:start], "big") if extended else buffer[1]
        if len(buffer) < start + size:
            return False
        opcode, payload = buffer[0], bytes(buffer[start : start + size])
        del buffer[: start + size]
        assert opcode in (0x81, 0x88, 0x89, 0x8A), f"a frame of the service begins with {opcode:#x}"
        if opcode == 0x81:
            self.messages.append(json.loads(payload, parse_int=str))
        elif opcode == 0x88:
            self.close_frame = b"\x88" + payload
        return True

    @property
    def close_code(self) -> int | None:
        return int.from_bytes(self.close_frame[1:3], "big") if len(self.close_frame) > 1 else None

    @property
    def body(self) -> bytes:
        return bytes(self._buffer).partition(b"\r\n\r\n")[2]


def _check(said: Input, expected: _Expected, heard: _Heard) -> str:
    if not heard.status:
        assert expected.breaks_off, f"nothing was answered: {expected=}"
        assert not heard._buffer
        return "broke off"
    assert heard.status in STATUSES - _FAULTS, heard
    if heard.status != 101:
        _check_answer(expected, heard)
        return str(heard.status)
    reading = expected.reading
    assert reading is not None, "an upgrade that was none"
    _check_messages(said, reading, heard)
    return _check_close(reading, heard)


def _check_answer(expected: _Expected, heard: _Heard) -> None:
    if heard.status >= 400:
        is_head = expected.outcome.head is not None and expected.outcome.head.method == "HEAD"
        if not is_head:
            body = json.loads(heard.body)
            assert (heard.status, body["code"]) in heads.REFUSALS
    if (refusal := expected.outcome.refusal) is not None:
        too_large = {status for status, _ in heads.TOO_LARGE}
        assert heard.status == refusal[0] or {heard.status, refusal[0]} == too_large


def _check_close(reading: frames.Reading, heard: _Heard) -> str:
    if not heard.close_frame:
        assert reading.code is None, f"no close frame, but {reading.code} is due"
        assert reading.close is None, "the close frame was not answered"
        return "broke off"
    allowed: set[int | None] = set()
    if reading.code is not None:
        allowed.add(reading.code)
    assert allowed <= CLOSE_CODES
    if reading.close is not None:
        # The answer repeats the client's code, or has none where trio-websocket does not know that one.
        allowed |= {int.from_bytes(reading.close[:2], "big"), None}
    assert heard.close_code in allowed, f"{heard.close_code=} {allowed=}"
    return f"close {heard.close_code}"


def _check_messages(said: Input, reading: frames.Reading, heard: _Heard) -> None:
    """Known messages, listed codes, one reply for each text; errors are those that the codec gives."""
    for message in heard.messages:
        assert message["event"] in _EVENTS, message
        if message["event"] == "error":
            assert message["data"]["code"] in texts.ERROR_CODES, message
    if heard.messages:
        assert heard.messages[0]["event"] == "connected"
    if not heard.close_frame:
        # What was in the middle of something when it broke off may have been answered or not.
        return
    replies = Counter(
        message["data"]["code"] if message["event"] == "error" else message["event"]
        for message in heard.messages
        if message["event"] in ("error", "pong", "event_ack")
    )
    assert replies == Counter(reply(said.user_id, text) for text in reading.texts), f"{replies=}"


def reply(user_id: str, text: bytes) -> str:
    """What answers a text of this user: the event, or the code of the error."""
    try:
        message = decode(text)
        if isinstance(message, RouteRequest):
            _RULES.check(message, user_id)
            return "event_ack"
    except MessageError as error:
        return error.code
    return "pong"


# Many of them


@contextmanager
def _faults() -> Iterator[list[str]]:
    """Collects what the service logs of its own faults: each is a crash, contained or not."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(f"{record.getMessage()} {record.exc_info}")

    loggers = [logging.getLogger(name) for name in ("collab", "trio-websocket", "hypercorn", "quart")]
    handler = Collector(level=logging.ERROR)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield found
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


async def run(
    seed: int,
    indexes: range,
    *,
    note: Callable[[str], None] = lambda _: None,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Play the inputs of these indexes against a service, several at once, while a healthy pair is served.

    `note` hears how each ended. Where `goes_on` says no, no further input is begun. At the end the
    registry holds the pair alone (I4), and nothing is left behind (I7).

    Raises:
        Found: something did not hold; it names the index, or all of them where it showed at the end.
    """
    try:
        with _faults() as faults:
            await _run(seed, indexes, note, goes_on, faults)
            assert not faults, faults
    except Exception as error:
        found = _first_found(error)
        if found is not None:
            raise found from found.__cause__
        raise Found(AREA, seed, f"{indexes.start}:{indexes.stop}") from error


async def _run(
    seed: int, indexes: range, note: Callable[[str], None], goes_on: Callable[[], bool], faults: list[str]
) -> None:
    # A quarter of the services have no pump: so it is over TLS.
    pumped = indexes.start // INPUTS_A_SERVICE % 4 != 3
    left = iter(indexes)
    played = 0
    async with open_service(_SETTINGS, pumped=pumped, timeout_seconds=10) as local:
        cyd, dan = [await local.connect(user_id) for user_id in _HEALTHY]
        await exchange(cyd, dan)
        before = Holdings.now()
        one_at_a_time = trio.Lock()

        async def serve_the_pair() -> None:
            async with one_at_a_time:
                check_i5_bounds(local)
                await exchange(cyd, dan)

        async def player() -> None:
            nonlocal played
            for index in left:
                if not goes_on():
                    return
                try:
                    note(await play(local, make(seed, index)))
                    assert not faults, faults
                except Exception as error:
                    raise Found(AREA, seed, index) from error
                played += 1
                if played % _INPUTS_AN_EXCHANGE == 0:
                    await serve_the_pair()

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(player)
        await serve_the_pair()
        await check_i7_baseline(before)
        check_i4_registry(local, _HEALTHY)


def _first_found(error: BaseException) -> Found | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_first_found, error.exceptions)), None)
    return error if isinstance(error, Found) else None
