"""The local roster of a worker: subscriptions and members by channel, and what a departure changes."""

from push1st.brokers.local_roster import Departure, LocalRoster
from push1st.messages import Member

ROOM = ("app", "presence-c")
A, B = Member("a"), Member("b", b'{"n":1}')


def test_subscriptions_of_a_channel_are_counted():
    local_roster = LocalRoster()
    assert [local_roster.join(*ROOM, socket, None).subscriptions for socket in ("1.1", "1.2")] == [1, 2]
    assert local_roster.subscriptions(*ROOM) == 2


def test_channel_is_vacated_by_its_last_subscription():
    local_roster = LocalRoster()
    for socket in ("1.1", "1.2"):
        local_roster.join(*ROOM, socket, None)
    local_roster.confirm(*ROOM, None)
    assert local_roster.leave(*ROOM, "1.1", None) == Departure(None, False, vacated=False, channel_confirmed=True)
    assert local_roster.leave(*ROOM, "1.2", None) == Departure(None, False, vacated=True, channel_confirmed=True)
    assert local_roster.channel(*ROOM) is None
    assert list(local_roster) == []


def test_user_is_removed_with_its_last_connection():
    local_roster = LocalRoster()
    for socket in ("1.1", "1.2"):
        local_roster.join(*ROOM, socket, A)
    local_roster.confirm(*ROOM, "a")
    assert local_roster.leave(*ROOM, "1.1", "a") == Departure(None, False, vacated=False, channel_confirmed=True)
    assert local_roster.has_member(*ROOM, "a")
    assert local_roster.leave(*ROOM, "1.2", "a") == Departure(A, True, vacated=True, channel_confirmed=True)
    assert not local_roster.has_member(*ROOM, "a")
    assert local_roster.subscriptions(*ROOM) == 0


def test_unconfirmed_member_is_not_listed():
    local_roster = LocalRoster()
    assert not local_roster.join(*ROOM, "1.1", A).confirmed
    assert not local_roster.has_member(*ROOM, "a")
    entry = local_roster.join(*ROOM, "1.2", B)
    local_roster.confirm(*ROOM, "b")
    assert entry.confirmed
    assert not local_roster.has_member(*ROOM, "a")
    assert local_roster.members(*ROOM) == {"b": B}
    assert local_roster.leave(*ROOM, "1.1", "a") == Departure(A, False, vacated=False, channel_confirmed=True)
    local_roster.leave(*ROOM, "1.2", "b")
    assert not local_roster.join(*ROOM, "1.3", B).confirmed
    assert not local_roster.has_member(*ROOM, "b")


def test_leave_without_a_join_changes_nothing():
    local_roster = LocalRoster()
    assert local_roster.leave(*ROOM, "1.1", None) is None
    local_roster.join(*ROOM, "1.1", A)
    assert local_roster.leave(*ROOM, "9.9", "a") is None
    assert local_roster.leave(*ROOM, "1.1", "b") is None
    assert local_roster.subscriptions(*ROOM) == 1


def test_users_with_one_connection_are_listed_with_it():
    local_roster = LocalRoster()
    for socket, member in (("1.1", A), ("1.2", A), ("1.3", B)):
        local_roster.join(*ROOM, socket, member)
    assert local_roster.single_connections(*ROOM) == {"b": "1.3"}
    assert local_roster.single_connections("app", "nowhere") == {}


def test_channels_are_listed_by_app():
    local_roster = LocalRoster()
    for app, channel in (("app", "c"), ("app", "d"), ("other", "c")):
        local_roster.join(app, channel, "1.1", None)
    assert set(local_roster.channels("app")) == {"c", "d"}
    assert dict(local_roster.channels("nobody")) == {}
    assert {(app, channel) for app, channel, _ in local_roster} == {("app", "c"), ("app", "d"), ("other", "c")}
    local_roster.clear()
    assert list(local_roster) == []
