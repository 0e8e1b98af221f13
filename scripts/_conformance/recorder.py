"""Owns the recorder: a proxy before the echo that keeps what the fuzzing client sends, case by case."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import trio
from autobahn_corpus import CLOSE, Case, Frame, FrameReader, Frames, Heard, Piece

SHORT_BYTES = 2_000
"""What a case may send for its bytes to be kept as they are."""

LONGEST_PATTERN = 16
END_OF_HEAD = b"\r\n\r\n"


@attrs.define
class Recording:
    """What the client of one connection sent after its handshake."""

    sent: list[Piece] = attrs.field(factory=list)
    frames: int = 0
    """How many frames of the service it has got."""

    @property
    def data(self) -> bytes:
        return b"".join(piece.data for piece in self.sent)


@attrs.define
class Recorder:
    """Passes connections on, one after the other, and records them."""

    recordings: list[Recording] = attrs.field(factory=list)

    async def run(
        self,
        upstream: tuple[str, int],
        *,
        task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listeners[0].socket.getsockname())
        await trio.serve_listeners(partial(self._pass_on, upstream), listeners)

    async def _pass_on(self, upstream: tuple[str, int], client: trio.SocketStream) -> None:
        recording = Recording()
        self.recordings.append(recording)
        service = await trio.open_tcp_stream(*upstream)
        async with client, service, trio.open_nursery() as nursery:
            nursery.start_soon(self._record, recording, client, service)
            await self._count(recording, service, client)

    async def _record(
        self, recording: Recording, client: trio.SocketStream, service: trio.SocketStream
    ) -> None:
        head = b""
        try:
            while data := await client.receive_some(1 << 20):
                said = data
                if END_OF_HEAD not in head:
                    head += data
                    said = head.partition(END_OF_HEAD)[2]
                if said:
                    recording.sent.append(Piece(recording.frames, said))
                await service.send_all(data)
            await service.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _count(
        self, recording: Recording, service: trio.SocketStream, client: trio.SocketStream
    ) -> None:
        head, reader = b"", FrameReader()
        try:
            while data := await service.receive_some(1 << 20):
                said = data
                if END_OF_HEAD not in head:
                    head += data
                    said = head.partition(END_OF_HEAD)[2]
                # Before it goes out: what the client says next may be its answer.
                recording.frames += len(reader.feed(said))
                await client.send_all(data)
            await client.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def case_of(report: dict[str, Any], recording: Recording) -> Case:
    """The case that the fuzzing client reported on and whose bytes were recorded."""
    data = recording.data
    close_codes = list(report["expectedClose"]["closeCode"])
    if report["remoteCloseCode"] not in close_codes:
        # It takes an empty close frame as well, and for information any code.
        close_codes.append(report["remoteCloseCode"])
    if len(data) <= SHORT_BYTES:
        return Case(sent=_as_sent(report, recording), answers=_answers(report), close_codes=close_codes)
    chops = re.search(r"in chops of (\d+) octets", report["description"])
    return Case(
        sent=_described(recording, int(chops[1]) if chops else 0), answers=None, close_codes=close_codes
    )


def _as_sent(report: dict[str, Any], recording: Recording) -> list[Piece | Frames]:
    """Cut as the client cut it, by its own log: what the network made of it is chance.

    So is whether an answer to our close frame still went out before the connection was gone.
    """
    pieces: list[Piece | Frames] = []
    data, position, frames = recording.data, 0, 0
    handshake = True
    for kind, *details in report["wirelog"]:
        if kind == "RF":
            frames += 1
        elif kind == "TO" and handshake:
            handshake = False
        elif kind == "TO":
            size, shown = details[0]
            recorded = data[position : position + size]
            piece = recorded if shown.endswith(" ...") else bytes.fromhex(shown)
            assert len(piece) == size, f"{report['id']}: a long piece was not recorded"
            assert piece.startswith(recorded), f"{report['id']}: {piece.hex()} is not {recorded.hex()}"
            pieces.append(Piece(frames, piece))
            position += size
    assert position >= len(data), f"{report['id']}: {position} bytes in its log, {len(data)} recorded"
    return pieces


def _described(recording: Recording, chop: int) -> list[Piece | Frames]:
    """The frames of a long case, the same ones together."""
    reader = FrameReader()
    frames = [(piece.after, frame) for piece in recording.sent for frame in reader.feed(piece.data)]
    assert reader.is_between_frames
    steps: list[Frames] = []
    for after, frame in frames:
        assert frame.masked
        step = Frames(
            after=after,
            opcode=frame.opcode,
            fin=frame.fin,
            pattern=_pattern(frame),
            size=len(frame.payload),
            times=1,
            apart=0,
            chop=0 if frame.opcode == CLOSE else chop,
        )
        if steps and (longer := _longer(steps[-1], step)) is not None:
            steps[-1] = longer
        else:
            steps.append(step)
    assert all(one.after <= other.after for one, other in pairwise(steps))
    return list(steps)


def _longer(steps: Frames, step: Frames) -> Frames | None:
    """Both together, if the step is the next of the others."""
    apart = step.after - steps.after if steps.times == 1 else steps.apart
    goes_on = attrs.evolve(steps, after=0, times=1, apart=0) == attrs.evolve(step, after=0)
    if not goes_on or step.after != steps.after + apart * steps.times or apart > 1:
        return None
    return attrs.evolve(steps, times=steps.times + 1, apart=apart)


def _pattern(frame: Frame) -> bytes:
    payload = frame.payload
    for size in range(1, LONGEST_PATTERN + 1):
        if (payload[:size] * (len(payload) // size + 1))[: len(payload)] == payload:
            return payload[:size]
    return payload


def _answers(report: dict[str, Any]) -> list[list[Heard]] | None:
    """The answers that the fuzzing client takes; None for the echo, where its report cuts them short."""
    answers: list[list[Heard]] = []
    for expected in report["expected"].values():
        answer: list[Heard] = []
        for kind, *details in expected:
            if kind == "timeout":
                continue
            if details[0].endswith(" ..."):
                return None
            shown = details[0]
            payload = bytes.fromhex(shown[2:]) if shown.startswith("0x") else shown.encode()
            answer.append((("binary" if details[1] else "text") if kind == "message" else kind, payload))
        if answer not in answers:
            answers.append(answer)
    return answers
