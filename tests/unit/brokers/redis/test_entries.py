"""A node's own entries, and what is wrong with the broker's copy of them."""

from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.redis.entries import NO_MEMBER, Difference, Entries
from push1st.messages import Member

ROOM = ("app", "presence-c")
A, B = Member("a"), Member("b", b'{"n":1}')


def test_only_the_first_subscription_of_a_channel_is_new():
    entries = Entries()
    assert [entries.join(ROOM, socket, None) for socket in ("1.1", "1.2")] == [True, False]
    assert entries.subscriptions(ROOM) == 2


def test_user_is_removed_with_its_last_connection():
    entries = Entries()
    for socket in ("1.1", "1.2"):
        entries.join(ROOM, socket, A)
    entries.joined(ROOM, "a")
    assert entries.leave(ROOM, "1.1", "a") is NO_MEMBER
    assert entries.has(ROOM, "a")
    assert entries.leave(ROOM, "1.2", "a") == A
    assert not entries.has(ROOM, "a")
    assert entries.subscriptions(ROOM) == 0


def test_unconfirmed_member_is_not_listed():
    entries = Entries()
    entries.join(ROOM, "1.1", A)
    assert not entries.has(ROOM)
    assert not entries.has(ROOM, "a")
    entries.join(ROOM, "1.2", B)
    entries.joined(ROOM, "b")
    assert entries.has(ROOM)
    assert not entries.has(ROOM, "a")
    entries.leave(ROOM, "1.1", "a")
    entries.leave(ROOM, "1.2", "b")
    entries.join(ROOM, "1.3", B)
    assert not entries.has(ROOM)
    assert not entries.has(ROOM, "b")


def test_unconfirmed_connection_keeps_the_member_of_a_connection_that_left():
    entries = filled()
    entries.join(ROOM, "1.3", A)
    entries.leave(ROOM, "1.1", "a")
    assert Difference("more", *ROOM, member=A) in set(entries.differences({}))


def test_leave_without_a_join_changes_nothing():
    entries = Entries()
    assert entries.leave(ROOM, "1.1", None) is None
    entries.join(ROOM, "1.1", A)
    assert entries.leave(ROOM, "9.9", "a") is None
    assert entries.leave(ROOM, "1.1", "b") is None
    assert entries.subscriptions(ROOM) == 1


def test_users_with_one_connection_are_listed_with_it():
    entries = Entries()
    for socket, member in (("1.1", A), ("1.2", A), ("1.3", B)):
        entries.join(ROOM, socket, member)
    assert entries.alone(ROOM) == {"b": "1.3"}


def test_a_user_signs_out_with_its_last_connection():
    entries = Entries()
    for socket in ("1.1", "1.2"):
        entries.sign_in(("app", "u"), socket)
    assert [entries.sign_out(("app", "u"), socket) for socket in ("9.9", "1.1", "1.1", "1.2")] == [False, False, False, True]


def test_connections_are_counted():
    entries = Entries()
    entries.connect("app")
    entries.connect("app")
    entries.disconnect("app")
    entries.disconnect("other")
    assert (entries.connections("app"), entries.connections("other")) == (1, 0)


def filled() -> Entries:
    entries = Entries()
    entries.join(ROOM, "1.1", A)
    entries.join(ROOM, "1.2", B)
    entries.join(("app", "x/y"), "1.1", None)
    for key, user in ((ROOM, "a"), (ROOM, "b"), (("app", "x/y"), None)):
        entries.joined(key, user)
    entries.sign_in(("app", "u/v"), "1.1")
    entries.connect("app")
    return entries


FIELDS = {
    "c/app/presence-c": "2",
    "m/app/presence-c\na": "",
    "m/app/presence-c\nb": "",
    "c/app/x/y": "1",
    "u/app/u/v": "",
    "q/app": "1",
}


def test_equal_copies_have_no_differences():
    assert list(filled().differences(FIELDS)) == []


def test_an_empty_copy_lacks_everything():
    assert set(filled().differences({})) == {
        Difference("more", *ROOM),
        Difference("more", *ROOM, member=A),
        Difference("more", *ROOM, member=B),
        Difference("more", "app", "x/y"),
        Difference("signed in", "app", user_id="u/v"),
        Difference("connections", "app"),
    }


def test_entries_that_only_the_broker_has_are_differences():
    assert set(Entries().differences(FIELDS)) == {
        Difference("less", *ROOM),
        Difference("less", *ROOM, user_id="a"),
        Difference("less", *ROOM, user_id="b"),
        Difference("less", "app", "x/y"),
        Difference("signed out", "app", user_id="u/v"),
        Difference("connections", "app"),
    }


def test_unconfirmed_entry_is_no_difference():
    entries = Entries()
    entries.join(ROOM, "1.1", A)
    assert list(entries.differences({})) == []
    assert list(entries.differences({"c/app/presence-c": "1", "m/app/presence-c\na": ""})) == []
    entries.joined(ROOM, "a")
    assert set(entries.differences({})) == {Difference("more", *ROOM), Difference("more", *ROOM, member=A)}


def test_unconfirmed_connection_does_not_hide_confirmed_members():
    entries = filled()
    entries.join(ROOM, "1.3", A)
    entries.join(ROOM, "1.4", Member("d"))
    assert {one for one in entries.differences({}) if one.channel == ROOM[1]} == {
        Difference("more", *ROOM),
        Difference("more", *ROOM, member=A),
        Difference("more", *ROOM, member=B),
    }


@given(st.sets(st.sampled_from(sorted(FIELDS))), st.sampled_from(["0", "3"]))
def test_each_wrong_field_is_one_difference(wrong, number):
    copy = {field: (number if value else None) if field in wrong else value for field, value in FIELDS.items()}
    stored = {field: value for field, value in copy.items() if value is not None}
    assert len(list(filled().differences(stored))) == len(wrong)


def test_confirmed_members_and_users_differ_from_those_that_wait_for_the_broker():
    entries = Entries()
    entries.join(ROOM, "1.1", A)
    entries.join(ROOM, "1.2", B)
    entries.joined(ROOM, "b")
    assert entries.members(ROOM) == {"b": B}
    user = ("app", "u")
    entries.sign_in(user, "1.1")
    assert not entries.is_signed_in(user)
    entries.signed_in(user)
    assert entries.is_signed_in(user)
    assert entries.sign_out(user, "1.1")
    assert not entries.is_signed_in(user)
    entries.signed_in(user)  # it signed out before the broker's answer was there
    assert not entries.is_signed_in(user)
