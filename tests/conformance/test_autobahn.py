"""The cases of the Autobahn fuzzing client, replayed against an echo behind the real acceptor.

`scripts/conformance` runs the fuzzing client itself, where there is a Python 2.7 for it. Here is what it
sends, recorded: as it was cut, and where it is short once more byte by byte. The long messages and the many
of section 9 are shorter and fewer in the usual run.
"""

from __future__ import annotations

import sys

import attrs
import pytest
import trio
import trio.testing
from autobahn_corpus import KINDS, Case, Frame, FrameReader, Heard, Piece, echo_of, load
from counts import count
from echo_service import SETTINGS, TARGET, echoing
from peers import CLOSE, PATIENCE_SECONDS, UPGRADE, head, read_answer

CASES = load()
LONGEST_IN_OCTETS = 2_000


@attrs.define
class Listener:
    """Reads what the service sends until it ends the connection, and lets others wait for it."""

    heard: list[Heard] = attrs.field(factory=list)
    close_codes: list[int | None] = attrs.field(factory=list)
    frames: int = 0
    ended: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, stream: trio.abc.Stream) -> None:
        reader = FrameReader()
        try:
            while data := await stream.receive_some(1 << 20):
                for frame in reader.feed(bytes(data)):
                    self._hear(frame)
                self._notify()
        except trio.BrokenResourceError:
            # What is sent after a close frame is never read, and so TCP ends the connection with RST.
            assert self.close_codes, "it ended the connection without a close frame"
        assert reader.is_between_frames
        self.ended = True
        self._notify()

    async def wait_for(self, frames: int) -> None:
        while self.frames < frames and not self.ended:
            await self._changed.wait()

    def _hear(self, frame: Frame) -> None:
        self.frames += 1
        assert frame.fin
        assert not frame.masked
        assert not self.close_codes, "nothing comes after a close frame"
        if frame.opcode == CLOSE:
            self.close_codes.append(int.from_bytes(frame.payload[:2], "big") if frame.payload else None)
        else:
            self.heard.append((KINDS[frame.opcode], frame.payload))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def converse(local, pieces: list[Piece], *, read_each: bool = False) -> Listener:
    """Say the pieces over a new connection, each at its time, and hear the service to the end.

    With `read_each` the service reads each piece before it gets the next.
    """
    stream, _ = await local.open_stream()
    listener = Listener()
    async with stream:
        await stream.send_all(head("GET", TARGET, UPGRADE))
        assert (await read_answer(stream)).status == 101
        with trio.fail_after(count(1, 6) * PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.run, stream)
                try:
                    for piece in pieces:
                        await listener.wait_for(piece.after)
                        await stream.send_all(piece.data)
                        if read_each:
                            await trio.testing.wait_all_tasks_blocked()
                except trio.BrokenResourceError:
                    await listener.wait_for(sys.maxsize)
    return listener


def judge(case: Case, pieces: list[Piece], listener: Listener) -> None:
    """Assert that the case was answered as the fuzzing client asks."""
    if case.answers is None:
        assert listener.heard == echo_of(FrameReader().feed(b"".join(piece.data for piece in pieces)))
    else:
        assert listener.heard in case.answers
    assert len(listener.close_codes) == 1
    assert listener.close_codes[0] in case.close_codes


@pytest.mark.trio
@pytest.mark.parametrize("case_id", CASES)
async def test_the_service_answers_as_the_fuzzing_client_asks(open_over_sockets, case_id):
    case = CASES[case_id].at_most(count(1 << 17, 1 << 30))
    pieces = case.pieces()
    with echoing():
        async with open_over_sockets(SETTINGS) as local:
            judge(case, pieces, await converse(local, pieces))
            if sum(len(piece.data) for piece in pieces) <= LONGEST_IN_OCTETS:
                octets = [
                    Piece(piece.after, piece.data[at : at + 1])
                    for piece in pieces
                    for at in range(len(piece.data))
                ]
                judge(case, octets, await converse(local, octets, read_each=True))


def test_every_section_is_recorded_but_compression():
    sections = {case_id.split(".")[0] for case_id in CASES}
    assert sections == {"1", "2", "3", "4", "5", "6", "7", "9", "10"}
