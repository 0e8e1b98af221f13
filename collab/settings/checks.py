"""Owns the rules that a setting's value must meet, each able to say what it expects."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from collab.errors import SettingsError
from collab.settings.units import Duration, Size, is_number

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

_BEARER: Final = re.compile(r"[!-~]*")


@attrs.frozen
class Check:
    """An attrs validator that also serves the loader, the help and the docs.

    `expected` completes the sentence "expected …"; `allows` never raises. Called by attrs it
    raises SettingsError naming the class and the field, and the value unless it is a secret.
    """

    expected: str
    allows: Callable[[object], bool]
    is_secret: bool = False

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not self.allows(value):
            name = f"{type(instance).__name__}.{attribute.name}"
            got = "" if self.is_secret else f", got {value!r}"
            raise SettingsError(f"{name}: expected {self.expected}{got}")


def whole_number(least: int, most: int | None = None) -> Check:
    """Allow whole numbers from `least` up to and including `most`."""
    expected = f"a whole number from {least}" + (" up" if most is None else f" to {most}")
    return Check(expected, lambda value: isinstance(value, int) and _within(value, least, most))


def size(least: str) -> Check:
    """Allow sizes from `least` up."""
    return Check(
        f"a size such as 64KiB, {least} or more",
        lambda value: isinstance(value, int) and _within(value, Size(least), None),
    )


def duration(least: str, most: str | None = None) -> Check:
    """Allow durations from `least` up to and including `most`."""
    limits = f"{least} or more" if most is None else f"from {least} to {most}"
    longest = None if most is None else Duration(most)
    return Check(
        f"a duration such as 30s or 500ms, {limits}",
        lambda value: _within(value, Duration(least), longest),
    )


def host() -> Check:
    """Allow a host name or an IP address."""
    return Check(
        "a host name or an address",
        lambda value: isinstance(value, str) and re.fullmatch(r"[^\s/\[\]]+", value) is not None,
    )


def service_url() -> Check:
    """Allow None, and absolute ws, wss, http or https URLs to which a query can be added."""
    return Check(
        "a ws, wss, http or https URL without a query",
        lambda value: value is None or (isinstance(value, str) and _is_service_url(value)),
    )


def fetched_url() -> Check:
    """Allow None, and absolute http or https URLs."""
    return Check(
        "an http or https URL without a fragment and without credentials",
        lambda value: value is None or (isinstance(value, str) and _is_fetched_url(value)),
    )


def secret(least_bytes: int) -> Check:
    """Allow no secret, and secrets of so many bytes of UTF-8 or more."""
    return Check(
        f"{least_bytes} bytes or more, or nothing",
        lambda value: isinstance(value, str) and (not value or len(value.encode()) >= least_bytes),
        is_secret=True,
    )


def bearer(least_characters: int) -> Check:
    """Allow no token, and tokens of so many characters or more that an Authorization header can hold."""
    return Check(
        f"{least_characters} or more characters of ASCII without spaces, or nothing",
        lambda value: (
            isinstance(value, str)
            and (not value or (len(value) >= least_characters and _BEARER.fullmatch(value) is not None))
        ),
        is_secret=True,
    )


def origins() -> Check:
    """Allow tuples of `*` and of origins as browsers send them."""
    return Check(
        "`*`, or origins such as https://app.example.org in lower case and without a path",
        lambda value: isinstance(value, tuple) and all(_is_origin(origin) for origin in value),
    )


def _within(value: object, least: float, most: float | None) -> bool:
    if not is_number(value):
        return False
    return least <= value < float("inf") and (most is None or value <= most)


def _is_service_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    return (
        text.isascii()
        and text.isprintable()
        and " " not in text
        and url.scheme in ("ws", "wss", "http", "https")
        and bool(url.hostname)
        and not (url.query or url.fragment or "@" in url.netloc or text.endswith(("?", "#")))
    )


def _is_fetched_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return (
        is_plain
        and url.scheme in ("http", "https")
        and bool(url.hostname)
        and not (url.fragment or "@" in url.netloc)
    )


def _is_origin(text: object) -> bool:
    return isinstance(text, str) and (text == "*" or _ORIGIN.fullmatch(text) is not None)
