"""Owns the keys that tokens are verified with: one from the settings, or those of a JWK Set by URL."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit

import attrs
import jwt
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from collab.errors import InvalidToken, SettingsError
from collab.observe.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

KeyMaterial = bytes | rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_LEAST_RSA_BITS = 2048

_FETCH_SECONDS: Final = 5.0
_REFRESH_SECONDS: Final = 300.0
_LEAST_SECONDS_BETWEEN_FETCHES: Final = 10.0
_MOST_BYTES: Final = 1024 * 1024
_MOST_KEYS: Final = 100

_log = get_logger()


@attrs.frozen
class Key:
    """What a signature is checked with, and the one algorithm that it is for (RFC 7518 section 3.1)."""

    material: KeyMaterial = attrs.field(repr=False)
    algorithm: str


class Keys(Protocol):
    """Where the key of a token comes from."""

    async def run(self) -> None:
        """What must go on in the background, if anything."""
        ...

    async def find(self, key_id: str | None) -> Key:
        """The key with this id (`kid` of the token's header).

        Raises:
            InvalidToken: there is no such key.
            KeysUnavailable: nobody knows at present.
        """
        ...


class KeysUnavailable(Exception):
    """The keys could not be fetched yet."""


@attrs.frozen
class FixedKey:
    """The key of the settings: tokens need not name it."""

    _key: Key

    @classmethod
    def from_secret(cls, secret: str) -> FixedKey:
        """A shared secret, for HS256 alone."""
        return cls(Key(secret.encode(), "HS256"))

    @classmethod
    def from_pem(cls, path: str) -> FixedKey:
        """A public key in a PEM file; the algorithm follows from its kind.

        Raises:
            SettingsError: the file cannot be read, or holds no public key of a kind that is taken.
        """
        try:
            key = load_pem_public_key(Path(path).read_bytes())
        except OSError as error:
            raise SettingsError(f"auth.public_key_file: cannot read {path}: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise SettingsError(f"auth.public_key_file: {path} holds no public key in PEM") from None
        if (found := _sound_key(key)) is not None:
            return cls(found)
        raise SettingsError(
            f"auth.public_key_file: expected an RSA key of {_LEAST_RSA_BITS} bits or more, "
            "one on the curve P-256, or an Ed25519 key"
        )

    async def run(self) -> None:
        """Nothing: the key is there."""

    async def find(self, key_id: str | None) -> Key:
        """The one key, whatever the token calls it."""
        return self._key


class JwkSet:
    """The public keys at a URL (RFC 7517). `run` alone fetches them, so there is one fetch at a time.

    They are fetched at the start, every five minutes, and when a token names a key that is not known, at
    most once in ten seconds: who makes up key ids cannot make us fetch more. While the URL does not
    answer, the last keys that it gave go on.
    """

    def __init__(self, url: str, fetch: Callable[[str], bytes] | None = None) -> None:
        self._url = url
        # What else is in the URL may be a secret.
        self._host = urlsplit(url).hostname
        # Its own, because a fetch that was given up holds its thread until the host lets go.
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._fetch = fetch or _fetch
        self._keys: dict[str | None, Key] | None = None
        self._wanted = trio.Event()
        self._fetched = trio.Event()
        self._next_fetch = -math.inf

    async def run(self) -> None:
        """Fetch until cancelled. Raises nothing that the URL can cause."""
        while True:
            await self._fetch_once()
            self._next_fetch = trio.current_time() + _LEAST_SECONDS_BETWEEN_FETCHES
            self._wanted = trio.Event()
            fetched, self._fetched = self._fetched, trio.Event()
            fetched.set()
            await trio.sleep(_LEAST_SECONDS_BETWEEN_FETCHES)
            with trio.move_on_after(_REFRESH_SECONDS - _LEAST_SECONDS_BETWEEN_FETCHES):
                await self._wanted.wait()

    async def find(self, key_id: str | None) -> Key:
        """See `Keys`. A token that names no key is taken for the only one, where there is one."""
        if self._keys is None or (key_id not in self._keys and trio.current_time() >= self._next_fetch):
            fetched = self._fetched
            self._wanted.set()
            with trio.move_on_after(_FETCH_SECONDS + 1):
                await fetched.wait()
        if self._keys is None:
            raise KeysUnavailable
        try:
            return self._keys[key_id]
        except KeyError:
            raise InvalidToken("the token is signed with a key that is not known") from None

    async def _fetch_once(self) -> None:
        try:
            with trio.fail_after(_FETCH_SECONDS):
                # Off the loop: names are looked up and bytes awaited in a thread.
                body = await trio.to_thread.run_sync(
                    self._fetch, self._url, abandon_on_cancel=True, limiter=self._one_at_a_time
                )
            self._keys = _keys_of(body)
        except trio.TooSlowError:
            _log.warning("Keys not fetched", host=self._host, reason="no answer in time")
        except (OSError, HTTPException, ValueError, jwt.PyJWTError, RecursionError) as error:
            _log.warning("Keys not fetched", host=self._host, reason=f"{type(error).__name__}: {error}")


def _sound_key(key: object) -> Key | None:
    """The key with the one algorithm that it is for; None where it is too weak, or of another kind."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS:
        return Key(key, "RS256")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return Key(key, "ES256")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Key(key, "EdDSA")
    return None


def _keys_of(body: bytes) -> dict[str | None, Key]:
    """The keys of a JWK Set by id; those for other purposes or of other kinds are passed over.

    Raises:
        ValueError: it is none, or holds no key that is taken.
    """
    found: dict[str | None, Key] = {}
    data = json.loads(body)
    listed = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError("not a JWK Set")
    for entry in listed:
        key_id = entry.get("kid") if isinstance(entry, dict) else None
        # A symmetric key that is published is no secret.
        if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
            continue
        try:
            jwk = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        key = _sound_key(jwk.key)
        if key is not None and key.algorithm == jwk.algorithm_name and isinstance(key_id, str | None):
            found[key_id] = key
    if not found:
        raise ValueError("the JWK Set holds no key that is taken")
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The URL of the settings is the one that is asked."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _fetch(url: str) -> bytes:
    try:
        with _opener.open(url, timeout=_FETCH_SECONDS) as response:
            deadline = time.monotonic() + _FETCH_SECONDS
            body = b""
            # In pieces: the timeout is one of each read, and a host that drips would never meet it.
            while (piece := response.read1(_MOST_BYTES)) and len(body) <= _MOST_BYTES:
                body += piece
                if time.monotonic() > deadline:
                    raise ValueError("the JWK Set does not come in time")
    except HTTPError as error:
        with error:
            raise ValueError(f"the answer was {error.code}") from None
    if len(body) > _MOST_BYTES:
        raise ValueError("the JWK Set is too large")
    return body
