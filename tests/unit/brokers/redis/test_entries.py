"""A node's own entries, and how the broker's copy of them and of the local roster differs."""

from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis.entries import Difference, Entries, OwnFilters
from push1st.messages import Member

ROOM = ("app", "presence-c")
A, B = Member("a"), Member("b", b'{"n":1}')


class Own:
    """A local roster and the entries of the only shard."""

    def __init__(self) -> None:
        self.local_roster = LocalRoster()
        self.entries = Entries()
        self.filters = OwnFilters()

    def join(self, key: tuple[str, str], socket: str, member: Member | None) -> None:
        self.local_roster.join(*key, socket, member)

    def differences(self, stored: dict[str, str]) -> list[Difference]:
        return list(self.entries.differences(stored, self.local_roster, self.filters.values, lambda *_: True))


def test_unconfirmed_connection_keeps_the_member_of_a_connection_that_left():
    own = filled()
    own.join(ROOM, "1.3", A)
    own.local_roster.leave(*ROOM, "1.1", "a")
    assert Difference("more", *ROOM, member=A) in set(own.differences({}))


def test_members_are_removed_before_their_channel():
    """Hooks receive `member_removed` before `channel_vacated`. The fields of a large copy have no order."""
    stored = {"c/app/presence-c": "1", "m/app/presence-c\nb": "", "q/app": "1", "m/app/presence-c\na": "", "u/app/a": ""}
    differences = [one for one in Own().differences(stored) if one.what == "less"]
    assert [one.user_id for one in differences] == ["b", "a", ""]


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


def filled() -> Own:
    own = Own()
    own.join(ROOM, "1.1", A)
    own.join(ROOM, "1.2", B)
    own.join(("app", "x/y"), "1.1", None)
    for key, user in ((ROOM, "a"), (ROOM, "b"), (("app", "x/y"), None)):
        own.local_roster.confirm(*key, user)
    own.entries.sign_in(("app", "u/v"), "1.1")
    own.entries.connect("app")
    return own


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
    assert set(Own().differences(FIELDS)) == {
        Difference("less", *ROOM),
        Difference("less", *ROOM, user_id="a"),
        Difference("less", *ROOM, user_id="b"),
        Difference("less", "app", "x/y"),
        Difference("signed out", "app", user_id="u/v"),
        Difference("connections", "app"),
    }


def test_unconfirmed_entry_is_no_difference():
    own = Own()
    own.join(ROOM, "1.1", A)
    assert list(own.differences({})) == []
    assert list(own.differences({"c/app/presence-c": "1", "m/app/presence-c\na": ""})) == []
    own.local_roster.confirm(*ROOM, "a")
    assert set(own.differences({})) == {Difference("more", *ROOM), Difference("more", *ROOM, member=A)}


def test_unconfirmed_connection_does_not_hide_confirmed_members():
    own = filled()
    own.join(ROOM, "1.3", A)
    own.join(ROOM, "1.4", Member("d"))
    assert {one for one in own.differences({}) if one.channel == ROOM[1]} == {
        Difference("more", *ROOM),
        Difference("more", *ROOM, member=A),
        Difference("more", *ROOM, member=B),
    }


@given(st.sets(st.sampled_from(sorted(FIELDS))), st.sampled_from(["0", "3"]))
def test_each_wrong_field_is_one_difference(wrong, number):
    copy = {field: (number if value else None) if field in wrong else value for field, value in FIELDS.items()}
    stored = {field: value for field, value in copy.items() if value is not None}
    assert len(list(filled().differences(stored))) == len(wrong)


def test_user_is_signed_in_only_after_the_broker_has_confirmed_it():
    entries, user = Entries(), ("app", "u")
    entries.sign_in(user, "1.1")
    assert not entries.is_signed_in(user)
    entries.signed_in(user)
    assert entries.is_signed_in(user)
    assert entries.sign_out(user, "1.1")
    assert not entries.is_signed_in(user)
    entries.signed_in(user)  # the user signed out before the broker replied
    assert not entries.is_signed_in(user)


def test_channels_of_other_shards_are_no_differences():
    own = filled()
    differences = own.entries.differences({}, own.local_roster, {}, lambda _, channel: channel == "x/y")
    assert [one for one in differences if one.channel] == [Difference("more", "app", "x/y")]


def test_a_filter_with_another_value_in_the_copy_is_a_difference():
    own = Own()
    own.filters.values |= {("app", "a.#"): 1, ("app", "$share/g/+/b"): 2, ("app", "c.+"): 1}
    stored = {"f/app/a.#": "1", "f/app/$share/g/+/b": "1", "f/app/old/+": "1"}
    assert own.differences(stored) == [
        Difference("filter", "app", "$share/g/+/b"),
        Difference("filter", "app", "c.+"),
        Difference("filter", "app", "old/+"),
    ]
