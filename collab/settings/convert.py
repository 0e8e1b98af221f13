"""Owns how values become what settings hold: strictly, nothing is taken for what it is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args, get_origin

import cattrs
from attrs import has
from cattrs.gen import make_dict_structure_fn

from collab.settings.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_WORDS: Final = {"true": True, "false": False}


def _make(*, text: bool) -> cattrs.Converter:
    """A converter for values of a TOML file, or where `text` is set, for text."""
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)

    def attrs_class(cls: type[T]) -> Callable[[Any, object], T]:
        from_dict = make_dict_structure_fn(cls, converter)
        return lambda value, _: value if isinstance(value, cls) else from_dict(value, cls)

    converter.register_structure_hook_factory(has, attrs_class)
    converter.register_structure_hook_func(_is_choice, _to_choice)
    converter.register_structure_hook(str, _to_text)
    converter.register_structure_hook(bool, _text_to_bool if text else _to_bool)
    converter.register_structure_hook(int, _text_to_int if text else _to_int)
    converter.register_structure_hook(Size, lambda value, _: Size(value))
    converter.register_structure_hook(Duration, lambda value, _: Duration(value))
    converter.register_structure_hook_func(lambda cls: cls == str | None, _to_text_or_none)
    converter.register_structure_hook_func(lambda cls: cls == tuple[str, ...], _to_texts)
    return converter


def _to_text(value: object, cls: type[str]) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # UnicodeEncodeError, a ValueError, where a variable held other bytes than UTF-8
    return cls(value)


def _to_text_or_none(value: object, _: object) -> str | None:
    return None if value is None or value == "" else _to_text(value, str)


def _to_texts(value: object, _: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in (part.strip() for part in value.split(",")) if part)
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(_to_text(part, str) for part in value)


def _is_choice(cls: object) -> bool:
    return get_origin(cls) is Literal


def _to_choice(value: object, cls: object) -> str:
    if not isinstance(value, str) or value not in get_args(cls):
        raise ValueError
    return value


def _to_bool(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text_to_bool(value: object, _: object) -> bool:
    return _WORDS[value] if isinstance(value, str) and value in _WORDS else _to_bool(value, bool)


def _to_int(value: object, _: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text_to_int(value: object, _: object) -> int:
    if not isinstance(value, str) or re.fullmatch("-?[0-9]{1,18}", value) is None:
        raise ValueError
    return int(value)


FROM_FILE: Final = _make(text=False)
FROM_TEXT: Final = _make(text=True)
