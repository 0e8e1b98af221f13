"""What the client costs: events a second with 1 and 16 in flight, against loops without it.

All send the same event to themselves over loopback and take the event and its ack. The loops send prebuilt
texts and parse what comes; they do nothing else: no types, no deadlines, no reconnects.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx_ws
import websockets

from collab.client import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parents[2]
DATA = {"text": "x" * 180}
BEGIN, END = "<!-- scripts/bench: client -->", "<!-- scripts/bench: end of client -->"


def text(number: int, user: str) -> str:
    event = {"type": "note", "to_users": [user], "data": DATA}
    return json.dumps({"event": "collab_event", "id": number, "data": event})


async def with_client(url: str, user: str, window: int, seconds: float) -> int:
    done = 0
    async with connect(url, user_id=user, backend_url="http://a", presence=False) as collab:

        async def take() -> None:
            async for _ in collab.events():
                pass

        async def send() -> None:
            nonlocal done
            while True:
                await collab.send("note", [user], DATA)
                done += 1

        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                for _ in range(window):
                    tasks.start_soon(send)
    return done


async def bare(
    send: Callable[[str], Awaitable[None]],
    receive: Callable[[], Awaitable[str | bytes]],
    user: str,
    window: int,
    seconds: float,
) -> int:
    """Keep `window` events without an ack."""
    done = sent = 0
    json.loads(await receive())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        while sent - done < window:
            sent += 1
            await send(text(sent, user))
        if json.loads(await receive())["event"] == "event_ack":
            done += 1
    return done


def query(url: str, user: str) -> str:
    return f"{url}/?user_id={user}&backend_url=http://a&presence=none"


async def with_httpx_ws(url: str, user: str, window: int, seconds: float) -> int:
    async with httpx_ws.aconnect_ws(query(url, user), keepalive_ping_interval_seconds=None) as ws:
        return await bare(ws.send_text, ws.receive_text, user, window, seconds)


async def with_websockets(url: str, user: str, window: int, seconds: float) -> int:
    async with websockets.connect(query(url, user)) as ws:
        return await bare(ws.send, ws.recv, user, window, seconds)


WAYS = {
    "collab.client on asyncio": (with_client, "asyncio"),
    "collab.client on Trio": (with_client, "trio"),
    "a bare loop on httpx-ws, asyncio": (with_httpx_ws, "asyncio"),
    "a bare loop on httpx-ws, Trio": (with_httpx_ws, "trio"),
    "a bare loop on websockets, asyncio": (with_websockets, "asyncio"),
}


def measure(url: str, rounds: int, seconds: float) -> str:
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for way, (run, loop) in WAYS.items():
            for window in (1, 16):
                began, cpu = time.perf_counter(), time.process_time()
                done = anyio.run(run, url, f"user{number}", window, seconds, backend=loop)
                passed, worked = time.perf_counter() - began, time.process_time() - cpu
                rates.setdefault((way, window), []).append(done / passed)
                costs.setdefault((way, window), []).append(worked / done * 1e6)
                print(f"{way}, {window} in flight: {done / passed:,.0f} events/s", file=sys.stderr)
    lines = ["| client | in flight | events a second | its CPU time for each |", "|---|--:|--:|--:|"]
    for (way, window), values in sorted(rates.items(), key=lambda item: item[0][1]):
        cost = statistics.median(costs[way, window])
        lines.append(f"| {way} | {window} | {statistics.median(values):,.0f} | {cost:,.0f} µs |")
    python = ".".join(map(str, sys.version_info[:3]))
    versions = ", ".join(f"{name} {version(name)}" for name in ("anyio", "trio", "httpx-ws", "websockets"))
    what = f"`scripts/bench --client`: median of {rounds} rounds of {seconds:g} s."
    return "\n".join([what, f"CPython {python}, {versions}.", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    command = [sys.executable, "-m", "collab", "serve", "--port", "0", "--log-file", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            listening = process.stdout.readline()
            found = re.search(r'"ws":"([^"]+)"', listening)
            assert found, listening
            table = measure(found[1], options.rounds, options.seconds)
        finally:
            process.terminate()
            process.communicate()
    print(table)
    page = ROOT / "docs" / "performance.md"
    if not options.no_write:
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    main()
