"""Owns the floor for scripts/bench: what receiving and sending alone cost on this machine.

One epoll loop, one receive for what a socket holds, one send for each recipient of an event and one for its
ack. It checks nothing, keeps nothing, tells nobody who came or went, and waits for nobody: it is no server,
it is what is left of one.

usage: python bare_relay.py PORT
"""

from __future__ import annotations

import select
import socket
import sys
from base64 import b64encode
from hashlib import sha1
from urllib.parse import parse_qs, urlsplit

from websockets.speedups import apply_mask

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONNECTED = b'{"event":"connected","data":{"user_id":"%b"}}'
_EVENT = b'{"event":"collab_event","data":{%b,%b}}'
_ACK = b'{"event":"event_ack","data":{"delivered_to":%d}}'
_TO_USERS = b'"to_users":['


class Relay:
    """Sockets by user and by descriptor."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._users: dict[bytes, socket.socket] = {}
        self._is_upgraded: set[int] = set()
        self._rests: dict[int, bytes] = {}

    def run(self) -> None:
        """Relay until the process ends."""
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                    continue
                data = _received(self._sockets[descriptor])
                if not data:
                    self._forget(descriptor)
                elif descriptor in self._is_upgraded:
                    self._relay(descriptor, data)
                else:
                    self._upgrade(descriptor, data)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[accepted.fileno()] = accepted
        self._epoll.register(accepted, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._is_upgraded.discard(descriptor)
        self._rests.pop(descriptor, None)
        self._sockets.pop(descriptor).close()

    def _upgrade(self, descriptor: int, head: bytes) -> None:
        """Answer a head, which a load generator on this machine sends in one piece."""
        target, *lines = head.split(b"\r\n")
        key = next(line for line in lines if line.startswith(b"Sec-WebSocket-Key: "))[19:]
        user = parse_qs(urlsplit(target.split(b" ")[1]).query)[b"user_id"][0]
        accepted = self._sockets[descriptor]
        self._users[user] = accepted
        self._is_upgraded.add(descriptor)
        accepted.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + b64encode(sha1(key + _GUID).digest()) + b"\r\n\r\n"
        )
        accepted.send(_frame(_CONNECTED % user))

    def _relay(self, descriptor: int, data: bytes) -> None:
        data = self._rests.pop(descriptor, b"") + data
        position, texts = 0, []
        while len(data) - position >= 8:
            size, start = data[position + 1] & 0x7F, position + 2
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            end = start + 4 + size
            if end > len(data):
                break
            if data[position] == 0x81:
                texts.append(apply_mask(data[start + 4 : end], data[start : start + 4]))
            position = end
        if position < len(data):
            self._rests[descriptor] = data[position:]
        frames: dict[socket.socket, list[bytes]] = {}
        acks = []
        for text in texts:
            begin, _, rest = text[30:-2].partition(_TO_USERS)
            to_users, _, end_of_text = rest.partition(b"],")
            frame = _frame(_EVENT % (begin[:-1], end_of_text))
            users = to_users.strip(b'"').split(b'","')
            for user in users:
                frames.setdefault(self._users[user], []).append(frame)
            acks.append(_frame(_ACK % len(users)))
        for recipient, for_it in frames.items():
            recipient.send(b"".join(for_it))
        if acks:
            self._sockets[descriptor].send(b"".join(acks))


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def _frame(text: bytes) -> bytes:
    if len(text) < 126:
        return bytes((0x81, len(text))) + text
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text


if __name__ == "__main__":
    Relay(int(sys.argv[1])).run()
