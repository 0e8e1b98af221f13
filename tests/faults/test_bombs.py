"""JSON that is small to send and dear to handle: deep, huge, or for very many. Each gets its typed answer.

A healthy pair is served all along. What is counted is the work of routing: the look-ups in the
registry and the frames that are built for the sender of the bomb.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from baseline import exchange
from invariants import check_i4_registry, check_i5_bounds

from collab.core.registry import Registry
from collab.settings import LimitSettings, Settings, Size
from collab.testing import open_service
from collab.wire.plain import PlainDialect

MANY = 200_000
DEPTH = 100_000
DIGITS = 60_000
DEFAULT = LimitSettings()
ROOMY = LimitSettings(message_bytes=Size("8MiB"), mailbox_bytes=Size("32MiB"))
FOR_MANY = LimitSettings(message_bytes=Size("8MiB"), mailbox_bytes=Size("32MiB"), max_recipients=MANY)
DEEP = "[" * DEPTH + "]" * DEPTH
DEEP_OBJECTS = '{"a":' * DEPTH + "1" + "}" * DEPTH
NAMES = [f"u{number}" for number in range(MANY - 1)] + ["bob"]
HEALTHY = ["healthy-cyd", "healthy-dan"]


class Work:
    """How often the dear things were done for somebody other than the healthy pair."""

    def __init__(self, monkeypatch):
        self.looked_up = self.built = 0
        of_user, event_frame = Registry.of_user, PlainDialect.event_frame

        def counted_look_up(registry, user_id):
            self.looked_up += user_id not in HEALTHY
            return of_user(registry, user_id)

        def counted_frame(dialect, event, from_user):
            self.built += from_user not in HEALTHY
            return event_frame(dialect, event, from_user)

        monkeypatch.setattr(Registry, "of_user", counted_look_up)
        monkeypatch.setattr(PlainDialect, "event_frame", counted_frame)


@pytest.fixture
def work(monkeypatch):
    return Work(monkeypatch)


@asynccontextmanager
async def open_beside_a_pair(limits):
    """Ada and Bob on a service whose healthy pair exchanges events all the time, and to the end."""
    async with open_service(Settings(limits=limits), timeout_seconds=30) as local:
        cyd, dan = [await local.connect(user_id) for user_id in HEALTHY]
        ada, bob = await local.connect("ada"), await local.connect("bob")
        exchanges = 0
        over = False

        async def keep_exchanging():
            nonlocal exchanges
            while not over:
                await exchange(cyd, dan)
                exchanges += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_exchanging)
            yield local, ada, bob
            before = exchanges
            with trio.fail_after(10):
                while exchanges < before + 2:
                    await trio.lowlevel.checkpoint()
            over = True
        check_i5_bounds(local)
        assert {"healthy-cyd", "healthy-dan", "bob"} <= local.online()


def event(to_users="[]", data="1", type='"t"', more=""):
    return f'{{"event":"collab_event","data":{{"type":{type},"to_users":{to_users}{more},"data":{data}}}}}'


def names(to_users):
    return msgspec.json.encode(to_users).decode()


# Depth


@pytest.mark.trio
@pytest.mark.parametrize("bomb", [DEEP, DEEP_OBJECTS, "[" * DEPTH], ids=["arrays", "objects", "unclosed"])
@pytest.mark.parametrize(
    ("said", "codes"),
    [
        pytest.param(event(data="%s"), {"invalid_json"}, id="data"),
        pytest.param(event(to_users="%s"), {"invalid_event", "invalid_json"}, id="to_users"),
        pytest.param(event(more=',"more":%s'), {"invalid_json"}, id="event"),
        pytest.param('{"event":"ping","more":%s}', {"invalid_json"}, id="envelope"),
        pytest.param('{"event":"ping","id":%s}', {"invalid_json", "invalid_message"}, id="id"),
        pytest.param("%s", {"invalid_json", "invalid_message"}, id="all"),
    ],
)
async def test_json_that_is_nested_100000_deep_is_an_error(work, said, codes, bomb):
    async with open_beside_a_pair(ROOMY) as (_, ada, _):
        await ada.send_text(said % bomb)
        reply = await ada.receive()
        assert reply["event"] == "error"
        assert reply["data"]["code"] in codes
        assert len(str(reply)) < 500
        assert await ada.echoes()
    assert work.built == 0


@pytest.mark.trio
async def test_json_that_is_nested_100000_deep_is_too_big_by_default(work):
    async with open_beside_a_pair(DEFAULT) as (_, ada, _):
        await ada.send_text(event(data=DEEP))
        assert (await ada.wait_closed()).code == 1009
    assert work.built == 0


# Numbers


@pytest.mark.trio
@pytest.mark.parametrize(
    "number",
    [
        "7" * DIGITS,
        "-" + "7" * DIGITS,
        "0." + "7" * DIGITS,
        "1e999999999",
        "-1e-999999999",
        "1e" + "9" * DIGITS,
    ],
    ids=["integer", "negative", "fraction", "exponent", "negative exponent", "long exponent"],
)
async def test_a_huge_number_is_relayed_in_data_and_an_error_where_it_is_read(number):
    async with open_beside_a_pair(DEFAULT) as (_, ada, bob):
        for said, code in (
            (f'{{"event":"ping","id":{number}}}', "invalid_message"),
            (
                f'{{"event":"collab_event","id":{number},"data":{{"type":"t","to_users":["bob"]}}}}',
                "invalid_message",
            ),
            (f'{{"event":{number}}}', "invalid_message"),
            (f'{{"event":{number},"id":{number}}}', "invalid_message"),
            (event(to_users=f'["bob",{number}]'), "invalid_event"),
            (event(type=number, to_users='["bob"]'), "invalid_event"),
            (event(more=f',"from_user":{number}', to_users='["bob"]'), "invalid_event"),
        ):
            if len(said) > DEFAULT.message_bytes:
                continue
            await ada.send_text(said)
            reply = await ada.receive()
            assert (reply["event"], reply["data"]["code"]) == ("error", code)
            assert "id" not in reply
            assert len(str(reply)) < 500
        await ada.send_text(event('["bob"]', data=number))
        assert (await bob.receive_text()).endswith(f',"to_users":["bob"],"data":{number}}}}}')
        assert (await ada.receive("event_ack"))["data"]["delivered_to"] == 1


# Recipients


@pytest.mark.trio
@pytest.mark.parametrize("to_users", [NAMES, ["bob"] * MANY], ids=["many", "the same"])
async def test_200000_recipients_are_too_big_by_default(work, to_users):
    async with open_beside_a_pair(DEFAULT) as (_, ada, _):
        await ada.send_text(event(names(to_users)))
        assert (await ada.wait_closed()).code == 1009
    assert work.built == 0


@pytest.mark.trio
async def test_200000_recipients_in_a_large_message_are_one_error_and_cost_no_look_up(work):
    async with open_beside_a_pair(ROOMY) as (_, ada, bob):
        work.looked_up = 0
        for id in range(3):
            await ada.send_event("t", NAMES, id=id)
            reply = await ada.receive()
            assert (reply["event"], reply["id"], reply["data"]["code"]) == (
                "error",
                id,
                "too_many_recipients",
            )
        assert work.looked_up == 0
        assert await bob.echoes()
    assert work.built == 0


@pytest.mark.trio
async def test_200000_recipients_that_are_allowed_are_each_looked_up_once_and_named(work):
    async with open_beside_a_pair(FOR_MANY) as (_, ada, bob):
        work.looked_up = 0
        await ada.send_event("t", NAMES, {"a": 1}, id=1)
        ack = await ada.receive("event_ack")
        assert (ack["data"]["delivered_to"], ack["data"]["total_recipients"]) == (1, MANY)
        assert ack["data"]["undelivered"] == NAMES[:-1]
        assert work.looked_up == MANY
        received = await bob.receive("collab_event")
        assert received["data"] == {"type": "t", "from_user": "ada", "to_users": NAMES, "data": {"a": 1}}
    assert work.built == 1


@pytest.mark.trio
async def test_the_same_recipient_200000_times_is_one(work):
    async with open_beside_a_pair(ROOMY) as (_, ada, bob):
        work.looked_up = 0
        await ada.send_event("t", ["bob"] * MANY, {"a": 1}, id=1)
        ack = await ada.receive("event_ack")
        assert ack["data"] == {"event_type": "t", "delivered_to": 1, "total_recipients": 1}
        assert (work.looked_up, work.built) == (1, 1)
        assert (await bob.receive("collab_event"))["data"]["to_users"] == ["bob"] * MANY
        await ada.send_event("t", ["ada"], id=2)
        assert (await ada.receive("event_ack"))["id"] == 2
        assert await bob.echoes()


@pytest.mark.trio
async def test_as_many_recipients_as_allowed_may_have_names_of_maximal_length(work):
    recipients = [f"{number:04}" + "\U0001f600" * 124 for number in range(ROOMY.max_recipients)]
    async with open_beside_a_pair(ROOMY) as (_, ada, _):
        work.looked_up = 0
        await ada.send_event("t", recipients, id=1)
        ack = await ada.receive("event_ack")
        assert ack["data"]["undelivered"] == recipients
        assert (work.looked_up, work.built) == (len(recipients), 0)
        await ada.send_event("t", [*recipients, "bob"], id=2)
        assert (await ada.receive("error"))["data"]["code"] == "too_many_recipients"
        await ada.send_event("t", [*recipients[:-1], "x" * 129], id=3)
        reply = await ada.receive("error")
        assert (reply["id"], reply["data"]["code"]) == (3, "invalid_event")
        assert "data.to_users[999]" in reply["data"]["error"]
        assert len(str(reply)) < 500
        assert work.looked_up == len(recipients)


@pytest.mark.trio
async def test_a_last_name_of_200000_that_is_wrong_is_found_without_routing_to_the_others(work):
    async with open_beside_a_pair(FOR_MANY) as (local, ada, bob):
        work.looked_up = 0
        for wrong, code in (("x" * 129, "invalid_event"), ("", "invalid_event"), ("\u202e", "invalid_event")):
            await ada.send_event("t", ["bob", *NAMES[: MANY - 2], wrong], id=1)
            reply = await ada.receive()
            assert (reply["event"], reply["data"]["code"]) == ("error", code)
            assert f"data.to_users[{MANY - 1}]" in reply["data"]["error"]
        assert (work.looked_up, work.built) == (0, 0)
        assert await bob.echoes()
        check_i4_registry(local, ["ada", "bob", *HEALTHY])
