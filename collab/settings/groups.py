"""Owns what can be set: one frozen class per group, each field with its default and its meaning.

The text under a field is its help: it is shown by `trio-collab serve --help` and in
docs/configuration.md. A new setting is a new field, and nothing else.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs
from typed_settings.types import SecretStr

from collab.settings import checks
from collab.settings.units import Duration, Size

FLAG: Final = "flag"
"""Metadata key: the flag of `trio-collab serve` that sets this field."""

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
AuthMode = Literal["none", "jwt"]
SendMode = Literal["open", "token", "file"]
EventValidation = Literal["off", "known", "strict"]
ClientAuth = Literal["required", "optional"]
OnFull = Literal["continue", "stop"]


@attrs.frozen(kw_only=True)
class ServerSettings:
    """Where the service listens, and how it goes down."""

    host: str = attrs.field(default="localhost", validator=checks.host(), metadata={FLAG: "--host"})
    """Host name or address to listen on. A name with IPv4 and IPv6 addresses gets both, on one port."""
    port: int = attrs.field(default=9000, validator=checks.whole_number(0, 65535), metadata={FLAG: "--port"})
    """TCP port, also from the variable `PORT`. 0 takes a free one."""
    public_url: str | None = attrs.field(default=None, validator=checks.service_url())
    """URL of this service as backends reach it, for `/api/register`. None: made from each request."""
    drain: Duration = attrs.field(default=Duration("10s"), validator=checks.duration("0s"))
    """Longest time for an orderly end after SIGTERM or SIGINT."""
    reconnect_spread: Duration = attrs.field(default=Duration("5s"), validator=checks.duration("500ms", "5s"))
    """Time over which clients are asked to spread their reconnects after a shutdown."""


@attrs.frozen(kw_only=True)
class LimitSettings:
    """What clients may use before they are told so."""

    message_bytes: Size = attrs.field(default=Size("64KiB"), validator=checks.size("1B"))
    """Largest accepted text message, counted in bytes of UTF-8."""
    max_recipients: int = attrs.field(default=1000, validator=checks.whole_number(1))
    """Most recipients of one event."""
    mailbox_messages: int = attrs.field(default=256, validator=checks.whole_number(1))
    """Most messages that wait for one connection."""
    mailbox_bytes: Size = attrs.field(default=Size("1MiB"), validator=checks.size("1B"))
    """Most bytes that wait for one connection."""
    in_flight: int = attrs.field(default=64, validator=checks.whole_number(1))
    """Unacknowledged events of one connection before the service stops reading from it."""
    slow_consumer: Duration = attrs.field(default=Duration("2s"), validator=checks.duration("0s"))
    """Longest wait for room in a full mailbox before its connection is closed."""
    control_frames: int = attrs.field(default=20, validator=checks.whole_number(0))
    """Most pings and pongs a second from one client; at once, those of ten seconds. 0: no limit."""
    errors: int = attrs.field(default=20, validator=checks.whole_number(0))
    """Most messages a second with an `error` for one client; at once, those of ten seconds. 0: no limit."""
    events_per_second: int = attrs.field(default=0, validator=checks.whole_number(0))
    """Most events a second of one user; one to more than ten recipients counts for each ten. 0: no limit."""
    burst: int = attrs.field(default=0, validator=checks.whole_number(0))
    """How many of these events may come at once. 0: those of one second."""
    connects_per_second: int = attrs.field(default=0, validator=checks.whole_number(0))
    """Most connects a second of one user, and from one address (IPv6: one /64); at once, ten times as many.
    TLS handshakes: ten times that from one address. 0: no limit."""
    connections_per_user: int = attrs.field(default=8, validator=checks.whole_number(0))
    """Most connections of one user; above it the oldest is closed. 0: no limit."""
    connections_per_address: int = attrs.field(default=0, validator=checks.whole_number(0))
    """Most connections from one address (IPv6: one /64). 0: no limit."""
    connections: int = attrs.field(default=0, validator=checks.whole_number(0))
    """Most connections in total. 0: no limit below the one on open files."""


@attrs.frozen(kw_only=True)
class TimeoutSettings:
    """How long the service waits for a peer."""

    handshake: Duration = attrs.field(default=Duration("5s"), validator=checks.duration("1ms"))
    """Longest time from accepting a connection to the end of its handshake."""
    write: Duration = attrs.field(default=Duration("10s"), validator=checks.duration("1ms"))
    """Longest time for one write to a peer."""
    close: Duration = attrs.field(default=Duration("2s"), validator=checks.duration("1ms"))
    """Longest wait for the answer to a close frame."""
    ping_interval: Duration = attrs.field(default=Duration("25s"), validator=checks.duration("1ms"))
    """Silence after which a keepalive ping is sent."""
    ping_timeout: Duration = attrs.field(default=Duration("20s"), validator=checks.duration("1ms"))
    """Longest silence after a keepalive ping before the connection is closed."""


@attrs.frozen(kw_only=True)
class LogSettings:
    """What is logged, and where to. The console always gets it."""

    level: LogLevel = attrs.field(default="info", metadata={FLAG: "--log-level"})
    """Least severe level that is logged."""
    format: LogFormat = attrs.field(default="text", metadata={FLAG: "--log-format"})
    """Lines for people (text), or one JSON object a line (json)."""
    file: str = attrs.field(default="collaboration-service.log", metadata={FLAG: "--log-file"})
    """Log file, relative to the working directory. Empty: none."""
    events_per_second: int = attrs.field(default=50, validator=checks.whole_number(0))
    """Most routed events a second with a log line each; one line a second counts the others."""


@attrs.frozen(kw_only=True)
class HttpSettings:
    """What browsers may do with the HTTP API."""

    cors_origins: tuple[str, ...] = attrs.field(default=("*",), validator=checks.origins())
    """Origins whose pages may read the answers of the HTTP API."""


@attrs.frozen(kw_only=True)
class OriginSettings:
    """Which pages may open a WebSocket."""

    allowed: tuple[str, ...] = attrs.field(default=("*",), validator=checks.origins())
    """Origins that may connect."""
    allow_absent: bool = True
    """Accept a client that sends no Origin, as programs other than browsers do."""
    allow_null: bool = False
    """Accept the Origin `null`, which sandboxed pages and local files send."""


@attrs.frozen(kw_only=True)
class AuthSettings:
    """Who a client is: anybody it says (`none`), or the user that its token names (`jwt`)."""

    mode: AuthMode = "none"
    """Whether a token is needed. With `jwt`, set one of `secret`, `public_key_file` and `jwks_url`."""
    secret: SecretStr = attrs.field(default=SecretStr(""), converter=SecretStr, validator=checks.secret(32))
    """Secret of tokens signed with HS256."""
    public_key_file: str | None = None
    """PEM file with the public key of tokens signed with RS256, ES256 or EdDSA."""
    jwks_url: str | None = attrs.field(default=None, validator=checks.fetched_url())
    """URL of a JWK Set with the public keys of such tokens."""
    issuer: str | None = None
    """What a token's `iss` must be. None: anything."""
    audience: str | None = None
    """What a token's `aud` must name. None: anything."""
    leeway: Duration = attrs.field(default=Duration("10s"), validator=checks.duration("0s", "5m"))
    """How much the clocks of those who sign tokens may differ from ours."""


@attrs.frozen(kw_only=True)
class PolicySettings:
    """Who may send to whom, and sees whom online. Of all others one is told that they are offline."""

    send: SendMode = "open"
    """Everybody to everybody (`open`), whom a token's `peers` names (`token`), or as `policy.file` says."""
    file: str | None = None
    """TOML or JSON file with `pairs` and `groups` of users, `*` for anybody. Read again when it changes."""


@attrs.frozen(kw_only=True)
class EventSettings:
    """Which events are routed."""

    validation: EventValidation = "off"
    """Whether payloads are checked: not at all (off), those of types with a schema, while others are routed
    as they are (known), or those, and no event of another type is routed (strict)."""
    schema_dir: str | None = None
    """Directory of JSON Schemas, `TYPE.json` for the payloads of each type. None: the built-in types only."""


@attrs.frozen(kw_only=True)
class TlsSettings:
    """TLS on the one port, once it has a certificate. Files that change are read anew, as at SIGHUP."""

    cert_file: str | None = None
    """PEM file with the certificate of the service, and those between it and its root."""
    key_file: str | None = None
    """PEM file with the private key of the certificate, not encrypted."""
    client_ca_file: str | None = None
    """PEM file with the roots that certificates of clients must come from. None: clients need none."""
    client_auth: ClientAuth = "required"
    """With `client_ca_file`: whether a client may also come without a certificate (`optional`)."""


@attrs.frozen(kw_only=True)
class AdminSettings:
    """Who may use the operator API, besides those whose token has the scope `admin`."""

    token: SecretStr = attrs.field(default=SecretStr(""), converter=SecretStr, validator=checks.bearer(32))
    """What an operator brings as `Authorization: Bearer`. None, and `auth.mode` none: no operator API."""


@attrs.frozen(kw_only=True)
class AuditSettings:
    """The audit log: who came, who was refused, who sent to whom. JSON lines, never a payload or a token."""

    file: str | None = None
    """Audit log, relative to the working directory; one for each service. None: no audit."""
    routes: bool = True
    """A line for each routed event."""
    on_full: OnFull = "continue"
    """Where the file cannot be written: go on and count what is dropped, or drain and exit with 1."""
    max_bytes: Size = attrs.field(default=Size("100MiB"), validator=checks.size("0B"))
    """Size at which the file is renamed to `.1`, that one to `.2` and so on. 0: never."""
    backups: int = attrs.field(default=10, validator=checks.whole_number(1))
    """How many renamed files are kept; the oldest goes."""


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that can be set. `Settings()` holds the defaults."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    log: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    origins: OriginSettings = OriginSettings()
    auth: AuthSettings = AuthSettings()
    policy: PolicySettings = PolicySettings()
    events: EventSettings = EventSettings()
    tls: TlsSettings = TlsSettings()
    admin: AdminSettings = AdminSettings()
    audit: AuditSettings = AuditSettings()
