"""The audit log of a real service: every event of it, with nothing that must not be in it."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from urllib.parse import quote

import attrs
import pytest
import trio
from peers import ADA, ask, head, say, text, upgrade
from tokens import OTHER_SECRET, SECRET, token

from collab.errors import AuditFailed, CannotStart
from collab.settings import (
    AdminSettings,
    AuditSettings,
    AuthSettings,
    Duration,
    LimitSettings,
    Settings,
    TimeoutSettings,
)
from collab.testing import Closed, open_service

JWT = AuthSettings(mode="jwt", secret=SECRET, leeway=Duration("0s"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def audited(path, *, auth=JWT, limits=None, timeouts=None, **given):
    return Settings(
        auth=auth,
        limits=limits or LimitSettings(),
        timeouts=timeouts or TimeoutSettings(),
        audit=AuditSettings(file=str(path), **given),
    )


def read(path):
    """Every line, from the oldest file on; their numbers have no gap but those that are told."""
    files = sorted(path.parent.glob(f"{path.name}.*"), key=lambda each: -int(each.suffix[1:]))
    lines = [json.loads(line) for each in [*files, path] for line in each.read_bytes().splitlines()]
    last = 0
    for line in lines:
        assert line["seq"] == last + (line["count"] if line["event"] == "drop" else 1)
        last = line["seq"]
    return lines


def of(lines, event, *names):
    return [[line[name] for name in names] for line in lines if line["event"] == event]


def bearing(text):
    return {"authorization": f"Bearer {text}"}


async def send_nonsense(backend):
    while True:
        await backend.send_text("[]")
        await backend.receive("error")


async def send_events(backend):
    while True:
        await backend.send_event("t", ["bob"])
        await backend.receive("event_ack")


async def count_events(backend):
    """How many events come until the end, and its code."""
    received = 0
    try:
        while True:
            received += (await backend.receive())["event"] == "collab_event"
    except Closed as closed:
        return received, closed.code


async def closed_with(backend):
    return (await backend.wait_closed()).code


@pytest.mark.trio
async def test_who_came_and_sent_to_whom_is_told(open_anyhow, path):
    timeouts = TimeoutSettings(close=Duration("50ms"))
    async with open_anyhow(audited(path, auth=AuthSettings(), timeouts=timeouts)) as local:
        ada = await local.connect("ada", backend_url="http://u:p@x.example/a", display_name="Ada L")
        bob = await local.connect("bob")
        await ada.send_event("comment_added", ["bob", "cy", "bob"], {"text": "private"}, id=1)
        await ada.receive("event_ack")
        await bob.close(1000)
        await ada.send_event("t", [])
        await ada.receive("event_ack")
        await local.service.drain()
    lines = read(path)
    assert of(lines, "start", "version") != []
    assert of(lines, "connect", "connection_id", "user_id", "address", "dialect") == [
        [1, "ada", "127.0.0.1", "plain"],
        [2, "bob", "127.0.0.1", "plain"],
    ]
    assert of(lines, "connect", "backend_url", "display_name")[0] == ["http://x.example/a", "Ada L"]
    assert of(lines, "route", "connection_id", "user_id", "type", "to", "delivered", "undelivered") == [
        [1, "ada", "comment_added", ["bob", "cy"], 1, ["cy"]],
        [1, "ada", "t", [], 0, []],
    ]
    assert of(lines, "disconnect", "connection_id", "user_id", "code") == [[2, "bob", 1000], [1, "ada", 1001]]
    assert of(lines, "stop", "reason", "events_routed") == [["drained", 2]]
    assert [line["event"] for line in lines][:1] == ["start"]
    assert [line["event"] for line in lines][-1:] == ["stop"]
    assert "private" not in path.read_text()


@pytest.mark.trio
async def test_who_was_refused_is_told_as_claimed(open_anyhow, path):
    limits = LimitSettings(connections_per_address=1)
    async with open_anyhow(audited(path, limits=limits)) as local:
        await upgrade(local, ADA)
        await upgrade(local, ADA, bearing(token("ada", key=OTHER_SECRET)))
        await upgrade(local, ADA, bearing(token("eve")))
        await upgrade(local, "/ws/ad%0d%0aa", bearing(token("eve", jti="j7", iss="i")))
        await upgrade(local, "/ws/%ff?user_id=x", bearing(token("eve")))
        await local.connect("ada", token=token("ada"))
        await upgrade(local, ADA, bearing(token("ada")))
        await say(local, b"GET / HTTP/1.1\r\n\r\n")
        await upgrade(local, "/nowhere?user_id=" + "x" * 1000)
    lines = read(path)
    assert of(lines, "refuse", "claimed_user_id", "status", "code", "user_id", "connection_id") == [
        ["ada", 401, "unauthenticated", None, None],
        ["ada", 401, "unauthenticated", None, None],
        ["ada", 403, "forbidden", None, None],
        ["ad\r\na", 403, "forbidden", None, None],
        ["\ufffd", 400, "invalid_parameter", None, None],
        ["ada", 429, "too_many_connections", None, None],
        [None, 400, "bad_request", None, None],
        ["x" * 129, 404, "not_found", None, None],
    ]
    assert of(lines, "refuse", "address", "reason")[:2] == [
        ["127.0.0.1", "a token is required"],
        ["127.0.0.1", "the token's signature is wrong"],
    ]
    assert of(lines, "authenticate", "success", "by", "user_id", "token_id", "issuer")[1] == [
        True,
        "connect",
        "eve",
        "j7",
        "i",
    ]


@pytest.mark.trio
async def test_tokens_are_told_by_what_they_say_and_never_as_they_are(open_anyhow, path):
    sound, bad, new = token("ada", jti="one"), token("ada", key=OTHER_SECRET), token("ada", seconds=7000)
    async with open_anyhow(audited(path)) as local:
        ada = await local.connect("ada", headers=bearing(sound))
        await ada.send("refresh", {"token": bad})
        await ada.receive("error")
        await ada.send("refresh", {"token": token("eve")})
        await ada.receive("error")
        await ada.send("refresh", {"token": new})
        expires_at = (await ada.receive("refreshed"))["data"]["expires_at"]
        await ask(local, "GET", f"/api/users/online?token={sound}")
        await ask(local, "GET", f"/api/users/online?token={bad}")
        await ask(local, "GET", "/api/users/nobody", headers=bearing(sound))
        await ask(local, "GET", "/health")
        (connection,) = local.service.registry.connections()
        assert connection.connection_id == 1
    lines = read(path)
    assert of(lines, "authenticate", "connection_id", "user_id", "address", "success", "by") == [
        [1, "ada", "127.0.0.1", True, "connect"],
        [1, "ada", "127.0.0.1", False, "refresh"],
        [1, "ada", "127.0.0.1", False, "refresh"],
        [1, "ada", "127.0.0.1", True, "refresh"],
        [None, "ada", "127.0.0.1", True, "request"],
    ]
    said = [line for line in lines if line["event"] == "authenticate"]
    assert [line.get("token_id") for line in said] == ["one", None, None, None, "one"]
    assert said[1]["reason"] == "the token's signature is wrong"
    assert said[2]["reason"] == "the token is another user's"
    assert said[3]["expires_at"] == expires_at
    assert said[4]["path"] == "/api/users/online"
    assert of(lines, "refuse", "status", "method", "path", "address") == [
        [401, "GET", "/api/users/online", "127.0.0.1"]
    ]
    written = path.read_text()
    for each in (sound, bad, new, SECRET, OTHER_SECRET):
        for part in each.split("."):
            assert part not in written


@pytest.mark.trio
async def test_requests_with_one_token_cannot_fill_the_log(path, autojump_clock):
    """The first in a minute of a token from a place has a line, whatever is asked."""
    one, other = (bearing(token("ada", jti=name)) for name in ("one", "other"))
    register = b'{"user_id":"ada","backend_url":"http://x"}'
    async with open_service(audited(path), in_memory=True) as local:

        async def ask_all(headers, address="192.0.2.1"):
            await ask(local, "GET", "/api/users/online", None, headers, address=address)
            await ask(local, "GET", "/api/users/bob", None, headers, address=address)
            await ask(local, "POST", "/api/register", register, headers, address=address)
            await ask(local, "POST", "/api/events", b'{"type":"t","to_users":[]}', headers, address=address)

        for _ in range(20):
            await ask_all(one)
        await ask_all(other)
        await ask_all(one, "::ffff:192.0.2.2")
        for number in range(20):
            await ask_all(one, f"2001:db8::{number:x}")
        await trio.sleep(60)
        await ask_all(one)
    lines = read(path)
    assert of(lines, "authenticate", "token_id", "address", "method", "path") == [
        [name, address, "GET", "/api/users/online"]
        for name, address in (
            ("one", "192.0.2.1"),
            ("other", "192.0.2.1"),
            ("one", "192.0.2.2"),
            ("one", "2001:db8::0"),
            ("one", "192.0.2.1"),
        )
    ]
    # What was done with the tokens is told each time.
    assert len(of(lines, "route")) == 43


@pytest.mark.trio
async def test_failed_attempts_of_operators_are_told_also_those_that_were_too_many(path):
    settings = attrs.evolve(audited(path), admin=AdminSettings(token="the-admin-token-of-this-test-0123"))
    async with open_service(settings, in_memory=True) as local:
        for _ in range(11):
            await ask(local, "GET", "/api/admin/limits", None, bearing("a-guess"), address="::ffff:192.0.2.1")
        await ask(local, "GET", "/api/admin/limits", None, bearing(token("ada")), address="192.0.2.9")
    lines = read(path)
    assert of(lines, "refuse", "status", "code", "address", "path", "method") == [
        *[[401, "unauthenticated", "192.0.2.1", "/api/admin/limits", "GET"]] * 10,
        [429, "rate_limited", "192.0.2.1", "/api/admin/limits", "GET"],
        [403, "forbidden", "192.0.2.9", "/api/admin/limits", "GET"],
    ]
    assert [line.get("retry_after_seconds") for line in lines if line["event"] == "refuse"][-2:] == [1, None]
    assert of(lines, "admin") == []
    assert "a-guess" not in path.read_text()


@pytest.mark.trio
async def test_who_was_sent_away_and_who_was_told_to_slow_down_is_told(path):
    limits = LimitSettings(
        connections_per_user=1,
        errors=1,
        events_per_second=1,
        mailbox_messages=1,
        slow_consumer=Duration("10ms"),
    )
    timeouts = TimeoutSettings(ping_interval=Duration("50ms"), ping_timeout=Duration("400ms"))
    settings = audited(path, auth=AuthSettings(), limits=limits, timeouts=timeouts)
    async with open_service(settings, in_memory=True) as local:
        replaced = await local.connect("bob")
        slow = await local.connect("bob")
        assert await closed_with(replaced) == 4002
        slow.stall()
        for number in range(5):
            # Each sender may send once a second.
            sender = await local.connect(f"sender{number}")
            await sender.send_event("t", ["bob"])
            await sender.receive("event_ack")
            await sender.send_event("t", ["bob"])
            await sender.receive("error")
            await sender.close()
        noisy = await local.connect("noisy")
        with pytest.raises(Closed) as caught:
            await send_nonsense(noisy)
        assert caught.value.code == 1008
        observer = await local.connect("observer", presence="all")
        await local.connect("silent")
        while (await observer.receive("user_offline"))["data"]["user_id"] != "silent":
            pass
    lines = read(path)
    assert of(lines, "evict", "user_id", "code") == [
        ["bob", 4002],
        ["bob", 4003],
        ["noisy", 1008],
        ["silent", 4005],
    ]
    evicted = [line["connection_id"] for line in lines if line["event"] == "evict"]
    ended = [line["connection_id"] for line in lines if line["event"] == "disconnect"]
    assert set(evicted) <= set(ended)
    limited = [line for line in lines if line["event"] == "limit"]
    assert {line["limit"] for line in limited} == {"limits.events_per_second"}
    assert {line["user_id"] for line in limited} == {f"sender{number}" for number in range(5)}
    assert all(0 < line["retry_after_ms"] <= 1000 for line in limited)
    # The line comes when the ack does: an event that waited for the slow consumer in vain says so.
    routes = of(lines, "route", "to", "delivered", "undelivered")
    assert [["bob"], 0, ["bob"]] in routes
    assert len(routes) == 5


@pytest.mark.trio
async def test_the_start_says_how_the_service_is_guarded_without_a_secret(path):
    jwks = "http://127.0.0.1:1/keys"
    auth = AuthSettings(mode="jwt", jwks_url=jwks, audience="collab")
    async with open_service(audited(path, auth=auth), in_memory=True):
        pass
    async with open_service(audited(path), in_memory=True):
        pass
    starts = [json.loads(line) for line in path.read_text().splitlines() if '"start"' in line]
    assert [start["seq"] for start in starts] == [1, 1]
    first, second = (start["settings"] for start in starts)
    assert first["auth"]["jwks_url"] == "http://127.0.0.1:1/keys"
    assert (first["auth"]["mode"], first["auth"]["audience"]) == ("jwt", "collab")
    assert first["auth"]["secret"] == ""
    assert second["auth"]["secret"] == "********"
    assert second["limits"]["message_bytes"] == "64KiB"
    assert second["audit"]["on_full"] == "continue"
    assert {"server", "limits", "http", "origins", "auth", "audit"} <= set(second)
    assert SECRET not in path.read_text()


@pytest.mark.trio
async def test_names_with_controls_stay_in_their_line(open_anyhow, path):
    async with open_anyhow(audited(path, auth=AuthSettings())) as local:
        ada = await local.connect("adé", display_name="a\u202eb\u2066😀")
        await ada.send_event('t"}\r\n{"seq":1}\x1b[31m\x7f', ["é", "b😀b"])
        await ada.receive("event_ack")
        claim = quote('x"}\r\n{"seq":9,"event":"admin"}\x1b[2J\u202e')
        await upgrade(local, f"/ws/{claim}?backend_url=http://x")
        await say(local, head("GET", "/\x7f\x1b"))
    raw = path.read_bytes()
    assert all(0x20 <= byte < 0x7F for byte in raw.replace(b"\n", b""))
    lines = read(path)
    assert of(lines, "route", "type", "to") == [['t"}\r\n{"seq":1}\x1b[31m\x7f', ["é", "b😀b"]]]
    assert of(lines, "connect", "user_id", "display_name") == [["adé", "a\u202eb\u2066😀"]]
    assert of(lines, "refuse", "claimed_user_id")[0] == ['x"}\r\n{"seq":9,"event":"admin"}\x1b[2J\u202e']
    assert of(lines, "admin") == []


@pytest.mark.trio
async def test_routes_can_be_left_out(path):
    async with open_service(audited(path, auth=AuthSettings(), routes=False), in_memory=True) as local:
        ada = await local.connect("ada")
        await ada.send_event("t", ["ada"])
        await ada.receive("event_ack")
    assert {line["event"] for line in read(path)} == {"start", "connect", "disconnect", "stop"}


@pytest.mark.trio
async def test_no_line_is_missing_under_load_and_rotation(open_anyhow, path):
    """Each sender's lines are its acks, in their order, while recipients come and go."""
    senders, events = 8, 150
    settings = audited(
        path, auth=AuthSettings(), limits=LimitSettings(mailbox_messages=4), max_bytes=40_000, backups=99
    )
    acks = {}

    async def send(backend, user_id):
        others = [f"u{number}" for number in range(senders) if f"u{number}" != user_id]
        for number in range(events):
            await backend.send_event(f"{number}", [*others[: number % senders], "nobody"])

    async def read_acks(backend, user_id):
        found = acks[user_id] = []
        while len(found) < events:
            data = (await backend.receive("event_ack"))["data"]
            found.append([data["event_type"], data["delivered_to"], data.get("undelivered", [])])

    async with open_anyhow(settings) as local, trio.open_nursery() as nursery:
        for number in range(senders):
            backend = await local.connect(f"u{number}")
            nursery.start_soon(send, backend, f"u{number}")
            nursery.start_soon(read_acks, backend, f"u{number}")
    lines = read(path)
    assert len(list(path.parent.iterdir())) > 3
    assert of(lines, "drop") == []
    for user_id, found in acks.items():
        told = [
            [line["type"], line["delivered"], line["undelivered"]]
            for line in lines
            if line["event"] == "route" and line["user_id"] == user_id
        ]
        assert told == found
    assert Counter(line["event"] for line in lines)["route"] == senders * events


class FullDisk:
    """The disk of a service's audit log is full from now on."""

    def __init__(self, local):
        self.tried = 0
        writer = local.service._audit._writer
        writer.flush(5)
        self._file = writer._file
        self._write_some = self._file.write_some
        self._file.write_some = self._fail

    def empty(self):
        self._file.write_some = self._write_some

    def _fail(self, data):
        self.tried += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.trio
async def test_with_continue_events_go_on_and_what_was_dropped_is_told(path):
    async with open_service(audited(path, auth=AuthSettings()), in_memory=True) as local:
        ada = await local.connect("ada")
        disk = FullDisk(local)
        for _ in range(5):
            await ada.send_event("t", ["ada"])
            await ada.receive("event_ack")
        local.service._audit._writer.flush(5)
        assert local.service._audit.dropped == 5
        disk.empty()
        await ada.send_event("last", ["ada"])
        await ada.receive("event_ack")
    lines = read(path)
    assert of(lines, "drop", "count") == [[5]]
    assert of(lines, "route", "type") == [["last"]]


@pytest.mark.trio
@pytest.mark.parametrize("room_comes_back", [False, True])
async def test_with_stop_nothing_is_routed_any_more_and_the_service_ends(path, open_anyhow, room_comes_back):
    settings = audited(path, auth=AuthSettings(), on_full="stop")
    routed = []

    async def play():
        async with open_anyhow(settings) as local:
            ada, bob = await local.connect("ada"), await local.connect("bob")
            disk = FullDisk(local)
            with pytest.raises((Closed, trio.BrokenResourceError)):
                await send_events(ada)
            assert disk.tried
            received, code = await count_events(bob)
            assert code == 1001
            assert received == local.service.status.total_events_routed
            routed.append(received)
            if room_comes_back:
                disk.empty()
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(10):
        await play()
    group = caught.value
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    assert isinstance(group, AuditFailed)
    assert "\n" not in str(group)
    assert "No space left on device" in str(group)
    lines = read(path)
    if room_comes_back:
        assert [len(of(lines, "route"))] == routed
        assert of(lines, "stop", "reason") == [["audit failed"]]
    else:
        assert of(lines, "route") == []


@pytest.mark.trio
async def test_a_file_that_cannot_be_opened_keeps_the_service_from_starting(tmp_path):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_service(audited(tmp_path / "missing" / "audit.jsonl")):
            pass
    assert caught.group_contains(CannotStart, match="Cannot open the audit log")


@pytest.mark.trio
async def test_a_payload_is_never_in_the_audit_log(path, open_over_sockets):
    canary = "canary-in-the-coal-mine"
    async with open_over_sockets(audited(path, auth=AuthSettings())) as local:
        ada = await local.connect("ada")
        for data in ({"text": canary}, {canary: 1}, [canary], canary):
            await ada.send_event("t", ["ada", "bob"], data, id=canary)
            await ada.receive("event_ack")
        await ada.stream.send_all(text("collab_event", {"type": 5, "to_users": [], "data": canary}))
        await ada.receive("error")
        await ada.stream.send_all(text(canary, {"type": canary}))
        await ada.receive("error")
        await ask(local, "POST", "/api/register", canary.encode())
    assert len(of(read(path), "route")) == 4
    assert canary not in path.read_text()


@pytest.mark.trio
async def test_two_services_in_one_process_have_an_audit_log_each(tmp_path):
    first, second = (audited(tmp_path / f"{name}.jsonl", auth=AuthSettings()) for name in "ab")
    async with open_service(first, in_memory=True) as a, open_service(second, in_memory=True) as b:
        await a.connect("ada")
        await b.connect("bob")
    assert of(read(tmp_path / "a.jsonl"), "connect", "user_id") == [["ada"]]
    assert of(read(tmp_path / "b.jsonl"), "connect", "user_id") == [["bob"]]
    assert attrs.evolve(first.audit, file=None) == AuditSettings()
