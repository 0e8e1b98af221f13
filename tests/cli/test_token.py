from __future__ import annotations

import json

import pytest
import tokens
from tokens import OTHER_SECRET, SECRET, token


@pytest.fixture
def with_secret(environment):
    environment.setenv("COLLAB_AUTH__MODE", "jwt")
    environment.setenv("COLLAB_AUTH__SECRET", SECRET)
    return environment


def test_a_token_that_was_created_is_taken(run, with_secret):
    code, out, err = run(
        "token", "create", "--user", "ada", "--ttl", "90s", "--peer", "bob", "--scope", "admin"
    )
    assert (code, err) == (0, "")
    code, said, err = run("token", "verify", out.strip())
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert found["expires_at"].endswith("Z")
    assert {**found, "expires_at": ""} == {
        "user_id": "ada",
        "expires_at": "",
        "peers": ["bob"],
        "scopes": ["admin"],
    }


def test_issuer_and_audience_of_the_settings_are_in_it(run, with_secret):
    with_secret.setenv("COLLAB_AUTH__ISSUER", "https://issuer.example")
    with_secret.setenv("COLLAB_AUTH__AUDIENCE", "trio-collab")
    _, out, _ = run("token", "create", "--user", "ada")
    assert run("token", "verify", out.strip())[0] == 0
    with_secret.setenv("COLLAB_AUTH__AUDIENCE", "others")
    code, _, err = run("token", "verify", out.strip())
    assert (code, err) == (1, "trio-collab: not accepted: the token is for another audience\n")


def test_a_bad_token_is_exit_code_1_and_not_shown(run, with_secret):
    bad = token(key=OTHER_SECRET)
    code, out, err = run("token", "verify", bad)
    assert (code, out, err) == (1, "", "trio-collab: not accepted: the token's signature is wrong\n")


def test_a_strange_token_cannot_move_the_cursor(run, with_secret):
    strange = "Zo\xeb\x9b2J\u202e\x1b\u2028"
    code, out, err = run("token", "verify", token(strange))
    assert (code, out, err) == (1, "", "trio-collab: not accepted: the token's sub can be no user's id\n")
    code, out, err = run("token", "verify", token("ada", peers=[strange]))
    assert (code, err) == (0, "")
    assert out.removesuffix("\n").isprintable()
    assert json.loads(out)["peers"] == [strange]


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_signs_for_services_with_its_public_key(run, environment, tmp_path, algorithm):
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(tokens.private_pem(algorithm))
    public.write_bytes(tokens.public_pem(algorithm))
    environment.setenv("COLLAB_AUTH__MODE", "jwt")
    environment.setenv("COLLAB_AUTH__PUBLIC_KEY_FILE", str(public))
    _, out, _ = run("token", "create", "--user", "ada", "--private-key", str(private))
    code, said, _ = run("token", "verify", out.strip())
    assert (code, json.loads(said)["user_id"]) == (0, "ada")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "--user", "ada"], 2, "auth.secret is not set"),
        (["create", "--user", "ada", "--ttl", "soon"], 2, "--ttl"),
        (["create"], 2, "--user"),
        (["verify", "x"], 2, "auth.mode is none"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(run, environment, arguments, code, words):
    exit_code, out, err = run("token", *arguments)
    assert (exit_code, out) == (code, "")
    assert words in err
    assert err.startswith("trio-collab: ")


def test_config_check_finds_what_a_start_would(run, environment):
    environment.setenv("COLLAB_AUTH__MODE", "jwt")
    code, _, err = run("config", "check")
    assert code == 2
    assert "set one of auth.secret, auth.public_key_file and auth.jwks_url" in err
    environment.setenv("COLLAB_AUTH__SECRET", "hunter2")
    code, _, err = run("config", "check")
    assert (code, "hunter2" in err) == (2, False)
