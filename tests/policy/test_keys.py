"""Keys by URL: fetched in the background, one fetch at a time, and never lost to an outage."""

from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import jwt
import pytest
import tokens
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import rsa
from tokens import private_key, token

from collab.errors import InvalidToken, Refused
from collab.policy.auth import Authenticator
from collab.policy.keys import JwkSet, KeysUnavailable
from collab.settings import AuthSettings

URL = "https://issuer.example/keys"


@attrs.define
class Issuer:
    """What is at the URL, and how often it was asked."""

    body: bytes | Exception
    fetches: int = 0
    under_way: int = 0
    most_under_way: int = 0

    def fetch(self, url: str) -> bytes:
        assert url == URL
        self.fetches += 1
        if isinstance(self.body, Exception):
            raise self.body
        return self.body


def jwks(*keys: dict) -> bytes:
    return json.dumps({"keys": keys}).encode()


@asynccontextmanager
async def running(issuer: Issuer):
    keys = JwkSet(URL, issuer.fetch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        yield keys
        nursery.cancel_scope.cancel()


async def settle() -> None:
    """Let a fetch in its thread come to its end; the mock clock stands still meanwhile."""
    await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    # Threads do their work in real time: the test moves the clock itself.
    return trio.testing.MockClock()


@pytest.mark.trio
async def test_a_key_is_found_by_its_id_and_the_only_one_without(clock):
    async with running(Issuer(jwks(tokens.jwk("RS256", "a")))) as keys:
        assert (await keys.find("a")).algorithm == "RS256"
        assert (await keys.find(None)).algorithm == "RS256"
    async with running(Issuer(jwks(tokens.jwk("RS256", "a"), tokens.jwk("ES256", "b")))) as keys:
        assert (await keys.find("b")).algorithm == "ES256"
        with pytest.raises(InvalidToken):
            await keys.find(None)


@pytest.mark.trio
async def test_a_storm_of_unknown_key_ids_makes_one_fetch_in_ten_seconds(clock):
    issuer = Issuer(jwks(tokens.jwk("RS256", "a")))
    async with running(issuer) as keys:
        await keys.find("a")
        assert issuer.fetches == 1

        async def ask(number: int) -> None:
            with pytest.raises(InvalidToken):
                await keys.find(f"made-up-{number}")

        for number in range(1000):
            await ask(number)
        assert issuer.fetches == 1
        clock.jump(10)
        await settle()
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(ask, number)
        assert issuer.fetches == 2


@pytest.mark.trio
async def test_a_new_key_is_taken_as_soon_as_a_token_names_it(clock):
    issuer = Issuer(jwks(tokens.jwk("RS256", "a")))
    async with running(issuer) as keys:
        await keys.find("a")
        issuer.body = jwks(tokens.jwk("RS256", "a"), tokens.jwk("EdDSA", "b"))
        clock.jump(10)
        await settle()
        assert (await keys.find("b")).algorithm == "EdDSA"
        assert issuer.fetches == 2


@pytest.mark.trio
async def test_keys_are_fetched_anew_every_five_minutes_and_one_that_is_gone_is_taken_no_more(clock):
    issuer = Issuer(jwks(tokens.jwk("RS256", "a"), tokens.jwk("EdDSA", "b")))
    async with running(issuer) as keys:
        await keys.find("a")
        issuer.body = jwks(tokens.jwk("EdDSA", "b"))
        for seconds in (10, 290):
            clock.jump(seconds)
            await settle()
        assert issuer.fetches == 2
        with pytest.raises(InvalidToken):
            await keys.find("a")


@pytest.mark.trio
@pytest.mark.parametrize(
    "outage",
    [
        OSError("no route"),
        b"<html>sorry</html>",
        b'{"keys": []}',
        b'{"keys": "none"}',
        b"[]",
        b"[" * 100_000,
        jwks({"kty": "RSA", "kid": "a"}),
        jwks({"kty": "oct", "kid": "a", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75"}),
    ],
)
async def test_the_last_good_keys_go_on_through_an_outage(clock, outage):
    issuer = Issuer(jwks(tokens.jwk("RS256", "a")))
    async with running(issuer) as keys:
        await keys.find("a")
        issuer.body = outage
        for _ in range(10):
            clock.jump(200)
            await settle()
        assert issuer.fetches > 3
        assert (await keys.find("a")).algorithm == "RS256"


@pytest.mark.trio
async def test_before_the_first_keys_nobody_is_let_in_and_nobody_is_called_a_liar(clock):
    issuer = Issuer(OSError("down"))
    settings = AuthSettings(mode="jwt", jwks_url=URL)
    subject = Authenticator(settings)
    subject._keys = keys = JwkSet(URL, issuer.fetch)
    text = token(key=private_key("RS256"), algorithm="RS256", headers={"kid": "a"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.run)
        with pytest.raises(Refused) as caught:
            await subject.authenticate(text)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert caught.value.retry_after_seconds
        issuer.body = jwks(tokens.jwk("RS256", "a"))
        clock.jump(10)
        await settle()
        assert (await subject.authenticate(text)).user_id == "ada"
        nursery.cancel_scope.cancel()
    assert keys is subject._keys


@pytest.mark.trio
async def test_symmetric_keys_and_keys_for_encryption_are_passed_over(clock):
    published = {"kty": "oct", "kid": "s", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"}
    encryption = {**tokens.jwk("RS256", "e"), "use": "enc"}
    async with running(Issuer(jwks(published, encryption, tokens.jwk("EdDSA", "a")))) as keys:
        await keys.find("a")
        for key_id in ("s", "e"):
            with pytest.raises(InvalidToken):
                await keys.find(key_id)


@pytest.mark.trio
async def test_a_key_that_is_too_weak_is_passed_over(clock):
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    listed = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak)), "kid": "weak"}
    async with running(Issuer(jwks(listed, tokens.jwk("RS256", "a")))) as keys:
        await keys.find("a")
        with pytest.raises(InvalidToken):
            await keys.find("weak")


@pytest.mark.trio
async def test_a_fetch_that_was_given_up_and_still_runs_is_the_only_one(clock):
    release = threading.Event()
    fetches = 0

    def stall(_: str) -> bytes:
        nonlocal fetches
        fetches += 1
        release.wait(20)
        raise OSError("at last")

    keys = JwkSet(URL, stall)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keys.run)
            for _ in range(10):
                await settle()
                clock.jump(200)
            assert fetches == 1
            nursery.cancel_scope.cancel()
    finally:
        release.set()


@pytest.mark.trio
async def test_a_url_that_never_answers_holds_up_nobody_but_who_needs_it(autojump_clock):
    release = threading.Event()

    def stall(_: str) -> bytes:
        release.wait(20)
        raise OSError("at last")

    keys = JwkSet(URL, stall)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keys.run)
            with pytest.raises(KeysUnavailable):
                await keys.find("a")
            assert trio.current_time() < 7
            nursery.cancel_scope.cancel()
    finally:
        release.set()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/keys")
            self.end_headers()
            return
        body = b" " * (2 << 20) if self.path == "/huge" else jwks(tokens.jwk("ES256", "a"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.trio
async def test_over_http_the_url_itself_is_asked_and_no_other():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found = {}
        for path in ("/keys", "/moved", "/huge"):
            keys = JwkSet(f"http://127.0.0.1:{server.server_port}{path}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keys.run)
                try:
                    with trio.move_on_after(2):
                        found[path] = (await keys.find("a")).algorithm
                except KeysUnavailable:
                    pass
                nursery.cancel_scope.cancel()
        server.shutdown()
        thread.join()
    assert found == {"/keys": "ES256"}
