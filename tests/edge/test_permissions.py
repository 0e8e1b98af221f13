"""Who may send to whom, over a whole service: what one may not reach looks as if it were not there."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from peers import ask
from tokens import SECRET, token

from collab.settings import AuthSettings, PolicySettings, Settings
from collab.testing import open_service

AUTH = AuthSettings(mode="jwt", secret=SECRET)
BY_TOKEN = Settings(auth=AUTH, policy=PolicySettings(send="token"))


def bearing(user_id: str, *peers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user_id, peers=list(peers))}"}


@pytest.mark.trio
async def test_whom_one_may_not_reach_is_undelivered_as_if_offline(open_anyhow):
    async with open_anyhow(BY_TOKEN) as local:
        ada = await local.connect("ada", headers=bearing("ada", "bob"))
        bob = await local.connect("bob", headers=bearing("bob"))
        cyd = await local.connect("cyd", headers=bearing("cyd", "*"))
        await ada.send_event("t", ["cyd", "bob", "offline", "ada"], 1, id=1)
        assert (await ada.receive("event_ack"))["data"] == {
            "event_type": "t",
            "delivered_to": 2,
            "total_recipients": 4,
            "undelivered": ["cyd", "offline"],
        }
        assert (await bob.receive())["data"]["from_user"] == "ada"
        # What comes first to cyd is what cyd asked for: nothing came from ada.
        assert await cyd.echoes()
        await bob.send_event("t", ["ada"], 2)
        assert (await bob.receive("event_ack"))["data"]["undelivered"] == ["ada"]


@pytest.mark.trio
async def test_one_is_told_the_number_of_those_alone_to_whom_one_may_send(open_anyhow):
    async with open_anyhow(BY_TOKEN) as local:
        for user_id in ("bob", "cyd", "dan"):
            await local.connect(user_id, headers=bearing(user_id))
        told = {}
        for user_id, *others in (("ada", "bob", "nobody"), ("eve",), ("zoe", "*")):
            target = "/?backend_url=http://localhost:8000&presence=none"
            backend = await local.open(target, bearing(user_id, *others))
            told[user_id] = (await backend.receive("connected"))["data"]["active_users"]
        assert told == {"ada": 2, "eve": 1, "zoe": 6}


@pytest.mark.trio
async def test_presence_tells_of_those_alone_to_whom_one_may_send(open_anyhow):
    async with open_anyhow(BY_TOKEN) as local:
        ada = await local.connect("ada", presence="all", headers=bearing("ada", "bob"))
        all_seeing = await local.connect("zoe", presence="all", headers=bearing("zoe", "*"))
        blind = await local.connect("eve", presence="all", headers=bearing("eve"))
        for user_id in ("cyd", "bob"):
            backend = await local.connect(user_id, headers=bearing(user_id))
            await backend.drop()
        heard = [await ada.receive() for _ in range(2)]
        assert [(m["event"], m["data"]["user_id"]) for m in heard] == [
            ("user_online", "bob"),
            ("user_offline", "bob"),
        ]
        of_all = [await all_seeing.receive() for _ in range(5)]
        assert [m["data"]["user_id"] for m in of_all] == ["eve", "cyd", "cyd", "bob", "bob"]
        assert await blind.echoes()


@pytest.mark.trio
async def test_the_api_shows_those_alone_to_whom_one_may_send():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        for user_id in ("ada", "bob", "cyd"):
            await local.connect(user_id, headers=bearing(user_id))
        answer = await ask(local, "GET", "/api/users/online", headers=bearing("ada", "bob", "nobody"))
        assert [user["user_id"] for user in answer.json["users"]] == ["ada", "bob"]
        assert answer.json["count"] == 2
        assert (await ask(local, "GET", "/api/users/bob", headers=bearing("ada", "bob"))).status == 200
        hidden = await ask(local, "GET", "/api/users/cyd", headers=bearing("ada", "bob"))
        offline = await ask(local, "GET", "/api/users/xyz", headers=bearing("ada", "bob"))
        assert (hidden.status, hidden.body) == (offline.status, offline.body) == (404, hidden.body)


@pytest.mark.trio
async def test_a_refreshed_token_may_name_other_peers():
    async with open_service(BY_TOKEN, in_memory=True) as local:
        ada = await local.connect("ada", headers=bearing("ada", "bob"))
        cyd = await local.connect("cyd", headers=bearing("cyd"))
        await ada.send_event("t", ["cyd"], 1)
        assert (await ada.receive())["data"]["undelivered"] == ["cyd"]
        await ada.send("refresh", {"token": token("ada", peers=["cyd"])})
        assert (await ada.receive())["event"] == "refreshed"
        await ada.send_event("t", ["cyd"], 2)
        assert (await ada.receive())["data"]["delivered_to"] == 1
        assert (await cyd.receive())["data"]["data"] == 2


@pytest.mark.trio
async def test_a_changed_file_counts_for_those_who_are_connected(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('pairs = [["ada", "bob"]]')
    settings = Settings(auth=AUTH, policy=PolicySettings(send="file", file=str(path)))
    async with open_service(settings) as local:
        ada = await local.connect("ada", headers=bearing("ada"))
        await local.connect("cyd", headers=bearing("cyd"))
        await ada.send_event("t", ["cyd"], 1)
        assert (await ada.receive())["data"]["undelivered"] == ["cyd"]
        path.write_text('groups = [["ada", "bob", "cyd"]]')
        with trio.fail_after(5):
            while True:
                await ada.send_event("t", ["cyd"], 2)
                if (await ada.receive())["data"]["delivered_to"]:
                    break
                await trio.sleep(0.05)
