"""Owns the recorded conformance cases: what is in autobahn_corpus.json, and the frames in a stream of bytes.

A case is what the Autobahn fuzzing client said after the handshake, piece by piece, and what it takes for
an answer. `scripts/conformance --record` writes the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from peers import frame as client_frame

FILE = Path(__file__).with_name("autobahn_corpus.json")

KINDS = {TEXT: "text", BINARY: "binary", PING: "ping", PONG: "pong"}

Heard = tuple[str, bytes]
"""What one side gets of the other: a kind of `KINDS` and the payload."""


@attrs.frozen
class Frame:
    """One frame as it was on the wire, its payload unmasked."""

    first: int
    masked: bool
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def fin(self) -> bool:
        return bool(self.first & 0x80)


@attrs.define
class FrameReader:
    """Finds the frames in a stream of bytes that keeps the rules."""

    _buffer: bytearray = attrs.field(factory=bytearray)

    def feed(self, data: bytes) -> list[Frame]:
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    @property
    def is_between_frames(self) -> bool:
        return not self._buffer

    def _next(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        masked = bool(buffer[1] & 0x80)
        mask = bytes(buffer[start : start + 4]) if masked else b""
        start += len(mask)
        if len(buffer) < start + size:
            return None
        frame = Frame(buffer[0], masked, unmasked(bytes(buffer[start : start + size]), mask))
        del buffer[: start + size]
        return frame


@attrs.frozen
class Piece:
    """Bytes that are sent once so many frames of the service have come."""

    after: int
    data: bytes


@attrs.frozen(kw_only=True)
class Frames:
    """The same frame a number of times, its payload a pattern repeated up to a size."""

    after: int
    opcode: int
    fin: bool
    pattern: bytes
    size: int
    times: int
    apart: int
    """How many frames of the service come between one and the next."""
    chop: int
    """The size of the pieces in which it is sent; 0: as it goes."""

    def at_most(self, total: int) -> Frames:
        """As long and as many as so many bytes allow, but one at least."""
        size = min(self.size, total)
        return attrs.evolve(self, size=size, times=min(self.times, max(1, total // max(1, size))))

    @property
    def payload(self) -> bytes:
        repeated = self.pattern * (self.size // max(1, len(self.pattern)) + 1)
        return repeated[: self.size]

    def pieces(self) -> list[Piece]:
        data = client_frame(self.opcode, self.payload, fin=self.fin)
        if not self.apart:
            data *= self.times
        chop = self.chop or max(1, len(data))
        chopped = [data[start : start + chop] for start in range(0, len(data), chop)]
        rounds = self.times if self.apart else 1
        return [
            Piece(self.after + self.apart * number, piece) for number in range(rounds) for piece in chopped
        ]


@attrs.frozen(kw_only=True)
class Case:
    """One case: what is sent, and what may come of it.

    `answers` are the sequences of messages and pongs of which one must come, None for the echo of each
    message sent; `close_codes` the codes of which the service's close frame has one, None for none.
    """

    sent: list[Piece | Frames]
    answers: list[list[Heard]] | None
    close_codes: list[int | None]

    def at_most(self, total: int) -> Case:
        """The same case with no more than so many bytes of each described step."""
        sent: list[Piece | Frames] = []
        missing = 0
        for step in self.sent:
            step = attrs.evolve(step, after=step.after - missing)
            if isinstance(step, Frames):
                fewer = step.at_most(total)
                missing += step.apart * (step.times - fewer.times)
                step = fewer
            sent.append(step)
        return attrs.evolve(self, sent=sent)

    def pieces(self) -> list[Piece]:
        """What is sent, in order."""
        return [
            piece for step in self.sent for piece in ([step] if isinstance(step, Piece) else step.pieces())
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "sent": [_step_to_json(step) for step in self.sent],
            "answers": "echo"
            if self.answers is None
            else [[[kind, data.hex()] for kind, data in answer] for answer in self.answers],
            "close_codes": self.close_codes,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        answers = None
        if data["answers"] != "echo":
            answers = [[(kind, bytes.fromhex(text)) for kind, text in answer] for answer in data["answers"]]
        return cls(
            sent=[_step_from_json(step) for step in data["sent"]],
            answers=answers,
            close_codes=data["close_codes"],
        )


def load() -> dict[str, Case]:
    """Every recorded case by its id."""
    return {case_id: Case.from_json(data) for case_id, data in json.loads(FILE.read_text())["cases"].items()}


def save(about: str, cases: dict[str, Case]) -> None:
    """Write the file anew, a line for each case."""
    lines = [f'    "{case_id}": {json.dumps(case.to_json())}' for case_id, case in cases.items()]
    FILE.write_text(
        '{\n  "about": ' + json.dumps(about) + ',\n  "cases": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    )


def echo_of(frames: list[Frame]) -> list[Heard]:
    """What an echo gives back: every whole message, and a pong for each ping."""
    heard: list[Heard] = []
    kind, parts = "", []
    for frame in frames:
        if frame.opcode in (TEXT, BINARY, CONTINUATION):
            if frame.opcode != CONTINUATION:
                kind, parts = KINDS[frame.opcode], []
            parts.append(frame.payload)
            if frame.fin:
                heard.append((kind, b"".join(parts)))
        elif frame.opcode == PING:
            heard.append(("pong", frame.payload))
        elif frame.opcode == CLOSE:
            break
    return heard


def unmasked(payload: bytes, mask: bytes) -> bytes:
    """RFC 6455 section 5.3; an empty mask changes nothing."""
    if not mask:
        return payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


def _step_to_json(step: Piece | Frames) -> Any:
    if isinstance(step, Piece):
        return [step.after, step.data.hex()]
    return {**attrs.asdict(step), "pattern": step.pattern.hex()}


def _step_from_json(step: Any) -> Piece | Frames:
    if isinstance(step, list):
        return Piece(step[0], bytes.fromhex(step[1]))
    return Frames(**{**step, "pattern": bytes.fromhex(step["pattern"])})
