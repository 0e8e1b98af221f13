"""Owns how a tool is told which service it is for: its URL, a token, certificates; and how its run ends."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import attrs
import click

from collab.errors import CollabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")

DEFAULT_URL = "ws://localhost:9000"
_FORM = "expected ws://HOST:PORT, wss://HOST:PORT, http://HOST:PORT or https://HOST:PORT"
_IS_ENCRYPTED = {"ws": False, "http": False, "wss": True, "https": True}


class Unreachable(CollabError):
    """There is no answer. `kind` says where it failed: name, network, refused, tls, silent, strange."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Declined(CollabError):
    """There is an answer, and it is no. `code` is the service's word, empty where it is not the service's."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NeedsTheClient(click.ClickException):
    """The extra `[client]` is not installed."""

    exit_code = 2

    def __init__(self, command: str) -> None:
        super().__init__(f"{command} needs the extra [client]: pip install 'trio-collab[client]'")


@attrs.frozen(kw_only=True)
class Far:
    """A service, as a tool was told to reach it."""

    host: str
    port: int
    encrypted: bool
    path: str = ""
    """Of the WebSocket, without a slash at its end."""
    names_port: bool = True
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _token: str = attrs.field(default="", repr=False)

    @property
    def netloc(self) -> str:
        """Host and port, as a URL and the header Host have them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Where backends connect. It holds no secret."""
        return f"{'wss' if self.encrypted else 'ws'}://{self.netloc}{self.path}"

    @property
    def prefix(self) -> str:
        """What a proxy puts before every path of the HTTP API."""
        return self.path.removesuffix("/ws")

    @property
    def has_token(self) -> bool:
        """Whether a token was given."""
        return bool(self._token)

    @property
    def token_may_change(self) -> bool:
        """Whether the token is in a file."""
        return self._token.startswith("@")

    def token(self) -> str:
        """The token; one in a file is read anew. Empty where there is none.

        Raises:
            CollabError: it cannot be read, or can be no token.
        """
        found = self._token
        if found.startswith("@"):
            try:
                found = Path(found[1:]).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not text"
                raise CollabError(f"cannot read the token from {self._token[1:]}: {reason}") from None
        if not (found.isascii() and found.isprintable() and " " not in found):
            raise CollabError("the token holds characters that no token has")
        return found

    def without_token(self) -> Far:
        """The same, for what is asked without one."""
        return attrs.evolve(self, token="")

    def hide(self, text: str) -> str:
        """The text without the token: who answers may repeat what it was sent."""
        try:
            token = self.token()
        except CollabError:
            return text
        return text.replace(token, "***") if token else text


def far_of(
    url: str,
    *,
    token: str = "",
    cacert: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
) -> Far:
    """What the flags say.

    Raises:
        click.UsageError: they cannot be meant so.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise click.UsageError(f"the URL of the service: {_FORM}") from None
    if parts.scheme not in _IS_ENCRYPTED or not parts.hostname or not _is_sound(parts.netloc + parts.path):
        raise click.UsageError(f"the URL of the service: {_FORM}")
    encrypted = _IS_ENCRYPTED[parts.scheme]
    if port is None:
        port = 443 if encrypted else 80
    # What a backend puts into its query is not for a tool, but for its token.
    in_query = parse_qs(parts.query).get("token", [""])[0]
    return Far(
        host=parts.hostname,
        port=port,
        encrypted=encrypted,
        path=parts.path.rstrip("/"),
        names_port=parts.port is not None,
        ssl_context=_ssl_context(cacert, cert, key) if encrypted else None,
        token=token or in_query,
    )


def far_flags(command: F) -> F:
    """The flags with which every tool is told its service, as the argument `far`.

    A command may take the URL as its own argument `url_argument`, which then counts.
    """

    @functools.wraps(command)
    def with_far(
        url: str,
        token: str,
        cacert: Path | None,
        cert: Path | None,
        key: Path | None,
        url_argument: str = "",
        **others: object,
    ) -> object:
        far = far_of(url_argument or url, token=token, cacert=cacert, cert=cert, key=key)
        return command(far=far, **others)

    a_file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--key", type=a_file, help="Private key of --cert, where that file does not hold it."),
        click.option("--cert", type=a_file, help="Certificate (PEM) of this client, where one is asked for."),
        click.option(
            "--cacert",
            type=a_file,
            help="Authority (PEM) to trust, in place of those that this machine does.",
        ),
        click.option(
            "--token",
            envvar="COLLAB_TOKEN",
            show_envvar=True,
            default="",
            metavar="TOKEN|@FILE",
            help="Who one is, where the service asks for it. Other users of this machine see what is in a "
            "flag: rather use the variable, or a file.",
        ),
        click.option(
            "--url",
            envvar="COLLAB_URL",
            show_envvar=True,
            default=DEFAULT_URL,
            show_default=True,
            help="The service: ws://, wss://, http:// or https://.",
        ),
    ):
        with_far = option(with_far)
    return with_far  # type: ignore[return-value] # click takes the flags away


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a tool on Trio, and give back what it returns.

    Raises:
        CollabError: it could not do its work; the one that says so, out of any group.
        KeyboardInterrupt: it was interrupted.
    """
    import trio

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise _telling(group) from None


def run_until_interrupted(main: Callable[[], Awaitable[int]]) -> int:
    """Run a tool that has no end of its own: Ctrl-C ends it with 0, and so does the end of who reads it."""
    import trio

    from collab.cli.screen import reader_gone

    async def both() -> int:
        code = 0

        async def to_the_end() -> None:
            nonlocal code
            code = await main()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_the_end)
            await reader_gone()
            nursery.cancel_scope.cancel()
        return code

    try:
        return run(both)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0


def _telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = list(_leaves(group))
    for kinds in ((KeyboardInterrupt,), (BrokenPipeError,)):
        for leaf in leaves:
            if isinstance(leaf, kinds):
                return leaf
    told = [leaf for leaf in leaves if isinstance(leaf, CollabError)]
    return told[0] if len(told) == len(leaves) else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _is_sound(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _ssl_context(cacert: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cacert)
    except (OSError, ssl.SSLError):
        raise click.UsageError(f"--cacert: {cacert} holds no certificate in PEM") from None
    if cert is not None:
        try:
            # Never asks at the terminal: a key with a password is refused.
            context.load_cert_chain(cert, key, password="")
        except (OSError, ssl.SSLError, ValueError):
            raise click.UsageError(
                "--cert, --key: expected a certificate and its private key, in PEM without a password"
            ) from None
    elif key is not None:
        raise click.UsageError("--key: needs --cert")
    return context
