"""Owns the URLs of a service: where its WebSocket is, and where its HTTP API."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit, urlunsplit

import attrs

_HTTP_OF = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


@attrs.frozen
class Address:
    """The two URLs of one client."""

    websocket: str
    """With who it is in the query."""
    online: str
    """Of the list of users who are online."""
    shown: str
    """For the log: without the query."""
    encrypted: bool


def address_of(
    url: str, *, user_id: str, backend_url: str, display_name: str, wants_presence: bool
) -> Address:
    """The URLs under `url`: `ws://host:port`, behind a proxy with its prefix, with or without `/ws`.

    Raises:
        ValueError: this cannot be a service's URL.
    """
    parts = urlsplit(url)
    try:
        is_one = parts.scheme in _HTTP_OF and parts.hostname and parts.port != 0
    except ValueError:
        # The port is none.
        is_one = False
    if not is_one:
        raise ValueError("the URL of the service must be ws://HOST:PORT or wss://HOST:PORT")
    http = _HTTP_OF[parts.scheme]
    path = parts.path.rstrip("/")
    query = {"user_id": user_id, "backend_url": backend_url, "display_name": display_name}
    if not wants_presence:
        query["presence"] = "none"
    whole = "&".join(filter(None, (parts.query, urlencode({k: v for k, v in query.items() if v}))))
    websocket = "wss" if http == "https" else "ws"
    prefix = path.removesuffix("/ws")
    return Address(
        websocket=urlunsplit((websocket, parts.netloc, path or "/", whole, "")),
        online=urlunsplit((http, parts.netloc, f"{prefix}/api/users/online", "", "")),
        shown=urlunsplit((websocket, parts.netloc.rpartition("@")[2], path, "", "")),
        encrypted=http == "https",
    )
