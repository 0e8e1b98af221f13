"""Which settings are not safe together."""

from __future__ import annotations

import attrs
import pytest

from collab.settings import (
    AuthSettings,
    HttpSettings,
    ServerSettings,
    Settings,
    TlsSettings,
    unsafe_combinations,
)

WITH_AUTH = AuthSettings(mode="jwt", secret="s" * 32)
WITH_TLS = TlsSettings(cert_file="cert.pem", key_file="key.pem")
OWN_PAGES = HttpSettings(cors_origins=("https://app.example.org",))
SOUND = Settings(server=ServerSettings(host="0.0.0.0"), auth=WITH_AUTH, tls=WITH_TLS, http=OWN_PAGES)


def words(**changes):
    return unsafe_combinations(attrs.evolve(SOUND, **changes))


def test_a_service_with_everything_on_has_no_warning():
    assert unsafe_combinations(SOUND) == []


def test_the_defaults_have_no_warning():
    assert unsafe_combinations(Settings()) == []


PUBLIC = ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "collab.example.org", "localhost.example.org"]
LOOPBACK = ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "::1"]


@pytest.mark.parametrize("host", PUBLIC)
def test_auth_off_on_an_address_that_others_reach(host):
    (warning,) = words(server=ServerSettings(host=host), auth=AuthSettings())
    assert host in warning
    assert "auth.mode" in warning


@pytest.mark.parametrize("host", PUBLIC)
def test_tls_off_on_an_address_that_others_reach(host):
    (warning,) = words(server=ServerSettings(host=host), tls=TlsSettings())
    assert "tokens" in warning
    assert "tls.cert_file" in warning
    assert "tls.key_file" in warning
    both = words(server=ServerSettings(host=host), tls=TlsSettings(), auth=AuthSettings())
    assert len(both) == 2
    assert "tokens" not in both[1]


def test_every_origin_with_auth_on():
    for server in (ServerSettings(), ServerSettings(host="0.0.0.0")):
        (warning,) = words(http=HttpSettings(), server=server)
        assert "http.cors_origins" in warning


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_neither_is_needed(host):
    assert words(server=ServerSettings(host=host), tls=TlsSettings(), auth=AuthSettings()) == []


@pytest.mark.parametrize(
    ("url", "count"),
    [
        ("http://keys.example.org/jwks", 1),
        ("https://keys.example.org/jwks", 0),
        ("http://127.0.0.1:8080/jwks", 0),
    ],
)
def test_keys_that_come_in_the_clear(url, count):
    found = words(auth=AuthSettings(mode="jwt", jwks_url=url))
    assert len(found) == count
    assert all("auth.jwks_url" in warning for warning in found)
