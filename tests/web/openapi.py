"""What the HTTP API answers, as an OpenAPI 3.1 document for schemathesis (docs/protocol.md has the words)."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
USER_ID = {"type": "string", "minLength": 1, "maxLength": 128}
SOME_USER = {"anyOf": [{"enum": ["ada", "bob"]}, USER_ID]}
"""Ids that requests name: two users are online."""


def record(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with these members and no others."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


ERROR = record({"error": {"type": "string", "minLength": 1}, "code": TEXT})
RATE_ERROR = record(
    {"error": TEXT, "code": TEXT, "retry_after_ms": {"type": "integer", "minimum": 1}},
    optional=("retry_after_ms",),
)
USER = record(
    {
        "user_id": USER_ID,
        "display_name": TEXT,
        "backend_url": TEXT,
        "connected_at": TIME,
        "status": {"const": "online"},
    }
)
CONNECTION = record(
    {
        "id": COUNT,
        "user_id": USER_ID,
        "display_name": TEXT,
        "address": TEXT,
        "connected_at": TIME,
        "dialect": TEXT,
        "queued_messages": COUNT,
        "queued_bytes": COUNT,
        "in_flight": COUNT,
    }
)
HEALTH = record(
    {
        "status": {"const": "healthy"},
        "uptime": COUNT,
        "active_users": COUNT,
        "total_connections": COUNT,
        "total_events_routed": COUNT,
    }
)
ACK = record(
    {
        "event_type": {"type": "string", "minLength": 1, "maxLength": 64},
        "delivered_to": COUNT,
        "total_recipients": COUNT,
        "undelivered": {"type": "array", "items": USER_ID, "minItems": 1, "uniqueItems": True},
    },
    optional=("undelivered",),
)
NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1}

HEADERS = {
    name: {"required": True, "schema": {"const": value}}
    for name, value in {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
    }.items()
}

REGISTRATION = {
    "type": "object",
    "properties": {
        "user_id": USER_ID,
        "backend_url": {"anyOf": [{"const": "http://localhost:8000"}, {"type": "string"}]},
        "display_name": {"type": "string", "maxLength": 128},
    },
    "required": ["user_id", "backend_url"],
}
EVENT = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "minLength": 1, "maxLength": 64},
        "from_user": USER_ID,
        "to_users": {"type": "array", "items": SOME_USER, "maxItems": 20},
        "data": {},
    },
    "required": ["type", "from_user", "to_users"],
}
NOTICE = {
    "type": "object",
    "properties": {"message": {"type": "string", "minLength": 1, "maxLength": 1000}},
    "required": ["message"],
}


def answer(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON answer."""
    return {"description": "", "headers": HEADERS, "content": {"application/json": {"schema": schema}}}


def operation(
    sound: dict[str, Any],
    *errors: int,
    body: dict[str, Any] | None = None,
    parameters: tuple[str, ...] = (),
    for_operators: bool = False,
) -> dict[str, Any]:
    """One method of a path."""
    found: dict[str, Any] = {"responses": {"200": answer(sound)}}
    for status in errors:
        found["responses"][str(status)] = answer(RATE_ERROR if status == 429 else ERROR)
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    found["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": SOME_USER} for name in parameters
    ]
    if for_operators:
        found["responses"] |= {str(status): answer(ERROR) for status in (401, 429)}
    return found


def document(*, guarded: bool = False) -> dict[str, Any]:
    """The whole document; `guarded`: of a service that asks for tokens."""
    whole = _document()
    if guarded:
        for path, methods in whole["paths"].items():
            for described in methods.values() if path.startswith("/api/") else ():
                described["responses"] |= {str(status): answer(ERROR) for status in (401, 403)}
    return whole


def _document() -> dict[str, Any]:
    users, connections = ({"type": "array", "items": row} for row in (USER, CONNECTION))
    return {
        "openapi": "3.1.0",
        "info": {"title": "trio-collab", "version": "1"},
        "paths": {
            "/health": {"get": operation(HEALTH)},
            "/ready": {"get": operation(record({"status": {"const": "ready"}}))},
            "/api/users/online": {"get": operation(record({"users": users, "count": COUNT}))},
            "/api/users/{user_id}": {"get": operation(USER, 404, parameters=("user_id",))},
            "/api/register": {
                "post": operation(
                    record({"success": {"const": True}, "collab_ws_url": TEXT, "message": TEXT}),
                    400,
                    413,
                    body=REGISTRATION,
                )
            },
            "/api/events": {"post": operation(ACK, 400, 413, 429, body=EVENT)},
            "/api/admin/connections": {
                "get": operation(record({"connections": connections, "count": COUNT}), for_operators=True)
            },
            "/api/admin/limits": {
                "get": operation(record({"limits": NUMBERS, "timeouts": NUMBERS}), for_operators=True)
            },
            "/api/admin/notice": {
                "post": operation(record({"connections": COUNT}), 400, 413, body=NOTICE, for_operators=True)
            },
            "/api/admin/users/{user_id}/disconnect": {
                "post": operation(
                    record({"user_id": USER_ID, "disconnected": COUNT}),
                    404,
                    parameters=("user_id",),
                    for_operators=True,
                )
            },
        },
    }
