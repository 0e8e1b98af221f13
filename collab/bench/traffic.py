"""Owns the workloads that send events: closed loop with a window, or open loop at a rate."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import attrs

from collab.bench.cost import cpu_seconds
from collab.bench.dialects import DIALECTS
from collab.bench.frames import MARK, MARK_PATTERN, EventFrames, mark
from collab.bench.latency import Latencies
from collab.bench.order import Sequence
from collab.bench.report import Cost, Report, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from collab.bench.connection import Buffer, Connection, Take
    from collab.bench.crowd import Crowd

    Progress = Callable[[str, float], None]
    """Told what goes on, and how much of it is done, from 0 to 1; ten times a second at most."""

PATIENCE_SECONDS = 2.0
_LINGER_SECONDS = 0.1
_LONGEST_LINGER_SECONDS = 1.0
_PROGRESS_SECONDS = 0.1
_MAX_UNSENT_BYTES = 1024 * 1024

_find_marks = re.compile(MARK_PATTERN).findall
_find_acks = re.compile(rb'delivered_to":\s?(\d+)').findall
_find_error = re.compile(rb'(?:"event":\s?"|42\[")error"[^{]*(\{.{0,300})', re.DOTALL).search


@attrs.define
class _Tally:
    """What is counted over all connections, and how many events may be sent in all."""

    allowance: int
    sent: int = 0
    acked: int = 0
    delivered: int = 0
    told: int = 0
    surplus_acks: int = 0
    misrouted: int = 0
    errors: int = 0
    first_error: str = ""
    is_measuring: bool = False
    deliveries: Latencies = attrs.field(factory=Latencies)
    acks: Latencies = attrs.field(factory=Latencies)

    def look_for_errors(self, buffer: Buffer, end: int) -> None:
        """Count an `error` among frames that are neither an event nor an ack."""
        if found := _find_error(buffer, 0, end):
            self.errors += 1
            self.first_error = self.first_error or found[1].decode(errors="replace")


class Sender:
    """One user who sends, and how far its events are acknowledged."""

    def __init__(self, number: int, tally: _Tally, in_flight: int) -> None:
        self.number = number
        self.sent = 0
        self.acked = 0
        self.is_sending = False
        self._tally = tally
        self._in_flight = in_flight
        self._sent_at: deque[int] = deque()
        self._connection: Connection | None = None
        self._frames: EventFrames | None = None

    def begin(self, connection: Connection, frames: EventFrames) -> None:
        """From now on there is something to send with."""
        self._connection = connection
        self._frames = frames

    def fill(self) -> None:
        """Send as many as the window has room for."""
        if self.is_sending:
            room = self._in_flight - self.sent + self.acked
            if left := min(room, self._tally.allowance - self._tally.sent):
                self.send([time.monotonic_ns()] * left)

    def send(self, times_ns: list[int]) -> None:
        """Send an event for each of these times, at which they were due."""
        assert self._frames is not None
        assert self._connection is not None
        frame, first = self._frames.frame, self.sent
        self._connection.send(b"".join([frame(first + i, due) for i, due in enumerate(times_ns)]))
        self._sent_at.extend(times_ns)
        self.sent += len(times_ns)
        self._tally.sent += len(times_ns)

    @property
    def has_room(self) -> bool:
        """Whether the socket still takes what is sent."""
        return self._connection is not None and self._connection.unsent_bytes < _MAX_UNSENT_BYTES

    def take(self, buffer: Buffer, end: int, frames: int) -> None:
        """What came back: acks, and whatever else."""
        now = time.monotonic_ns()
        tally = self._tally
        told = _find_acks(buffer, 0, end)
        if len(told) != frames:
            tally.look_for_errors(buffer, end)
            tally.misrouted += bytes(buffer[:end]).count(MARK)
        sent_at = self._sent_at
        if len(told) > len(sent_at):
            tally.surplus_acks += len(told) - len(sent_at)
            del told[len(sent_at) :]
        if not told:
            return
        latencies = [now - sent_at.popleft() for _ in told]
        if tally.is_measuring:
            tally.acks.add(latencies)
        tally.told += sum(map(int, told))
        tally.acked += len(told)
        self.acked += len(told)
        self.fill()


class Recipient:
    """One user who receives, from one sender."""

    def __init__(self, sender: Sender, tally: _Tally) -> None:
        self.sender = sender
        self.sequence = Sequence()
        self._from = b"%06d" % sender.number
        self._tally = tally

    def take(self, buffer: Buffer, end: int, frames: int) -> None:
        """What came: events, and whatever else."""
        now = time.monotonic_ns()
        tally = self._tally
        sequence = self.sequence
        marks = _find_marks(buffer, 0, end)
        if len(marks) != frames:
            tally.look_for_errors(buffer, end)
        for sender, digits, _ in marks:
            if sender != self._from:
                tally.misrouted += 1
            elif (number := int(digits)) == sequence.next:
                sequence.next += 1
            else:
                sequence.take(number)
        tally.delivered += len(marks)
        if tally.is_measuring and marks:
            tally.deliveries.add([now - int(sent_at) for _, _, sent_at in marks])


@attrs.frozen
class _Moment:
    time_ns: int
    acked: int
    delivered: int
    server_seconds: float | None
    own_seconds: float


class TrafficRun:
    """Senders and recipients of one run, over an open crowd.

    Each of `groups` is a sender's number of recipients.
    """

    def __init__(self, crowd: Crowd, groups: list[int], token: str) -> None:
        options = crowd.options
        self._crowd = crowd
        self._options = options
        self._tally = _Tally(allowance=options.events or sys.maxsize)
        self.senders: list[Sender] = []
        self.recipients: list[Recipient] = []
        takes: dict[str, Take] = {}
        texts: list[bytes] = []
        for number, size in enumerate(groups):
            sender = Sender(number, self._tally, options.in_flight)
            self.senders.append(sender)
            from_user = f"{token}s{number}"
            to_users = [f"{token}r{len(self.recipients) + i}" for i in range(size)]
            recipients = [Recipient(sender, self._tally) for _ in to_users]
            self.recipients += recipients
            takes[from_user] = sender.take
            takes.update(zip(to_users, (recipient.take for recipient in recipients), strict=True))
            data = _data(number, options.payload_bytes)
            texts.append(DIALECTS[options.dialect].event(from_user, to_users, data))
        connections = dict(zip(takes, crowd.open(takes), strict=True))
        for sender, text in zip(self.senders, texts, strict=True):
            sender.begin(connections[f"{token}s{sender.number}"], EventFrames(text))

    def run(self, progress: Progress) -> Report:
        """Send for the time or the number of events asked for, wait for the rest, and say what became of it.

        Raises:
            NoSuchProcess: the process to measure is not there.
        """
        options = self._options
        begin_ns = time.monotonic_ns()
        warmup_ns = 0 if options.events else int(options.warmup_seconds * 1e9)
        measure_ns = begin_ns + warmup_ns
        end_ns = measure_ns + int(options.seconds * 1e9)
        pump = self._open_loop(begin_ns) if options.workload == "open-loop" else self._closed_loop()
        first = self._moment()
        told_ns = quiet_ns = begin_ns
        seen = -1
        while True:
            now = time.monotonic_ns()
            if not self._tally.is_measuring and now >= measure_ns:
                first = self._moment()
                end_ns = first.time_ns + int(options.seconds * 1e9)
                self._tally.is_measuring = True
            if now >= end_ns or self._tally.sent >= self._tally.allowance:
                break
            if self._tally.acked + self._tally.delivered != seen:
                seen, quiet_ns = self._tally.acked + self._tally.delivered, now
            elif now - quiet_ns > PATIENCE_SECONDS * 1e9 and self._tally.sent > self._tally.acked:
                break
            if now - told_ns > _PROGRESS_SECONDS * 1e9:
                told_ns = now
                doing = "measuring" if self._tally.is_measuring else "warming up"
                progress(doing, self._part_done(begin_ns, end_ns))
            self._crowd.turn(pump())
        for sender in self.senders:
            sender.is_sending = False
        if options.events:
            self._settle()
        last = self._moment()
        self._tally.is_measuring = False
        progress("waiting for the rest", 1.0)
        self._settle()
        # What comes once too often comes late. Notices of others who come and go may never end.
        linger_until = time.monotonic() + _LONGEST_LINGER_SECONDS
        self._crowd.settle(lambda: time.monotonic() > linger_until, _LINGER_SECONDS)
        return self._report(first, last)

    def _closed_loop(self) -> Callable[[], float]:
        for sender in self.senders:
            sender.is_sending = True
            sender.fill()
        return lambda: 0.1

    def _open_loop(self, begin_ns: int) -> Callable[[], float]:
        """Sends what is due and answers how long until the next is; what a full socket holds up stays due."""
        step_ns = 1e9 / self._options.rate
        count = 0

        def send_due() -> float:
            nonlocal count
            due_ns = begin_ns + int(count * step_ns)
            while due_ns <= time.monotonic_ns() and count < self._tally.allowance:
                sender = self.senders[count % len(self.senders)]
                if not sender.has_room:
                    return 0.01
                sender.send([due_ns])
                count += 1
                due_ns = begin_ns + int(count * step_ns)
            return min((due_ns - time.monotonic_ns()) / 1e9, 0.1)

        return send_due

    def _part_done(self, begin_ns: int, end_ns: int) -> float:
        part = (time.monotonic_ns() - begin_ns) / (end_ns - begin_ns)
        if self._options.events:
            part = max(part, self._tally.sent / self._options.events)
        return min(part, 1.0)

    def _settle(self) -> None:
        """Wait until all is there that was sent, or nothing more comes."""
        expected = sum(recipient.sender.sent for recipient in self.recipients)
        tally = self._tally

        def is_complete() -> bool:
            # The sums decide cheaply that it is not; duplicates may make up for losses in them.
            return tally.acked >= tally.sent and tally.delivered >= expected and not self._losses()

        self._crowd.settle(is_complete, PATIENCE_SECONDS)

    def _losses(self) -> int:
        return sum(recipient.sequence.losses(recipient.sender.sent) for recipient in self.recipients)

    def _moment(self) -> _Moment:
        pid = self._options.pid
        return _Moment(
            time_ns=time.monotonic_ns(),
            acked=self._tally.acked,
            delivered=self._tally.delivered,
            server_seconds=None if pid is None else cpu_seconds(pid),
            own_seconds=time.process_time(),
        )

    def _report(self, first: _Moment, last: _Moment) -> Report:
        options, tally = self._options, self._tally
        seconds = (last.time_ns - first.time_ns) / 1e9
        events = last.acked - first.acked
        expected = sum(recipient.sender.sent for recipient in self.recipients)
        return Report(
            workload=options.workload,
            dialect=options.dialect,
            connections=len(self.senders) + len(self.recipients),
            seconds=seconds,
            cost=Cost.between(
                first.server_seconds, last.server_seconds, own_seconds=last.own_seconds - first.own_seconds
            ),
            connections_lost=len(self._crowd.ended_reasons),
            first_end=next(iter(self._crowd.ended_reasons), ""),
            traffic=Traffic(
                payload_bytes=options.payload_bytes,
                in_flight=None if options.workload == "open-loop" else options.in_flight,
                sent=tally.sent,
                events=events,
                deliveries=last.delivered - first.delivered,
                delivery_latency=tally.deliveries.percentiles(),
                ack_latency=tally.acks.percentiles(),
                losses=self._losses(),
                undelivered=max(expected - tally.told, 0) if tally.acked == tally.sent else 0,
                duplicates=sum(recipient.sequence.duplicates for recipient in self.recipients),
                reorders=sum(recipient.sequence.reorders for recipient in self.recipients),
                misrouted=tally.misrouted,
                missing_acks=tally.sent - tally.acked,
                surplus_acks=tally.surplus_acks,
                errors=tally.errors,
                first_error=tally.first_error,
            ),
        )


def new_token() -> str:
    """What the user ids of one run begin with, so that runs at the same time do not meet."""
    return f"b{os.urandom(2).hex()}"


def _data(sender: int, payload_bytes: int) -> dict[str, str]:
    """An event's `data` of this size in JSON, with the mark in it."""
    empty = '{"mark":"","text":""}'
    text = "x" * (payload_bytes - len(empty) - len(mark(sender)))
    return {"mark": mark(sender).decode(), "text": text}
