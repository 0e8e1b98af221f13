"""Who is online, in the eyes of a client."""

from __future__ import annotations

import anyio
import pytest
from fake_service import QUICK, fake_service
from loops import on_both_loops
from test_client_sending import client

from collab.client import connect


async def comes(peer, user_id):
    await peer.send("user_online", {"user_id": user_id, "display_name": user_id.title()})


async def goes(peer, user_id):
    await peer.send("user_offline", {"user_id": user_id})


def said(change):
    return ("+" if change.online else "-") + change.user_id


@on_both_loops
async def test_the_block_begins_once_it_is_known_who_is_online():
    async with fake_service() as service, anyio.create_task_group() as tasks:
        service.online = ["ada", "bob"]
        tasks.start_soon(service.welcome)
        async with connect(
            service.url, user_id="ada", backend_url="http://a", token="t0ken", limits=QUICK
        ) as collab:
            assert set(collab.online) == {"ada", "bob"}
            assert collab.online["bob"].backend_url == "http://bob"
            with pytest.raises(TypeError):
                collab.online["eve"] = None
        assert "authorization: bearer t0ken" in service.asked[0].lower()


@on_both_loops
async def test_changes_come_in_order_and_the_view_is_live():
    async with fake_service() as service:
        service.online = ["ada", "bob"]
        async with client(service) as collab:
            view, changes = collab.online, collab.presence()
            peer = await service.welcome()
            assert {said(await anext(changes)) for _ in range(2)} == {"+ada", "+bob"}
            await comes(peer, "cleo")
            await goes(peer, "bob")
            assert [said(await anext(changes)) for _ in range(2)] == ["+cleo", "-bob"]
            assert set(view) == {"ada", "cleo"}


@on_both_loops
async def test_a_notice_counts_for_more_than_a_list_that_was_asked_for_before_it():
    async with fake_service() as service:
        # The list was made before cleo came and bob went, and arrives after the notices.
        service.online = ["ada", "bob"]
        asked, go_on = anyio.Event(), anyio.Event()

        async def before_online():
            asked.set()
            await go_on.wait()

        service.before_online = before_online
        async with client(service) as collab:
            peer = await service.welcome()
            await asked.wait()
            events = collab.events()
            await comes(peer, "cleo")
            await goes(peer, "bob")
            await peer.send_event()
            await anext(events)
            assert set(collab.online) == {"cleo"}
            go_on.set()
            assert said(await anext(collab.presence())) == "+ada"
            assert set(collab.online) == {"ada", "cleo"}


@on_both_loops
async def test_a_list_that_knows_more_than_a_notice_is_not_lost_by_it():
    async with fake_service() as service:
        service.online = ["ada", "cleo"]
        asked, go_on = anyio.Event(), anyio.Event()

        async def before_online():
            asked.set()
            await go_on.wait()

        service.before_online = before_online
        async with client(service) as collab:
            peer = await service.welcome()
            await asked.wait()
            changes = collab.presence()
            await comes(peer, "cleo")
            assert said(await anext(changes)) == "+cleo"
            assert collab.online["cleo"].backend_url is None
            go_on.set()
            assert said(await anext(changes)) == "+ada"
            assert collab.online["cleo"].backend_url == "http://cleo"


@on_both_loops
async def test_after_a_reconnect_the_differences_are_told():
    async with fake_service() as service:
        service.online = ["ada", "bob"]
        async with client(service) as collab:
            changes = collab.presence()
            peer = await service.welcome()
            assert {said(await anext(changes)) for _ in range(2)} == {"+ada", "+bob"}
            service.online = ["ada", "cleo"]
            peer.vanish()
            await service.welcome()
            assert {said(await anext(changes)) for _ in range(2)} == {"-bob", "+cleo"}


@on_both_loops
async def test_for_a_slow_reader_a_coming_and_a_going_cancel_each_other_out():
    async with fake_service() as service, client(service) as collab:
        peer = await service.welcome()
        changes, quick = collab.presence(), collab.presence()
        for _ in range(100):
            await comes(peer, "bob")
            assert said(await anext(quick)) == "+bob"
            await goes(peer, "bob")
            assert said(await anext(quick)) == "-bob"
        await comes(peer, "cleo")
        assert said(await anext(changes)) == "+cleo"


@on_both_loops
async def test_without_presence_nothing_is_asked_and_nobody_is_online():
    async with fake_service() as service, client(service, presence=False) as collab:
        peer = await service.upgrade()
        assert peer.query["presence"] == "none"
        await peer.welcome()
        await collab.started(5)
        assert (dict(collab.online), service.asked) == ({}, [])


@on_both_loops
async def test_a_list_that_cannot_be_had_is_asked_for_again(caplog):
    async with fake_service() as service:
        service.online, service.online_status = ["ada"], 503
        async with client(service) as collab:
            await service.welcome()
            await collab.started(5)
            assert dict(collab.online) == {}
            service.online_status = 200
            assert said(await anext(collab.presence())) == "+ada"
    assert "Cannot learn who is online: 503" in caplog.text


@on_both_loops
async def test_a_real_service_tells_who_comes_and_goes(service_url):
    async with connect(service_url, user_id="first", backend_url="http://a") as first:
        changes = first.presence()
        async with connect(service_url, user_id="second", backend_url="http://b"):
            assert said(await anext(changes)) == "+second"
            assert "second" in first.online
        assert said(await anext(changes)) == "-second"
        assert "second" not in first.online
