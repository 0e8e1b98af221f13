"""One test for each attack on the edge that has no place elsewhere. docs/security.md lists them all."""

from __future__ import annotations

import json
import logging
import re
import threading
from urllib.parse import quote, quote_plus

import attrs
import pytest
import trio
import trio.testing
from peers import (
    ADA,
    TEXT,
    UPGRADE,
    ask,
    event_text,
    frame,
    head,
    read_to_end,
    say,
    text,
    upgrade,
)
from test_docs import refusals
from tokens import OTHER_SECRET, SECRET, forged, jwk, private_key, token

from collab.cli.pages import settings_as_toml
from collab.observe import configure
from collab.policy import keys
from collab.settings import (
    AuthSettings,
    Duration,
    LimitSettings,
    LogSettings,
    OriginSettings,
    Settings,
    read_settings,
)
from collab.testing import open_service

GOOD = "https://good.example"
WITH_TOKENS = Settings(auth=AuthSettings(mode="jwt", secret=SECRET, leeway=Duration("0s")))
PATIENCE_SECONDS = 10


def bearing(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


# Pages that may not connect.

ORIGINS = {
    "a host that begins alike": [GOOD + ".evil.example"],
    "a host that begins alike, without a dot": [GOOD + "evil.example"],
    "a host that ends alike": ["https://evilgood.example"],
    "a subdomain": ["https://sub.good.example"],
    "the domain above": ["https://example"],
    "another port": [GOOD + ":8443"],
    "the default port spelt out": [GOOD + ":443"],
    "another scheme": ["http://good.example"],
    "the scheme of the socket": ["wss://good.example"],
    "no scheme": ["good.example"],
    "upper case": ["HTTPS://GOOD.EXAMPLE"],
    "a slash at the end": [GOOD + "/"],
    "a path": [GOOD + "/page"],
    "the dot of the root": [GOOD + "."],
    "null": ["null"],
    "Null": ["Null"],
    "empty": [""],
    "a star": ["*"],
    "a user in front": ["https://good.example@evil.example"],
    "a user in front of the good host": ["https://evil@good.example"],
    "percent-encoded": ["https://good%2eexample"],
    "a letter that looks alike": ["https://go\xf6d.example"],
    "a blank within": ["https://good.example https://evil.example"],
    "two in one header": [GOOD + ", https://evil.example"],
    "the good one twice in one header": [GOOD + ", " + GOOD],
    "two headers, the good one first": [GOOD, "https://evil.example"],
    "two headers, the good one last": ["https://evil.example", GOOD],
    "the good one in two headers": [GOOD, GOOD],
    "a good one and an empty one": [GOOD, ""],
}


def with_origins(origins: list[str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in UPGRADE.items()] + [f"Origin: {each}" for each in origins]
    return "\r\n".join([f"GET {ADA} HTTP/1.1", *lines, "", ""]).encode("latin-1")


@pytest.mark.trio
@pytest.mark.parametrize("origins", ORIGINS.values(), ids=ORIGINS)
async def test_a_page_of_another_origin_may_not_connect(origins):
    settings = Settings(origins=OriginSettings(allowed=(GOOD, "https://other.example:8443")))
    async with open_service(settings, in_memory=True) as local:
        assert (await say(local, with_origins(origins))).refusal == (403, "origin_not_allowed")
        assert local.service.status.total_connections == 0


@pytest.mark.trio
@pytest.mark.parametrize("origin", [GOOD, "https://other.example:8443"])
async def test_a_page_of_an_allowed_origin_may_connect(origin):
    settings = Settings(origins=OriginSettings(allowed=(GOOD, "https://other.example:8443")))
    async with open_service(settings, in_memory=True) as local:
        assert (await say(local, with_origins([origin]))).status == 101


@pytest.mark.trio
async def test_a_sound_token_does_not_make_up_for_a_wrong_origin():
    settings = attrs.evolve(WITH_TOKENS, origins=OriginSettings(allowed=(GOOD,)))
    async with open_service(settings, in_memory=True) as local:
        evil = {"origin": "https://evil.example", **bearing(token("ada"))}
        assert (await upgrade(local, ADA, evil)).refusal == (403, "origin_not_allowed")


# Users who say that they are others.

FORGERIES = {
    "another user": '{"type":"t","from_user":"bob","to_users":["cyd"]}',
    "the recipient": '{"type":"t","from_user":"cyd","to_users":["cyd"]}',
    "another case": '{"type":"t","from_user":"ADA","to_users":["cyd"]}',
    "a blank": '{"type":"t","from_user":"ada ","to_users":["cyd"]}',
    "a zero width space": '{"type":"t","from_user":"ada\\u200b","to_users":["cyd"]}',
    "nobody": '{"type":"t","from_user":"","to_users":["cyd"]}',
    "a list": '{"type":"t","from_user":["ada"],"to_users":["cyd"]}',
    "twice, the own name first": '{"type":"t","from_user":"ada","from_user":"bob","to_users":["cyd"]}',
    "an escape": '{"type":"t","from_user":"bo\\u0062","to_users":["cyd"]}',
    "a key with an escape": '{"type":"t","from\\u005fuser":"bob","to_users":["cyd"]}',
}


@pytest.mark.trio
@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("settings", [Settings(), WITH_TOKENS], ids=["open", "jwt"])
async def test_a_forged_from_user_is_refused_and_routed_to_nobody(forgery, settings):
    async with open_service(settings, in_memory=True) as local:
        tokens = {name: token(name) if settings.auth.mode == "jwt" else "" for name in ("ada", "cyd")}
        ada = await local.connect("ada", token=tokens["ada"])
        cyd = await local.connect("cyd", token=tokens["cyd"])
        await ada.send_text(f'{{"event":"collab_event","data":{forgery}}}')
        error = await ada.receive()
        assert error["event"] == "error"
        assert error["data"]["code"] in ("from_user_mismatch", "invalid_event")
        assert await cyd.echoes()
        assert local.service.status.total_events_routed == 0


@pytest.mark.trio
@pytest.mark.parametrize(
    "message",
    [
        '{"event":"collab_event","from_user":"bob","data":{"type":"t","to_users":["cyd"]}}',
        '{"event":"collab_event","data":{"type":"t","to_users":["cyd"],"From_User":"bob","user":"bob"}}',
        '{"event":"collab_event","data":{"type":"t","from_user":"bob","from_user":"ada","to_users":["cyd"]}}',
        '{"event":"collab_event","data":{"type":"t","to_users":["cyd"],"data":{}},"data":'
        '{"type":"t","to_users":["cyd"]}}',
    ],
)
async def test_the_recipient_sees_one_sender_and_it_is_the_true_one(message):
    async with open_service(WITH_TOKENS, in_memory=True) as local:
        ada, cyd = (
            await local.connect("ada", token=token("ada")),
            await local.connect("cyd", token=token("cyd")),
        )
        await ada.send_text(message)
        raw = await cyd.receive_text()
        assert raw.count("from_user") == 1
        assert "bob" not in raw
        assert json.loads(raw)["data"]["from_user"] == "ada"


SUBJECTS = [
    7,
    7.5,
    True,
    None,
    [],
    ["ada"],
    {"id": "ada"},
    "",
    "x" * 129,
    "x" * 5000,
    "a\0da",
    "a\r\nda",
    "\u202eada",
]


@pytest.mark.trio
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: ascii(subject)[:20])
async def test_a_token_whose_subject_can_be_no_user_lets_nobody_in(subject):
    import jwt

    # By the library's own parts: its `encode` refuses such a subject.
    body = json.dumps({"sub": subject, "exp": 99999999999}).encode()
    odd = jwt.api_jws.encode(body, SECRET, algorithm="HS256")
    async with open_service(WITH_TOKENS, in_memory=True) as local:
        for target in (
            "/?backend_url=http://x",
            "/?backend_url=http://x&user_id=ada",
            "/ws/7?backend_url=http://x",
        ):
            answer = await upgrade(local, target, bearing(odd))
            assert answer.refusal in {
                (401, "unauthenticated"),
                (400, "invalid_parameter"),
                (403, "forbidden"),
            }
        assert local.online() == set()
        assert local.service.status.total_connections == 0


# Requests that two parsers could read in two ways. Each hides an upgrade that would let `eve` in.

HIDDEN = head("GET", "/?user_id=eve&backend_url=http://x", UPGRADE)
HIDDEN_SIZE = str(len(HIDDEN))
CHUNKED = {"transfer-encoding": "chunked"}


def post(fields: dict[str, str], body: bytes) -> bytes:
    return head("POST", "/health", fields) + body


def raw(lines: str, body: bytes = b"") -> bytes:
    return lines.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body


SMUGGLED = {
    "a length, then chunked": (post({"content-length": "5", **CHUNKED}, b"0\r\n\r\n" + HIDDEN), 400),
    "chunked, then a length": (post({**CHUNKED, "content-length": "5"}, b"0\r\n\r\n" + HIDDEN), 400),
    "two lengths": (
        raw("POST /health HTTP/1.1\nhost: x\ncontent-length: 0\ncontent-length: " + HIDDEN_SIZE, HIDDEN),
        400,
    ),
    "the same length twice": (
        raw("POST /health HTTP/1.1\nhost: x\ncontent-length: 0\ncontent-length: 0", HIDDEN),
        400,
    ),
    "two lengths in one header": (post({"content-length": "0, " + HIDDEN_SIZE}, HIDDEN), 400),
    "a length with a sign": (post({"content-length": "+0"}, HIDDEN), 400),
    "a length below nothing": (post({"content-length": "-1"}, HIDDEN), 400),
    "a length in hex": (post({"content-length": "0x0"}, HIDDEN), 400),
    "a length of a name with a blank": (
        raw("POST /health HTTP/1.1\nhost: x\ncontent-length : " + HIDDEN_SIZE, HIDDEN),
        400,
    ),
    "a folded length": (raw("POST /health HTTP/1.1\nhost: x\nx: y\n content-length: 9", HIDDEN), 400),
    "a folded coding": (raw("POST /health HTTP/1.1\nhost: x\ntransfer-encoding:\n chunked", HIDDEN), 400),
    "a bare line feed": (b"POST /health HTTP/1.1\r\nhost: x\nx: y\r\n\r\n" + HIDDEN, 400),
    "bare line feeds alone": (b"POST /health HTTP/1.1\nhost: x\n\n" + HIDDEN, 400),
    "a bare carriage return": (b"POST /health HTTP/1.1\r\nhost: x\rx: y\r\n\r\n" + HIDDEN, 400),
    "a NUL in a name": (b"POST /health HTTP/1.1\r\nhost: x\r\nx\0: y\r\n\r\n" + HIDDEN, 400),
    "a coding in a list": (post({"transfer-encoding": "gzip, chunked"}, b"0\r\n\r\n" + HIDDEN), 501),
    "a coding that is none": (post({"transfer-encoding": "xchunked"}, b"0\r\n\r\n" + HIDDEN), 501),
    "a coding with a tab": (post({"transfer-encoding": "\x0bchunked"}, b"0\r\n\r\n" + HIDDEN), 400),
    "two codings": (
        raw(
            "POST /health HTTP/1.1\nhost: x\ntransfer-encoding: chunked\ntransfer-encoding: identity",
            b"0\r\n\r\n" + HIDDEN,
        ),
        501,
    ),
    "a coding in HTTP/1.0": (
        raw("POST /health HTTP/1.0\nhost: x\ntransfer-encoding: chunked", b"0\r\n\r\n" + HIDDEN),
        400,
    ),
    "two hosts": (raw("GET /health HTTP/1.1\nhost: x\nhost: y", HIDDEN), 400),
    "an empty line first": (b"\r\n" + HIDDEN, 400),
    "a request line of 0.9": (b"GET /health\r\n\r\n" + HIDDEN, 400),
    "an upgrade with a length": (
        head("GET", ADA, {**UPGRADE, "content-length": HIDDEN_SIZE}) + HIDDEN,
        400,
    ),
    "an upgrade with chunks": (head("GET", ADA, {**UPGRADE, **CHUNKED}) + b"0\r\n\r\n" + HIDDEN, 400),
    "an upgrade with both": (
        head("GET", ADA, {**UPGRADE, **CHUNKED, "content-length": "5"}) + b"0\r\n\r\n" + HIDDEN,
        400,
    ),
    "an upgrade that is refused": (head("GET", "/nowhere", UPGRADE) + HIDDEN, 404),
    "a request behind a request": (head("GET", "/health", {"connection": "keep-alive"}) + HIDDEN, 200),
    "a request behind a body": (post({"content-length": "2"}, b"{}" + HIDDEN), 405),
    "a request as a body": (post({"content-length": HIDDEN_SIZE}, HIDDEN), 405),
    "a request as a body of GET": (head("GET", "/health", {"content-length": HIDDEN_SIZE}) + HIDDEN, 200),
    "a request behind the last chunk": (post(CHUNKED, b"2\r\n{}\r\n0\r\n\r\n" + HIDDEN), 405),
    "a request in a chunk": (post(CHUNKED, b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n"), 405),
    "a request in an extension": (post(CHUNKED, b"0;x=\r\n\r\n" + HIDDEN), 405),
    "a request in a trailer": (post(CHUNKED, b"0\r\nx: y\r\n\r\n" + HIDDEN), 405),
    "a length in a trailer": (post(CHUNKED, b"0\r\ncontent-length: 9\r\n\r\n" + HIDDEN), 405),
    "a chunk of bad size": (post(CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n" + HIDDEN), 400),
    "a chunk of negative size": (post(CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n" + HIDDEN), 400),
    "a chunk longer than its size": (post(CHUNKED, b"1\r\n{}\r\n0\r\n\r\n" + HIDDEN), 400),
    "a chunk that ends in a line feed": (post(CHUNKED, b"2\n{}\n0\n\n" + HIDDEN), 400),
    "a request behind 100-continue": (
        post({"expect": "100-continue", "content-length": "2"}, b"{}" + HIDDEN),
        405,
    ),
}


@pytest.mark.trio
@pytest.mark.parametrize(("data", "status"), SMUGGLED.values(), ids=SMUGGLED)
async def test_nothing_is_smuggled_through_the_door_split_at_every_byte(data, status, autojump_clock):
    assert status in {200, *(listed for listed, _ in refusals())}
    async with open_service(in_memory=True) as local:
        door = local.service._door
        served = 0

        async def count_requests(exchange):
            nonlocal served
            served += 1
            await serve_http(exchange)

        serve_http, door._serve_http = door._serve_http, count_requests
        for cut in range(len(data)):
            served = 0
            stream, _ = await local.open_stream()
            if cut:
                await stream.send_all(data[:cut])
                await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(data[cut:])
            told = await read_to_end(stream)
            await stream.aclose()
            told = told.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 %d " % status), (cut, told)
            assert len(re.findall(rb"HTTP/1\.\d \d", told)) == 1, (cut, told)
            fields, _, body = told.partition(b"\r\n\r\n")
            assert len(body) == int(re.search(rb"(?i)\r\ncontent-length: (\d+)", fields)[1]), (cut, told)
            assert served == (status in (200, 405)), cut
        assert local.service.status.total_connections == 0
        assert local.online() == set()


@pytest.mark.trio
async def test_a_malformed_body_is_not_repeated(caplog):
    caplog.set_level(logging.DEBUG)
    async with open_service(in_memory=True) as local:
        answer = await say(local, post(CHUNKED, b"canary\r\n"))
        assert answer.refusal == (400, "bad_request")
        assert b"canary" not in answer.body
        answer = await ask(local, "POST", "/api/register", b'{"user_id": canary}')
        assert answer.refusal == (400, "invalid_json")
        assert b"canary" not in answer.body
    assert "canary" not in caplog.text


# Requests that are strange or huge.


@pytest.mark.trio
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/ws/a%2Fb", "a/b"),
        ("/ws/%2e%2e", ".."),
        ("/ws/..", ".."),
        ("/ws/%2e%2e%2fadmin", "../admin"),
        ("/ws/a%3Fuser_id=eve", "a?user_id=eve"),
        ("/ws/a%2523", "a%23"),
        ("/ws/a%00b", 400),
        ("/ws/a%0d%0aset-cookie:%20x", 400),
        ("/ws/%1b%5b2J", 400),
        ("/ws/%e2%80%aeada", 400),
        ("/ws/%ff%fe", 400),
        ("/ws/%ed%a0%80", 400),
        ("/ws/%c0%af", 400),
        ("/ws/" + "x" * 129, 400),
        ("/ws/../ada", 404),
        ("/ws/a/b", 404),
        ("/ws%2fada", 404),
        ("//ws/ada", 404),
        ("/WS/ada", 404),
    ],
)
async def test_a_path_means_one_user_or_none(path, found):
    async with open_service(in_memory=True) as local:
        answer = await upgrade(local, f"{path}?backend_url=http://x")
        if isinstance(found, str):
            assert answer.status == 101
            await trio.testing.wait_all_tasks_blocked()
            assert local.online() <= {found}
        else:
            assert answer.refusal[0] == found
        assert local.service.status.total_connections == isinstance(found, str)


@pytest.mark.trio
@pytest.mark.parametrize(
    "path",
    [
        "%00",
        "..%2f..%2fetc%2fpasswd",
        "a%2f..%2fonline",
        "%ff",
        "%0d%0aset-cookie:%20x",
        "%1b[2J",
        "x" * 9000,
    ],
)
async def test_the_api_takes_any_path_for_a_user_who_is_not_there(path):
    async with open_service(in_memory=True) as local:
        answer = await ask(local, "GET", f"/api/users/{path}")
        assert answer.refusal == (404, "not_found")
        assert "set-cookie" not in answer.headers
    async with open_service(WITH_TOKENS, in_memory=True) as local:
        assert (await ask(local, "GET", f"/api/users/{path}")).refusal == (401, "unauthenticated")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        ("&".join(f"p{number}=v" for number in range(100)), None),
        ("&".join(f"p{number}" for number in range(2000)), None),
        ("&" * 15_000, None),
        ("x=" + "%41" * 5000, None),
        ("x=" + "%" * 15_000, None),
        ("x=" + "y" * 15_000, None),
        ("&".join(["p=v"] * 100), (400, "invalid_parameter")),
        ("x=" + "%ff" * 5000, (400, "invalid_parameter")),
        ("display_name=" + "y" * 129, (400, "invalid_parameter")),
        ("token=" + "y" * 15_000, None),
        ("x=" + "y" * 17_000, (431, "head_too_large")),
        ("&".join(f"p{number}=v" for number in range(4000)), (431, "head_too_large")),
    ],
    ids=range(12),
)
async def test_a_huge_query_is_taken_or_refused_and_never_a_fault(query, refusal, caplog):
    async with open_service(in_memory=True) as local:
        answer = await upgrade(local, f"{ADA}&{query}")
        assert answer.status == 101 if refusal is None else answer.refusal == refusal
    async with open_service(WITH_TOKENS, in_memory=True) as local:
        answer = await upgrade(local, f"{ADA}&{query}", bearing("x.y.z"))
        assert answer.status in (400, 401, 431)
    assert "Connection failed" not in caplog.text


# Words that are made to be read in a log.

CURSE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n2025-11-01T10:00:00Z [INFO]: forged"
    "\u202e\u2066\u2028\u2029\u200f\x00\x7f\x85"
)
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.trio
@pytest.mark.parametrize("format", ["text", "json"])
async def test_nothing_that_a_peer_says_reaches_a_log_or_a_terminal_raw(format, tmp_path, capfd):
    path = tmp_path / "service.log"
    said = b""
    with configure(LogSettings(file=str(path), format=format, level="debug")) as writer:
        async with open_service(in_memory=True) as local:
            ugly = quote(CURSE)
            for target in (
                f"/?user_id={ugly}&backend_url=http://x",
                f"/ws/{ugly}?backend_url=http://x",
                f"/?user_id=ada&backend_url={ugly}",
                f"/?user_id=ada&backend_url=http://{ugly}",
                f"/?user_id=ada&backend_url=http://x/{ugly}",
                f"/?user_id=ada&backend_url=http://x&display_name={ugly}",
                f"/?user_id=ada&backend_url=http://x&presence={ugly}",
                f"/?user_id=ada&backend_url=http://x&{ugly}=1&{ugly}=2",
                f"/{ugly}",
            ):
                said += (await upgrade(local, target)).body
                said += (await ask(local, "GET", target)).body
            body = json.dumps({"user_id": CURSE, "backend_url": CURSE}).encode()
            said += (await ask(local, "POST", "/api/register", body)).body
            said += (await ask(local, "POST", "/api/register", CURSE.encode())).body
            said += (await ask(local, "GET", "/health", headers={"x": "\x85\xa0"})).body
            said += (await say(local, b"GET \x1b[2J HTTP/1.1\r\nhost: \x1b\r\n\r\n")).body
            # What may be in a name, a type and an id: bidi marks, and anything.
            turned = quote_plus("\u202eada\u2066")
            ada = await local.open(f"/?user_id=ada&backend_url=http://x&display_name={turned}")
            await ada.receive("connected")
            for message in (
                event_text(["ada", "bob"], CURSE, id=CURSE[:64]),
                text(CURSE),
                text(CURSE, {}, id=CURSE),
                text("collab_event", {"type": CURSE[:64], "to_users": ["ada"]}),
                text("collab_event", {"type": CURSE, "to_users": ["ada"]}),
                text("collab_event", {"type": "t", "to_users": [CURSE]}),
                text("collab_event", {"type": "t", "to_users": ["ada"], "from_user": CURSE}),
                text("refresh", {"token": CURSE}),
                frame(TEXT, CURSE.encode()),
            ):
                await ada.stream.send_all(message)
            assert await ada.echoes()
            await ada.stream.send_all(frame(8, b"\x03\xe8" + CURSE.encode()[:100]))
            await ada.wait_closed()
        assert writer.flush(PATIENCE_SECONDS)
    shown, errors = capfd.readouterr()
    written = path.read_bytes().decode()
    assert errors == ""
    assert shown == written
    assert not FORBIDDEN.search(written)
    lines = written.removesuffix("\n").split("\n")
    assert len(lines) > 10
    # Some of it is logged, and shows as what it is.
    assert "\\u001b]0;owned" in written
    assert "\\u202eada\\u2066" in written
    for line in lines:
        if format == "json":
            assert json.loads(line)["event"] != "forged"
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \[[A-Z]+\]: [A-Z]", line)
    assert not any(b"\x1b" in part or b"\x07" in part for part in said.splitlines())


# What nobody may learn.


@pytest.mark.trio
@pytest.mark.parametrize("format", ["text", "json"])
async def test_no_token_and_no_secret_is_told_anywhere(format, tmp_path, capfd):
    sound, bad, late = token("ada"), token("ada", key=OTHER_SECRET), token("ada", seconds=-60)
    unsigned = forged({"alg": "none"}, {"sub": "ada", "exp": 99999999999})
    said: list[object] = []
    path = tmp_path / "service.log"
    with configure(LogSettings(file=str(path), format=format, level="debug")) as writer:
        async with open_service(WITH_TOKENS) as local:
            for each in (sound, bad, late, unsigned, sound + "x", "x" * 9000 + sound):
                for target in (
                    "/health",
                    "/ready",
                    "/",
                    "/nothing",
                    "/ws",
                    "/api/users/online",
                    "/api/x",
                    "/api/register",
                ):
                    for method in ("GET", "POST", "DELETE", "OPTIONS"):
                        for query, headers in (("", bearing(each)), (f"?token={each}", {})):
                            answer = await ask(local, method, target + query, headers=headers)
                            said += [answer.headers, answer.body]
                for target, headers in (
                    ("/", bearing(each)),
                    (f"/?token={each}", {}),
                    (f"{ADA}&token={each}&token={each}", {}),
                    (f"/?user_id={each}&backend_url=http://x", bearing(sound)),
                    ("/nowhere", bearing(each)),
                    (ADA, {**bearing(each), "sec-websocket-version": "12"}),
                ):
                    answer = await upgrade(local, target, headers)
                    said += [answer.headers, answer.body]
            ada = await local.connect("ada", token=sound)
            for each in (bad, late, unsigned):
                await ada.send("refresh", {"token": each})
                said.append(await ada.receive("error"))
            await ada.send("refresh", {"token": sound})
            said.append(await ada.receive("refreshed"))
            await ada.send("refresh", {"token": [sound]})
            said.append(await ada.receive("error"))
            service = local.service
            (connection,) = service.registry.connections()
            said += [repr(each) for each in (connection, connection.identity, service, service.settings)]
            said += [repr(each) for each in (service._authenticator, service._authenticator._keys)]
            said += [repr(each) for each in (service._acceptor, service._door, *service._acceptor.lives())]
        assert writer.flush(PATIENCE_SECONDS)
    variables = {"COLLAB_AUTH__MODE": "jwt", "COLLAB_AUTH__SECRET": SECRET}
    loaded = read_settings(Settings, None, variables, {})
    said += [settings_as_toml(loaded), repr(loaded), str(loaded.settings)]
    everything = "\n".join([repr(said), path.read_text(), *capfd.readouterr()])
    assert SECRET not in everything
    header = sound.split(".")[0]
    for each in (sound, bad, late, unsigned):
        for part in each.split("."):
            assert len(part) < 10 or part == header or part not in everything
    assert header not in everything


# Loads that are meant to stop the others.


@pytest.mark.trio
@pytest.mark.parametrize("over", [["u5"], ["u5"] * 40, ["u0", "u5"]], ids=["one", "many times", "last"])
async def test_one_recipient_over_the_cap_and_nobody_gets_the_event(over):
    settings = Settings(limits=LimitSettings(max_recipients=5))
    async with open_service(settings, in_memory=True) as local:
        users = [f"u{number}" for number in range(5)]
        ada, first = await local.connect("ada"), await local.connect("u0")
        await ada.send_event("t", users + over, id=1)
        error = await ada.receive()
        assert (error["event"], error["data"]["code"], error["id"]) == ("error", "too_many_recipients", 1)
        # Who is named twice counts once, and gets it once.
        await ada.send_event("t", users * 8, "the cap itself")
        assert (await ada.receive("event_ack"))["data"]["total_recipients"] == 5
        assert (await first.receive())["data"]["data"] == "the cap itself"
        assert await first.echoes()
        assert local.service.status.total_events_routed == 1


@pytest.mark.trio
async def test_while_the_keys_do_not_come_the_others_exchange_events(monkeypatch, mock_clock):
    stalled, release = threading.Event(), threading.Event()
    fetching_threads = []

    def fetch(_: str) -> bytes:
        fetching_threads.append(threading.get_ident())
        if len(fetching_threads) > 1:
            stalled.set()
            release.wait(PATIENCE_SECONDS)
        return json.dumps({"keys": [jwk("EdDSA", "a")]}).encode()

    def signed(user_id: str, key_id: str) -> str:
        return token(user_id, key=private_key("EdDSA"), algorithm="EdDSA", headers={"kid": key_id})

    monkeypatch.setattr(keys, "_fetch", fetch)
    settings = Settings(auth=AuthSettings(mode="jwt", jwks_url="http://127.0.0.1:9/keys"))
    answers = []
    try:
        async with open_service(settings, in_memory=True) as local, trio.open_nursery() as nursery:
            ada = await local.connect("ada", token=signed("ada", "a"))
            bob = await local.connect("bob", token=signed("bob", "a"))
            mock_clock.jump(10)

            async def ask_with_unknown_key(number: int) -> None:
                unknown = bearing(signed("ada", f"unknown-{number}"))
                answers.append((await upgrade(local, ADA, unknown)).refusal)

            for number in range(100):
                nursery.start_soon(ask_with_unknown_key, number)
            assert await trio.to_thread.run_sync(stalled.wait, PATIENCE_SECONDS)
            for number in range(200):
                await ada.send_event("t", ["bob"], number)
                assert (await bob.receive())["data"]["data"] == number
                await ada.receive("event_ack")
            # A newcomer whose key is known need not wait either.
            await local.connect("cyd", token=signed("cyd", "a"))
            assert not release.is_set()
            assert answers == []
            assert len(fetching_threads) == 2
            assert threading.get_ident() not in fetching_threads
            release.set()
        assert answers == [(401, "unauthenticated")] * 100
    finally:
        release.set()
