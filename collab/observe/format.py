"""Owns what a log line looks like: what may stand in it, and how text and JSON lines are built."""

from __future__ import annotations

import json
import math
import re
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"

_MAX_TEXT_CHARS = 4096
_MAX_DEPTH = 8
_MAX_INT_BITS = 1024
_RESERVED = ("time", "level", "event")

# Whatever could end a line, move the cursor or reorder what a reader sees: C0, DEL, C1, bidi marks
# and overrides, line and paragraph separators; and lone surrogates, which UTF-8 cannot carry.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# In an event's text a brace or a backslash would make the line ambiguous to a reader that parses it.
_UNSAFE_EVENT = re.compile(_UNSAFE.pattern[:-1] + r"{\\]")

_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


@attrs.frozen
class Line:
    """The message of one log record, rendered only when somebody asks for its text."""

    event: str
    fields: Mapping[str, Plain]

    def __str__(self) -> str:
        return _text(self.event, self.fields)


def plain(value: object, depth: int = 0) -> Plain:
    """A copy of `value` made of JSON types only, so that it may be rendered later and elsewhere.

    Text is cut at 4,096 characters, nesting at eight levels. What is no JSON type becomes its `str()`.
    Never raises.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        text = str.__str__(value)
        return text if len(text) <= _MAX_TEXT_CHARS else text[:_MAX_TEXT_CHARS] + "…"
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() <= _MAX_INT_BITS else plain(hex(number))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if depth < _MAX_DEPTH:
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {_as_text(key): plain(item, depth + 1) for key, item in value.items()}
    return plain(_as_text(value))


def text_line(record: logging.LogRecord) -> str:
    """`2025-11-01T10:00:00Z [INFO]: Backend connected {"user_id":"ada"}`, without the line's end."""
    event, fields = _split(record)
    return f"{_utc(record.created)}Z [{record.levelname}]: {_text(event, fields)}"


def json_line(record: logging.LogRecord) -> str:
    """One JSON object; a field named like the line's own `time`, `level` or `event` becomes `field_time`."""
    event, fields = _split(record)
    milliseconds = int(record.created * 1000) % 1000
    members: dict[str, Plain] = {
        "time": f"{_utc(record.created)}.{milliseconds:03}Z",
        "level": record.levelname.lower(),
        "event": event,
    }
    taken = set(fields).union(_RESERVED)
    for name, value in fields.items():
        members[_free(name, taken) if name in _RESERVED else name] = value
    return _escaped(_to_json(members))


FORMATS: Mapping[str, Callable[[logging.LogRecord], str]] = {"text": text_line, "json": json_line}


def _split(record: logging.LogRecord) -> tuple[str, Mapping[str, Plain]]:
    fields: dict[str, Plain]
    if isinstance(record.msg, Line):
        event, fields = record.msg.event, dict(record.msg.fields)
    else:
        event, fields = record.getMessage(), {"logger": record.name}
    if record.exc_info and record.exc_info[1] is not None:
        name = _free("traceback", set(fields)) if "traceback" in fields else "traceback"
        fields[name] = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    return event, fields


def _text(event: str, fields: Mapping[str, Plain]) -> str:
    event = _UNSAFE_EVENT.sub(_escape, event)
    return f"{event} {_escaped(_to_json(fields))}" if fields else event


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"field_{name}"
    taken.add(name)
    return name


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _escaped(text: str) -> str:
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _as_text(value: object) -> str:
    try:
        return str.__str__(str(value))
    except Exception:  # a broken __str__ must not break whoever logs it
        return f"<{type(value).__name__}>"
