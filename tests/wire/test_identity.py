from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.errors import Forbidden, Refused, Unauthenticated
from collab.wire.identity import (
    DEFAULT_DISPLAY_NAME,
    IDENTITY_REQUIRED,
    Identity,
    check_identity,
    check_user_id,
    claimed_in,
    identity_from_auth,
    identity_from_query,
    token_from_auth,
)

URL = "http://localhost:8000"


def query(**changes: str | None) -> str:
    parameters = {"user_id": "ada", "backend_url": URL, **changes}
    return urlencode({name: value for name, value in parameters.items() if value is not None})


def refused(raw_query: str, *, path_user_id: str = "") -> Refused:
    with pytest.raises(Refused) as caught:
        identity_from_query(raw_query, path_user_id=path_user_id)
    assert caught.value.status == 400
    return caught.value


def invalid(raw_query: str, *, path_user_id: str = "") -> str:
    error = refused(raw_query, path_user_id=path_user_id)
    assert error.code == "invalid_parameter"
    return error.message


def test_user_and_url_are_enough() -> None:
    assert identity_from_query(query()) == Identity(
        user_id="ada", backend_url=URL, display_name=DEFAULT_DISPLAY_NAME, wants_presence=True
    )


@pytest.mark.parametrize(
    "raw_query",
    [
        "",
        "&",
        "user_id=ada",
        f"backend_url={URL}",
        f"user_id=&backend_url={URL}",
        "user_id=ada&backend_url=",
        "user_id&backend_url",
    ],
)
def test_without_user_or_url_both_are_asked_for(raw_query: str) -> None:
    error = refused(raw_query)
    assert (error.code, error.message) == ("missing_parameter", IDENTITY_REQUIRED)
    assert IDENTITY_REQUIRED == "user_id and backend_url are required"


def test_unknown_parameters_are_ignored() -> None:
    assert identity_from_query(query(token="x", EIO="4")).user_id == "ada"


# user_id


@pytest.mark.parametrize(
    "user_id", ["a", "x" * 128, "ü" * 128, "😀" * 128, " ", "a b", "a+b", "a/b", "a%2Fb", "ada@x.org"]
)
def test_a_user_id_has_1_to_128_characters_of_nearly_any_kind(user_id: str) -> None:
    assert identity_from_query(query(user_id=user_id)).user_id == user_id


@pytest.mark.parametrize("user_id", ["x" * 129, "😀" * 129])
def test_a_user_id_over_128_characters_is_refused(user_id: str) -> None:
    assert "128" in invalid(query(user_id=user_id))


@pytest.mark.parametrize(
    "bad", ["\x00", "\x1f", "\n", "\x7f", "\x80", "\x9f", "\u2028", "\u202e", "\u2066", "\u200f", "\u061c"]
)
def test_a_control_or_bidi_character_in_a_user_id_is_refused(bad: str) -> None:
    for user_id in (bad, f"a{bad}", f"{bad}a", f"a{bad}a"):
        assert invalid(query(user_id=user_id)) == "user_id holds a control or bidi character"
        with pytest.raises(Refused):
            check_user_id(user_id)


def test_a_user_id_that_is_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(Refused):
        check_identity(user_id="\ud800", backend_url=URL)


# The path


@pytest.mark.parametrize(
    ("in_path", "user_id"), [("ada", "ada"), ("%C3%A9", "é"), ("a%2Fb", "a/b"), ("a+b", "a+b"), ("%2B", "+")]
)
def test_the_user_id_may_come_from_the_path(in_path: str, user_id: str) -> None:
    assert identity_from_query(query(user_id=None), path_user_id=in_path).user_id == user_id
    assert identity_from_query(query(user_id=""), path_user_id=in_path).user_id == user_id


def test_path_and_query_may_say_the_same_in_two_spellings() -> None:
    assert identity_from_query(f"user_id=%65&backend_url={URL}", path_user_id="e").user_id == "e"


@pytest.mark.parametrize("in_path", ["bob", "ADA", "ada%20"])
def test_path_and_query_that_differ_are_refused(in_path: str) -> None:
    assert "differ" in invalid(query(), path_user_id=in_path)


@pytest.mark.parametrize("in_path", ["%00", "%E2%80%AE", "x" * 129])
def test_the_rules_for_a_user_id_hold_in_the_path(in_path: str) -> None:
    assert "user_id" in invalid(query(user_id=None), path_user_id=in_path)


@pytest.mark.parametrize("in_path", ["%ff", "%ED%A0%80", "a%C3"])
def test_a_path_that_is_not_utf8_is_refused(in_path: str) -> None:
    assert "user_id" in invalid(query(user_id=None), path_user_id=in_path)


# backend_url


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://a",
        "HTTPS://a",
        "http://localhost:8000/path?q=1#f",
        "http://[::1]:8000",
        "http://user:pass@host/",
        "http://localhost:0",
        "http://localhost:65535",
        "http://ümlaut.example/é",
        "http://a/" + "x" * (2048 - len("http://a/")),
    ],
)
def test_a_backend_url_is_an_absolute_http_url(url: str) -> None:
    assert identity_from_query(query(backend_url=url)).backend_url == url


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "//localhost",
        "/path",
        "http",
        "http:",
        "http://",
        "http:///path",
        "http:localhost",
        "http://?q",
        "http://:80",
        "http://user@",
        "http://host:port",
        "http://host:65536",
        "http://host:-1",
        "http://[::1",
        "http://[zz]",
        "ftp://host",
        "ws://host",
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "http://a b",
        " http://a",
        "http://a ",
        "http://a\n",
        "ht\ntp://a",
        "http://a\t",
        "http://a\x00",
        "http://a\u202e",
        "http://a\u2028",
        "http://a\u00a0",
    ],
)
def test_anything_else_is_no_backend_url(url: str) -> None:
    assert invalid(query(backend_url=url)) == "backend_url must be an absolute http or https URL"


def test_a_backend_url_over_2048_characters_is_refused() -> None:
    assert "2,048" in invalid(query(backend_url="http://a/" + "x" * (2049 - len("http://a/"))))


# display_name


@pytest.mark.parametrize("name", ["Ada", "Ada Lovelace", "x" * 128, "😀" * 128, "\u200fעדה", "a\u00a0b"])
def test_a_display_name_has_at_most_128_characters(name: str) -> None:
    assert identity_from_query(query(display_name=name)).display_name == name


def test_an_empty_display_name_counts_as_absent() -> None:
    assert identity_from_query(query(display_name="")).display_name == "Unknown User"


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x00", "\x1b[2J", "\x7f", "\x85", "a\u2028b"])
def test_a_display_name_that_is_too_long_or_holds_a_control_character_is_refused(name: str) -> None:
    assert "display_name" in invalid(query(display_name=name))


# presence


@pytest.mark.parametrize(("presence", "wanted"), [("all", True), ("none", False), ("", True), (None, True)])
def test_presence_is_all_or_none(presence: str | None, wanted: bool) -> None:
    assert identity_from_query(query(presence=presence)).wants_presence is wanted


@pytest.mark.parametrize("presence", ["None", "ALL", "some", " none", "0"])
def test_another_presence_is_refused(presence: str) -> None:
    assert "presence" in invalid(query(presence=presence))


# The query itself


@pytest.mark.parametrize("name", ["user_id", "backend_url", "display_name", "presence", "token"])
@pytest.mark.parametrize("second", ["", "other", "ada"])
def test_a_parameter_given_twice_is_refused_by_name(name: str, second: str) -> None:
    raw = query(display_name="A", presence="all", token="t") + f"&{name}={second}"
    assert invalid(raw) == f"{name} is given twice"


def test_two_spellings_of_one_name_are_one_parameter() -> None:
    assert "given twice" in invalid(query() + "&user%5Fid=eve")


def test_a_strange_name_is_not_repeated_in_the_answer() -> None:
    assert invalid(query() + "&<script>=1&<script>=2") == "a parameter is given twice"


@pytest.mark.parametrize("raw", ["%ff", "%C3", "%ED%A0%80"])
def test_a_query_that_is_not_utf8_is_refused(raw: str) -> None:
    assert "UTF-8" in invalid(f"user_id={raw}&backend_url={URL}")
    assert "UTF-8" in invalid(f"{query()}&x={raw}")
    assert "UTF-8" in invalid(f"{query()}&{raw}=x")


@pytest.mark.parametrize("raw", ["%", "%4", "%zz", "%%", "%u0041"])
def test_a_percent_sign_that_escapes_nothing_stands_for_itself(raw: str) -> None:
    assert identity_from_query(f"user_id={raw}&backend_url={URL}").user_id == raw


vchars = st.text([chr(code) for code in range(0x21, 0x7F)], max_size=60)


def accepted(**texts: str) -> Identity | None:
    """The identity, None where it is refused with 400 and a sentence."""
    try:
        return check_identity(**texts)
    except Refused as error:
        if error.status != 400 or not error.message:
            raise
        return None


@given(vchars, vchars)
def test_any_query_and_path_are_an_identity_or_refused(raw_query: str, in_path: str) -> None:
    for raw in (raw_query, f"{query()}&{raw_query}", f"user_id={raw_query}&backend_url=http://{in_path}"):
        try:
            identity = identity_from_query(raw, path_user_id=in_path)
        except Refused:
            continue
        assert accepted(user_id=identity.user_id, backend_url=identity.backend_url) is not None


@given(st.text(), st.text(), st.text())
def test_whatever_is_accepted_keeps_the_rules(user_id: str, rest: str, display_name: str) -> None:
    identity = accepted(user_id=user_id, backend_url="http://" + rest, display_name=display_name)
    if identity is not None:
        assert 1 <= len(identity.user_id) <= 128
        assert 1 <= len(identity.display_name) <= 128
        assert not set(identity.user_id + identity.display_name + identity.backend_url) & set("\r\n\0\x7f")


@pytest.mark.parametrize(
    ("query", "path", "claimed"),
    [
        ("user_id=ada&backend_url=x", "", "ada"),
        ("user_id=ada&user_id=eve", "", "ada"),
        ("user_id=ada", "eve", "eve"),
        ("", "a%20b", "a b"),
        ("", "%ff%0a", "\ufffd\n"),
        ("user_id=%ff", "", "\ufffd"),
        ("user_id=" + "x" * 200, "", "x" * 129),
        ("user_id=", "", None),
        ("%", "", None),
        ("", "", None),
    ],
)
def test_whom_a_request_claims_to_be_is_read_whatever_else_is_wrong_with_it(query, path, claimed):
    assert claimed_in(query, path_user_id=path) == claimed


AUTH = {"user_id": "ada", "backend_url": URL}
ADA = Identity(user_id="ada", backend_url=URL)


@pytest.mark.parametrize(
    ("raw_query", "auth"),
    [
        (query(), {}),
        ("", AUTH),
        ("EIO=4&transport=websocket", AUTH),
        (query(), AUTH),
        ("user_id=ada", {"backend_url": URL}),
        (query(backend_url="http://other"), {"backend_url": URL}),
        (query(display_name="Eve"), {"display_name": DEFAULT_DISPLAY_NAME}),
        (query(presence="none"), {"presence": "all"}),
        (query(), {"user_id": "", "backend_url": "", "display_name": "", "presence": ""}),
        (query(), {"user_id": None, "backend_url": None, "display_name": None, "presence": None}),
        ("", {**AUTH, "other": [1]}),
    ],
)
def test_a_socket_io_client_says_who_it_is_in_query_or_auth_and_auth_wins(raw_query, auth):
    assert identity_from_auth(raw_query, auth) == ADA


def test_all_of_it_may_be_in_auth():
    auth = {**AUTH, "display_name": "Ada L", "presence": "none"}
    assert identity_from_auth("", auth) == Identity(
        user_id="ada", backend_url=URL, display_name="Ada L", wants_presence=False
    )


def test_two_users_in_query_and_auth_are_refused():
    with pytest.raises(Refused) as caught:
        identity_from_auth(query(user_id="eve"), AUTH)
    assert (caught.value.code, caught.value.message) == (
        "invalid_parameter",
        "user_id in auth and in the query differ",
    )


@pytest.mark.parametrize("name", ["user_id", "backend_url", "display_name", "presence"])
@pytest.mark.parametrize("value", [1, True, 0, False, ["ada"], {}])
def test_what_auth_says_is_strings(name, value):
    with pytest.raises(Refused) as caught:
        identity_from_auth(query(), {name: value})
    assert (caught.value.code, caught.value.message) == (
        "invalid_parameter",
        f"{name} in auth must be a string",
    )


@pytest.mark.parametrize(("raw_query", "auth"), [("", {}), ("user_id=ada", {}), ("", {"backend_url": URL})])
def test_without_user_or_url_in_query_or_auth_both_are_asked_for(raw_query, auth):
    with pytest.raises(Refused) as caught:
        identity_from_auth(raw_query, auth)
    assert (caught.value.code, caught.value.message) == ("missing_parameter", IDENTITY_REQUIRED)


@pytest.mark.parametrize(
    ("raw_query", "auth"),
    [
        ("", {**AUTH, "user_id": "x" * 129}),
        ("", {**AUTH, "user_id": "a\n"}),
        ("", {**AUTH, "backend_url": "ftp://x"}),
        ("", {**AUTH, "display_name": "x" * 129}),
        ("", {**AUTH, "presence": "some"}),
        ("user_id=ada&user_id=ada", AUTH),
        ("x=%ff", AUTH),
    ],
)
def test_auth_is_held_to_the_rules_of_the_query(raw_query, auth):
    with pytest.raises(Refused) as caught:
        identity_from_auth(raw_query, auth)
    assert caught.value.code == "invalid_parameter"


def test_the_user_of_a_token_need_not_be_said_in_auth_and_cannot_be_another():
    assert identity_from_auth("", {"backend_url": URL}, token_user_id="ada") == ADA
    with pytest.raises(Forbidden):
        identity_from_auth("", AUTH, token_user_id="eve")
    with pytest.raises(Forbidden):
        identity_from_auth(query(), {}, token_user_id="eve")


def test_a_token_is_in_auth_or_in_the_query_or_in_the_header():
    assert token_from_auth({"token": "a"}, ["Bearer h"], "token=q") == "a"
    assert token_from_auth({}, [], "token=q") == "q"
    assert token_from_auth({"token": ""}, ["Bearer h"], "") == "h"
    with pytest.raises(Unauthenticated):
        token_from_auth({}, [], "")
    with pytest.raises(Refused, match="token in auth must be a string"):
        token_from_auth({"token": 1}, [], "token=q")
