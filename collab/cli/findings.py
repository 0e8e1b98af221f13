"""Owns the words of `trio-collab doctor`: what an answer means, and what to do about it. Sans-IO."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import attrs

from collab.cli.far import DEFAULT_URL
from collab.cli.screen import duration, is_number

if TYPE_CHECKING:
    from datetime import datetime

    from collab.cli.asking import Answer

NOT_TRIED = "not tried"
PROXY_ADVICE = (
    "a proxy on the way takes the header Upgrade away. Let it pass: in nginx `proxy_http_version 1.1;`, "
    '`proxy_set_header Upgrade $http_upgrade;` and `proxy_set_header Connection "upgrade";`'
)
ITS_LOG = "the service's log says more"
_ABOUT_US = ("unauthenticated", "forbidden", "origin_not_allowed", "missing_parameter")
# What a refused upgrade means, by the service's word, and what to do but to wait.
_REFUSALS = {
    "invalid_parameter": ("the service refuses the parameters", "is --user an id that it can take?"),
    "rate_limited": ("too many try to connect", "or raise limits.connects_per_second"),
    "too_many_connections": (
        "too many connections",
        "or raise limits.connections_per_address, which behind a proxy must be 0",
    ),
    "draining": ("the service is going down", "clients do so by themselves"),
    "overloaded": ("the service is full", "or raise limits.connections, or the limit on open files"),
    "unavailable": ("the service cannot check tokens yet", "does it reach auth.jwks_url?"),
}


@attrs.frozen(kw_only=True)
class Step:
    """One thing to look at. `status` is ok, warning, failed, skipped, or not tried behind a failed one."""

    name: str
    status: str
    finding: str
    advice: str = ""
    seconds: float = 0.0


@attrs.frozen
class Found:
    """What a step that did not fail has found."""

    finding: str
    advice: str = ""
    status: str = "ok"


class Failed(Exception):
    """A step that fails, and makes those behind it pointless."""

    def __init__(self, finding: str, advice: str) -> None:
        super().__init__(finding)
        self.finding = finding
        self.advice = advice


def warning(finding: str, advice: str) -> Found:
    """It works, and is not as it should be."""
    return Found(finding, advice, "warning")


def skipped(finding: str) -> Found:
    """There was nothing to look at."""
    return Found(finding, "", "skipped")


def is_it_running(port: int) -> str:
    """The advice where nothing listens."""
    return (
        "is the service running (`trio-collab serve`)? Does it listen on that port "
        f"(`lsof -i :{port}` there), and on an address that is reached from here (--host)? Is this the URL "
        "that `Listening` shows in its log?"
    )


def other_program(port: int) -> str:
    """The advice where something else listens."""
    return (
        f"see on that machine who has the port (`lsof -i :{port}`), end it or take another port; and compare "
        f"COLLAB_URL with the URL that `Listening` shows in the service's log (by default {DEFAULT_URL})"
    )


def no_service(answer: Answer, port: int) -> Failed:
    """What it means that `/health` has this answer."""
    server = answer.headers.get("server", "")
    who = f" ({server})" if server else ""
    status = f"{answer.status} {answer.sentence}"
    if answer.code:
        return Failed(f"the service answers {status} ({answer.code})", ITS_LOG)
    if 300 <= answer.status < 400:
        return Failed(
            f"a server{who} there sends us on to {answer.headers.get('location', 'elsewhere')}",
            "WebSocket clients do not follow: use that URL, with wss:// for https://",
        )
    if answer.status in (502, 503, 504):
        return Failed(
            f"a proxy{who} answers {status}: it does not reach the service behind it",
            "is the service running, and does the proxy have its right address?",
        )
    if answer.status == 200:
        return Failed(f"what answers there{who} is not trio-collab", other_program(port))
    return Failed(
        f"an HTTP server{who} that is not trio-collab answers {status}",
        "behind a proxy the URL may need a path, as in wss://HOST/collab. Else: " + other_program(port),
    )


def refused_upgrade(answer: Answer, path: str, port: int) -> Found:
    """What an upgrade that was refused means for the way to the service.

    Raises:
        Failed: but where the refusal is about who we are.
    """
    status = f"{answer.status} {answer.sentence}"
    if answer.code in _ABOUT_US:
        return Found("it reaches the service")
    if answer.code == "upgrade_required" or 200 <= answer.status < 300:
        raise Failed(f"the service sees no upgrade: it answers {status}", PROXY_ADVICE)
    if answer.code == "bad_request":
        raise Failed(f"the upgrade arrives damaged: {status}", PROXY_ADVICE)
    if answer.code == "not_found":
        raise Failed(f"there is no WebSocket at {path}", "use the URL without a path, or with /ws")
    later = answer.retry_after_seconds
    wait = f"try again in {later:g} s" if later is not None else "try again later"
    if answer.code in _REFUSALS:
        finding, advice = _REFUSALS[answer.code]
        if answer.status in (429, 503):
            advice = f"{wait}; {advice}"
        raise Failed(f"{finding}: {status} ({answer.code})", advice)
    if answer.code:
        raise Failed(f"the service refuses: {status} ({answer.code})", f"{wait}; {ITS_LOG}")
    if 300 <= answer.status < 400:
        raise no_service(answer, port)
    raise Failed(f"something before the service answers the upgrade with {status}", PROXY_ADVICE)


def is_about_us(answer: Answer) -> bool:
    """Whether the refusal says who may not come in, and not that nobody may."""
    return answer.code in _ABOUT_US


def not_let_in(answer: Answer, token: str, origin: str) -> Failed:
    """What it means that we may not come in."""
    if answer.code == "unauthenticated" and not token:
        advice = "give a token, with --token or COLLAB_TOKEN; `trio-collab token create` makes one"
    elif answer.code == "unauthenticated":
        ends = claims_of(token).get("exp")
        if is_number(ends) and ends < time.time():
            ago = duration(time.time() - ends)
            advice = f"the token ended {ago} ago by this machine's clock: get a new one"
        else:
            advice = (
                "is it made for this service (auth.issuer, auth.audience), and with its key? On the "
                "service's machine `trio-collab token verify` says more"
            )
    elif answer.code == "origin_not_allowed" and origin:
        advice = "add it to origins.allowed"
    elif answer.code == "origin_not_allowed":
        advice = "it wants an Origin (origins.allow_absent): try --origin https://PAGE, as a browser sends it"
    elif answer.code == "missing_parameter":
        advice = "something on the way takes the query of the URL away: let it pass"
    else:
        advice = "the token is another user's: leave --user out, or take that user's token"
    return Failed(f"not let in: {answer.sentence} ({answer.status} {answer.code})", advice)


def refused_event(data: dict[str, Any]) -> Found:
    """What it means that the event to oneself was answered with this error.

    Raises:
        Failed: but where others would go through.
    """
    finding = f"the event was refused: {data.get('error', '')} ({data.get('code', '')})"
    if data.get("code") == "rate_limited":
        return warning(finding, "the user sends faster than limits.events_per_second")
    if data.get("code") == "invalid_event":
        return warning(finding, "this service has rules of its own for share_revoked (events.schema_dir)")
    raise Failed(finding, ITS_LOG)


def ends_of(der: bytes | None) -> datetime | None:
    """When a certificate ends; None where there is none, or one that cannot be read."""
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc if der else None
    except ValueError:
        return None


def names_of(der: bytes | None) -> list[str]:
    """For which hosts a certificate is."""
    from cryptography import x509

    if not der:
        return []
    try:
        certificate = x509.load_der_x509_certificate(der)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
        return [*found.get_values_for_type(x509.DNSName), *addresses]
    except (ValueError, x509.ExtensionNotFound):
        return []


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unchecked: that is the service's to do."""
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def user_of(token: str) -> str:
    """Whose token it says it is."""
    found = claims_of(token).get("sub", "")
    return found if isinstance(found, str) else ""
