"""The example's backends lose nothing and double nothing, whoever is killed while they talk."""

from __future__ import annotations

import signal
import threading

import pytest
from commands import Command
from counts import count
from demo_backends import Backend, free_port, is_connected, sees, sees_comments, sees_not

ENDS = [signal.SIGKILL, signal.SIGTERM] * count(1, 8)
COMMENTS = "SELECT id, position_id, user_id, text FROM comments ORDER BY id"


class Service:
    """A service that comes back on the port that it had. Owns its process."""

    def __init__(self, directory):
        self._directory = directory
        self._port = free_port()
        self.url = f"ws://localhost:{self._port}"
        self.start()

    def start(self):
        arguments = ("--port", str(self._port), "--log-file", "", "--log-level", "warning")
        self._command = Command(self._directory, "serve", *arguments)

    def end(self, number=signal.SIGKILL):
        self._command.signal(number)
        self._command.wait()


class Talk:
    """Somebody who comments without end. `answered` are the ids of what the backend has accepted."""

    def __init__(self, backend, id):
        self.answered = []
        self.has_ended = threading.Event()
        self._backend = backend
        self._id = id
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self.has_ended.wait(0.005):
            text = f"{self._backend.user_id} {len(self.answered)}"
            self.answered.append(self._backend.comment(self._id, text))

    def go_on(self, more):
        """Let so many more be said."""
        goal = len(self.answered) + more
        while len(self.answered) < goal:
            assert self._thread.is_alive()
            self.has_ended.wait(0.01)

    def end(self):
        self.has_ended.set()
        self._thread.join()


def has_settled(backend, answered):
    """Nothing waits, and every accepted comment is there."""
    state = backend.state()
    there = {comment["id"] for position in state["positions"] for comment in position["comments"]}
    return not state["waiting"] and there >= answered


def nothing_waits(backend):
    return backend.state()["waiting"] == 0


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A service, and the backends of Ada and Bob."""
    directory = tmp_path_factory.mktemp("restart")
    service = Service(directory)
    try:
        with Backend(directory, "ada", service.url) as ada, Backend(directory, "bob", service.url) as bob:
            yield service, ada, bob
    finally:
        service.end()


@pytest.fixture
def shared(three):
    """A new position of Ada's that Bob sees."""
    _, ada, bob = three
    for backend in (ada, bob):
        backend.until(is_connected)
    id = ada.create()
    ada.share(id, "bob")
    bob.until(sees, id)
    return id


def test_a_restart_of_the_service_in_mid_conversation_loses_and_doubles_nothing(three, shared):
    service, ada, bob = three
    talks = [Talk(ada, shared), Talk(bob, shared)]
    try:
        for number in ENDS:
            for talk in talks:
                talk.go_on(10)
            service.end(number)
            for talk in talks:
                talk.go_on(5)
            service.start()
            for backend in (ada, bob):
                backend.until(is_connected)
    finally:
        for talk in talks:
            talk.end()
    answered = {comment for talk in talks for comment in talk.answered}
    assert len(answered) == sum(len(talk.answered) for talk in talks) >= 30 * len(ENDS)
    for backend in (ada, bob):
        backend.until(has_settled, answered)
    assert [id for id, *_ in ada.rows(COMMENTS)] == sorted(answered)
    assert bob.rows(COMMENTS) == ada.rows(COMMENTS)


def test_what_was_acknowledged_and_got_lost_with_the_service_comes_back(three, shared):
    service, ada, bob = three
    lost = ada.create("Shared in vain")
    ada.share(lost, "bob")
    bob.until(sees, lost)
    gone = ada.create("Revoked in vain")
    ada.share(gone, "bob")
    bob.until(sees, gone)
    ada.comment(shared, "from Ada")
    bob.comment(shared, "from Bob")
    for backend in (ada, bob):
        backend.until(lambda backend: len(backend.texts(shared)) == 2)
        backend.until(nothing_waits)
    said = ada.texts(shared)
    service.end()
    # As if the service had acknowledged all of this, and had died before it sent it on.
    ada.execute("DELETE FROM comments WHERE text = 'from Bob'")
    ada.execute("DELETE FROM shares WHERE position_id = ?", gone)
    ada.execute("UPDATE positions SET notes = 'new' WHERE id = ?", shared)
    bob.execute("DELETE FROM comments WHERE text = 'from Ada'")
    bob.execute("DELETE FROM positions WHERE id = ?", lost)
    service.start()
    for backend in (ada, bob):
        backend.until(sees_comments, shared, said)
    bob.until(sees, lost)
    bob.until(sees_not, gone)
    assert bob.position(shared)["notes"] == "new"


def test_what_a_backend_had_still_to_send_when_it_was_killed_is_sent_by_the_next_one(three, shared):
    service, ada, bob = three
    service.end()
    bob.comment(shared, "Before the end")
    ada.comment(shared, "Meanwhile")
    bob.end(signal.SIGKILL)
    bob.start_again()
    service.start()
    said = ["Before the end", "Meanwhile"]
    for backend in (ada, bob):
        backend.until(sees_comments, shared, said)
    for backend in (ada, bob):
        backend.until(nothing_waits)


def test_a_backend_that_is_killed_alone_misses_nothing(three, shared):
    _, ada, bob = three
    bob.end(signal.SIGKILL)
    ada.comment(shared, "For later")
    ada.update(shared, notes="new")
    bob.start_again()
    bob.until(sees_comments, shared, ["For later"])
    bob.until(lambda bob: bob.position(shared)["notes"] == "new")
