from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fake_connections import make_connection
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from collab.core.registry import OnlineUser, Registry

if TYPE_CHECKING:
    from collab.core.connection import Connection

NOON = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def test_only_the_first_connection_of_a_user_is_the_first() -> None:
    registry = Registry()
    assert registry.add(make_connection("ada"))
    assert not registry.add(make_connection("ada"))
    assert registry.add(make_connection("bob"))


def test_only_the_last_connection_of_a_user_is_the_last() -> None:
    registry = Registry()
    one, two = make_connection("ada"), make_connection("ada")
    registry.add(one)
    registry.add(two)
    assert not registry.remove(two)
    assert registry.remove(one)
    assert registry.user_count == registry.connection_count == 0


def test_the_end_of_an_old_connection_never_unregisters_its_user() -> None:
    registry = Registry()
    old, new = make_connection("ada"), make_connection("ada")
    registry.add(old)
    registry.add(new)
    for _ in range(3):
        assert not registry.remove(old)
    assert list(registry.of_user("ada")) == [new]
    assert registry.online_user("ada") is not None


def test_dropping_a_connection_twice_or_an_unknown_one_changes_nothing() -> None:
    registry = Registry()
    one = make_connection("ada")
    registry.add(one)
    assert not registry.remove(make_connection("ada"))
    assert not registry.remove(make_connection("bob"))
    assert registry.remove(one)
    assert not registry.remove(one)
    assert registry.connection_count == 0


def test_a_user_without_connections_is_offline() -> None:
    registry = Registry()
    assert list(registry.of_user("ada")) == []
    assert registry.online_user("ada") is None
    assert registry.online_users() == []


def test_a_row_has_the_time_of_the_oldest_and_the_rest_of_the_newest_connection() -> None:
    registry = Registry()
    old = make_connection("ada", display_name="Old", backend_url="http://old", connected_at=NOON)
    middle = make_connection("ada", connected_at=NOON + timedelta(hours=1))
    new = make_connection(
        "ada", display_name="New", backend_url="http://new", connected_at=NOON + timedelta(hours=2)
    )
    for connection in (old, middle, new):
        registry.add(connection)
    row = OnlineUser("ada", "New", "http://new", "2024-05-01T12:00:00Z", "online")
    assert registry.online_user("ada") == row
    assert registry.online_users() == [row]
    registry.remove(old)
    assert registry.online_users() == [
        OnlineUser("ada", "New", "http://new", "2024-05-01T13:00:00Z", "online")
    ]


class RegistryModel(RuleBasedStateMachine):
    """A registry against a dict of lists."""

    live = Bundle("live")
    gone = Bundle("gone")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.model: dict[str, list[Connection]] = {}

    @rule(target=live, user_id=st.sampled_from(["ada", "bob", "cy", ""]))
    def add(self, user_id: str) -> Connection:
        connection = make_connection(user_id)
        assert self.registry.add(connection) == (user_id not in self.model)
        self.model.setdefault(user_id, []).append(connection)
        return connection

    @rule(target=gone, connection=consumes(live))
    def remove(self, connection: Connection) -> Connection:
        of_user = self.model[connection.user_id]
        assert self.registry.remove(connection) == (of_user == [connection])
        of_user.remove(connection)
        if not of_user:
            del self.model[connection.user_id]
        return connection

    @rule(connection=gone)
    def remove_again(self, connection: Connection) -> None:
        assert not self.registry.remove(connection)

    @invariant()
    def it_knows_exactly_who_is_here(self) -> None:
        assert [user.user_id for user in self.registry.online_users()] == list(self.model)
        assert self.registry.user_count == len(self.model)
        assert self.registry.connection_count == sum(map(len, self.model.values()))
        assert list(self.registry.connections()) == [c for of_user in self.model.values() for c in of_user]
        for user_id in ("ada", "bob", "cy", "", "nobody"):
            assert list(self.registry.of_user(user_id)) == self.model.get(user_id, [])
            assert (self.registry.online_user(user_id) is None) == (user_id not in self.model)


TestAnyUseOfARegistry = RegistryModel.TestCase
TestAnyUseOfARegistry.settings = settings(stateful_step_count=40)
