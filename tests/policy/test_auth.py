from __future__ import annotations

import time

import jwt
import pytest
import tokens
from tokens import OTHER_SECRET, SECRET, claims, forged, private_key, public_pem, token

from collab.errors import InvalidToken, SettingsError
from collab.policy.auth import Authenticator, Claims
from collab.settings import AuthSettings, Duration

NO_LEEWAY = Duration("0s")


def authenticator(**settings) -> Authenticator:
    return Authenticator(AuthSettings(mode="jwt", **{"secret": SECRET, **settings}))


async def reason(subject: Authenticator, text: str) -> str:
    """Why a token is not taken. Nothing of it is in the answer."""
    with pytest.raises(InvalidToken) as caught:
        await subject.authenticate(text)
    said = str(caught.value)
    assert not any(part and len(part) > 3 and part in said for part in text.split("."))
    # What a log would show of it.
    assert caught.value.__cause__ is None
    return said


@pytest.mark.trio
async def test_a_sound_token_says_who_its_bearer_is():
    found = await authenticator().authenticate(
        token("ada", seconds=60, peers=["bob", 3, "cyd"], scope="admin other")
    )
    assert isinstance(found, Claims)
    assert (found.user_id, found.peers, found.scopes) == ("ada", {"bob", "cyd"}, {"admin", "other"})
    assert 68 < found.seconds_left <= 70  # the leeway is 10 s
    assert abs(found.expires_at - time.time() - 60) < 2
    assert found.expires_at_text.endswith("Z")


@pytest.mark.trio
@pytest.mark.parametrize("peers", ["bob", {"bob": 1}, 7, []])
async def test_a_claim_of_peers_that_is_no_list_of_names_allows_nobody(peers):
    assert (await authenticator().authenticate(token(peers=peers))).peers == frozenset()


@pytest.mark.trio
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_takes_tokens_of_its_own_kind_alone(algorithm, tmp_path):
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem(algorithm))
    subject = authenticator(secret="", public_key_file=str(file))
    assert (
        await subject.authenticate(token(key=private_key(algorithm), algorithm=algorithm))
    ).user_id == "ada"
    for other in {"RS256", "ES256", "EdDSA"} - {algorithm}:
        assert await reason(subject, token(key=private_key(other), algorithm=other))


def signed(payload: bytes) -> str:
    """A sound signature under any payload: by the library's own parts, as its `encode` refuses some."""
    return jwt.api_jws.encode(payload, SECRET, algorithm="HS256")


BAD = {
    "not-a-token": ("x", "malformed"),
    "empty": ("", "malformed"),
    "unsigned, alg none": (forged({"alg": "none", "typ": "JWT"}, claims()), "not taken"),
    "alg None in another case": (forged({"alg": "nOnE", "typ": "JWT"}, claims()), "not taken"),
    "expired": (token(seconds=-60), "expired"),
    "not valid yet": (token(nbf=int(time.time()) + 3600), "not valid yet"),
    "issued in the future": (token(iat=int(time.time()) + 3600), "not valid yet"),
    "wrong issuer": (token(iss="https://elsewhere.example"), "issuer"),
    "no issuer": (token(iss=None), "no iss"),
    "wrong audience": (token(iss="https://issuer.example", aud="others"), "audience"),
    "no audience": (token(iss="https://issuer.example", aud=None), "no aud"),
    "no expiry": (token(exp=None), "no exp"),
    "expiry is text": (token(exp="soon"), "malformed"),
    "expiry is true": (token(exp=True), "expired"),
    "no subject": (token(sub=None), "no sub"),
    "subject is a number": (token(sub=7), "malformed"),
    "subject is empty": (token(sub=""), "malformed"),
    "subject can be no user's": (token(sub="a\n\x1b[31m"), "sub can be no user"),
    "subject is too long": (token(sub="x" * 129), "sub can be no user"),
    "wrong key": (token(key=OTHER_SECRET), "signature"),
    "truncated": (token()[:-10], "malformed"),
    "signature cut": (token()[:-11], "signature"),
    "cut in the payload": (token().rsplit(".", 2)[0], "malformed"),
    "payload changed": (
        ".".join([token("ada").split(".")[0], token("eve").split(".")[1], token("ada").split(".")[2]]),
        "signature",
    ),
    "huge": (token("ada", padding="x" * 20_000), "too long"),
    "kid is a path": (token(headers={"kid": "../../../../dev/null"}, key=OTHER_SECRET), "signature"),
    "kid is SQL": (token(headers={"kid": "x' OR '1'='1"}, key=OTHER_SECRET), "signature"),
    "kid is a list": (forged({"alg": "HS256", "kid": ["x"]}, claims()), "malformed"),
    "key in the header": (
        forged({"alg": "RS256", "jwk": tokens.jwk("RS256")}, claims(), b"x" * 256),
        "not taken",
    ),
    "key by URL in the header": (
        token(headers={"jku": "http://127.0.0.1:1/keys"}, key=OTHER_SECRET),
        "signature",
    ),
    "critical header": (token(headers={"crit": ["exp2"], "exp2": 1}), "malformed"),
    "payload is a list": (signed(b'["ada"]'), "malformed"),
    "payload is a text": (signed(b'"ada"'), "malformed"),
    "payload is no JSON": (signed(b"{"), "malformed"),
    "payload is deep": (signed(b"[" * 5000), "malformed"),
    "expiry is infinite": (signed(b'{"sub":"ada","exp":1e999}'), "malformed"),
    "expiry is no number": (signed(b'{"sub":"ada","exp":NaN}'), "malformed"),
    "four parts": (token() + ".x", "malformed"),
    "a blank within": (token()[:20] + " " + token()[20:], "malformed"),
    "other HMAC": (token(key=SECRET * 2, algorithm="HS512"), "not taken"),
    "asymmetric": (token(key=private_key("RS256"), algorithm="RS256"), "not taken"),
}
ISSUED = {"issuer": "https://issuer.example", "audience": "trio-collab"}


@pytest.mark.trio
@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
async def test_a_bad_token_is_not_taken(text, why):
    needs_issuer = why in ("issuer", "no iss", "audience", "no aud")
    subject = authenticator(**(ISSUED if needs_issuer else {}), leeway=NO_LEEWAY)
    assert why in await reason(subject, text)


@pytest.mark.trio
async def test_a_public_key_is_no_secret(tmp_path):
    # The classic confusion: HS256 with the PEM of the public key as its secret.
    file = tmp_path / "key.pem"
    file.write_bytes(public_pem("RS256"))
    subject = authenticator(secret="", public_key_file=str(file))
    import base64
    import hashlib
    import hmac

    unsigned = forged({"alg": "HS256", "typ": "JWT"}, claims()).rstrip(".")
    signature = hmac.new(public_pem("RS256"), unsigned.encode(), hashlib.sha256).digest()
    text = unsigned + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    assert "not taken" in await reason(subject, text)


@pytest.mark.trio
async def test_the_leeway_counts_both_ways():
    subject = authenticator(leeway=Duration("30s"))
    assert (await subject.authenticate(token(seconds=-20))).seconds_left > 5
    assert await subject.authenticate(token(nbf=int(time.time()) + 20))
    assert await reason(subject, token(seconds=-40)) == "the token has expired"


@pytest.mark.trio
async def test_an_expiry_beyond_all_dates_is_taken_as_the_last_one():
    found = await authenticator().authenticate(token(exp=10**15))
    assert found.expires_at_text == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    "settings",
    [
        {"secret": ""},
        {"public_key_file": "key.pem"},
        {"jwks_url": "https://issuer.example/keys"},
        {"secret": "", "public_key_file": "nowhere.pem"},
    ],
)
def test_there_must_be_exactly_one_sound_source_of_keys(settings):
    with pytest.raises(SettingsError, match=r"^auth\."):
        authenticator(**settings)


def test_a_short_secret_is_refused_and_not_shown():
    with pytest.raises(SettingsError, match="32 bytes or more") as caught:
        AuthSettings(mode="jwt", secret="hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("what", ["private", "text", "small"])
def test_a_file_without_a_public_key_of_a_kind_that_is_taken_is_refused(what, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    small = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    contents = {
        "private": tokens.private_pem("RS256"),
        "text": b"hello",
        "small": small.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }
    file = tmp_path / "key.pem"
    file.write_bytes(contents[what])
    with pytest.raises(SettingsError, match=r"^auth\.public_key_file"):
        authenticator(secret="", public_key_file=str(file))


def test_off_is_off():
    subject = Authenticator(AuthSettings())
    assert not subject.is_on


def test_the_oracle_agrees():
    assert jwt.decode(token(), SECRET, algorithms=["HS256"])["sub"] == "ada"


@pytest.mark.trio
@pytest.mark.parametrize(
    "scope", [["admin"], {"a": "b admin c"}, ["x admin y"], 7, None, "administrator", ""]
)
async def test_a_claim_of_scope_that_is_no_text_with_the_word_allows_nothing(scope):
    found = await authenticator().authenticate(forged_claims(scope))
    assert "admin" not in found.scopes


def forged_claims(scope):
    """A signed token whose scope is of any shape, null too."""
    return jwt.encode({**claims("ada"), "scope": scope}, SECRET, algorithm="HS256")
