from __future__ import annotations

import pytest
from msgspec import UNSET

from collab.errors import FromUserMismatch, InvalidEvent, MessageError, TooManyRecipients
from collab.policy.validation import EventRules
from collab.wire.messages import CollabEvent, RouteRequest

RULES = EventRules(max_recipients=3)


def request(to_users: list[str], from_user: str | None = None) -> RouteRequest:
    return RouteRequest(CollabEvent("t", to_users, UNSET if from_user is None else from_user), b"7")


def fault(request: RouteRequest) -> MessageError:
    with pytest.raises(MessageError) as caught:
        RULES.check(request, "ada")
    assert caught.value.reply_id == b"7"
    return caught.value


@pytest.mark.parametrize("from_user", [None, "ada"])
def test_a_user_may_send_in_its_own_name(from_user: str | None) -> None:
    RULES.check(request(["bob", "ada"], from_user), "ada")


@pytest.mark.parametrize("from_user", ["bob", "", "Ada", "ada ", "ada\u200b"])
def test_a_user_may_not_send_in_another_name(from_user: str) -> None:
    error = fault(request(["bob"], from_user))
    assert isinstance(error, FromUserMismatch)
    assert error.detail.startswith("data.from_user:")


def test_there_may_be_as_many_recipients_as_the_limit_says() -> None:
    RULES.check(request([]), "ada")
    RULES.check(request(["a", "b", "c"]), "ada")
    error = fault(request(["a", "b", "c", "d"]))
    assert isinstance(error, TooManyRecipients)
    assert error.detail == "data.to_users: at most 3 recipients"


@pytest.mark.parametrize("bad", ["\x00", "b\n", "\u202eb", "b\x7f", "\u2028"])
def test_a_recipient_that_can_be_nobody_is_named_by_its_place(bad: str) -> None:
    error = fault(request(["b", bad, "c"]))
    assert isinstance(error, InvalidEvent)
    assert error.detail == "data.to_users[1]: holds a control or bidi character"


@pytest.mark.parametrize("user_id", ["ü", "😀", "a b", "张伟", "a/b", "x" * 128])
def test_a_recipient_may_have_any_other_character(user_id: str) -> None:
    RULES.check(request([user_id]), "ada")
