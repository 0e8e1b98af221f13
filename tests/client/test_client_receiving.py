"""Handlers and iterators: who gets what, and who waits for whom."""

from __future__ import annotations

import asyncio
import logging

import anyio
import attrs
import pytest
from fake_service import QUICK, fake_service
from loops import on_both_loops
from test_client_sending import Outcome, client

from collab.client import CommentAdded, Event, PositionShared, PositionUpdated, ShareRevoked, connect
from collab.client.events import event_from
from collab.wire.as_client import ReceivedEvent

COMMENT = {
    "position_id": "42",
    "comment": {"id": "c", "text": "Hm", "user": {"id": "bob", "display_name": "Bob"}, "created_at": "t"},
}


@pytest.mark.parametrize(
    ("type", "data", "kind"),
    [
        ("position_shared", {"position_id": "42", "share_url": "http://a"}, PositionShared),
        ("comment_added", COMMENT, CommentAdded),
        ("position_updated", {"position_id": "42", "updates": {"tags": []}}, PositionUpdated),
        ("share_revoked", {"position_id": "42"}, ShareRevoked),
        ("comment_added", {"text": "Great setup!"}, Event),
        ("share_revoked", None, Event),
        ("of_my_own", [1], Event),
    ],
)
def test_an_event_has_the_class_of_its_type_if_its_data_is_as_the_type_says(type, data, kind):
    event = event_from(ReceivedEvent(type=type, from_user="bob", to_users=("ada",), data=data))
    assert event.__class__ is kind
    assert (event.type, event.from_user, event.data) == (type, "bob", data)
    if kind is CommentAdded:
        assert (event.comment.text, event.comment.user_id) == ("Hm", "bob")


@on_both_loops
async def test_handlers_and_iterators_all_get_every_event():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        await peer.send_event("note", 0)
        seen, everything = [], []

        async def slowly(event):
            await anyio.lowlevel.checkpoint()
            seen.append(event.data)

        collab.on("note", slowly)
        collab.on("*", lambda event: everything.append(event.data))
        one, two = collab.events(), collab.events()
        for number in range(1, 4):
            await peer.send_event("note", number)
        await peer.send_event("other", 4)
        assert [(await anext(one)).data for _ in range(5)] == [0, 1, 2, 3, 4]
        assert [(await anext(two)).data for _ in range(5)] == [0, 1, 2, 3, 4]
        await anyio.wait_all_tasks_blocked()
        assert seen == [0, 1, 2, 3]
        assert everything == [0, 1, 2, 3, 4]


@on_both_loops
async def test_a_handler_that_raises_is_logged_and_stops_nobody(caplog):
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        got = anyio.Event()

        def fails(event):
            raise ValueError("this one")

        collab.on("note", fails)
        collab.on("note", lambda event: got.set() if event.data == 2 else None)
        await peer.send_event("note", 1)
        await peer.send_event("note", 2)
        await got.wait()
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 2
    assert "this one" in caplog.text


def test_a_handler_that_awaits_a_cancelled_task_of_asyncio_stops_nobody(caplog):
    async def main():
        async with fake_service() as service, client(service) as collab:
            peer = await service.welcome()
            got = asyncio.Event()

            async def awaits_a_cancelled_task(event):
                task = asyncio.create_task(asyncio.sleep(60))
                task.cancel()
                await task

            collab.on("note", awaits_a_cancelled_task)
            collab.on("note", lambda event: got.set() if event.data == 2 else None)
            await peer.send_event("note", 1)
            await peer.send_event("note", 2)
            async with asyncio.timeout(10):
                await got.wait()
            is_still_in = True
        assert is_still_in

    asyncio.run(main())
    assert caplog.text.count("A handler of note failed") == 2


@on_both_loops
async def test_a_handler_that_was_taken_away_is_not_called():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        seen = []
        off = collab.on("note", seen.append)
        events = collab.events()
        await peer.send_event("note", 1)
        await anext(events)
        await anyio.wait_all_tasks_blocked()
        off()
        off()
        await peer.send_event("note", 2)
        await anext(events)
        await anyio.wait_all_tasks_blocked()
        assert [event.data for event in seen] == [1]


@on_both_loops
async def test_after_the_last_handler_events_are_kept_for_the_next():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        got = anyio.Event()
        off = collab.on("note", lambda event: got.set())
        await peer.send_event("note", 1)
        await got.wait()
        off()
        await peer.send_event("note", 2)
        await anyio.wait_all_tasks_blocked()
        again, seen = anyio.Event(), []

        def take(event):
            seen.append(event.data)
            again.set()

        collab.on("note", take)
        await again.wait()
        assert seen == [2]


@on_both_loops
async def test_a_handler_may_send_and_wait_for_its_ack_while_more_events_wait_than_may():
    limits = attrs.evolve(QUICK, queued_events=10)
    async with (
        fake_service() as service,
        client(service, limits) as collab,
        anyio.create_task_group() as tasks,
    ):
        peer = await service.welcome()
        answered = []

        async def answer(event):
            answered.append(await collab.send("answer", ["bob"], event.data))

        collab.on("note", answer)
        for number in range(15):
            await peer.send_event("note", number)
        for number in range(15):
            message = await peer.receive()
            assert message["data"]["data"] == number
            # What comes between an event and the ack of its answer.
            await peer.send_event("other", number)
            await peer.ack(message)
        tasks.cancel_scope.cancel()
    assert len(answered) == 15


@on_both_loops
async def test_a_slow_reader_pauses_reading_and_loses_nothing():
    limits = attrs.evolve(QUICK, queued_events=10)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        events = collab.events()
        size = 20_000
        blocked = sent = 0
        # Far more than the queue: until the sockets' buffers are full as well.
        while not blocked:
            with anyio.move_on_after(0.2) as scope:
                await peer.send_event("note", f"{sent:05}" + "x" * size)
                sent += 1
            blocked = scope.cancelled_caught
            assert sent < 5000
        assert len(collab._inbox) < 10 + 65536 // size + 2
        for number in range(sent):
            assert (await anext(events)).data.startswith(f"{number:05}")


@on_both_loops
async def test_tasks_that_share_an_iterator_get_each_event_once():
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()
        events, taken = collab.events(), []

        async def take():
            async for event in events:
                taken.append(event.data)
                if len(taken) == 50:
                    is_all.set()

        is_all = anyio.Event()
        takers = [Outcome(tasks, take) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        for number in range(50):
            await peer.send_event("note", number)
            if number % 10 == 0:
                await anyio.wait_all_tasks_blocked()
        await is_all.wait()
        assert sorted(taken) == list(range(50))
        collab.close()
        for taker in takers:
            await taker.done.wait()
            assert taker.error is None


@on_both_loops
async def test_a_reader_that_left_holds_up_nobody():
    limits = attrs.evolve(QUICK, queued_events=3)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        await peer.send_event("note", "first")
        async for event in collab.events():
            assert event.data == "first"
            break
        seen = []
        collab.on("note", seen.append)
        for number in range(100):
            await peer.send_event("note", number)
        async with anyio.create_task_group() as tasks:
            sent = Outcome(tasks, collab.send, "note", ["bob"])
            await peer.ack(await peer.receive())
            await sent.done.wait()
        await anyio.wait_all_tasks_blocked()
        assert [event.data for event in seen] == list(range(100))


@on_both_loops
async def test_while_nobody_takes_events_the_newest_are_kept_and_one_warning_is_logged(caplog):
    limits = attrs.evolve(QUICK, queued_events=5)
    async with (
        fake_service() as service,
        client(service, limits) as collab,
        anyio.create_task_group() as tasks,
    ):
        peer = await service.welcome()
        for number in range(100):
            await peer.send_event("note", number)
        sent = Outcome(tasks, collab.send, "note", ["bob"])
        await peer.ack(await peer.receive())
        await sent.done.wait()
        events = collab.events()
        assert [(await anext(events)).data for _ in range(5)] == [95, 96, 97, 98, 99]
    assert caplog.text.count("Nobody takes events") == 1


@on_both_loops
async def test_iterators_end_with_the_block():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        async with client(service) as collab:
            peer = await service.welcome()
            await peer.send_event("note", 1)
            taken = []

            async def take(items):
                async for item in items:
                    taken.append(item)

            events = Outcome(tasks, take, collab.events())
            changes = Outcome(tasks, take, collab.presence())
            while not taken:
                await anyio.wait_all_tasks_blocked()
        await events.done.wait()
        await changes.done.wait()
        assert (events.error, changes.error) == (None, None)


@on_both_loops
async def test_what_is_no_message_is_left_out_and_what_is_unknown_ignored(caplog):
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        events = collab.events()
        await peer.send("of_tomorrow", {})
        await peer.send("event_ack", {"delivered_to": "many"}, 1)
        await peer.send("collab_event", {"type": 1})
        await peer.send("error", {"message": "m", "error": "e", "code": "invalid_json"})
        await peer.send("notice", {"message": "Maintenance"})
        await peer.send_event("note", "after")
        assert (await anext(events)).data == "after"
    assert caplog.text.count("cannot be read") == 2
    assert "The service reports an error: e (invalid_json)" in caplog.text


@on_both_loops
async def test_two_clients_of_a_real_service_hear_each_other(service_url):
    async with (
        connect(service_url, user_id="anna", backend_url="http://a") as anna,
        connect(service_url, user_id="bert", backend_url="http://b") as bert,
    ):
        events = bert.events()
        ack = await anna.share_position(["bert", "nobody"], position_id="42", share_url="http://a/42")
        assert (ack.delivered_to, ack.undelivered) == (1, ("nobody",))
        event = await anext(events)
        assert isinstance(event, PositionShared)
        assert (event.from_user, event.share_url) == ("anna", "http://a/42")
        assert {"anna", "bert"} <= set(bert.online)
