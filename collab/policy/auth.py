"""Owns who a client is: the token it brings, and what the token says (RFC 7519)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import attrs
import jwt

from collab.errors import InvalidToken, Refused, SettingsError
from collab.policy.keys import FixedKey, JwkSet, Keys, KeysUnavailable
from collab.wire.identity import check_user_id

if TYPE_CHECKING:
    from collab.settings import AuthSettings

_MOST_CHARACTERS: Final = 8192
_LATEST: Final = 253402300799
"""The last second of the year 9999."""
_RETRY_AFTER_SECONDS: Final = 5
_WHY: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidIssuerError, "the token is of another issuer"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidAlgorithmError, "the token is signed in a way that is not taken"),
)


@attrs.frozen(kw_only=True)
class Claims:
    """What a token says, verified."""

    user_id: str
    seconds_left: float
    """Until it expires, the leeway included."""
    expires_at: float
    """Seconds since the epoch, without the leeway."""

    @property
    def expires_at_text(self) -> str:
        """`expires_at` as UTC ISO 8601 with `Z`."""
        return datetime.fromtimestamp(self.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    peers: frozenset[str] | None = None
    """The users to whom its bearer may send; None where the token does not say."""
    scopes: frozenset[str] = frozenset()
    token_id: str | None = None
    """Its `jti`, where that is a string."""
    issuer: str | None = None
    """Its `iss`, where that is a string."""


class Authenticator:
    """Verifies tokens as the settings say.

    Raises:
        SettingsError: with auth on, there must be exactly one source of keys, and it must be sound.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self.is_on = settings.mode == "jwt"
        self._settings = settings
        self._keys = _keys(settings) if self.is_on else None

    async def run(self) -> None:
        """Keep the keys fresh until cancelled; at once over where there is nothing to keep."""
        if self._keys is not None:
            await self._keys.run()

    async def authenticate(self, token: str) -> Claims:
        """What this token says.

        Raises:
            InvalidToken: it is not taken.
            Refused: 503 `unavailable`, where the keys could not be fetched.
        """
        assert self._keys is not None, "auth is off"
        if len(token) > _MOST_CHARACTERS:
            raise InvalidToken("the token is too long")
        try:
            key = await self._keys.find(_key_id(token))
        except KeysUnavailable:
            raise Refused(
                503,
                "unavailable",
                "tokens cannot be verified at present",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            ) from None
        settings = self._settings
        try:
            payload = jwt.decode(
                token,
                key.material,
                # The algorithm is that of the key, whatever the token says.
                algorithms=[key.algorithm],
                issuer=settings.issuer,
                audience=settings.audience,
                leeway=float(settings.leeway),
                options={"require": ["exp", "sub"], "verify_aud": settings.audience is not None},
            )
        except jwt.PyJWTError as error:
            raise InvalidToken(_reason(error)) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            # What PyJWT or the key's own code lets through of a token that is none.
            raise InvalidToken("the token is malformed") from None
        return _claims(payload, float(settings.leeway))


def _keys(settings: AuthSettings) -> Keys:
    given = [name for name in ("secret", "public_key_file", "jwks_url") if getattr(settings, name)]
    if len(given) != 1:
        raise SettingsError(
            "auth.mode is jwt: set one of auth.secret, auth.public_key_file and auth.jwks_url"
            + (f", not {' and '.join(given)}" if given else "")
        )
    if settings.secret:
        return FixedKey.from_secret(settings.secret)
    if settings.public_key_file:
        return FixedKey.from_pem(settings.public_key_file)
    assert settings.jwks_url is not None
    return JwkSet(settings.jwks_url)


def _key_id(token: str) -> str | None:
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidToken("the token is malformed") from None
    if key_id is not None and not isinstance(key_id, str):
        raise InvalidToken("the token is malformed")
    return key_id


def _reason(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no {error.claim}"
    return next((why for kind, why in _WHY if isinstance(error, kind)), "the token is malformed")


def _claims(payload: dict[str, Any], leeway_seconds: float) -> Claims:
    user_id, expires_at = payload["sub"], payload["exp"]
    if not isinstance(user_id, str) or not user_id or not isinstance(expires_at, int | float):
        raise InvalidToken("the token is malformed")
    try:
        check_user_id(user_id)
    except Refused:
        raise InvalidToken("the token's sub can be no user's id") from None
    return Claims(
        user_id=user_id,
        # From here on the monotonic clock counts: one that is set back or forward ends nobody's token.
        seconds_left=min(expires_at, _LATEST) + leeway_seconds - time.time(),
        expires_at=min(expires_at, _LATEST),
        peers=_names(payload["peers"]) if "peers" in payload else None,
        scopes=_words(payload.get("scope")),
        token_id=_text(payload.get("jti")),
        issuer=_text(payload.get("iss")),
    )


def _words(value: object) -> frozenset[str]:
    """The words of a text (RFC 8693 section 4.2); a claim of another shape allows nothing."""
    return frozenset(value.split(" ")) - {""} if isinstance(value, str) else frozenset()


def _names(value: object) -> frozenset[str]:
    """The strings of a list; a claim of another shape allows nobody."""
    names = value if isinstance(value, list) else []
    return frozenset(name for name in names if isinstance(name, str))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
