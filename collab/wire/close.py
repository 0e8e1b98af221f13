"""Owns the close codes: what each is called and what it tells a client to do."""

from __future__ import annotations

from enum import IntEnum

import attrs


class CloseCode(IntEnum):
    """WebSocket close codes that the service sends (RFC 6455 section 7.4, docs/protocol.md)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    BINARY_MESSAGE = 1003
    INVALID_UTF8 = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    OVERLOADED = 1013
    TOKEN_EXPIRED = 4001
    REPLACED = 4002
    SLOW_CONSUMER = 4003
    DISCONNECTED_BY_OPERATOR = 4004
    NO_PONG = 4005


@attrs.frozen
class Close:
    """Why a connection ends: the code and the short sentence of its close frame."""

    code: CloseCode
    reason: str


def is_valid_received_code(code: int) -> bool:
    """Whether a peer may put this code into a close frame (RFC 6455 section 7.4)."""
    return code in _RECEIVABLE or 3000 <= code <= 4999


_RECEIVABLE = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
