from __future__ import annotations

import json
import os

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from collab.errors import SettingsError
from collab.policy.sending import GroupsOfFile, PeersOfToken, send_policy
from collab.settings import PolicySettings

USERS = ["ada", "bob", "cyd", "dan"]


@pytest.fixture
def write(tmp_path):
    """Writes the file of the policy, as an editor does: a new one in the place of the old."""

    def write(text: str, name: str = "policy.toml"):
        new = tmp_path / "new"
        new.write_text(text)
        path = tmp_path / name
        os.replace(new, path)
        return path

    return write


def allowed(policy) -> set[tuple[str, str]]:
    return {
        (one, other) for one in USERS for other in USERS if one != other and policy.allows(one, None, other)
    }


def both(*pairs: tuple[str, str]) -> set[tuple[str, str]]:
    return {pair for one, other in pairs for pair in ((one, other), (other, one))}


def test_open_is_no_policy_at_all():
    assert send_policy(PolicySettings(), "none") is None


@pytest.mark.parametrize(
    ("peers", "others"),
    [(None, set()), (frozenset(), set()), ({"bob", "zoe"}, {"bob"}), ({"*"}, {"bob", "cyd", "dan"})],
)
def test_a_token_names_those_to_whom_its_bearer_may_send(peers, others):
    policy = PeersOfToken()
    assert {user for user in USERS if policy.allows("ada", peers, user)} == {"ada", *others}


def test_pairs_and_groups_go_both_ways_and_no_further(write):
    path = write('pairs = [["ada", "bob"]]\ngroups = [["bob", "cyd", "dan"]]\n')
    policy = GroupsOfFile(str(path))
    assert allowed(policy) == both(("ada", "bob"), ("bob", "cyd"), ("bob", "dan"), ("cyd", "dan"))
    assert policy.allows("nobody", None, "nobody")


def test_a_star_is_anybody(write):
    path = write(json.dumps({"pairs": [["ada", "*"]]}), "policy.json")
    policy = GroupsOfFile(str(path))
    assert allowed(policy) == both(("ada", "bob"), ("ada", "cyd"), ("ada", "dan"))
    assert policy.allows("somebody", {"bob"}, "ada")


@given(st.lists(st.lists(st.sampled_from([*USERS, "*"]), max_size=4), max_size=4))
def test_groups_are_as_if_each_pair_were_written_down(groups):
    policy = GroupsOfFile.__new__(GroupsOfFile)
    from collab.policy.sending import _Groups

    policy._take(_Groups(groups=groups))
    expected = {
        (one, other)
        for one in USERS
        for other in USERS
        if one != other
        and any((one in g and other in g) or ("*" in g and (one in g or other in g)) for g in groups)
    }
    assert allowed(policy) == expected


@pytest.mark.parametrize(
    ("settings", "auth_mode", "words"),
    [
        ({"send": "token"}, "none", "auth.mode"),
        ({"send": "file"}, "jwt", "policy.file"),
        ({"file": "policy.toml"}, "jwt", "policy.send"),
        ({"send": "file", "file": "nowhere.toml"}, "jwt", "cannot read nowhere.toml"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, auth_mode, words):
    with pytest.raises(SettingsError, match=words):
        send_policy(PolicySettings(**settings), auth_mode)


@pytest.mark.parametrize(
    "text", ["pairs = 3", 'pairs = [["a"]]', "groups = [[1]]", "peers = []", "x", '{"pairs": []}', "\0"]
)
def test_a_file_that_is_not_sound_is_refused_at_the_start_by_name(write, text):
    path = write(text)
    with pytest.raises(SettingsError, match=r"policy\.toml"):
        send_policy(PolicySettings(send="file", file=str(path)), "jwt")


@pytest.mark.trio
async def test_a_change_counts_within_a_second_and_a_mistake_changes_nothing(write, mock_clock, caplog):
    path = write('pairs = [["ada", "bob"]]')
    policy = GroupsOfFile(str(path))

    async def a_second() -> None:
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(policy.run)
        await a_second()
        assert allowed(policy) == both(("ada", "bob"))
        write('pairs = [["ada", "cyd"]]')
        await a_second()
        assert allowed(policy) == both(("ada", "cyd"))
        for mistake in ("pairs = [[", "pairs = 7"):
            write(mistake)
            await a_second()
            assert allowed(policy) == both(("ada", "cyd"))
            assert "Policy file not taken" in caplog.text
            caplog.clear()
        path.unlink()
        await a_second()
        assert allowed(policy) == both(("ada", "cyd"))
        write('groups = [["ada", "dan"]]')
        await a_second()
        assert allowed(policy) == both(("ada", "dan"))
        nursery.cancel_scope.cancel()
