"""Owns the forms that the HTTP API shares: a JSON answer, and a JSON body that becomes a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from quart import Response

from collab.errors import Refused
from collab.wire.codec import field_at_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def json_response(
    body: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), content_type="application/json")


def decode_body(body: str | bytes, kind: type[T]) -> T:
    """A request's body.

    Raises:
        Refused: 400 `invalid_json` or `invalid_parameter`.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(400, "invalid_parameter", field_at_fault(error, whole="body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from None
