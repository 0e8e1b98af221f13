"""A server that does the work as told, or not quite: it loses, repeats, swaps."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve


class FakePeer:
    """Routes events between its users, in either dialect, with mischief once in a while.

    `mischief` is given every relayed text and its number, and answers what the recipient gets.
    """

    def __init__(self, dialect="plain", mischief=lambda number, text: [text], acks=lambda number: 1):
        self.routed = 0
        self._dialect = dialect
        self._mischief = mischief
        self._acks = acks
        self._users = {}
        self._lock = threading.Lock()

    def serve(self, socket):
        query = parse_qs(urlsplit(socket.request.path).query)
        user_id = query["user_id"][0]
        try:
            if self._dialect == "socketio":
                assert query["EIO"] == ["4"]
                socket.send('0{"sid":"x","pingInterval":25000}')
                assert socket.recv() == "40"
                socket.send('40{"sid":"y"}')
                socket.send("2")
                assert socket.recv() == "3"
            with self._lock:
                self._users[user_id] = socket
                others = [other for other in self._users.values() if other is not socket]
            self.say(socket, "connected", {"user_id": user_id})
            for other in others:
                self.say(other, "user_online", {"user_id": user_id})
            for text in socket:
                self.route(socket, self.data_of(text))
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                others = [other for other in self._users.values() if other is not socket]
                self._users.pop(user_id, None)
            for other in others:
                self.say(other, "user_offline", {"user_id": user_id})

    def route(self, socket, event):
        with self._lock:
            number = self.routed
            self.routed += 1
            for user_id in event["to_users"]:
                for relayed in self._mischief(number, event):
                    self.say(self._users[user_id], "collab_event", relayed)
            ack = {"event_type": event["type"], "delivered_to": len(event["to_users"])}
            for _ in range(self._acks(number)):
                self.say(socket, "event_ack", ack)

    def data_of(self, text):
        if self._dialect == "plain":
            return json.loads(text)["data"]
        return json.loads(text.removeprefix("42"))[1]

    def say(self, socket, event, data):
        text = {"event": event, "data": data} if self._dialect == "plain" else [event, data]
        prefix = "" if self._dialect == "plain" else "42"
        with suppress(ConnectionClosed):
            socket.send(prefix + json.dumps(text))


@contextmanager
def listening(peer):
    """The URL of the peer, which serves in threads until the end of the block."""
    with serve(peer.serve, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()
