"""Owns the schemas of event types: the four that are built in, and those of `events.schema_dir`.

Imported only where events are validated: what is off costs neither the library nor its memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jsonschema_rs
import msgspec
from jsonschema_rs import ValidationErrorKind

from collab.errors import InvalidEvent, SettingsError
from collab.wire.codec import field_at_fault
from collab.wire.identity import is_absolute_http_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from collab.settings import EventSettings
    from collab.wire.messages import CollabEvent

MAX_DEPTH: Final = 64
"""Most levels of objects and lists in a payload that is checked."""
_MAX_URL_CHARACTERS: Final = 2048
_MAX_TYPE_CHARACTERS: Final = 64
_SHOWN_CHARACTERS: Final = 128
_PATTERN_BYTES: Final = 1024 * 1024
_BUILT_IN: Final = Path(__file__).with_name("event_types")
_PAYLOAD: Final = "data.data"
_PLAIN_URL: Final = re.compile(r"https?://[a-zA-Z0-9.-]+(?::[0-9]{1,4})?(?:/[!-~]*)?")
_TYPE_NAMES: Final = {"string": "str", "integer": "int", "boolean": "bool"}
"""The protocol's words for JSON Schema's, where they differ."""


class EventSchemas:
    """What the payloads of event types must look like. Compiled once, never changed."""

    def __init__(self, schemas: Mapping[str, jsonschema_rs.Validator], *, strict: bool) -> None:
        self._schemas = schemas
        self._strict = strict

    @classmethod
    def load(cls, settings: EventSettings) -> EventSchemas:
        """The built-in schemas, and over them those of the settings' directory.

        Raises:
            SettingsError: a file cannot be read or is no schema; the text names it.
        """
        schemas = _read_directory(_BUILT_IN)
        if settings.schema_dir is not None:
            schemas |= _read_directory(Path(settings.schema_dir))
        return cls(schemas, strict=settings.validation == "strict")

    def check(self, event: CollabEvent, reply_id: bytes) -> None:
        """Check an event's payload by the schema of its type; one without a schema passes unless strict.

        Raises:
            InvalidEvent: it does not fit, names the field at fault, and nothing else of the payload.
        """
        schema = self._schemas.get(event.type)
        if schema is None:
            if self._strict:
                raise InvalidEvent("data.type: expected a type that has a schema", reply_id=reply_id)
            return
        try:
            schema.validate(_decode(bytes(event.data)))
        except _Unclear as error:
            raise InvalidEvent(str(error), reply_id=reply_id) from None
        except jsonschema_rs.ValidationError as error:
            raise InvalidEvent(_fault(error), reply_id=reply_id) from None
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A panic in Rust is no Exception: as one, it ends its sender's connection and no other.
            raise RuntimeError("the validator panicked") from error


class _Unclear(Exception):
    """JSON that another parser may read in another way, or not at all. The text is for its sender."""


def _decode(text: bytes) -> object:
    """The one value that every parser reads from this JSON text.

    The text itself is relayed, so what a recipient may take for something else is refused: of a name
    given twice some parsers take the first value, and some have no number of that size.
    """
    try:
        value: object = msgspec.json.decode(text)
        encoded = msgspec.json.encode(value)
        # Only the last value of a name is in `value`; one that was dropped took its colon along.
        if encoded != text and _separators(encoded) != _separators(text):
            raise _Unclear(f"{_PAYLOAD}: an object has the same member twice")
    except msgspec.ValidationError as error:
        raise _Unclear(field_at_fault(error, _PAYLOAD)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _Unclear(f"{_PAYLOAD}: not JSON") from None
    except RecursionError:
        raise _Unclear(f"{_PAYLOAD}: nested too deeply") from None
    # A schema may recurse as the payload does; what is refused here cannot use the stack up.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and not _SHALLOW.is_valid(value):
        raise _Unclear(f"{_PAYLOAD}: nested too deeply")
    return value


def _separators(text: bytes) -> int:
    """How many commas and colons are between the values of a JSON text."""
    # Written with a space after each, and without.
    return len(msgspec.json.format(text, indent=0)) - len(msgspec.json.format(text, indent=-1))


def _fault(error: jsonschema_rs.ValidationError) -> str:
    """The complaint in the protocol's words, such as ``data.data.comment.text: expected str``."""
    path = _PAYLOAD + _path(error.instance_path)
    kind = error.kind
    if isinstance(kind, ValidationErrorKind.Required):
        path, fault = f"{path}.{kind.property}", "required"
    elif isinstance(kind, ValidationErrorKind.Type):
        fault = "expected " + " or ".join(_TYPE_NAMES.get(name, name) for name in kind.types)
    elif isinstance(kind, ValidationErrorKind.Format):
        fault = f"expected {_FORMAT_NAMES.get(kind.format, kind.format)}"
    else:
        fault = error.message[:1].lower() + error.message[1:]
    return f"{_shown(path)}: {_shown(fault)}"


def _path(parts: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _is_http_url(value: str) -> bool:
    if len(value) > _MAX_URL_CHARACTERS:
        return False
    # Nearly every URL is a plain one; taking it apart would cost more than the rest of the check.
    return _PLAIN_URL.fullmatch(value) is not None or is_absolute_http_url(value)


_FORMATS: Final = {"http-url": _is_http_url}
_FORMAT_NAMES: Final = {
    "http-url": f"an absolute http or https URL of at most {_MAX_URL_CHARACTERS:,} characters"
}


def _read_directory(directory: Path) -> dict[str, jsonschema_rs.Validator]:
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise SettingsError(f"events.schema_dir: cannot read {directory}: {error.strerror}") from None
    if not files:
        raise SettingsError(f"events.schema_dir: {directory} holds no file TYPE.json")
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> jsonschema_rs.Validator:
    if len(file.stem) > _MAX_TYPE_CHARACTERS:
        raise _bad(file, f"a type has at most {_MAX_TYPE_CHARACTERS} characters")
    try:
        # One that is not a file, such as a pipe, could be read for ever.
        if not file.is_file():
            raise _bad(file, "not a file")
        schema = _decode(file.read_bytes())
    except OSError as error:
        raise _bad(file, f"cannot be read: {error.strerror}") from None
    except _Unclear as error:
        raise _bad(file, str(error).removeprefix(f"{_PAYLOAD}: ").removeprefix(_PAYLOAD)) from None
    if not isinstance(schema, dict | bool):
        raise _bad(file, "not a JSON Schema: expected an object")
    try:
        return _compile(schema)
    except jsonschema_rs.ValidationError as error:
        where = _path(error.instance_path).lstrip(".")
        raise _bad(file, f"{where}: {error.message}" if where else error.message) from None
    except ValueError as error:
        raise _bad(file, str(error)) from None


def _compile(schema: dict[str, object] | bool) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        schema,
        # A format that is named is meant, and one that is misspelt is found at the start.
        formats=_FORMATS,
        validate_formats=True,
        ignore_unknown_formats=False,
        # A schema stands alone: nothing is fetched, neither from the network nor from a file.
        offline=True,
        # The engine without backtracking: its time grows with the text and the pattern, no faster.
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES),
        # Stands in messages for what the sender sent.
        mask="value",
    )


def _shallow() -> dict[str, object]:
    """The schema of what has at most `MAX_DEPTH` levels: walked in Rust, as a wide payload has many nodes."""
    levels: dict[str, object] = {"0": {"not": {"type": ["array", "object"]}}}
    for depth in range(MAX_DEPTH):
        below = {"$ref": f"#/$defs/{depth}"}
        levels[str(depth + 1)] = {"items": below, "additionalProperties": below}
    return {"$defs": levels, "$ref": f"#/$defs/{MAX_DEPTH}"}


_SHALLOW: Final = _compile(_shallow())


def _bad(file: Path, reason: str) -> SettingsError:
    return SettingsError(f"events.schema_dir: {file}: {reason}")
