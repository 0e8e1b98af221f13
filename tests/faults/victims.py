"""Clients to be killed: `victims.py PORT` forks one for each line of its standard input, and prints its pid.

A line is the bytes that the client sends, in hex; it prints the pid once they are on their way.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main() -> None:
    """Fork until the standard input ends."""
    children = []
    for line in sys.stdin:
        said = bytes.fromhex(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            opened = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            opened.sendall(said)
            os.write(writing, b"x")
            signal.pause()
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        children.append(pid)
        print(pid, flush=True)
    # Until here none is waited for: so no pid that was printed can be another process's.
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
