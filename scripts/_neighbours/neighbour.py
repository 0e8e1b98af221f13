"""Plays one bad neighbour: `neighbour.py SCENE PORT`, until its standard input ends.

Prints `ready` once it is bad, and at the end one JSON object. It shares its core with the load
generator: its bytes are made in advance, its sends are big, and it gives way to everybody.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
from peer import CONTINUATION, PING, PONG, TEXT, Gone, Peer, fragments, frame, head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 18
CLOSED_WITHIN_SECONDS = 2.0
REGISTRY_SECONDS = 1.0
HANDSHAKE_SECONDS = 5.0
SLACK_SECONDS = 5.0


@attrs.define
class Found:
    """What became of the neighbour."""

    ends: Counter[str] = attrs.field(factory=Counter)
    slowest_seconds: float = 0.0
    broken: list[str] = attrs.field(factory=list)

    def took(self, seconds: float) -> None:
        """What had to happen took so long."""
        self.slowest_seconds = max(self.slowest_seconds, seconds)

    def complain(self, text: str) -> None:
        """A promise was broken."""
        if len(self.broken) < 5:
            self.broken.append(text)


def is_over() -> bool:
    """Whether we shall stop."""
    return bool(select.select([0], [], [], 0)[0])


def rest(seconds: float) -> None:
    """Do nothing for so long, unless it is over."""
    select.select([0], [], [], max(seconds, 0))


def say_ready() -> None:
    """From now on the neighbour is bad."""
    print("ready", flush=True)


FLOODS = {
    "ping-flood": (b"", frame(PING, b"x")),
    "pong-flood": (b"", frame(PONG)),
    "empty-fragments": (frame(TEXT, fin=False), frame(CONTINUATION, fin=False)),
    "one-byte-fragments": (frame(TEXT, b"x", fin=False), frame(CONTINUATION, b"x", fin=False)),
    "one-byte-messages": (b"", frame(TEXT, b"x")),
}
"""What no client needs: how each begins, and what comes again and again."""


def flood_until_cut_off(
    peer: Peer,
    begin: bytes,
    wire: bytes,
    is_over: Callable[[], bool] = is_over,
    *,
    is_allowed: bool = False,
) -> float | None:
    """`begin`, and `wire` again and again, until the socket breaks; the close frame is not obeyed.

    When it was told to go; None where it never was. What one who may do this is answered is of no
    interest, and may be much.
    """
    whole = wire * (CHUNK_BYTES // len(wire))
    peer.socket.setblocking(False)
    told_at = None
    left = begin + whole
    is_reading = True
    while not is_over():
        readable, writable, _ = select.select([peer.socket] if is_reading else [], [peer.socket], [], 0.1)
        try:
            if readable and is_allowed:
                if not peer.socket.recv(CHUNK_BYTES):
                    break
            elif readable:
                with suppress(Gone):
                    peer.receive()
                    if peer.close_code is not None and told_at is None:
                        told_at = time.monotonic()
                    continue
                is_reading = False
            if writable:
                left = left[peer.socket.send(left) :] or whole
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            break
    peer.socket.close()
    return told_at


def flood(port: int, found: Found, wire: bytes, begin: bytes = b"", *, is_allowed: bool = False) -> None:
    """One flooder after the other. Unless it is allowed, each must be told to go within 2 s."""
    say_ready()
    while not is_over():
        peer = Peer(port, "flooder")
        opened = time.monotonic()
        told_at = flood_until_cut_off(peer, begin, wire, is_allowed=is_allowed)
        if told_at is not None:
            found.took(told_at - opened)
        if is_allowed and not is_over():
            found.complain("one who may do this was sent away")
        if not is_allowed and peer.close_code is None and time.monotonic() - opened > CLOSED_WITHIN_SECONDS:
            found.complain("a flooder was not told to go within 2 s")
        if peer.close_code is not None or not is_over():
            found.ends[str(peer.close_code or 1006)] += 1
        rest(0.1)


def small_fragments(port: int, found: Found) -> None:
    flood(port, found, fragments(b'{"event":"ping"}', 1), is_allowed=True)


def ping_messages(port: int, found: Found) -> None:
    flood(port, found, frame(TEXT, b'{"event":"ping"}'), is_allowed=True)


def offline_names(port: int, found: Found) -> None:
    event = {"type": "t", "to_users": [f"nobody{n}" for n in range(1000)], "data": {}}
    message = json.dumps({"event": "collab_event", "data": event}).encode()
    flood(port, found, frame(TEXT, message), is_allowed=True)


@attrs.define
class _Hammer:
    """Who has its whole window for one reader, and what its acks say."""

    peer: Peer
    recipient: str
    text: str = "x" * 16_000
    sent: int = 0
    acked: int = 0
    undelivered: set[int] = attrs.field(factory=set)
    left: bytes = b""

    def turn(self, found: Found, *, is_sending: bool) -> None:
        """Send what the socket takes, and read acks."""
        wants_to = bool(self.left) or (is_sending and self.sent - self.acked < 256)
        readable, writable, _ = select.select([self.peer.socket], [self.peer.socket] * wants_to, [], 0.1)
        if writable:
            if not self.left:
                event = {"type": "t", "to_users": [self.recipient], "data": f"{self.sent} {self.text}"}
                message = {"event": "collab_event", "id": self.sent, "data": event}
                self.left = frame(TEXT, json.dumps(message).encode())
                self.sent += 1
            with suppress(BlockingIOError):
                self.left = self.left[self.peer.socket.send(self.left) :]
        if readable:
            for opcode, payload in self.peer.receive():
                if opcode == TEXT and b"event_ack" in payload:
                    self._take(json.loads(payload), found)

    def _take(self, ack: dict[str, object], found: Found) -> None:
        data = ack["data"]
        assert isinstance(data, dict)
        names = data.get("undelivered", [])
        if ack["id"] != self.acked or data["delivered_to"] + len(names) != data["total_recipients"]:
            found.complain(f"a false ack where that of {self.acked} was due: {ack}")
        if names:
            self.undelivered.add(self.acked)
        self.acked += 1


def stalled(port: int, found: Found) -> None:
    """Holds the acks against what the reader finds when it reads at last."""
    hammer = _Hammer(Peer(port, "hammer"), "stalled")
    hammer.peer.socket.setblocking(False)
    say_ready()
    while not is_over():
        reader = Peer(port, "stalled", receive_bytes=4096)
        hammer.undelivered.clear()
        first, opened = hammer.sent, time.monotonic()
        while not hammer.undelivered and not is_over():
            hammer.turn(found, is_sending=True)
        if not hammer.undelivered:
            break
        found.took(time.monotonic() - opened)
        deadline = time.monotonic() + 5
        while hammer.acked < hammer.sent and time.monotonic() < deadline:
            hammer.turn(found, is_sending=False)
        if hammer.acked < hammer.sent:
            found.complain(f"{hammer.sent - hammer.acked} acks are missing")
        texts, code = reader.read_to_end()
        found.ends[str(code)] += 1
        if code != 4003:
            found.complain(f"the stalled reader was closed with {code}")
        data = [json.loads(text)["data"] for text in texts if b'"collab_event"' in text]
        numbers = [int(event["data"].split()[0]) for event in data]
        if numbers != list(range(first, first + len(numbers))):
            found.complain(f"the stalled reader got {numbers} after {first}")
        if lied := hammer.undelivered & set(numbers):
            found.complain(f"acknowledged as undelivered, and received: {lied}")
    if not found.ends["4003"]:
        found.complain("nobody was sent away: it was too short")


def stopped(port: int, found: Found) -> None:
    """They are sent away, while users come and go and events are for them.

    Who then reads at once finds 4003. So one of 25 does; the others do so at the end, when most are cut off.
    """
    crowd = _Crowd.come(port, is_reading=False)
    looked: set[str] = set()

    def look() -> None:
        for number in range(0, len(crowd.peers), 25):
            peer = crowd.peers[number]
            if peer.user_id in crowd.undelivered and peer.user_id not in looked:
                looked.add(peer.user_id)
                peer.socket.settimeout(CLOSED_WITHIN_SECONDS)
                _, code = peer.read_to_end()
                found.ends[str(code)] += 1
                if code != 4003:
                    found.complain(f"one that stopped, and then read, was closed with {code}")

    crowd.play(look)
    if not looked:
        found.complain("nobody was sent away: it was too short")
    for peer in crowd.peers:
        if peer.user_id in looked:
            continue
        peer.socket.settimeout(0.2)
        _, code = peer.read_to_end()
        found.ends[str(code) if peer.user_id in crowd.undelivered else "open"] += 1
        if code not in (4003, 1006):
            found.complain(f"one that stopped was closed with {code}")


def reading(port: int, found: Found) -> None:
    """The same crowd, and the same is sent to it, but it reads: what `stopped` is held against."""
    crowd = _Crowd.come(port, is_reading=True)
    crowd.play()
    for peer in crowd.peers:
        found.ends[str(peer.close_code or "open")] += 1
    if set(found.ends) != {"open"} or crowd.undelivered:
        found.complain(f"of those who read, some were sent away: {dict(found.ends)}")


@attrs.define
class _Crowd:
    """500 clients. Each is sent 32 kB eight times a second, and somebody comes and goes as often."""

    port: int
    peers: list[Peer]
    caller: Peer
    is_reading: bool
    undelivered: set[str] = attrs.field(factory=set)

    @classmethod
    def come(cls, port: int, *, is_reading: bool) -> _Crowd:
        size = 0 if is_reading else 4096
        peers = [
            Peer(port, f"crowd{n}", presence="all", receive_bytes=size, segment_bytes=1400)
            for n in range(500)
        ]
        caller = Peer(port, "caller")
        for peer in (caller, *(peers if is_reading else ())):
            peer.socket.setblocking(False)
        return cls(port, peers, caller, is_reading)

    def play(self, look: Callable[[], None] | None = None) -> None:
        """Until it is over. `look` is called while something is due."""
        by_descriptor = {peer.socket.fileno(): peer for peer in self.peers if self.is_reading}
        readable = select.epoll()
        for descriptor in by_descriptor:
            readable.register(descriptor, select.EPOLLIN)
        calls = list(self._calls())
        left = b""
        turn = 0
        say_ready()
        while not is_over():
            due = time.monotonic() + 0.005
            left = left or calls[turn % len(calls)]
            with suppress(BlockingIOError):
                left = left[self.caller.socket.send(left) :]
            with suppress(BlockingIOError):
                for _, payload in self.caller.receive():
                    if b'"undelivered"' in payload:
                        self.undelivered.update(json.loads(payload)["data"]["undelivered"])
            turn += 1
            if turn % len(calls) == 0:
                Peer(self.port, "comes-and-goes").socket.close()
            for descriptor, _ in readable.poll(0):
                with suppress(BlockingIOError):
                    by_descriptor[descriptor].receive()
            if look is not None:
                look()
            rest(due - time.monotonic())
        readable.close()

    def _calls(self) -> Iterator[bytes]:
        for first in range(0, len(self.peers), 20):
            to_users = [peer.user_id for peer in self.peers[first : first + 20]]
            event = {"type": "t", "to_users": to_users, "data": "x" * 32_000}
            yield frame(TEXT, json.dumps({"event": "collab_event", "data": event}).encode())


@attrs.define
class _Drip:
    opened: socket.socket
    since: float
    position: int = 0


def slow_head(port: int, found: Found) -> None:
    """Each sends a byte every 100 ms, and must be answered with 408 after the handshake timeout."""

    def begin() -> _Drip:
        opened = socket.create_connection(("127.0.0.1", port))
        opened.setblocking(False)
        return _Drip(opened, time.monotonic())

    def end(drip: _Drip) -> _Drip:
        seconds = time.monotonic() - drip.since
        answer = b""
        with suppress(OSError):
            answer = drip.opened.recv(4096)
        drip.opened.close()
        found.took(seconds)
        found.ends[answer[9:12].decode() or "nothing"] += 1
        if not answer.startswith(b"HTTP/1.1 408") or seconds > HANDSHAKE_SECONDS + 2:
            found.complain(f"a slow head got {answer[:20]!r} after {seconds:.1f} s")
        return begin()

    request = head("slow")
    drips: list[_Drip] = []
    say_ready()
    turn = 0
    while not is_over():
        due = time.monotonic() + 0.01
        # They come one after the other: what a crowd costs that comes at once is measured elsewhere.
        if len(drips) < 200 and turn % 2:
            drips.append(begin())
        # A tenth of them every 10 ms.
        for number in range(turn % 10, len(drips), 10):
            drip = drips[number]
            try:
                drip.opened.send(request[drip.position : drip.position + 1])
                drip.position += 1
            except OSError:
                drips[number] = end(drip)
                continue
            if (
                time.monotonic() - drip.since > HANDSHAKE_SECONDS
                and select.select([drip.opened], [], [], 0)[0]
            ):
                drips[number] = end(drip)
        turn += 1
        rest(due - time.monotonic())


def killed(port: int, found: Found) -> None:
    """Whoever wants presence must hear of the end within a second."""
    observer = Peer(port, "observer", presence="all")
    half = frame(TEXT, b"x" * 1000)[:500]
    say_ready()
    number = 0
    while not is_over():
        due = time.monotonic() + 0.05
        number += 1
        user_id = f"victim{number}"
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                Peer(port, user_id).socket.sendall(half)
                os.write(writing, b"x")
                signal.pause()
            os._exit(1)
        os.close(writing)
        is_up = os.read(reading, 1)
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        os.waitpid(pid, 0)
        if is_up:
            seconds = _until_offline(observer, user_id.encode()) - at
            found.took(seconds)
            found.ends["told of"] += 1
            if seconds > REGISTRY_SECONDS:
                found.complain(f"the end of one who was killed was told of after {seconds:.1f} s")
        rest(due - time.monotonic())


def _until_offline(observer: Peer, user_id: bytes) -> float:
    while True:
        for _, payload in observer.receive():
            if b"user_offline" in payload and b'"%b"' % user_id in payload:
                return time.monotonic()


def silent(port: int, found: Found) -> None:
    """They have talked; then nothing comes from them, and nothing is read. They are 100 at a time.

    The service pings after 2 s and waits for 2 s (see the scene's settings).
    """
    observer = Peer(port, "observer", presence="all")
    observer.socket.setblocking(False)
    since: dict[str, float] = {}
    peers: dict[str, Peer] = {}
    numbers = iter(range(10**9))

    def come() -> None:
        peer = Peer(port, f"silent{next(numbers)}")
        peer.socket.sendall(frame(TEXT, b'{"event":"ping"}'))
        while not any(b"pong" in payload for _, payload in peer.receive()):
            pass
        peers[peer.user_id] = peer
        since[peer.user_id] = time.monotonic()

    say_ready()
    while not is_over():
        due = time.monotonic() + 0.04
        # One at a time: what a crowd costs that comes at once is measured elsewhere.
        if len(peers) < 100:
            come()
        rest(due - time.monotonic())
        payloads = []
        with suppress(BlockingIOError):
            payloads = [payload for _, payload in observer.receive() if b"user_offline" in payload]
        for payload in payloads:
            user_id = json.loads(payload)["data"]["user_id"]
            if user_id in peers:
                found.took(time.monotonic() - since.pop(user_id))
                _, code = peers.pop(user_id).read_to_end()
                found.ends[str(code)] += 1
        late = [user_id for user_id, at in since.items() if time.monotonic() - at > 4 + SLACK_SECONDS]
        for user_id in late:
            found.complain("one that is silent was still there after ping, pong and 5 s")
            del since[user_id], peers[user_id]


SCENES = {
    **{name: partial(flood, begin=begin, wire=wire) for name, (begin, wire) in FLOODS.items()},
    "stalled": stalled,
    "stopped": stopped,
    "reading": reading,
    "small-fragments": small_fragments,
    "ping-messages": ping_messages,
    "offline-names": offline_names,
    "slow-head": slow_head,
    "killed": killed,
    "silent": silent,
}


def main() -> None:
    """Play the scene that the arguments name."""
    scene, port = SCENES[sys.argv[1]], int(sys.argv[2])
    found = Found()
    try:
        scene(port, found)
    except (Gone, OSError) as error:
        found.complain(f"the neighbour itself failed: {type(error).__name__} {error}")
    print(json.dumps(attrs.asdict(found)), flush=True)


if __name__ == "__main__":
    main()
