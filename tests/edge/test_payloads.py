"""Validation of events, end to end: what is refused reaches nobody, and what is off costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from engine_peers import PollingClient, SocketClient, collab_packet, event_of

from collab.settings import EventSettings, LimitSettings, Settings
from collab.testing import open_service

STRICT = Settings(events=EventSettings(validation="strict"))


@pytest.mark.trio
async def test_an_event_that_does_not_fit_reaches_nobody_and_its_sender_stays(open_anyhow, capsys):
    async with open_anyhow(STRICT) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        payload = {"position_id": "p", "share_url": "javascript:canary"}
        await ada.send_event("position_shared", ["bob"], payload, id=1)
        assert await ada.receive() == {
            "event": "error",
            "id": 1,
            "data": {
                "message": "Invalid event format",
                "error": "data.data.share_url: expected an absolute http or https URL "
                "of at most 2,048 characters",
                "code": "invalid_event",
            },
        }
        await ada.send_event("canary", ["bob"], id=2)
        error = await ada.receive("error")
        assert (error["id"], error["data"]["code"]) == (2, "invalid_event")
        await ada.send_event("share_revoked", ["bob"], {"position_id": "p"}, id=3)
        # The first that Bob hears of.
        assert (await bob.receive())["data"]["type"] == "share_revoked"
        assert (await ada.receive())["data"]["delivered_to"] == 1
    assert "canary" not in "".join(capsys.readouterr())


@pytest.mark.trio
@pytest.mark.parametrize("kind", [PollingClient, SocketClient], ids=["polling", "websocket"])
async def test_a_payload_over_socket_io_is_checked_as_any_other(kind):
    async with open_service(STRICT, in_memory=True) as local:
        bob = await local.connect("bob")
        ada = await kind.connect(local, "ada")
        sound = {"position_id": "p"}
        await ada.say(
            collab_packet(["bob"], {}, type="share_revoked", reply_id=1),
            collab_packet(["bob"], sound, type="unheard_of", reply_id=2),
            collab_packet(["bob"], sound, type="share_revoked", reply_id=3),
        )
        heard = [await ada.next() for _ in range(6)]
        assert [event_of(packet)[0] for packet in heard[::2]] == ["error", "error", "event_ack"]
        assert {event_of(packet)[1]["code"] for packet in heard[:4:2]} == {"invalid_event"}
        assert [packet[:3] for packet in heard[1::2]] == ["431", "432", "433"]
        assert (await bob.receive("collab_event"))["data"]["data"] == sound


@pytest.mark.trio
async def test_a_payload_that_was_checked_is_relayed_byte_for_byte(open_anyhow):
    payload = '{ "position_id" : "\\u0070", "x":[1.50 ,1E2, "\\/"], "y":18446744073709551616 }'
    text = '{"event":"collab_event","data":{"type":"share_revoked","to_users":["bob"],"data":%s}}'
    async with open_anyhow(STRICT) as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        await ada.send_text(text % payload)
        assert (await bob.receive_text()).endswith(f'"data":{payload}}}}}')


@pytest.mark.trio
@pytest.mark.parametrize("validation", ["known", "strict"])
async def test_floods_of_hostile_payloads_end_their_sender_alone(validation):
    settings = Settings(events=EventSettings(validation=validation), limits=LimitSettings(errors=2))
    hostile = [
        '{"position_id":"p","position_id":"p"}',
        "[" * 900 + "]" * 900,
        "[ " + "1," * 30_000 + "1]",
        '{"position_id":' + "1" * 60_000 + "}",
        '{"position_id":"' + "x" * 60_000 + '"}',
        "1e999",
    ]
    text = '{"event":"collab_event","data":{"type":"share_revoked","to_users":["bob"],"data":%s}}'
    async with open_service(settings) as local:
        mallory, bob = await local.connect("mallory"), await local.connect("bob")
        # So many errors are allowed at once.
        for number in range(20):
            await mallory.send_text(text % hostile[number % len(hostile)])
            assert (await mallory.receive())["data"]["code"] == "invalid_event"
        for _ in range(2):
            await mallory.send_text(text % hostile[0])
        assert (await mallory.wait_closed()).code == 1008
        assert await bob.echoes()


def test_without_validation_its_library_is_not_even_loaded():
    program = """
import sys, trio
from collab.testing import open_service

async def main():
    async with open_service() as local:
        ada = await local.connect("ada")
        await ada.send_event("position_shared", ["ada"], {})
        await ada.receive("event_ack")

trio.run(main)
print([name for name in sys.modules if name in ("jsonschema_rs", "collab.policy.schemas")])
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


@pytest.mark.trio
async def test_without_validation_nothing_looks_into_a_payload(open_anyhow):
    # Nobody who looked could let these pass: a member twice, a number without a value, a type unknown.
    async with open_anyhow() as local:
        ada = await local.connect("ada")
        for payload in ('{"a":1,"a":2}', "1e999", "[" * 500 + "]" * 500):
            event = f'{{"type":"position_shared","to_users":["ada"],"data":{payload}}}'
            await ada.send_text(f'{{"event":"collab_event","data":{event}}}')
            assert (await ada.receive_text()).endswith(f'"data":{payload}}}}}')
            assert json.loads(await ada.receive_text())["event"] == "event_ack"
