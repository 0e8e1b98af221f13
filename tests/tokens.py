"""Tokens for tests: keys of every kind, sound tokens, and tokens that must not be taken."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = "a secret of the tests, long enough for HS256"
ADMIN_TOKEN = "a-token-of-the-operators-that-is-long-enough"
OTHER_SECRET = "another secret of the tests, long enough too"


@cache
def private_key(algorithm: str) -> Any:
    """A private key for RS256, ES256 or EdDSA; the same one each time."""
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(algorithm: str) -> bytes:
    """Its public key as PEM."""
    return (
        private_key(algorithm)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def private_pem(algorithm: str) -> bytes:
    """The private key as PEM."""
    return private_key(algorithm).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def jwk(algorithm: str, key_id: str | None = None) -> dict[str, Any]:
    """Its public key as a JWK."""
    kinds = {
        "RS256": jwt.algorithms.RSAAlgorithm,
        "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }
    found = json.loads(kinds[algorithm].to_jwk(private_key(algorithm).public_key()))
    return found if key_id is None else {**found, "kid": key_id}


def claims(user_id: str = "ada", *, seconds: float = 3600, **others: Any) -> dict[str, Any]:
    """What a sound token says; None leaves a claim out."""
    found = {"sub": user_id, "exp": int(time.time() + seconds), **others}
    return {name: value for name, value in found.items() if value is not None}


def token(
    user_id: str = "ada",
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    headers: dict[str, Any] | None = None,
    **others: Any,
) -> str:
    """A signed token."""
    return jwt.encode(claims(user_id, **others), key, algorithm=algorithm, headers=headers)


def forged(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """A token of which every part is as given."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
