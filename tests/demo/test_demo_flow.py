"""Two of the example's backends share, fetch, comment, update and revoke; strangers get nothing."""

from __future__ import annotations

from functools import partial

import anyio
import httpx
import pytest
from demo_backends import POSITIONS, sees, sees_comments, sees_not

from collab.client import connect


@pytest.fixture
def shared(two):
    """A new position of Ada's that Bob sees."""
    ada, bob = two
    id = ada.create(tags=["momentum"], notes="Above 140")
    ada.share(id, "bob")
    bob.until(sees, id)
    return id


def run(function, *arguments):
    anyio.run(partial(function, *arguments))


def test_what_is_shared_is_fetched_from_the_other_backend(two, shared):
    ada, bob = two
    theirs, own = bob.position(shared), ada.position(shared)
    assert theirs == {**own, "shared_with": []}
    assert (own["shared_with"], own["owner"], own["tags"]) == (["bob"], "ada", ["momentum"])
    assert "fetched “NVDA breakout” from ada" in bob.output


def test_comments_go_both_ways_and_keep_their_ids(two, shared):
    ada, bob = two
    ids = [bob.comment(shared, "Great setup!")]
    ada.until(sees_comments, shared, ["Great setup!"])
    ids.append(ada.comment(shared, "Thanks"))
    bob.until(sees_comments, shared, ["Great setup!", "Thanks"])
    for backend in two:
        comments = backend.position(shared)["comments"]
        assert [(comment["id"], comment["display_name"]) for comment in comments] == [
            (ids[0], "Bob"),
            (ids[1], "Ada"),
        ]
    assert (ada.state()["waiting"], bob.state()["waiting"]) == (0, 0)


def test_an_update_arrives(two, shared):
    ada, bob = two
    ada.update(shared, tags=["bullish"], notes="Updated analysis", status="closed")
    bob.until(lambda bob: bob.position(shared)["status"] == "closed")
    assert bob.position(shared) == {**ada.position(shared), "shared_with": []}


def test_what_is_revoked_is_gone_and_can_be_shared_again(two, shared):
    ada, bob = two
    bob.comment(shared, "Hm")
    ada.until(sees_comments, shared, ["Hm"])
    ada.revoke(shared, "bob")
    bob.until(sees_not, shared)
    assert httpx.get(f"{ada.url}{POSITIONS}/{shared}", headers={"X-User-Id": "bob"}).status_code == 404
    with pytest.raises(httpx.HTTPStatusError):
        bob.comment(shared, "Still there?")
    ada.share(shared, "bob")
    bob.until(sees_comments, shared, ["Hm"])


def test_a_comment_that_is_asked_for_twice_is_one(two, shared):
    ada, bob = two
    for _ in range(2):
        bob.ask("POST", f"{POSITIONS}/{shared}/comments", json={"id": f"c-{shared}", "text": "Once"})
    ada.until(sees_comments, shared, ["Once"])
    bob.comment(shared, "Twice")
    ada.until(sees_comments, shared, ["Once", "Twice"])


def test_whoever_does_not_own_a_position_cannot_change_it(two, shared):
    _, bob = two
    for method, path, body in (
        ("PATCH", "", {"notes": "mine"}),
        ("POST", "/share", {"to_users": ["eve"]}),
        ("DELETE", "/share/bob", None),
    ):
        assert bob.user.request(method, f"{POSITIONS}/{shared}{path}", json=body).status_code == 404


def test_pages_of_others_cannot_ask_in_the_name_of_the_user(two, shared):
    ada, _ = two
    path, text = f"{POSITIONS}/{shared}/comments", b'{"text": "Boo"}'
    json = {"Content-Type": "application/json"}
    for headers in ({"Content-Type": "text/plain"}, {**json, "Host": "elsewhere.example"}, {}):
        assert ada.user.post(path, content=text, headers=headers).status_code in (400, 422)
    assert ada.texts(shared) == []


def test_events_that_come_twice_or_from_strangers_change_nothing(two, shared, collab_url):
    ada, bob = two
    before = ada.position(shared)

    async def send():
        async with connect(collab_url, user_id="eve", backend_url="http://eve") as eve:
            comment = {"position_id": shared, "text": "Boo"}
            await eve.add_comment(["ada", "bob"], **comment)
            await eve.update_position(["ada", "bob"], position_id=shared, updates={"notes": "Boo"})
            await eve.revoke_share(["ada", "bob"], position_id=shared)
            await eve.share_position(["ada", "bob"], position_id=shared, share_url="http://eve/boo")
        # Another connection of Bob's, which sends what his backend would send again.
        async with connect(collab_url, user_id="bob", backend_url=bob.url) as again:
            for _ in range(3):
                await again.add_comment(["ada"], position_id=shared, text="Again", comment_id=f"c-{shared}")

    run(send)
    ada.until(sees_comments, shared, ["Again"])
    assert ada.position(shared) == {**before, "comments": ada.position(shared)["comments"]}
    assert bob.position(shared)["notes"] == before["notes"]
    ada.until(lambda ada: ada.output.count("from bob: Again (known)") == 2)
    assert ada.output.count("from bob: Again") == 3


def test_what_another_user_writes_does_not_command_the_terminal(two, shared):
    ada, bob = two
    bob.comment(shared, "\x1b[2J\x07\N{RIGHT-TO-LEFT OVERRIDE}Boo")
    ada.until(lambda ada: "from bob: �[2J��Boo" in ada.output)
    assert ada.texts(shared) == ["\x1b[2J\x07\N{RIGHT-TO-LEFT OVERRIDE}Boo"]


def test_a_third_user_gets_the_comments_of_the_second_from_the_owner(two, shared, collab_url):
    ada, bob = two

    async def listen():
        async with connect(collab_url, user_id="cleo", backend_url="http://cleo") as cleo:
            await anyio.to_thread.run_sync(ada.share, shared, "cleo")
            events = cleo.events()
            assert (await anext(events)).type == "position_shared"
            await anyio.to_thread.run_sync(bob.comment, shared, "For all")
            comment = await anext(events)
            assert (comment.from_user, comment.comment.user_id, comment.comment.text) == (
                "ada",
                "bob",
                "For all",
            )

    run(listen)


def test_what_is_for_somebody_offline_waits_for_them(two, collab_url):
    ada, _ = two
    id = ada.create("For Dora")
    ada.share(id, "dora")
    ada.comment(id, "Look")
    assert ada.state()["waiting"] == 2

    async def listen():
        async with connect(collab_url, user_id="dora", backend_url="http://dora") as dora:
            events = dora.events()
            assert [(await anext(events)).type for _ in range(2)] == ["position_shared", "comment_added"]

    run(listen)
    ada.until(lambda ada: ada.state()["waiting"] == 0)
