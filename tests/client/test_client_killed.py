"""The service is killed at random moments, and its clients live on."""

from __future__ import annotations

import random
import signal
import socket
from functools import partial

import anyio
import attrs
from anyio.to_thread import run_sync
from commands import Command
from counts import count
from fake_service import QUICK
from loops import on_both_loops_for

from collab.client import Ack, CollabClientError, connect

ROUNDS = count(3, 200)
# The time from the start of a process to its port varies by that much more than what a client does in it.
LONGEST_LIFE_SECONDS = 0.3

LIMITS = attrs.evolve(QUICK, longest_delay_seconds=0.05, ack_seconds=5, offline_seconds=20, offline_sends=3)


class Senders:
    """Sends numbers to two users, several at once, and keeps what became of each."""

    def __init__(self, collab):
        self.outcomes = {}
        self._collab = collab
        self._last = 0

    async def run(self):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(self._run)

    async def _run(self):
        while True:
            self._last += 1
            number = self._last
            self.outcomes[number] = None
            try:
                outcome = await self._collab.send("note", ["steady", "brief"], number)
            except CollabClientError as error:
                outcome = error
                # Too many wait for the connection: come back a little later.
                await anyio.sleep(0.02)
            self.outcomes[number] = outcome


async def take(items, taken):
    async for item in items:
        taken.append(item)


def free_port():
    """A port that no outgoing connection is given, so that only a service can take it."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


async def running_tasks():
    await anyio.wait_all_tasks_blocked()
    return len(anyio.get_running_tasks())


@on_both_loops_for(30.0 + 15.0 * ROUNDS)
async def test_clients_outlive_a_service_that_is_killed_at_any_moment(tmp_path):
    port = free_port()
    chance = random.Random(port)
    steady_takes, brief_takes = [], []
    client = partial(
        connect, f"ws://127.0.0.1:{port}", backend_url="http://a", limits=LIMITS, start_seconds=0
    )

    async def one_round():
        """A service comes, lives for a moment, and is killed; so does a client."""
        command = await run_sync(partial(Command, tmp_path, "serve", "--port", str(port), "--log-file", ""))
        with command:
            await run_sync(command.address)
            async with client(user_id="brief") as brief, anyio.create_task_group() as tasks:
                tasks.start_soon(take, brief.events(), brief_takes)
                tasks.start_soon(take, brief.presence(), [])
                senders = Senders(brief)
                tasks.start_soon(senders.run)
                await anyio.sleep(chance.uniform(0, LONGEST_LIFE_SECONDS))
                command.signal(signal.SIGKILL)
                await anyio.sleep(chance.choice([0, 0.01, 0.1]))
                tasks.cancel_scope.cancel()
            await run_sync(command.wait)
        return senders.outcomes

    everything = []
    async with client(user_id="steady") as steady, anyio.create_task_group() as tasks:
        tasks.start_soon(take, steady.events(), steady_takes)
        tasks.start_soon(take, steady.presence(), [])
        before = await running_tasks()
        senders = Senders(steady)
        for _ in range(ROUNDS):
            async with anyio.create_task_group() as sending:
                sending.start_soon(senders.run)
                everything.append(await one_round())
                sending.cancel_scope.cancel()
            assert await running_tasks() <= before + 1
        tasks.cancel_scope.cancel()
    everything.append(senders.outcomes)

    known = [outcome for outcomes in everything for outcome in outcomes.values()]
    assert any(isinstance(outcome, Ack) for outcome in known)
    for outcome in known:
        assert outcome is None or isinstance(outcome, (Ack, CollabClientError))
    for takes in (steady_takes, brief_takes):
        numbers = [(event.from_user, event.data) for event in takes if event.from_user == "steady"]
        assert len(numbers) == len(set(numbers)), "an event came twice"
