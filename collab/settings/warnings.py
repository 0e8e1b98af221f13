"""Owns which settings are not safe together, each told with what to set."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collab.settings.groups import Settings


def unsafe_combinations(settings: Settings) -> list[str]:
    """A sentence for each combination that the service runs with, and that is not safe."""
    found = [
        open_to_anybody(settings),
        _read_by_any_page(settings),
        _in_the_clear(settings),
        _keys_in_the_clear(settings),
    ]
    return [warning for warning in found if warning]


def open_to_anybody(settings: Settings) -> str:
    """The warning of a service that other machines reach and that asks for no token; else empty."""
    if settings.auth.mode != "none" or _is_loopback(settings.server.host):
        return ""
    return (
        f"Authentication is off, and server.host is {settings.server.host}: whoever reaches the port can "
        "connect as anybody. Set auth.mode to jwt, or server.host to localhost"
    )


def _read_by_any_page(settings: Settings) -> str:
    if settings.auth.mode == "none" or "*" not in settings.http.cors_origins:
        return ""
    return (
        "http.cors_origins is *, with authentication on: any page that gets hold of a token can use it in "
        "a browser. Set http.cors_origins to the origins of your own pages"
    )


def _in_the_clear(settings: Settings) -> str:
    if settings.tls.cert_file or _is_loopback(settings.server.host):
        return ""
    what = "events" if settings.auth.mode == "none" else "tokens and events"
    return (
        f"TLS is off, and server.host is {settings.server.host}: {what} travel in the clear. Set "
        "tls.cert_file and tls.key_file, or server.host to localhost, behind a proxy that speaks TLS"
    )


def _keys_in_the_clear(settings: Settings) -> str:
    url = urlsplit(settings.auth.jwks_url or "")
    if settings.auth.mode == "none" or url.scheme != "http" or _is_loopback(url.hostname or ""):
        return ""
    return (
        "auth.jwks_url is http: whoever sits between can hand out keys of their own, and be any user. Set it "
        "to an https URL"
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. Of names only `localhost` is known to be so."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
