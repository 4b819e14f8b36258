"""The register of a worker: subscriptions and members by channel, and what a departure changes."""

from push1st.brokers.register import Departure, Register
from push1st.messages import Member

ROOM = ("app", "presence-c")
A, B = Member("a"), Member("b", b'{"n":1}')


def test_subscriptions_of_a_channel_are_counted():
    register = Register()
    assert [register.join(*ROOM, socket, None).subscriptions for socket in ("1.1", "1.2")] == [1, 2]
    assert register.subscriptions(*ROOM) == 2


def test_channel_is_vacated_by_its_last_subscription():
    register = Register()
    for socket in ("1.1", "1.2"):
        register.join(*ROOM, socket, None)
    register.confirm(*ROOM, None)
    assert register.leave(*ROOM, "1.1", None) == Departure(None, False, vacated=False, channel_confirmed=True)
    assert register.leave(*ROOM, "1.2", None) == Departure(None, False, vacated=True, channel_confirmed=True)
    assert register.channel(*ROOM) is None
    assert list(register) == []


def test_user_is_removed_with_its_last_connection():
    register = Register()
    for socket in ("1.1", "1.2"):
        register.join(*ROOM, socket, A)
    register.confirm(*ROOM, "a")
    assert register.leave(*ROOM, "1.1", "a") == Departure(None, False, vacated=False, channel_confirmed=True)
    assert register.has_member(*ROOM, "a")
    assert register.leave(*ROOM, "1.2", "a") == Departure(A, True, vacated=True, channel_confirmed=True)
    assert not register.has_member(*ROOM, "a")
    assert register.subscriptions(*ROOM) == 0


def test_unconfirmed_member_is_not_listed():
    register = Register()
    assert not register.join(*ROOM, "1.1", A).confirmed
    assert not register.has_member(*ROOM, "a")
    entry = register.join(*ROOM, "1.2", B)
    register.confirm(*ROOM, "b")
    assert entry.confirmed
    assert not register.has_member(*ROOM, "a")
    assert register.members(*ROOM) == {"b": B}
    assert register.leave(*ROOM, "1.1", "a") == Departure(A, False, vacated=False, channel_confirmed=True)
    register.leave(*ROOM, "1.2", "b")
    assert not register.join(*ROOM, "1.3", B).confirmed
    assert not register.has_member(*ROOM, "b")


def test_leave_without_a_join_changes_nothing():
    register = Register()
    assert register.leave(*ROOM, "1.1", None) is None
    register.join(*ROOM, "1.1", A)
    assert register.leave(*ROOM, "9.9", "a") is None
    assert register.leave(*ROOM, "1.1", "b") is None
    assert register.subscriptions(*ROOM) == 1


def test_users_with_one_connection_are_listed_with_it():
    register = Register()
    for socket, member in (("1.1", A), ("1.2", A), ("1.3", B)):
        register.join(*ROOM, socket, member)
    assert register.single_connections(*ROOM) == {"b": "1.3"}
    assert register.single_connections("app", "nowhere") == {}


def test_channels_are_listed_by_app():
    register = Register()
    for app, channel in (("app", "c"), ("app", "d"), ("other", "c")):
        register.join(app, channel, "1.1", None)
    assert set(register.channels("app")) == {"c", "d"}
    assert dict(register.channels("nobody")) == {}
    assert {(app, channel) for app, channel, _ in register} == {("app", "c"), ("app", "d"), ("other", "c")}
    register.clear()
    assert list(register) == []
