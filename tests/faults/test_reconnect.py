"""Everybody comes, vanishes and comes back at once; so does one user on several connections."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import trio
from baseline import Holdings
from clients import Clients, open_files
from counts import count
from invariants import check_i4_registry, check_i7_baseline
from peers import BINARY, frame

PATIENCE_SECONDS = 30


@pytest.mark.trio
async def test_everybody_back_at_once_while_the_old_ends_are_noticed_is_one_consistent_registry(
    open_over_sockets,
):
    size = count(300, 2000)
    users = [f"u{number}" for number in range(size)]
    # Both ends of each connection, and those that are on their way out.
    with open_files(6 * size + 256):
        async with open_over_sockets(timeout_seconds=PATIENCE_SECONDS) as local:
            # The thread that plays the clients stays, as idle threads of Trio do.
            await trio.to_thread.run_sync(bool)
            before = Holdings.now()
            with Clients(local.service.addresses[0]) as clients:

                def storm():
                    (observer,) = clients.connect(["observer"], wants_presence=True)
                    crowd = clients.connect(users, at_once=size)
                    for _ in range(2):
                        clients.drop(crowd)
                        crowd = clients.connect(users, at_once=size)
                    # And once more, most of them while they are on their way in.
                    clients.drop(crowd)
                    crowd = [clients.begin(user_id) for user_id in users]
                    clients.until(lambda: sum(client.is_connected for client in crowd) > size // 5)
                    clients.drop(crowd)
                    crowd = clients.connect(users, at_once=size)
                    return observer, crowd

                observer, crowd = await trio.to_thread.run_sync(storm)
                await until_registered(local, [*users, "observer"])

                def after():
                    # Notices are told in order: all that were due come before the newcomer's.
                    clients.connect(["newcomer"])
                    clients.until(lambda: says_online(observer, "newcomer"))
                    # One event to each, so that each is known to be reached, and once.
                    for first in range(0, size, 500):
                        observer.send_event(users[first : first + 500])
                    clients.until(lambda: clients.acknowledged() and all(len(c.received) for c in crowd))
                    assert all(event.undelivered == [] for event in observer.sent)
                    assert all(client.is_connected for client in crowd)
                    clients.ledger.check()

                await trio.to_thread.run_sync(after)
                check_i4_registry(local, [*users, "observer", "newcomer"])
                check_notices(observer, {*users, "newcomer"})
            await check_i7_baseline(before)
            assert local.online() == set()


async def until_registered(local, users):
    """Wait until the registry is these connections, and hold it against them."""
    registry = local.service.registry
    with trio.move_on_after(PATIENCE_SECONDS):
        while registry.connection_count != len(users):
            await trio.testing.wait_all_tasks_blocked(0.01)
    check_i4_registry(local, users)


def says_online(observer, user_id):
    last = observer.heard[-1]
    return last["event"] == "user_online" and last["data"]["user_id"] == user_id


def check_notices(observer, users):
    """Each user came and went in turns, and is there at the end."""
    told = defaultdict(list)
    for message in observer.heard:
        if message["event"] in ("user_online", "user_offline"):
            told[message["data"]["user_id"]].append(message["event"])
    assert set(told) == users
    for user_id, notices in told.items():
        in_turns = ["user_online", "user_offline"] * (len(notices) // 2) + ["user_online"]
        assert notices == in_turns, user_id


@pytest.mark.trio
async def test_rounds_of_concurrent_reconnects_of_one_user_leave_the_registry_right(open_over_sockets):
    draw = random.Random(2025)
    # The observer hears nothing for as long as all goes well.
    async with open_over_sockets(timeout_seconds=300) as local:
        observer = await local.connect("observer", presence="all")
        heard = []

        async def observe():
            while True:
                heard.append(await observer.receive())

        async def end(backend):
            how = draw.choice(("close", "drop", "fin", "breach"))
            if how == "close":
                await backend.close()
            elif how == "drop":
                await backend.drop()
            elif how == "fin":
                await backend.stream.aclose()
            else:
                await backend.stream.send_all(frame(BINARY, b"x"))
                await backend.wait_closed()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(observe)
            survivor = await local.connect("ada")
            before = Holdings.now()
            for round_number in range(count(100, 1000)):
                newcomers = []

                async def come(into=newcomers):
                    into.append(await local.connect("ada"))

                async with trio.open_nursery() as together:
                    for _ in range(draw.randrange(2, 6)):
                        together.start_soon(come)
                    # The old connection ends while the new ones come up, or after them.
                    if draw.random() < 0.5:
                        await leaves_once_another_is_there(local, survivor, newcomers, end)
                        survivor = None
                if survivor is not None:
                    newcomers.append(survivor)
                draw.shuffle(newcomers)
                survivor = newcomers.pop()
                async with trio.open_nursery() as together:
                    for backend in newcomers:
                        together.start_soon(end, backend)
                assert await survivor.echoes(), round_number
                await until_registered(local, ["ada", "observer"])
            await check_i7_baseline(before)
            await observer.send("ping")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert [message["event"] for message in heard if message["event"] != "pong"] == ["user_online"]
            await end(survivor)
            with trio.fail_after(5):
                while heard[-1]["event"] != "user_offline":
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert local.online() == {"observer"}
            nursery.cancel_scope.cancel()


async def leaves_once_another_is_there(local, backend, newcomers, end):
    with trio.fail_after(5):
        while not newcomers:
            await trio.lowlevel.checkpoint()
    await end(backend)
