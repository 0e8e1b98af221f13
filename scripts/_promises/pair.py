"""Plays a pair that exchanges events: `python -m _promises.pair`, until its standard input ends.

Its first line of input is a JSON object: the port, a token for each where tokens are needed, and the file
of the authority where TLS is. Prints `ready` once it is connected, and at the end a JSON array with one
pair for each event: when it was due (seconds of the monotonic clock) and how long after that it arrived.
"""

from __future__ import annotations

import json
import select
import ssl
import sys
import time

from peer import TEXT, Peer, frame

EVERY_SECONDS = 0.005
USERS = ("ada", "bob")


def main() -> None:
    """Exchange events, each when it is due: one that is held up counts for those that were due behind it."""
    told = json.loads(sys.stdin.readline())
    context = ssl.create_default_context(cafile=told["ca_file"]) if told["ca_file"] else None
    ada, bob = (
        Peer(told["port"], user_id, token=told["tokens"].get(user_id, ""), context=context)
        for user_id in USERS
    )
    event = {"type": "t", "to_users": ["bob"], "data": "x" * 200}
    wire = frame(TEXT, json.dumps({"event": "collab_event", "data": event}).encode())
    print("ready", flush=True)
    found = []
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0]:
        ada.socket.sendall(wire)
        _wait_for(bob, b"collab_event")
        found.append((due, time.monotonic() - due))
        _wait_for(ada, b"event_ack")
        due += EVERY_SECONDS
    print(json.dumps(found), flush=True)


def _wait_for(peer: Peer, name: bytes) -> None:
    while not any(name in payload for opcode, payload in peer.receive() if opcode == TEXT):
        pass


if __name__ == "__main__":
    main()
