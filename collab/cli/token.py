"""Owns `trio-collab token`: making tokens for clients, and saying why one is not taken."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collab.cli.flags import config_flag
from collab.errors import CollabError, InvalidToken, Refused, SettingsError
from collab.settings import AuthSettings, Duration, load_settings

if TYPE_CHECKING:
    from collab.policy.auth import Authenticator, Claims


@click.group()
def token() -> None:
    """Make tokens for clients, and look at them."""


@token.command()
@config_flag
@click.option("--user", required=True, help="Whose token it is (claim sub).")
@click.option("--ttl", default="1h", show_default=True, help="How long it is valid: 30s, 15m, 12h.")
@click.option("--peer", "peers", multiple=True, help="A user to whom its bearer may send; * for all.")
@click.option("--scope", "scopes", multiple=True, help="A scope, such as admin.")
@click.option(
    "--private-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the private key to sign with, where the service verifies with a public one.",
)
def create(
    config_file: Path | None,
    user: str,
    ttl: str,
    peers: tuple[str, ...],
    scopes: tuple[str, ...],
    private_key: Path | None,
) -> None:
    """Print a token that this service takes, signed with auth.secret or --private-key."""
    settings = load_settings(config_file, os.environ, {}).auth
    try:
        seconds = float(Duration(ttl))
    except ValueError:
        raise click.UsageError(f"--ttl: expected a duration such as 1h, got {ttl!r}") from None
    now = int(time.time())
    claims: dict[str, object] = {"sub": user, "iat": now, "exp": now + max(int(seconds), 1)}
    if settings.issuer:
        claims["iss"] = settings.issuer
    if settings.audience:
        claims["aud"] = settings.audience
    if peers:
        claims["peers"] = list(peers)
    if scopes:
        claims["scope"] = " ".join(scopes)
    import jwt

    key, algorithm = _signing_key(settings, private_key)
    click.echo(jwt.encode(claims, key, algorithm=algorithm))


@token.command()
@config_flag
@click.argument("text", metavar="TOKEN")
def verify(config_file: Path | None, text: str) -> None:
    """Say whether the service takes TOKEN, and what it says. `-` reads it from standard input."""
    import trio

    from collab.policy.auth import Authenticator

    authenticator = Authenticator(load_settings(config_file, os.environ, {}).auth)
    if not authenticator.is_on:
        raise SettingsError("auth.mode is none: no token is looked at")
    if text == "-":
        text = sys.stdin.read().strip()
    claims = trio.run(_authenticate, authenticator, text)
    if isinstance(claims, CollabError):
        raise CollabError(f"not accepted: {claims}")
    said: dict[str, object] = {"user_id": claims.user_id, "expires_at": claims.expires_at_text}
    if claims.peers is not None:
        said["peers"] = sorted(claims.peers)
    if claims.scopes:
        said["scopes"] = sorted(claims.scopes)
    text = json.dumps(said, ensure_ascii=False)
    # A token may be another's: what would move the cursor or reorder the line shows as its code.
    click.echo("".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text))


async def _authenticate(authenticator: Authenticator, text: str) -> Claims | InvalidToken | Refused:
    """What the token says, or why it is not taken."""
    import trio

    async with trio.open_nursery() as nursery:
        # It fetches the keys, where they are to be fetched.
        nursery.start_soon(authenticator.run)
        found: Claims | InvalidToken | Refused
        try:
            found = await authenticator.authenticate(text)
        except (InvalidToken, Refused) as error:
            found = error
        nursery.cancel_scope.cancel()
    return found


def _signing_key(settings: AuthSettings, private_key: Path | None) -> tuple[Any, str]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if private_key is None:
        if not settings.secret:
            raise SettingsError("auth.secret is not set: set it, or name a key with --private-key")
        return str(settings.secret), "HS256"
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise SettingsError(f"{private_key} holds no private key in PEM without a password") from None
    for kind, algorithm in (
        (rsa.RSAPrivateKey, "RS256"),
        (ec.EllipticCurvePrivateKey, "ES256"),
        (ed25519.Ed25519PrivateKey, "EdDSA"),
    ):
        if isinstance(key, kind):
            return key, algorithm
    raise SettingsError(f"{private_key} holds a key of a kind that is not taken")
