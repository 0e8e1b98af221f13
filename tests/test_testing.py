"""`collab.testing`, which the authors of backends use too."""

from __future__ import annotations

import pytest
import trio
from baseline import Holdings, settles_at

from collab.settings import LimitSettings, Settings
from collab.testing import Closed, Rejected, open_service


@pytest.mark.trio
@pytest.mark.parametrize("in_memory", [False, True])
async def test_the_example_of_its_documentation_runs(in_memory):
    async with open_service(in_memory=in_memory) as service:
        ada = await service.connect("ada")
        bob = await service.connect("bob")
        await ada.send_event("comment_added", ["bob"], {"text": "Great setup!"})
        event = await bob.receive("collab_event")
        assert event["data"]["data"] == {"text": "Great setup!"}
        assert service.online() == {"ada", "bob"}


@pytest.mark.trio
async def test_a_service_takes_a_free_port_whatever_its_settings_say():
    async with open_service(Settings()) as first, open_service(Settings()) as second:
        ports = {local.service.addresses[0][1] for local in (first, second)}
        assert len(ports) == 2
        assert 9000 not in ports


@pytest.mark.trio
@pytest.mark.parametrize("in_memory", [False, True])
async def test_nothing_is_left_after_the_block(in_memory):
    before = Holdings.now()
    async with open_service(in_memory=in_memory) as local:
        await local.connect("ada")
    await settles_at(before)


@pytest.mark.trio
async def test_a_refused_upgrade_raises_with_status_code_headers_and_body():
    async with open_service(in_memory=True) as local:
        with pytest.raises(Rejected, match="400") as refused:
            await local.open("/?user_id=ada")
        assert refused.value.status == 400
        assert refused.value.code == "missing_parameter"
        assert refused.value.headers["content-type"] == "application/json"
        assert b"user_id and backend_url are required" in refused.value.body


@pytest.mark.trio
async def test_an_end_of_the_connection_raises_with_code_and_reason():
    settings = Settings(limits=LimitSettings(connections_per_user=1))
    async with open_service(settings, in_memory=True) as local:
        first = await local.connect("ada")
        await local.connect("ada")
        with pytest.raises(Closed, match="4002 Replaced") as closed:
            await first.receive()
        assert closed.value.code == 4002


@pytest.mark.trio
async def test_receive_drops_messages_of_other_names_and_gives_up_in_time(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=3) as local:
        ada = await local.connect("ada")
        await ada.send("ping")
        await ada.send_event("t", [])
        assert (await ada.receive("event_ack"))["data"]["event_type"] == "t"
        start = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await ada.receive("collab_event")
        assert trio.current_time() - start == 3


@pytest.mark.trio
@pytest.mark.parametrize("in_memory", [False, True])
async def test_drop_is_seen_by_the_service_as_the_end(in_memory):
    async with open_service(in_memory=in_memory) as local:
        ada = await local.connect("ada")
        observer = await local.connect("observer", presence="all")
        await ada.drop()
        assert await observer.receive("user_offline") == {"event": "user_offline", "data": {"user_id": "ada"}}


@pytest.mark.trio
async def test_stall_and_resume_in_memory_lose_nothing():
    async with open_service(in_memory=True) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        bob.stall()
        for number in range(5):
            await ada.send_event("t", ["bob"], number)
        with trio.move_on_after(0.05) as waited:
            await bob.receive()
        assert waited.cancelled_caught
        bob.resume()
        assert [(await bob.receive())["data"]["data"] for _ in range(5)] == list(range(5))


@pytest.mark.trio
async def test_connections_in_memory_end_with_the_service(autojump_clock):
    async with open_service(in_memory=True, timeout_seconds=60) as local:
        ada = await local.connect("ada")
        ada.stall()
        await local.service.drain()
        start = trio.current_time()
        assert (await ada.wait_closed()).code == 1006
        assert trio.current_time() - start <= 2
        assert local.online() == set()
