"""Owns the flat list of settings that the loader, the flags, the help and the docs go by."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

import attrs
from typed_settings import cls_utils

from collab.settings.checks import Check
from collab.settings.groups import FLAG
from collab.settings.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from typed_settings.types import OptionInfo

ENVIRONMENT_PREFIX: Final = "COLLAB_"
MASK: Final = "********"
"""What a secret shows as."""

_NOT_FOR_AUDIT: Final = frozenset({"log", "timeouts"})
_CREDENTIALS: Final = re.compile(r"//[^/?#]*@")


@attrs.frozen(kw_only=True)
class Option:
    """One setting, as the world sees it."""

    path: str
    """`group.name`."""
    type: Any
    default: object
    help: str
    flag: str | None
    """The flag of `serve` that sets it, None where there is none."""
    is_secret: bool
    check: Check | None

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.path.replace(".", "__").upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it can be, empty where it is not a choice."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def expected(self) -> str:
        """Completes the sentence "expected …"."""
        if self.check is not None:
            return self.check.expected
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return _EXPECTED.get(self.type, "text")

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        return "|".join(self.choices) or self.path.rpartition(".")[2].upper()


_EXPECTED: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    Size: "a size such as 64KiB",
    Duration: "a duration such as 30s or 500ms",
}


def options_of(settings_class: type) -> tuple[Option, ...]:
    """Every setting of a class made of groups, in the order in which they are declared."""
    return _options_of(settings_class)


def security_settings(settings: object) -> dict[str, dict[str, str | int | bool | tuple[str, ...] | None]]:
    """The settings that bear on security, by group and name: all but logs and timeouts, for an audit log.

    Secrets are masked, and so is what stands before the host of a URL.
    """
    found: dict[str, dict[str, str | int | bool | tuple[str, ...] | None]] = {}
    for option in options_of(type(settings)):
        group, _, name = option.path.partition(".")
        value = getattr(getattr(settings, group), name)
        if group in _NOT_FOR_AUDIT:
            continue
        if option.is_secret:
            value = MASK if value else ""
        elif isinstance(value, Size | Duration):
            value = str(value)
        elif isinstance(value, str):
            value = _CREDENTIALS.sub("//", str(value))
        found.setdefault(group, {})[name] = value
    return found


def _option(info: OptionInfo) -> Option:
    field = attrs.fields_dict(info.parent_cls)[info.name]
    return Option(
        path=info.path,
        type=info.cls,
        default=info.default,
        help=" ".join((info.metadata.get("click", {}).get("help") or "").split()),
        flag=field.metadata.get(FLAG),
        is_secret=info.is_secret,
        check=field.validator if isinstance(field.validator, Check) else None,
    )


def _read_options(settings_class: type) -> tuple[Option, ...]:
    return tuple(_option(info) for info in cls_utils.deep_options(settings_class))


# Their help is read from the source of the class: some 100 ms, which every start of a service would take.
# The type is written out because mypy holds no class for hashable.
_options_of: Final[Callable[[type], tuple[Option, ...]]] = cache(_read_options)
