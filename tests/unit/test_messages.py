"""The typed units: the payload of presence edges, and the allowed options."""

import json

import msgspec
import pytest

from push1st.messages import Member, Message, Options, Ping, member_added, member_removed


def test_a_member_is_announced_with_its_info():
    edge = member_added("app", "presence-c", Member("u1", b'{"name":"A"}'), 7, 8, "1.2")
    assert edge == Message(
        "app",
        "presence-c",
        "pusher_internal:member_added",
        b'{"user_id":"u1","user_info":{"name":"A"}}',
        7,
        8,
        sender="api",
        exclude="1.2",
    )


def test_a_member_without_info_is_announced_without():
    assert member_added("app", "c", Member("u1"), 7, 8, "").data == b'{"user_id":"u1"}'


def test_a_members_end_names_the_user_only():
    edge = member_removed("app", "presence-c", "u1", 7, 8, "1.2")
    assert (edge.event, edge.data, edge.exclude) == ("pusher_internal:member_removed", b'{"user_id":"u1"}', "1.2")


def test_edges_escape_the_characters_that_json_requires():
    assert json.loads(member_removed("app", "c", 'a"\\ж', 1, 2, "").data) == {"user_id": 'a"\\ж'}


def test_messages_cannot_be_changed():
    with pytest.raises(AttributeError):
        Message("a", "c", "e", b"1", 1, 1).data = b"2"  # type: ignore[misc]


def test_commands_without_content_are_equal():
    assert Ping() == Ping()


@pytest.mark.parametrize("options", [Options(), Options(ttl=5), Options(0, "unicast", "1.2"), Options(1, "multicast", "a")])
def test_options_that_may_be(options):
    assert options.error() is None


@pytest.mark.parametrize(
    ("options", "part"),
    [(Options(ttl=-1), "ttl is negative"), (Options(0, "unicast"), "unicast"), (Options(0, "multicast"), "multicast")],
)
def test_invalid_options_raise_the_reason(options, part):
    assert part in (options.error() or "")


@pytest.mark.parametrize("text", [b'{"delivery":"anycast"}', b'{"ttl":"1"}', b'{"session":1}', b"[]", b"1"])
def test_options_of_another_type_are_not_read(text):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Options)
