"""Owns where settings come from: flag, then environment, then file, then default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs
import typed_settings
from typed_settings.dict_utils import set_path
from typed_settings.exceptions import TsError
from typed_settings.loaders import DictLoader, TomlFormat

from collab.errors import SettingsError
from collab.settings.convert import FROM_FILE, FROM_TEXT
from collab.settings.groups import Settings
from collab.settings.options import ENVIRONMENT_PREFIX, Option, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

S = TypeVar("S")

DEFAULT_SOURCE: Final = "default"

_CLIENT_VARIABLES: Final = frozenset({"COLLAB_URL", "COLLAB_TOKEN"})
_PLATFORM_VARIABLES: Final = {"PORT": "server.port"}
_SHOWN_CHARACTERS: Final = 80


@attrs.frozen
class Loaded(Generic[S]):
    """Settings, and for each of them by its path where it came from."""

    settings: S
    sources: Mapping[str, str]


@attrs.frozen
class _Given:
    """One value as it was found. `source` completes "… (source)"."""

    value: object
    source: str


def load_settings(
    config_file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> Settings:
    """Load the service's settings. The arguments are those of `read_settings`.

    Raises:
        SettingsError: as `read_settings` does.
    """
    return read_settings(Settings, config_file, environ, flags).settings


def read_settings(
    settings_class: type[S],
    config_file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
) -> Loaded[S]:
    """Load settings of a class made of groups, with the source of each.

    `flags` maps paths such as `server.port` to what was given on the command line, None where
    nothing was. Every value is checked, also one that a stronger source overrides.

    Raises:
        SettingsError: a value is wrong, a name is unknown, or the file cannot be read.
    """
    options = {option.path: option for option in options_of(settings_class)}
    # From the weakest to the strongest.
    layers = [
        {} if config_file is None else _from_file(config_file, settings_class, options),
        _from_environment(environ, options),
        _from_flags(flags, options),
    ]
    sources = dict.fromkeys(options, DEFAULT_SOURCE)
    loaders = []
    for layer in layers:
        sources.update({path: given.source for path, given in layer.items()})
        loaders.append(DictLoader(_nested(layer)))
    try:
        settings = typed_settings.load_settings(settings_class, loaders, converter=FROM_FILE)
    except TsError as error:
        raise _mistake(str(error)) from error
    return Loaded(settings, sources)


def printable(text: object) -> str:
    """The text in one line, with escapes for what would end the line or move the cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def _from_file(path: Path, settings_class: type, options: Mapping[str, Option]) -> dict[str, _Given]:
    source = f"file {printable(path)}"
    try:
        tables = TomlFormat(None)(path, settings_class, ())
    except OSError as error:
        raise _mistake(f"cannot read the config {source}: {error.strerror}") from error
    except (TsError, ValueError, RecursionError) as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else str(error)
        raise _mistake(f"cannot read the config {source}: {reason}") from error
    found = {}
    groups = {known.partition(".")[0] for known in options}
    for name, value in _members(tables, groups, source):
        option = _known(name, options, source)
        found[name] = _Given(_convert(option, value, source), source)
    return found


def _members(tables: Mapping[str, object], groups: set[str], source: str) -> Iterator[tuple[str, object]]:
    for group, table in tables.items():
        if isinstance(table, dict):
            if group not in groups:
                raise _mistake(f"[{group}] ({source}): no such group" + _hint(group, groups, "[{}]"))
            yield from ((f"{group}.{name}", value) for name, value in table.items())
        elif group in groups:
            raise _mistake(f"{group} ({source}): expected a table [{group}], got {_shown(table)}")
        else:
            yield group, table


def _from_environment(environ: Mapping[str, str], options: Mapping[str, Option]) -> dict[str, _Given]:
    by_variable = {option.variable: option for option in options.values()}
    single = {_collapsed(variable): variable for variable in by_variable}
    found = {}
    for variable, path in _PLATFORM_VARIABLES.items():
        # Others set these for reasons of their own: one that is overridden or empty is not looked at.
        if path in options and environ.get(variable) and options[path].variable not in environ:
            source = f"environment variable {variable}"
            found[path] = _Given(_convert(options[path], environ[variable], source, text=True), source)
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _CLIENT_VARIABLES:
            continue
        source = f"environment variable {printable(variable)}"
        if variable in by_variable:
            option = by_variable[variable]
            found[option.path] = _Given(_convert(option, environ[variable], source, text=True), source)
        elif "__" in variable:
            raise _mistake(f"{source}: no such setting" + _hint(variable.upper(), by_variable))
        elif variable in single:
            raise _mistake(f"{source}: no such setting; did you mean {single[variable]}?")
    return found


def _from_flags(flags: Mapping[str, object], options: Mapping[str, Option]) -> dict[str, _Given]:
    found = {}
    for path, value in flags.items():
        if value is not None:
            option = _known(path, options, "flag")
            source = f"flag {option.flag}"
            found[path] = _Given(_convert(option, value, source, text=isinstance(value, str)), source)
    return found


def _known(path: str, options: Mapping[str, Option], source: str) -> Option:
    option = options.get(path)
    if option is None:
        alike = [known for known in options if known.rpartition(".")[2] == path.rpartition(".")[2]]
        hint = f"; did you mean {alike[0]}?" if alike else _hint(path, options)
        raise _mistake(f"{path} ({source}): no such setting{hint}")
    return option


def _convert(option: Option, value: object, source: str, *, text: bool = False) -> object:
    converter = FROM_TEXT if text else FROM_FILE
    try:
        converted: object = converter.structure(value, option.type)
    except (ValueError, TypeError) as error:
        raise _wrong(option, value, source) from error
    if option.check is not None and not option.check.allows(converted):
        raise _wrong(option, value, source)
    return converted


def _wrong(option: Option, value: object, source: str) -> SettingsError:
    got = "" if option.is_secret else f", got {_shown(value)}"
    return _mistake(f"{option.path} ({source}): expected {option.expected}{got}")


def _nested(layer: Mapping[str, _Given]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for path, given in layer.items():
        set_path(nested, path, given.value)
    return nested


def _mistake(text: str) -> SettingsError:
    return SettingsError(printable(text))


def _hint(name: str, known: Mapping[str, object] | set[str], form: str = "{}") -> str:
    close: Sequence[str] = get_close_matches(name, sorted(known), 1)
    return f"; did you mean {form.format(close[0])}?" if close else ""


def _collapsed(variable: str) -> str:
    return re.sub("_+", "_", variable)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
