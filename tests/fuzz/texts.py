"""Owns the fuzzing of JSON: messages made by a grammar, damaged or not, and what must come of each.

The standard library's parser is the second opinion, kept from what it takes beyond RFC 8259.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from test_docs import rows

from collab.errors import InvalidJson, MessageError
from collab.policy.validation import EventRules
from collab.wire.codec import decode
from collab.wire.frames import FrameScanner
from collab.wire.messages import ErrorReply, PingRequest, RouteRequest
from collab.wire.plain import PLAIN
from fuzz.draw import cut, damage, dice

if TYPE_CHECKING:
    import random

AREA = "json"
ERROR_CODES = frozenset(row[0].strip("`") for row in rows("Errors"))
USER = "ada"
_LIMIT = 1 << 20
_RULES = EventRules(max_recipients=20)
_SHALLOW = 100
"""Brackets that no limit on depth can forbid: docs/protocol.md leaves the number open."""

_NUMBERS = (
    *("0", "-0", "7", "-1", "1.5", "1e5", "1E+5", "0.0", "9" * 64, "9" * 65, "-" + "1" * 63),
    *(
        "1e999999999",
        "-1e-999999999",
        "1" * 400,
        "0." + "3" * 300,
        str(2**63),
        str(2**64),
        "-9223372036854775809",
    ),
)
_BOMB_NUMBERS = ("1" * 5_000, "-" + "9" * 60_000, "1e" + "9" * 500)
_WRONG = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "+1",
        "01",
        "1.",
        ".5",
        "1e",
        "0x1",
        "nul",
        "True",
        "'a'",
        "",
        "undefined",
    ),
    *(
        '"\t"',
        '"\\x41"',
        '"\\u12"',
        "[1,]",
        '{"a":1,}',
        "{a:1}",
        "/*c*/1",
        '"',
        "[",
        "{",
        "--1",
        "1 2",
        "\ufeff1",
    ),
)
_STRINGS = (
    *(
        '""',
        '"a"',
        '"ada"',
        '"bob"',
        '"t"',
        '"collab_event"',
        '"ping"',
        '"\\u0061da"',
        '"grüße"',
        '"\\n\\"\\\\\\/"',
    ),
    *(
        '"\U0001f600"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"\\u202e"',
        '"\u202e"',
        '"\u2028"',
        '"x y"',
        '"\x7f"',
    ),
)
_SURROGATES = ('"\\ud800"', '"\\udc00"', '"\\ud83d\\u0041"', '"\\ude00\\ud83d"', '"x\\uDFFF"')
_LONG_STRINGS = tuple(
    f'"{letter * size}"' for letter in ("x", "é", "\\u0041") for size in (63, 64, 65, 128, 129, 500)
)
_KEYS = (
    '"event"',
    '"id"',
    '"data"',
    '"type"',
    '"to_users"',
    '"from_user"',
    '"a"',
    '""',
    '"\\u0064ata"',
    '"x"',
)
_BLANKS = ("", "", "", "", " ", "\n", "\t\r\n  ")
_SPICE = (
    *(b"\\ud800", b"\\", b'"', b"{", b"}", b"[", b"]", b"]}", b",", b":", b"null", b"1e999", b"NaN", b"\x00"),
    *(
        b"\\u0000",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        "\u202e".encode(),
        b'"event":5,',
        b'"id":[],',
        b"-",
        b"\xef\xbb\xbf",
    ),
)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


# What goes out


def text(draw: random.Random) -> bytes:
    """One text: mostly an envelope with an event in it, right or wrong in one place or in many."""
    kind = draw.random()
    if kind < 0.72:
        made = message(draw)
    elif kind < 0.9:
        return damage(draw, message(draw), _SPICE)
    elif kind < 0.96:
        made = _value(draw, 4).encode()
    elif kind < 0.965:
        made = _bomb(draw)
    else:
        made = draw.randbytes(int(draw.random() * 30))
    return made


def message(draw: random.Random) -> bytes:
    """An envelope, every part of it drawn by itself."""
    kind = draw.random()
    event = '"collab_event"' if kind < 0.7 else '"ping"' if kind < 0.85 else _any(draw, _STRINGS)
    members = [('"event"', event)]
    if draw.random() < 0.6:
        members.append(('"id"', _id(draw)))
    if kind < 0.7 or draw.random() < 0.5:
        members.append(('"data"', _event(draw) if draw.random() < 0.93 else _value(draw, 3)))
    return _object(draw, members).encode()


def _event(draw: random.Random) -> str:
    members = [
        ('"type"', draw.choice(_STRINGS) if draw.random() < 0.8 else _any(draw, _LONG_STRINGS)),
        ('"to_users"', _users(draw)),
    ]
    if draw.random() < 0.3:
        members.append(('"from_user"', '"ada"' if draw.random() < 0.6 else _any(draw, _STRINGS)))
    if draw.random() < 0.8:
        members.append(('"data"', _value(draw, 4)))
    return _object(draw, members)


def _object(draw: random.Random, members: list[tuple[str, str]]) -> str:
    """The members in any order, seldom one left out, given twice, or of a name that nobody knows."""
    how = draw.random()
    if how < 0.5:
        draw.shuffle(members)
    if how < 0.05:
        members.pop()
    elif how < 0.1:
        members.insert(int(draw.random() * 3), (draw.choice(_KEYS), _value(draw, 2)))
    blank = draw.choice(_BLANKS)
    return (
        "{"
        + f"{blank},{blank}".join([f"{key}{blank}:{blank}{value}" for key, value in members])
        + blank
        + "}"
    )


def _id(draw: random.Random) -> str:
    how = draw.random()
    if how < 0.5:
        return str(int(draw.random() * 10**6))
    if how < 0.8:
        return draw.choice(_STRINGS)
    return draw.choice(_LONG_STRINGS) if how < 0.9 else _value(draw, 1)


def _users(draw: random.Random) -> str:
    how = draw.random()
    if how < 0.04:
        return _value(draw, 2)
    names = [draw.choice(_STRINGS) for _ in range(int(draw.random() * 5))]
    if how < 0.1:
        names.append(_any(draw, _LONG_STRINGS))
    elif how < 0.13:
        names += [f'"u{number}"' for number in range(draw.choice((15, 20, 21, 40)))]
    elif how < 0.15:
        names = names[:1] * 60
    return "[" + ",".join(names) + "]"


def _any(draw: random.Random, usual: tuple[str, ...]) -> str:
    return draw.choice(usual) if draw.random() < 0.7 else _value(draw, 2)


def _value(draw: random.Random, depth: int) -> str:
    how = draw.random()
    if how < 0.3:
        return draw.choice(_STRINGS)
    if how < 0.5:
        return draw.choice(_NUMBERS)
    if how < 0.6:
        return draw.choice(("null", "true", "false", "[]", "{}"))
    if how < 0.61:
        return draw.choice(_WRONG)
    if how < 0.615:
        return draw.choice(_SURROGATES)
    if depth <= 0 or how < 0.65:
        return draw.choice(_LONG_STRINGS)
    blank = draw.choice(_BLANKS)
    items = [_value(draw, depth - 1) for _ in range(int(draw.random() * 4))]
    if how < 0.82:
        return "[" + f"{blank},".join(items) + blank + "]"
    return "{" + f"{blank},".join([f"{draw.choice(_KEYS)}{blank}:{item}" for item in items]) + blank + "}"


def _bomb(draw: random.Random) -> bytes:
    depth = draw.choice((100, 300, 500, 1_000, 5_000))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    bomb = draw.choice((opening * depth + "1" + closing * depth, opening * depth, draw.choice(_BOMB_NUMBERS)))
    frame = draw.choice(
        (
            '{"event":"ping","data":%s}',
            '{"event":"ping","id":%s}',
            '{"event":"ping","more":%s}',
            '{"event":%s}',
            '{"event":"collab_event","data":{"type":"t","to_users":[],"data":%s}}',
            '{"event":"collab_event","data":{"type":"t","to_users":[%s]}}',
            '{"event":"collab_event","data":{"type":"t","to_users":[],"from_user":%s}}',
            "%s",
        )
    )
    return (frame % bomb).encode()


# What must come of it


def _refuse(_: str) -> NoReturn:
    raise ValueError("not JSON")


_parse = json.JSONDecoder(parse_constant=_refuse, parse_int=str, parse_float=str).decode


def run(seed: int, index: int) -> None:
    """One text: a message that means what was written, or a typed error, however its frame is split."""
    draw = dice(AREA, seed, index)
    said = text(draw)
    try:
        characters: str | None = said.decode()
    except UnicodeDecodeError:
        characters = None
    if index % 8 == 0:
        # The same bytes in frames: whole, or in fragments that trio-websocket would put together.
        _check_frames(draw, said, is_utf8=characters is not None)
    try:
        found = decode(said)
        if isinstance(found, RouteRequest):
            _RULES.check(found, USER)
    except MessageError as error:
        _check_error(error, said, characters)
        return
    if characters is not None:
        _check_message(found, said, _parse(characters))


def _check_frames(draw: random.Random, said: bytes, *, is_utf8: bool) -> None:
    # An empty mask leaves the payload readable, and is one that a client may draw.
    size = len(said)
    if size < 126:
        head = bytes((0x81, 0x80 | size))
    elif size < 65_536:
        head = b"\x81\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\x81\xff" + size.to_bytes(8, "big")
    scanner = FrameScanner(_LIMIT)
    texts: list[bytes] = []
    codes: list[int] = []
    for piece in cut(draw, head + bytes(4) + said):
        found = scanner.feed(piece)
        texts += found.texts
        codes += [found.violation.code] if found.violation else []
        assert not found.pongs
    assert (texts, codes) == (([said], []) if is_utf8 else ([], [1007]))


def _check_error(error: MessageError, said: bytes, characters: str | None) -> None:
    assert error.code in ERROR_CODES
    assert len(error.detail) < 400, "an error echoes what was sent at length"
    # The `error` that the sender gets is JSON, and carries the id as it was written.
    reply = _parse(_payload(PLAIN.error_frame(error)).decode())
    assert reply["event"] == ErrorReply.event
    assert set(reply["data"]) == {"message", "error", "code"}
    assert error.reply_id in said
    if isinstance(error, InvalidJson) and characters is not None:
        deep = said.count(b"[") + said.count(b"{") > _SHALLOW
        if deep or _SURROGATE_ESCAPE.search(characters):
            return
        try:
            _parse(characters)
        except ValueError:
            return
        raise AssertionError(f"refused as no JSON: {error.detail}")


def _check_message(found: PingRequest | RouteRequest, said: bytes, envelope: dict[str, Any]) -> None:
    reply_id = bytes(found.reply_id)
    assert ("id" in envelope) == bool(reply_id)
    if reply_id:
        assert _parse(reply_id.decode()) == envelope["id"]
        # Digits are kept as text here, so that this counts them as well.
        assert len(envelope["id"]) <= 64
    if isinstance(found, PingRequest):
        assert envelope["event"] == "ping"
        return
    assert envelope["event"] == "collab_event"
    event, data = found.event, envelope["data"]
    raw = bytes(event.data)
    assert event.type == data["type"]
    assert event.to_users == data["to_users"]
    assert data.get("from_user", USER) == USER
    if "data" in data:
        assert raw in said
        assert _parse(raw.decode()) == data["data"]
    else:
        assert raw == b"{}"
    relayed = PLAIN.event_frame(event, USER)
    assert relayed.endswith(b',"data":' + raw + b"}}"), "the data is not relayed byte for byte"
    again = _parse(_payload(relayed).decode())
    assert again == {
        "event": "collab_event",
        "data": {
            "type": event.type,
            "from_user": USER,
            "to_users": event.to_users,
            "data": _parse(raw.decode()),
        },
    }
    ack = PLAIN.ack_frame(event.type, len(set(event.to_users)), event.to_users[:1], reply_id)
    assert reply_id in ack


def _payload(frame: bytes) -> bytes:
    """What an unmasked frame holds."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]
