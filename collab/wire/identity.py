"""Owns what a connection says of itself: its parameters, checked (docs/protocol.md, Connecting)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from collab.errors import Forbidden, Refused, Unauthenticated
from collab.wire.text import has_control, has_control_or_bidi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_USER_ID_CHARACTERS = 128
MAX_BACKEND_URL_CHARACTERS = 2048
MAX_DISPLAY_NAME_CHARACTERS = 128
DEFAULT_DISPLAY_NAME = "Unknown User"
IDENTITY_REQUIRED = "user_id and backend_url are required"


@attrs.frozen(kw_only=True)
class Identity:
    """Who a connection speaks for, as checked by `identity_from_query` or `check_identity`."""

    user_id: str
    backend_url: str
    display_name: str = DEFAULT_DISPLAY_NAME
    wants_presence: bool = True


def identity_from_query(query: str, *, path_user_id: str = "", token_user_id: str = "") -> Identity:
    """The identity in a raw query string and, where it was given, in the path `/ws/{user_id}`.

    Both are still percent-encoded. An empty value counts as absent. The user of the token, where
    there is one, need not be given again, and nobody else can be.

    Raises:
        Refused: 400 `missing_parameter` or `invalid_parameter`, the text names the parameter;
            403 `forbidden` (`Forbidden`) where the token is another user's.
    """
    parameters = _parameters(query)
    user_id = parameters.get("user_id", "")
    if path_user_id:
        in_path = _decoded(path_user_id, "user_id")
        if user_id and user_id != in_path:
            raise _invalid("user_id in the path and in the query differ")
        parameters["user_id"] = in_path
    return _identity(parameters, token_user_id)


def identity_from_auth(query: str, auth: Mapping[str, object], *, token_user_id: str = "") -> Identity:
    """The identity in a raw query string and in the `auth` of a Socket.IO client, whose values win.

    An empty value counts as absent, and so does null. The user of the token, where there is one, need not
    be given again, and nobody else can be.

    Raises:
        Refused: as `identity_from_query`; also where a value of `auth` is no string, and where both name
            a user and differ.
    """
    parameters = _parameters(query)
    said = {name: _said(auth, name) for name in ("user_id", "backend_url", "display_name", "presence")}
    if said["user_id"] and parameters.get("user_id") and said["user_id"] != parameters["user_id"]:
        raise _invalid("user_id in auth and in the query differ")
    return _identity(parameters | {name: value for name, value in said.items() if value}, token_user_id)


def token_from_auth(auth: Mapping[str, object], fields: Sequence[str], query: str) -> str:
    """The token of a Socket.IO client: in its `auth`, else where `the_token` finds it.

    Raises:
        Refused: as `the_token`; 400 `invalid_parameter` where that of `auth` is no string.
    """
    return _said(auth, "token") or the_token(fields, query)


def _said(auth: Mapping[str, object], name: str) -> str:
    value = auth.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _invalid(f"{name} in auth must be a string")
    return value


def _identity(parameters: Mapping[str, str], token_user_id: str) -> Identity:
    user_id = parameters.get("user_id", "")
    if token_user_id:
        check_token_user(user_id or token_user_id, token_user_id)
        user_id = token_user_id
    presence = parameters.get("presence") or "all"
    if presence not in ("all", "none"):
        raise _invalid("presence must be all or none")
    return check_identity(
        user_id=user_id,
        backend_url=parameters.get("backend_url", ""),
        display_name=parameters.get("display_name", ""),
        wants_presence=presence == "all",
    )


def check_identity(
    *, user_id: str, backend_url: str, display_name: str = "", wants_presence: bool = True
) -> Identity:
    """An identity from decoded values.

    Raises:
        Refused: 400 `missing_parameter` or `invalid_parameter`.
    """
    if not user_id or not backend_url:
        raise Refused(400, "missing_parameter", IDENTITY_REQUIRED)
    check_user_id(user_id)
    if len(backend_url) > MAX_BACKEND_URL_CHARACTERS:
        raise _invalid(f"backend_url is longer than {MAX_BACKEND_URL_CHARACTERS:,} characters")
    if not is_absolute_http_url(backend_url):
        raise _invalid("backend_url must be an absolute http or https URL")
    if len(display_name) > MAX_DISPLAY_NAME_CHARACTERS:
        raise _invalid(f"display_name is longer than {MAX_DISPLAY_NAME_CHARACTERS} characters")
    if has_control(display_name):
        raise _invalid("display_name holds a control character")
    return Identity(
        user_id=user_id,
        backend_url=backend_url,
        display_name=display_name or DEFAULT_DISPLAY_NAME,
        wants_presence=wants_presence,
    )


def claimed_in(query: str, *, path_user_id: str = "") -> str | None:
    """Whom a request claims to be, in its path or else in its raw query string, unchecked; None: nobody.

    What cannot be decoded shows as U+FFFD, and what is longer than an id may be is cut off behind it.
    """
    if path_user_id:
        claimed = unquote(path_user_id, errors="replace")
    else:
        pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
        claimed = next((value for name, value in pairs if name == "user_id"), "")
    return claimed[: MAX_USER_ID_CHARACTERS + 1] or None


def token_in_query(query: str) -> str:
    """The `token` parameter of a raw query string; empty where there is none.

    Raises:
        Refused: 400 `invalid_parameter`.
    """
    return _parameters(query).get("token", "")


def bearer_token(fields: Sequence[str]) -> str:
    """The token in the values of Authorization headers (RFC 6750 section 2.1); empty where there is none.

    Raises:
        Unauthenticated: the header is given twice, or holds something else.
    """
    if not fields:
        return ""
    scheme, _, token = fields[0].partition(" ")
    if len(fields) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the Authorization header must say Bearer and a token, once")
    return token.strip()


def the_token(fields: Sequence[str], query: str) -> str:
    """The token of a request: in its Authorization header, or in its raw query string as `token`.

    Raises:
        Refused: 400 `invalid_parameter` where it is in both; `Unauthenticated` where it is in neither.
    """
    in_header, in_query = bearer_token(fields), token_in_query(query)
    if in_header and in_query:
        raise _invalid("the token is in the header and in the query")
    if not in_header and not in_query:
        raise Unauthenticated("a token is required")
    return in_header or in_query


def check_token_user(user_id: str, token_user_id: str) -> None:
    """Raises `Forbidden` unless the token is this user's."""
    if user_id != token_user_id:
        raise Forbidden("the token is another user's")


def check_user_id(user_id: str) -> None:
    """Raises `Refused` (400 `invalid_parameter`) unless this can be a user's id."""
    if len(user_id) > MAX_USER_ID_CHARACTERS:
        raise _invalid(f"user_id is longer than {MAX_USER_ID_CHARACTERS} characters")
    if has_control_or_bidi(user_id):
        raise _invalid("user_id holds a control or bidi character")


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise _invalid("the query string is not percent-encoded UTF-8") from error
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise _invalid(f"{_shown(name)} is given twice")
        parameters[name] = value
    return parameters


def _decoded(raw: str, name: str) -> str:
    try:
        return unquote(raw, errors="strict")
    except ValueError as error:
        raise _invalid(f"{name} is not percent-encoded UTF-8") from error


def is_absolute_http_url(url: str) -> bool:
    """Whether this is an http or https URL with a host, and without spaces and control characters."""
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        # A port that is no number shows only when it is asked for.
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _shown(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 64 else "a parameter"


def _invalid(message: str) -> Refused:
    return Refused(400, "invalid_parameter", message)
