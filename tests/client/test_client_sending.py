"""Sends, their acks and their errors."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import attrs
import pytest
from fake_service import QUICK, fake_service
from loops import on_both_loops

from collab.client import (
    AckTimeout,
    ConnectionLost,
    InvalidEvent,
    MaybeDelivered,
    NotAllowed,
    NotConnected,
    RateLimited,
    State,
    connect,
)


def client(service, limits=QUICK, **options):
    options = {"user_id": "ada", "backend_url": "http://a", "display_name": "Ada", **options}
    return connect(service.url, start_seconds=0, limits=limits, **options)


class Outcome:
    """What became of a call in a task of its own."""

    def __init__(self, tasks, function, *arguments):
        self.value = self.error = None
        self.done = anyio.Event()
        tasks.start_soon(self._run, function, arguments)

    async def _run(self, function, arguments):
        try:
            self.value = await function(*arguments)
        except Exception as error:
            self.error = error
        self.done.set()


@on_both_loops
async def test_the_ack_of_a_send_is_that_with_its_id():
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()
        first = Outcome(tasks, collab.send, "note", ["bob"], {"n": 1})
        one = await peer.receive()
        second = Outcome(tasks, collab.send, "note", ["bob", "cleo"], {"n": 2})
        two = await peer.receive()
        assert (one["data"]["data"], two["data"]["data"]) == ({"n": 1}, {"n": 2})
        await peer.ack(two, delivered_to=1, total_recipients=2, undelivered=["cleo"])
        await second.done.wait()
        assert not first.done.is_set()
        assert (second.value.delivered_to, second.value.total_recipients) == (1, 2)
        assert second.value.undelivered == ("cleo",)
        await peer.ack(one)
        await first.done.wait()
        assert first.value.undelivered == ()


@on_both_loops
async def test_the_four_kinds_are_sent_as_the_protocol_has_them():
    at = datetime(2025, 11, 1, 10, 0, 0, tzinfo=UTC)
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()

        async def talk():
            await collab.share_position(["bob"], position_id="42", share_url="http://a/42", shared_at=at)
            await collab.add_comment(["bob"], position_id="42", text="Hm", comment_id="c1", created_at=at)
            await collab.update_position(["bob"], position_id="42", updates={"notes": "n"})
            await collab.revoke_share(["bob"], position_id="42")
            await collab.send("of_my_own", ["bob"])

        tasks.start_soon(talk)
        seen = {}
        for _ in range(5):
            message = await peer.receive()
            seen[message["data"]["type"]] = message["data"]["data"]
            await peer.ack(message)
        comment = {
            "id": "c1",
            "text": "Hm",
            "user": {"id": "ada", "display_name": "Ada"},
            "created_at": "2025-11-01T10:00:00Z",
        }
        assert seen == {
            "position_shared": {
                "position_id": "42",
                "share_url": "http://a/42",
                "shared_at": "2025-11-01T10:00:00Z",
            },
            "comment_added": {"position_id": "42", "comment": comment},
            "position_updated": {"position_id": "42", "updates": {"notes": "n"}},
            "share_revoked": {"position_id": "42"},
            "of_my_own": {},
        }


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid_event", InvalidEvent),
        ("too_many_recipients", InvalidEvent),
        ("from_user_mismatch", NotAllowed),
        ("rate_limited", RateLimited),
        ("a_code_of_tomorrow", InvalidEvent),
    ],
)
@on_both_loops
async def test_an_error_of_the_service_is_a_typed_error(code, error):
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()
        sent = Outcome(tasks, collab.send, "note", ["bob"])
        message = await peer.receive()
        data = {"message": "No", "error": "data.type: why", "code": code}
        await peer.send("error", data | {"retry_after_ms": 250}, message["id"])
        await sent.done.wait()
        assert type(sent.error) is error
        assert "why" in str(sent.error)
        if error is RateLimited:
            assert sent.error.retry_after == 0.25
        else:
            assert sent.error.code == code


@pytest.mark.parametrize(
    ("to_users", "data"),
    [("bob", {}), (["bob"], object()), (["bob"], "x" * 70_000), (["bob"], "é" * 35_000)],
    ids=["one text", "no JSON", "too large", "too large in UTF-8"],
)
@on_both_loops
async def test_what_the_service_would_not_take_is_not_sent(to_users, data):
    async with fake_service() as service, client(service) as collab:
        with pytest.raises(InvalidEvent):
            await collab.send("note", to_users, data)


@on_both_loops
async def test_a_time_without_a_zone_is_not_sent():
    async with fake_service() as service, client(service) as collab:
        with pytest.raises(InvalidEvent, match="time zone"):
            await collab.share_position(
                ["bob"], position_id="1", share_url="http://a", shared_at=datetime(2025, 1, 1)
            )


@on_both_loops
async def test_an_ack_that_does_not_come_in_time_is_an_ack_timeout():
    limits = attrs.evolve(QUICK, ack_seconds=0.05)
    async with fake_service() as service, client(service, limits) as collab:
        peer = await service.welcome()
        with pytest.raises(AckTimeout, match="may have been delivered") as caught:
            await collab.send("note", ["bob"])
        assert isinstance(caught.value, MaybeDelivered)
        # One that comes too late is nobody's.
        await peer.ack(await peer.receive())
        async with anyio.create_task_group() as tasks:
            sent = Outcome(tasks, collab.send, "note", ["bob"])
            await peer.ack(await peer.receive())
        assert sent.value.delivered_to == 1


@on_both_loops
async def test_a_send_whose_ack_is_lost_with_the_connection_says_so_and_is_not_sent_again():
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        peer = await service.welcome()
        sent = Outcome(tasks, collab.send, "note", ["bob"], 1)
        await peer.receive()
        peer.vanish()
        await sent.done.wait()
        assert isinstance(sent.error, ConnectionLost)
        peer = await service.welcome()
        again = Outcome(tasks, collab.send, "note", ["bob"], 2)
        message = await peer.receive()
        assert message["data"]["data"] == 2
        await peer.ack(message)
        await again.done.wait()
        assert again.value


@on_both_loops
async def test_a_send_while_down_waits_for_the_connection_and_order_holds():
    async with fake_service() as service, client(service) as collab, anyio.create_task_group() as tasks:
        sent = []
        for number in range(5):
            sent.append(Outcome(tasks, collab.send, "note", ["bob"], number))
            await anyio.wait_all_tasks_blocked()
        peer = await service.welcome()
        for number in range(5):
            message = await peer.receive()
            assert message["data"]["data"] == number
            await peer.ack(message)
        for outcome in sent:
            await outcome.done.wait()
            assert outcome.error is None


@on_both_loops
async def test_a_send_while_down_waits_no_longer_than_it_may():
    limits = attrs.evolve(QUICK, offline_seconds=0.05)
    async with fake_service() as service, client(service, limits) as collab:
        with pytest.raises(NotConnected, match="nothing was sent"):
            await collab.send("note", ["bob"], 1)
        peer = await service.welcome()
        async with anyio.create_task_group() as tasks:
            Outcome(tasks, collab.send, "note", ["bob"], 2)
            message = await peer.receive()
            assert message["data"]["data"] == 2
            await peer.ack(message)


@on_both_loops
async def test_more_sends_than_may_wait_are_not_taken():
    limits = attrs.evolve(QUICK, offline_sends=2)
    async with (
        fake_service() as service,
        client(service, limits) as collab,
        anyio.create_task_group() as tasks,
    ):
        waiting = [Outcome(tasks, collab.send, "note", ["bob"], number) for number in range(2)]
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(NotConnected, match="2 sends wait already"):
            await collab.send("note", ["bob"])
        peer = await service.welcome()
        for _ in waiting:
            await peer.ack(await peer.receive())


@on_both_loops
async def test_a_send_that_is_cancelled_while_it_waits_is_not_sent():
    async with fake_service() as service, client(service) as collab:
        with anyio.move_on_after(0.02):
            await collab.send("note", ["bob"], 1)
        peer = await service.welcome()
        async with anyio.create_task_group() as tasks:
            Outcome(tasks, collab.send, "note", ["bob"], 2)
            message = await peer.receive()
            assert message["data"]["data"] == 2
            await peer.ack(message)


@on_both_loops
async def test_sends_of_other_tasks_end_with_the_block():
    limits = attrs.evolve(QUICK, close_seconds=0.05)
    async with fake_service() as service, anyio.create_task_group() as tasks:
        async with client(service, limits) as collab:
            peer = await service.welcome()
            written = Outcome(tasks, collab.send, "note", ["bob"])
            await peer.receive()
        await written.done.wait()
        assert isinstance(written.error, ConnectionLost)
        assert collab.state is State.CLOSED
        with pytest.raises(NotConnected, match="closed"):
            await collab.send("note", ["bob"])


@on_both_loops
async def test_many_sends_at_once_are_all_acknowledged(service_url):
    async with connect(service_url, user_id="many", backend_url="http://a", presence=False) as collab:
        acks = []

        async def send(number):
            acks.append(await collab.send("note", ["many"], number))

        async with anyio.create_task_group() as tasks:
            for number in range(500):
                tasks.start_soon(send, number)
        assert sum(ack.delivered_to for ack in acks) == 500
        events = collab.events()
        assert sorted([(await anext(events)).data for _ in range(500)]) == list(range(500))
