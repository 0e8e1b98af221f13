"""The client for code that blocks."""

from __future__ import annotations

import threading

import pytest

from collab.client import CommentAdded, InvalidEvent, NotConnected, PositionShared, State
from collab.client.blocking import connect


def test_two_blocking_clients_hear_each_other(service_url):
    with (
        connect(service_url, user_id="anna", backend_url="http://a", display_name="Anna") as anna,
        connect(service_url, user_id="bert", backend_url="http://b") as bert,
    ):
        assert (anna.user_id, anna.state, anna.reason) == ("anna", State.CONNECTED, "")
        ack = anna.share_position(["bert", "nobody"], position_id="42", share_url="http://a/42")
        assert (ack.delivered_to, ack.undelivered) == (1, ("nobody",))
        anna.add_comment(["bert"], position_id="42", text="Hm")
        anna.update_position(["bert"], position_id="42", updates={"tags": ["x"]})
        anna.revoke_share(["bert"], position_id="42")
        anna.wait_connected()
        events = list(bert.events(timeout=0.5))
        assert [event.type for event in events] == [
            "position_shared",
            "comment_added",
            "position_updated",
            "share_revoked",
        ]
        assert isinstance(events[0], PositionShared)
        assert isinstance(events[1], CommentAdded)
        assert {"anna", "bert"} <= set(anna.online)


def test_a_handler_runs_in_a_thread_and_may_send(service_url):
    with (
        connect(service_url, user_id="asks", backend_url="http://a") as asks,
        connect(service_url, user_id="answers", backend_url="http://b") as answers,
    ):
        threads = set()

        def answer(event):
            threads.add(threading.get_ident())
            answers.send("answer", [event.from_user], event.data)

        off = answers.on("question", answer)
        replies = asks.events(timeout=10)
        for number in range(3):
            asks.send("question", ["answers"], number)
            assert next(replies).data == number
        off()
        assert threading.get_ident() not in threads


def test_who_comes_is_told(service_url):
    with connect(service_url, user_id="looks", backend_url="http://a") as looks:
        changes = looks.presence(timeout=10)
        with connect(service_url, user_id="comes", backend_url="http://b"):
            change = next(changes)
            assert (change.user_id, change.online) == ("comes", True)


def test_several_threads_may_send(service_url):
    with connect(service_url, user_id="threads", backend_url="http://a") as collab:
        acks = []
        threads = [
            threading.Thread(target=lambda: acks.append(collab.send("note", ["threads"]))) for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(acks) == 10


def test_after_the_block_there_is_no_connection(service_url):
    with connect(service_url, user_id="over", backend_url="http://a") as collab:
        events = collab.events()
    assert collab.state is State.CLOSED
    assert "over" in collab.online
    with pytest.raises(NotConnected, match="closed"):
        collab.send("note", ["over"])
    with pytest.raises(NotConnected, match="closed"):
        collab.wait_connected()
    assert list(events) == []


def test_errors_come_out_as_they_are(service_url):
    with connect(service_url, user_id="errs", backend_url="http://a") as collab:
        with pytest.raises(InvalidEvent, match=r"data\.type"):
            collab.send("", ["bob"])
        with pytest.raises(TypeError, match="plain function"):
            collab.on("note", _asynchronous)
    with pytest.raises(ValueError, match="mine"), connect(service_url, user_id="e", backend_url="http://a"):
        raise ValueError("mine")
    with (
        pytest.raises(NotConnected),
        connect("ws://127.0.0.1:1", user_id="e", backend_url="http://a", start_seconds=0.1),
    ):
        pytest.fail("the block began")


async def _asynchronous(event):
    return None
