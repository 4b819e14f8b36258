"""`POST /batch_events`, and the deprecated `POST /channels/{channel}/events` (Pusher protocol, section 9)."""

import pytest

from push1st.messages import Subscribe
from tests.support.node import app_config


def batch(caller, *events, key: bool = True):
    return caller.post("batch_events", {"batch": [{"name": "e", "channel": "c", "data": "x"} | event for event in events]}, key)


def test_events_are_published_each_on_its_channel(caller):
    assert batch(caller, {}, {"channel": "d", "name": "f", "data": {"a": 1}, "socket_id": "1.2"}) == (200, {})
    assert [one[:4] for one in caller.sent] == [("c", "e", b'"x"', ""), ("d", "f", b'{"a": 1}', "1.2")]


def test_attributes_have_the_order_of_the_events(caller):
    session, _ = caller.world.session()
    session.handle(Subscribe("c"))
    answer = {"batch": [{"subscription_count": 1}, {}, {"user_count": 0, "subscription_count": 0}]}
    assert (
        batch(caller, {"info": "subscription_count"}, {}, {"channel": "presence-c", "info": "user_count,subscription_count"})[1]
        == answer
    )


def test_each_event_has_headers_of_its_own(caller):
    assert batch(caller, {"headers": {"a": 1}}, {}) == (200, {})
    assert caller.headers == [b'{"a": 1}', b""]


WRONG = {
    "a reserved name": ({"name": "pusher:x"}, 400),
    "an empty name": ({"name": ""}, 400),
    "a channel that cannot be": ({"channel": "a\nb"}, 400),
    "a socket_id that is none": ({"socket_id": "x"}, 400),
    "an unknown attribute": ({"info": "x"}, 400),
    "too much data": ({"data": "x" * 10_241}, 413),
    "headers that are no object": ({"headers": []}, 400),
}


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize(("event", "status"), WRONG.values(), ids=WRONG.keys())
def test_one_invalid_event_rejects_the_batch_and_is_named_by_its_index(caller, event, status, key):
    code, answer = batch(caller, {}, event, {}, key=key)
    assert code == status
    assert answer["error"].startswith("batch[1]: ")
    assert caller.sent == []


@pytest.mark.parametrize(
    "body", [{}, {"batch": {}}, {"batch": [1]}, {"batch": [{"name": "e", "data": 1}]}, {"batch": None}, [], "x"]
)
def test_invalid_batch_is_400(caller, body):
    assert caller.post("batch_events", body)[0] == 400
    assert caller.sent == []


@pytest.mark.parametrize(("count", "status"), [(0, 400), (1, 200), (10, 200), (11, 400)])
def test_a_batch_is_limited(caller, count, status):
    assert batch(caller, *[{}] * count)[0] == status
    assert len(caller.sent) == (count if status == 200 else 0)


def test_each_event_of_a_batch_counts(calling):
    caller = calling(app_config({"publishes": 5}))
    assert batch(caller, {}, {}, {})[0] == 200
    assert batch(caller, {}, {}, {})[0] == 429
    assert len(caller.sent) == 3
    assert caller.world.metrics.events_in["api"] == 3


# The deprecated call: the body is the data


@pytest.mark.parametrize("key", [True, False])
def test_the_body_is_the_data_as_a_text(caller, key):
    assert caller.post("channels/c/events", '{"a":1}', key, "name=e") == (202, {})
    assert caller.sent[0][:3] == ("c", "e", b'"{\\"a\\":1}"')


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("", b"x", 400),
        ("name=", b"x", 400),
        ("name=pusher:x", b"x", 400),
        ("name=e&socket_id=x", b"x", 400),
        ("name=e", b"\xff", 400),
        ("name=e", b"x" * 10_241, 413),
    ],
)
def test_invalid_query_publishes_nothing(caller, query, body, status):
    assert caller.post("channels/c/events", body, query=query)[0] == status
    assert caller.sent == []


# Event fields in the query


def test_event_fields_may_be_in_the_query(caller):
    assert caller.post("events", '{"data":"x"}', query="name=e&channel=c")[0] == 200
    assert caller.post("events", "", query="name=e&channel=c&data=x")[0] == 200
    assert [one[:3] for one in caller.sent] == [("c", "e", b'"x"')] * 2


def test_body_overrides_the_query(caller):
    assert caller.event(True)[0] == 200
    body = '{"name":"e","channels":["c"],"data":"x"}'
    assert caller.post("events", body, True, "name=other&channel=other")[0] == 200
    assert [one[:3] for one in caller.sent] == [("c", "e", b'"x"')] * 2


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"data":"\xff"}', b'{"data":NaN}', b"[" * 100_000])
def test_a_body_beside_the_query_must_be_an_object(caller, body):
    assert caller.post("events", body, query="name=e&channel=c")[0] == 400
    assert caller.sent == []
