from __future__ import annotations

import pytest

from collab.errors import Refused
from collab.policy.origins import OriginPolicy
from collab.settings import OriginSettings

APP = "https://app.example"


def allows(settings: OriginSettings, *origins: str) -> bool:
    try:
        OriginPolicy(settings).check(list(origins))
    except Refused as error:
        if (error.status, error.code) != (403, "origin_not_allowed"):
            raise
        return False
    return True


def test_by_default_every_page_and_every_backend_may_connect() -> None:
    assert allows(OriginSettings())
    assert allows(OriginSettings(), APP)
    assert allows(OriginSettings(), "http://localhost:3000")


def test_by_default_a_page_without_an_origin_of_its_own_may_not_connect() -> None:
    assert not allows(OriginSettings(), "null")
    assert allows(OriginSettings(allow_null=True), "null")


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil.org",
        "https://evil.org/https://app.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example/",
        "https://sub.app.example",
        "HTTPS://APP.EXAMPLE",
        "",
        "*",
        "null",
    ],
)
def test_an_origin_is_compared_as_a_whole(origin: str) -> None:
    settings = OriginSettings(allowed=(APP, "https://other.example"))
    assert allows(settings, APP)
    assert not allows(settings, origin)


def test_no_origin_is_a_setting_of_its_own() -> None:
    assert allows(OriginSettings(allowed=(APP,)))
    assert not allows(OriginSettings(allowed=("*",), allow_absent=False))


def test_two_origins_are_never_allowed() -> None:
    assert not allows(OriginSettings(), APP, APP)
    assert not allows(OriginSettings(allow_null=True), "null", APP)
