"""What the example's backend does with each answer of the service, and with addresses of others."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager

import httpx
import pytest
from demo_backends import SCRIPTS

from collab.client import Ack, AckTimeout, ConnectionLost, NotAllowed, NotConnected, RateLimited, Stopped

sys.path.append(str(SCRIPTS))

from demo_backend import store
from demo_backend.backend import Backend
from demo_backend.database import Database
from demo_backend.settings import Settings

PATIENCE_SECONDS = 10.0


class FakeCollab:
    """A client that answers what it is told to, and then that everything arrived."""

    def __init__(self, answers):
        self.online = {"ada", "bob"}
        self.sent = []
        self._answers = list(answers)

    async def send(self, type, to_users, data):
        self.sent.append((type, to_users, data))
        answer = (
            self._answers.pop(0) if self._answers else Ack(event_type="", delivered_to=1, total_recipients=1)
        )
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait_connected(self):
        pass


@contextmanager
def backend_that_hears(tmp_path, *answers):
    """A backend with one comment in its outbox, for Bob; all else went out before."""
    settings = Settings.from_environment({"USER_ID": "ada", "DATABASE": str(tmp_path / "ada.sqlite")})
    with Database(settings.database) as database:
        backend = Backend(settings, database)
        backend.collab = FakeCollab(answers)

        async def fill():
            id = await backend.write(store.create_position, "ada", "http://a", title="X", tags=[], notes="")
            await backend.write(store.share, "ada", id, ["bob"])
            await backend.write(store.sent, 1)
            await backend.write(store.comment, "ada", "Ada", id, "Hm", "c-1")

        asyncio.run(fill())
        yield backend


def run_until(backend, condition):
    """Send the outbox until the condition holds of what `everything` shows."""

    async def main():
        async with asyncio.timeout(PATIENCE_SECONDS):
            sending = asyncio.create_task(backend.send_outbox())
            while not condition(await backend.read(store.everything)):
                assert not sending.done()
                await asyncio.sleep(0)
            sending.cancel()

    asyncio.run(main())


def nothing_waits(everything):
    return everything["waiting"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        AckTimeout("no ack"),
        ConnectionLost("gone"),
        NotConnected("down"),
        RateLimited("slower", 0.01),
        Ack(event_type="", delivered_to=0, total_recipients=1, undelivered=("bob",)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_event_without_an_ack_of_its_receiver_is_sent_again_as_it_was(tmp_path, answer):
    with backend_that_hears(tmp_path, answer, answer) as backend:
        run_until(backend, nothing_waits)
        first, *again = backend.collab.sent
        assert again == [first, first]
        assert first[2]["comment"]["id"] == "c-1"
        assert asyncio.run(backend.read(store.everything))["refused"] == 0


def test_an_event_that_is_refused_is_kept_aside_and_holds_up_nothing(tmp_path):
    with backend_that_hears(tmp_path, NotAllowed("not to Bob", "forbidden")) as backend:
        run_until(backend, lambda everything: everything["refused"] == 1)
        (position,) = asyncio.run(backend.read(store.everything))["positions"]
        asyncio.run(backend.write(store.comment, "ada", "Ada", position["id"], "Next", "c-2"))
        run_until(backend, nothing_waits)
        assert [data["comment"]["id"] for _, _, data in backend.collab.sent] == ["c-1", "c-2"]


def test_nothing_is_sent_once_the_service_has_said_no_and_nothing_is_lost(tmp_path):
    with backend_that_hears(tmp_path, Stopped("no", status=403)) as backend:
        asyncio.run(asyncio.wait_for(backend.send_outbox(), PATIENCE_SECONDS))
        assert asyncio.run(backend.read(store.everything))["waiting"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x",
        "nonsense",
        "http://[",
        "http://\x1b",
        f"http://{'a' * 70}/",
        "http://a..b/",
        "",
    ],
)
def test_an_address_that_is_none_stops_nothing(tmp_path, url, caplog):
    caplog.set_level("INFO", "demo_backend")
    with backend_that_hears(tmp_path) as backend:

        async def main():
            async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient(trust_env=False) as peers:
                await backend.write(store.take_shared, "ada", "bob", "p-1", url)
                fetching = asyncio.create_task(backend.fetch(peers))
                while "cannot fetch" not in caplog.text:  # noqa: ASYNC110  a log has no event
                    await asyncio.sleep(0)
                # It goes on with what can be fetched.
                assert not fetching.done()
                fetching.cancel()

        asyncio.run(main())


def test_a_backend_that_is_away_is_asked_again_and_new_reasons_do_not_wait(tmp_path):
    asked = []

    def answer(request):
        asked.append(request.url.path)
        if len(asked) < 3:
            raise httpx.ConnectError("nobody there")
        state = {"id": "p-1", "owner": "bob", "title": "Y", "tags": [], "notes": "", "status": "open"}
        return httpx.Response(200, json={**state, "comments": []})

    with backend_that_hears(tmp_path) as backend:

        async def main():
            async with (
                asyncio.timeout(PATIENCE_SECONDS),
                httpx.AsyncClient(transport=httpx.MockTransport(answer)) as peers,
            ):
                await backend.write(store.take_shared, "ada", "bob", "p-1", "http://b/p-1")
                fetching = asyncio.create_task(backend.fetch(peers))
                while await backend.read(store.stale):  # noqa: ASYNC110  a database has no event
                    await asyncio.sleep(0)
                await backend.write(store.mark_stale, "ada")
                while len(asked) < 4 or await backend.read(store.stale):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                assert not fetching.done()
                fetching.cancel()

        asyncio.run(main())
        assert asked == ["/p-1"] * 4


def test_an_answer_without_end_is_not_read_to_its_end(tmp_path):
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 65536
            yield b" " * 65536

    def answer(request):
        return httpx.Response(200, content=endless())

    with backend_that_hears(tmp_path) as backend:

        async def main():
            async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as peers:
                await backend.write(store.take_shared, "ada", "bob", "p-1", "http://b/p-1")
                (stale,) = await backend.read(store.stale)
                with pytest.raises(httpx.HTTPError, match="too large"):
                    await backend._fetch(peers, stale)

        asyncio.run(main())
        assert read < 8 * 1024 * 1024
