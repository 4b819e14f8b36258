"""The bodies that endpoints receive, byte by byte, and the events that they select."""

import json
import time
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.config.model import Hook, Webhook
from push1st.hooks import shown
from push1st.hooks.formats import STATES, kinds, matcher, push1st_event, pusher_body, pusher_event, set_edges, wanted
from push1st.messages import HookEvent
from tests.support.node import APP, SECRET, app_config


@pytest.mark.parametrize(
    ("hook_event", "event"),
    [
        (HookEvent("occupied", APP, "c", 1, "1.2"), b'{"name":"channel_occupied","channel":"c"}'),
        (HookEvent("vacated", APP, "c", 1, "1.2"), b'{"name":"channel_vacated","channel":"c"}'),
        (HookEvent("cache-missed", APP, "cache-c", 1), b'{"name":"cache_miss","channel":"cache-c"}'),
        (
            HookEvent("member-added", APP, "presence-c", 1, "1.2", "7", b'{"a":1}'),
            b'{"name":"member_added","channel":"presence-c","user_id":"7"}',
        ),
        (
            HookEvent("member-removed", APP, "presence-c", 1, "1.2", "7"),
            b'{"name":"member_removed","channel":"presence-c","user_id":"7"}',
        ),
        (
            HookEvent("client-event", APP, "presence-c", 1, "1.2", "7", b"null", "client-x", b'{"a":"\\u00e9"}'),
            (
                b'{"name":"client_event","channel":"presence-c","event":"client-x","data":"{\\"a\\":\\"\\\\u00e9\\"}",'
                b'"socket_id":"1.2","user_id":"7"}'
            ),
        ),
        (
            HookEvent("client-event", APP, "private-c", 1, "1.2", event="client-x", data=b'"text"'),
            b'{"name":"client_event","channel":"private-c","event":"client-x","data":"text","socket_id":"1.2"}',
        ),
        (HookEvent("counted", APP, "c", 1, count=7), b'{"name":"subscription_count","channel":"c","subscription_count":7}'),
    ],
)
def test_an_event_of_pusher(hook_event, event):
    assert pusher_event(hook_event) == event


def test_events_that_report_a_state_are_all_but_published_events_and_misses():
    assert {
        *("channel_occupied", "channel_vacated", "member_added", "member_removed", "subscription_count"),
        *("register", "unregister", "join", "leave"),
    } == STATES


def test_a_body_of_pusher_has_milliseconds_and_events():
    assert pusher_body([b'{"a":1}', b'{"b":2}'], 1_327_078_148_132) == b'{"time_ms":1327078148132,"events":[{"a":1},{"b":2}]}'


@pytest.mark.parametrize(
    ("hook_event", "trigger", "session"),
    [
        (HookEvent("occupied", APP, "c", 1, "1.2"), "register", ""),
        (HookEvent("vacated", APP, "c", 1, "1.2"), "unregister", ""),
        (HookEvent("joined", APP, "c", 1, "1.2"), "join", "1.2"),
        (HookEvent("left", APP, "c", 1, "1.2"), "leave", "1.2"),
    ],
)
def test_a_hook_without_data_has_a_null(hook_event, trigger, session):
    assert push1st_event(hook_event) == (
        b'{"event":"%b","app":"app-test","channel":"c","session":"%b","data":"null"}' % (trigger.encode(), session.encode())
    )


def on_push(hook_event):
    """Returns `data` of a `push` hook."""
    found = json.loads(push1st_event(hook_event))
    assert (found["event"], found["app"], found["channel"], found["session"]) == ("push", APP, hook_event.channel, "1.2")
    return found["data"]


def test_a_push_hook_has_the_whole_message():
    hook_event = HookEvent("client-event", APP, 'c"', 5, "1.2", event='e"', data=b'{"a": 1}', id=7)
    assert on_push(hook_event) == (
        '{"event":"e\\"","channel":"c\\"","data":{"a": 1},"#msg-id":7,"#msg-from":"1.2","#msg-arrival":5,'
        '"#msg-delivery":"broadcast","#msg-expired":0}'
    )


def test_a_push_hook_has_the_other_fields_of_the_frame():
    given = b',"headers":{"a":"b"},"options":{"ttl": 3},"extra":[1]'
    hook_event = HookEvent("client-event", APP, "presence-c", 5, "1.2", "7", b"{}", "e", b"1", 0, 7, "unicast", 3, given)
    assert json.loads(on_push(hook_event)) == {
        "event": "e",
        "channel": "presence-c",
        "data": 1,
        "#msg-id": 7,
        "#msg-from": "1.2",
        "#msg-arrival": 5,
        "#msg-delivery": "unicast",
        "#msg-expired": 3,
        "headers": {"a": "b"},
        "options": {"ttl": 3},
        "extra": [1],
    }


def test_push1st_hook_names_the_user_on_presence_channels():
    found = json.loads(push1st_event(HookEvent("joined", APP, "presence-c", 1, "1.2", 'a"b', b'{"name":"A"}')))
    assert json.loads(found["data"]) == {"user-id": 'a"b', "user-info": {"name": "A"}}


# Filters


@pytest.mark.parametrize(
    ("filters", "fits", "not_"),
    [
        ((), ["a", "room-1", ""], []),
        (("room-",), ["room-", "room-1"], ["room", "a-room-1", "Room-1", " room-1"]),
        (("room-", "private-x"), ["room-1", "private-x", "private-xy"], ["private-y", "presence-room-1"]),
        (("*-chat",), ["a-chat", "-chat"], ["a-chat-1", "chat", "achat"]),
        (
            ("presence-*-chat",),
            ["presence-a-chat", "presence-a-b-chat"],
            ["presence-chat", "presence-a-chat2", "xpresence-a-chat"],
        ),
        (("private-*",), ["private-", "private-a"], ["private", "aprivate-"]),
        (("a.c", "x+*"), ["a.c", "a.cd", "x+1"], ["abc", "xx1"]),
        (("*-a\n*",), ["x-a\ny"], ["x-ay"]),
    ],
)
def test_filter_passes_only_the_channels_it_names(filters, fits, not_):
    matches = matcher(filters)
    assert [name for name in [*fits, *not_] if matches(name)] == fits


@given(st.lists(st.text("ab*", max_size=8), max_size=3), st.text("ab\n", max_size=10))
def test_a_filter_matches_like_a_simple_and_slow_matcher(filters, name):
    def fits(filter: str, rest: str) -> bool:
        if not filter:
            return not rest
        if filter[0] == "*":
            return any(fits(filter[1:], rest[n:]) for n in range(len(rest) + 1))
        return rest.startswith(filter[0]) and fits(filter[1:], rest[1:])

    expected = not filters or any(fits(one, name) if "*" in one else name.startswith(one) for one in filters)
    assert bool(matcher(filters)(name)) is expected


@pytest.mark.parametrize("filter", ["private-*-*-*-admin", "private-" + "*-" * 12 + "admin", "*" * 100 + "x", "*-a" * 30 + "*x"])
@pytest.mark.parametrize("name", ["private-" + "-" * 156, "private-" + "-a" * 78])
def test_a_filter_takes_linear_time(filter, name):
    """The same for a name that is 16 times as long takes less than 100 times as long: a power would be 256 or more."""
    matches = matcher((filter,))

    def seconds(name: str) -> float:
        return min(timeit.repeat(lambda: matches(name), timer=time.thread_time, number=20, repeat=5))

    assert seconds(name * 16) < 100 * seconds(name) + 0.001


# The configuration of an app


def test_hook_and_webhooks_are_endpoints_side_by_side():
    app = app_config(
        hook=Hook(trigger=frozenset({"join"}), endpoint=("http://a/", "lua://b.lua")),
        webhooks=(Webhook(url="http://c/", batch=5, timeout=7), Webhook(url="py://m:f", concurrency=3)),
    )
    found = wanted(app, "/etc")
    assert [one.target.url for one in found] == ["http://a/", "lua://b.lua", "http://c/", "py://m:f"]
    assert [one.format for one in found] == ["push1st", "push1st", "pusher", "pusher"]
    assert [one.concurrency for one in found] == [10, 1, 10, 3]
    assert [(one.batch, one.target.timeout) for one in found] == [(1, 5), (1, 5), (5, 7), (1, 5)]
    assert [one.target.secret for one in found] == ["", "", SECRET, SECRET]


def test_push1st_hook_is_signed_only_if_configured():
    (one,) = wanted(app_config(hook=Hook(trigger=frozenset({"join"}), endpoint=("http://a/",), sign=True)), "")
    assert one.target.secret == SECRET


def test_a_hook_without_triggers_has_no_endpoints():
    app = app_config(hook=Hook(endpoint=("http://a/",)))
    assert (wanted(app, ""), kinds(app)) == ((), frozenset())


def test_app_without_hooks_reports_nothing():
    assert kinds(app_config()) == frozenset()


def test_webhook_without_events_selects_all_seven():
    (one,) = wanted(app_config(webhooks=(Webhook(url="http://a/"),)), "")
    assert one.kinds == {"occupied", "vacated", "member-added", "member-removed", "client-event", "cache-missed", "counted"}


def test_opposite_edge_of_a_selected_edge_is_reported():
    assert kinds(app_config(webhooks=(Webhook(url="http://a/", events=("channel_vacated", "client_event")),))) == {
        "vacated",
        "occupied",
        "client-event",
    }


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://user:hunter2@example.com:8443/hook?token=hunter2#hunter2", "https://…@example.com:8443/hook?…"),
        ("http://example.com/hook", "http://example.com/hook"),
        ("http://example.com?a=hunter2", "http://example.com?…"),
        ("http://a@b:hunter2@example.com/", "http://…@example.com/"),
        ("https://user:pass/hunter2@example.com/hook", "https://…@example.com/hook"),
        ("https://user:pass?hunter2@example.com/hook?token=hunter2", "https://…@example.com/hook?…"),
        ("py://shop.hooks:on_event", "py://shop.hooks:on_event"),
        ("lua://hooks/a.lua", "lua://hooks/a.lua"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, text):
    assert shown(url) == text


def test_edges_of_an_app_follow_its_configuration():
    hooked: dict[str, str] = {}
    webhook = Webhook(url="http://h/", events=("channel_occupied",))
    for changes, edges in (
        ({"webhooks": (webhook,)}, {APP: "s"}),
        ({"webhooks": (webhook,), "enable": False}, {}),
        ({"hook": Hook(trigger=frozenset(("register",)), endpoint=("http://p/",))}, {APP: "a"}),
        ({}, {}),
    ):
        set_edges(hooked, app_config(**changes))
        assert hooked == edges
