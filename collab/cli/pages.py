"""Owns the settings as people read them: TOML, the list in the help, and docs/configuration.md."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

import attrs

from collab.settings import Loaded, Option, Settings, options_of
from collab.settings.options import MASK

if TYPE_CHECKING:
    from collections.abc import Iterator


_INTRODUCTION = """\
<!-- Made by `trio-collab config docs`. Change the help in collab/settings/groups.py, not this page. -->

# Configuration

The service runs without any configuration. A setting comes from the strongest of these sources
that has it:

1. a flag of `trio-collab serve`, for the settings that have one: `--port 9100`
2. an environment variable, `COLLAB_GROUP__NAME` with two underscores between group and name:
   `COLLAB_SERVER__PORT=9100`
3. the config file that `--config FILE.toml` names: `port = 9100` below `[server]`
4. its default

There is no config file unless `--config` names one. The variable `PORT`, which many platforms set, is the
port too: it is stronger than the file, and not looked at where `COLLAB_SERVER__PORT` is set.

```toml
[server]
host = "0.0.0.0"
port = 9100

[limits]
message_bytes = "1MiB"

[http]
cors_origins = ["https://planner.example.org", "https://staging.example.org"]
```

`trio-collab config show` prints the effective settings and where each comes from, with secrets masked;
`trio-collab config check` only checks them. Both take `--config` and the same environment.

## Values

| kind | in the file | in the environment and as a flag |
|---|---|---|
| text | `"…"` | as it is |
| number | `9000` | `9000` |
| true or false | `true`, `false` | `true`, `false` |
| size | `"64KiB"`, `"1MiB"`, `"10MB"`, or a number of bytes | `64KiB` and so on |
| duration | `"30s"`, `"500ms"`, `"2m"`, `"1h"`, or a number of seconds | `30s` and so on |
| list | `["a", "b"]`, or `"a,b"` | `a,b` |

`KiB`, `MiB` and `GiB` are powers of 1024; `kB`, `MB` and `GB` powers of 1000. Where a setting can be none,
empty text means none.

Nothing is guessed. These are errors: a number in quotes, an unknown group or name in the file, an unknown
`COLLAB_GROUP__NAME`, a config file that cannot be read, and a wrong value even where a stronger source
overrides it. `COLLAB_URL` and `COLLAB_TOKEN` belong to clients. Other `COLLAB_…` variables with single
underscores are left alone, unless one spells a setting, as `COLLAB_SERVER_PORT` does.

## Settings
"""

_EVENT_SCHEMAS = """
## Event schemas

With `events.validation` set to `known` or `strict`, the payload of an event (the inner `data`) must match
the schema of its type. The four types of the [protocol](protocol.md#validation) have theirs built in.
`events.schema_dir` names a directory with more of them, one file `TYPE.json` for a type; one that is called
like a built-in type replaces that type's schema. Other files in it are not looked at, and neither is any of
them while `events.validation` is `off`.

A file `price_alert.json`, for events of the type `price_alert`:

```json
{
  "type": "object",
  "properties": {
    "symbol": {"type": "string", "pattern": "^[A-Z]{1,8}$"},
    "chart_url": {"type": "string", "format": "http-url"}
  },
  "required": ["symbol"]
}
```

- The language is [JSON Schema](https://json-schema.org), draft 2020-12 unless `$schema` names an older one.
- `format` is checked. Beside the formats of the standard there is `http-url`, an absolute http or https URL.
- Patterns are matched in linear time, so they have no lookaround and no backreferences.
- A `$ref` leads to a place in the same file. Nothing is ever fetched.
- The files are read once, at the start. One that is no such schema is an error there and in
  `trio-collab config check`.
- They are trusted: rules that refer to themselves from several branches (`anyOf` inside `anyOf`) can take
  long to check.
"""

_EXIT_CODES = """
## Exit codes

| code | meaning |
|---|---|
| 0 | fine |
| 1 | could not do it: the port is in use, the audit log is full; also the end by a second signal |
| 2 | wrong usage or settings |

What the command has to say about a failure is one line on standard error that starts with `trio-collab: `.
"""


def settings_as_toml(loaded: Loaded[Any]) -> str:
    """The settings as a config file that gives the same ones, but for secrets, which are masked."""
    lines: list[str] = []
    for group, options in _groups(type(loaded.settings)):
        lines += ["", f"[{group}]"] if lines else [f"[{group}]"]
        for option in options:
            name = option.path.rpartition(".")[2]
            value = getattr(getattr(loaded.settings, group), name)
            shown = _toml(MASK) if option.is_secret and value else _toml(value)
            lines.append(f"{name} = {shown}  # {loaded.sources[option.path]}")
    return "\n".join(lines) + "\n"


def settings_overview() -> list[tuple[str, str]]:
    """A row for every setting: its name, and its meaning with its default."""
    return [(option.path, f"{option.help} Default: {_plain(option)}.") for option in options_of(Settings)]


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for group, options in _groups(Settings):
        about = str(attrs.fields_dict(Settings)[group].type.__doc__)
        parts.append(f"\n### `[{group}]`\n\n{' '.join(about.split())}\n")
        parts.append("\n| name | environment, flag | default | meaning | value |\n|---|---|---|---|---|\n")
        parts += [_row(option) for option in options]
    return "".join([*parts, _EVENT_SCHEMAS, _EXIT_CODES])


def _groups(settings_class: type) -> Iterator[tuple[str, list[Option]]]:
    by_group = groupby(options_of(settings_class), lambda option: option.path.partition(".")[0])
    return ((group, list(options)) for group, options in by_group)


def _row(option: Option) -> str:
    ways = f"`{option.variable}`" + (f", `{option.flag}`" if option.flag else "")
    return f"| `{option.path}` | {ways} | {_default(option)} | {option.help} | {option.expected} |\n"


def _default(option: Option) -> str:
    shown = _plain(option)
    return shown if shown == "none" else f"`{shown}`"


def _plain(option: Option) -> str:
    if option.default is None or option.default == "":
        return "none"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    if isinstance(option.default, tuple):
        return ",".join(option.default)
    return str(option.default)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) is int:
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(part) for part in value)}]"
    # JSON escapes what TOML wants escaped, except DEL. Empty text is how a file says none.
    text = "" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
