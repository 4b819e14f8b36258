"""`idempotency_key` and the header `Idempotency-Key`: a repeated publish request delivers nothing (Push1st API, section 3)."""

import json

import pytest

from push1st.brokers import KEY_SECONDS
from push1st.config.history import HistorySection
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import Published, Request, Subscribe
from tests.support.loop import done
from tests.support.node import APP, app_config

REPLAYED = b"Idempotent-Replayed: true\r\n"


@pytest.fixture
def subscriber(caller):
    """The outlet of a client on the channels c and d; its writes are the delivered events."""
    session, outlet = caller.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    session.handle(Subscribe("d"))
    return outlet


def delivered(caller, outlet) -> int:
    """The number of events that the client has received since the last call."""
    caller.world.turns.drain()
    count = int(b"".join(outlet.writes).count(b'"event":"e"'))
    outlet.writes.clear()
    return count


def batch(caller, *events, key: bool = False):
    return caller.post("batch_events", {"batch": [{"name": "e", "channel": "c", "data": "x"} | event for event in events]}, key)


def repeats(caller):
    return caller.world.metrics.idempotent_repeats


# Events


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("history", [True, False])
def test_repeated_request_delivers_nothing_and_is_answered_like_the_first(calling, header, history):
    caller = calling(app_config(history=(HistorySection(),) if history else ()))
    session, outlet = caller.world.session()
    session.handle(Subscribe("c"))
    fields = {}
    if header:
        caller.idempotency_key = b"order-7"
    else:
        fields["idempotency_key"] = "order-7"
    _, first = caller.event(**fields)
    assert caller.answered.headers == b""
    assert delivered(caller, outlet) == 1
    session.expire()
    _, second = caller.event(**fields, data="another")
    assert caller.answered.headers == REPLAYED
    assert (second["channels"], second["msg-id"]) == ({"c": 1}, first["msg-id"])
    assert delivered(caller, outlet) == 0
    assert repeats(caller) == 1


def test_signed_answer_to_a_repeat_differs_only_in_its_header(caller, subscriber):
    assert caller.event(True, idempotency_key="k") == (200, {})
    assert caller.answered.headers == b""
    assert caller.event(True, idempotency_key="k") == (200, {})
    assert (caller.answered.headers, delivered(caller, subscriber)) == (REPLAYED, 1)


def test_requests_without_a_key_are_never_repeats(caller, subscriber):
    caller.event(), caller.event()
    assert (caller.answered.headers, delivered(caller, subscriber), repeats(caller)) == (b"", 2, 0)


def test_key_belongs_to_one_channel(caller, subscriber):
    caller.event(idempotency_key="k")
    caller.event(idempotency_key="k", channels=["d"])
    assert (delivered(caller, subscriber), caller.answered.headers) == (2, b"")


def test_key_belongs_to_one_app(calling):
    caller = calling(app_config(), app_config(id="other", key="other-key"))
    caller.event(idempotency_key="k")
    body = {"name": "e", "channel": "c", "data": "x", "idempotency_key": "k"}
    assert caller.post("/apps/other/events", body)[0] == 200
    assert caller.answered.headers == b""


def test_channels_that_the_first_request_did_not_reach_get_the_event(caller, subscriber):
    _, first = caller.event(idempotency_key="k", channels=["c"])
    _, second = caller.event(idempotency_key="k", channels=["c", "d"])
    assert (second["channels"], caller.answered.headers) == ({"c": 1, "d": 1}, b"")
    assert second["msg-id"] > first["msg-id"]
    assert (delivered(caller, subscriber), repeats(caller)) == (2, 1)
    _, third = caller.event(idempotency_key="k", channels=["c", "d"])
    assert (third["msg-id"], caller.answered.headers) == (second["msg-id"], REPLAYED)
    assert (delivered(caller, subscriber), repeats(caller)) == (0, 3)


def test_request_that_failed_on_one_channel_is_completed_by_its_repeat(caller, subscriber):
    publish = caller.world.memory.publish

    def fail_on_d(message, *rest):
        if message.channel == "d":
            raise Refused(503, "the broker is away: nothing was published")
        return publish(message, *rest)

    caller.world.memory.publish = fail_on_d
    assert caller.event(idempotency_key="k", channels=["c", "d"])[0] == 503
    caller.world.memory.publish = publish
    assert caller.event(idempotency_key="k", channels=["c", "d"])[1]["channels"] == {"c": 1, "d": 1}
    assert delivered(caller, subscriber) == 2


def test_key_expires(caller, subscriber):
    caller.event(idempotency_key="k")
    caller.world.clock.advance(KEY_SECONDS - 1)
    caller.event(idempotency_key="k")
    assert delivered(caller, subscriber) == 1
    caller.world.clock.advance(1)
    caller.event(idempotency_key="k")
    assert (delivered(caller, subscriber), caller.answered.headers) == (1, b"")


def test_rejected_request_does_not_use_up_its_key(caller, subscriber):
    assert caller.event(idempotency_key="k", name="pusher:x")[0] == 400
    assert caller.event(idempotency_key="k")[0] == 200
    assert (delivered(caller, subscriber), caller.answered.headers) == (1, b"")


def test_repeat_has_the_position_of_the_first_event(calling):
    caller = calling(app_config(history=(HistorySection(),)))
    asked = {"idempotency_key": "k", "info": "position"}
    first = caller.event(**asked)[1]
    caller.event()
    assert caller.event(**asked)[1] == first
    assert caller.answered.headers == REPLAYED
    assert len(caller.get("channels/c/history")[1]["events"]) == 2


def test_slow_broker_reports_a_repeat(calling):
    """A broker over a network returns its results later than the memory broker."""
    caller = calling(app_config(), slow=True)

    def post():
        body = json.dumps({"name": "e", "channels": ["c", "d"], "data": "x", "idempotency_key": "k"}).encode()

        async def serve():
            return await resolve(caller.api.serve(Request("POST", f"/apps/{APP}/events", "", body, "", 0)))

        return done(serve())

    first, second = post(), post()
    assert (first.headers, second.headers) == (b"", REPLAYED)
    assert json.loads(first.body)["msg-id"] == json.loads(second.body)["msg-id"]


def test_repeats_count_as_published_events_for_the_limit(calling):
    caller = calling(app_config({"publishes": 1}))
    assert [caller.event(idempotency_key="k")[0], caller.event(idempotency_key="k")[0]] == [200, 429]


# Keys

KEYS = ["k", "~!", "a" * 128, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a,b", "k:1/2"]
WRONG = ["", "a" * 129, "a b", "ж", "a\tb", "a\n", "\x7f", "é"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_has_visible_ascii_characters(caller, key):
    assert caller.event(idempotency_key=key)[0] == 200
    caller.idempotency_key = key.encode()
    assert caller.event()[0] == 200
    assert caller.answered.headers == REPLAYED


@pytest.mark.parametrize("key", WRONG)
def test_other_keys_are_400_and_publish_nothing(caller, key):
    status, answer = caller.event(idempotency_key=key)
    assert (status, answer["error"].startswith("idempotency_key ")) == (400, True)
    assert batch(caller, {}, {"idempotency_key": key})[1]["error"].startswith("batch[1]: idempotency_key ")
    caller.idempotency_key = key.encode()
    for path, query in (("events", ""), ("batch_events", ""), ("channels/c/events", "name=e")):
        event = {"name": "e", "channel": "c", "data": "x"}
        status, answer = caller.post(path, {"batch": [event]} if path == "batch_events" else event, query=query)
        assert status == 400
        assert "Idempotency-Key " in answer["error"]
        assert len(answer["error"]) < 400
    assert caller.sent == []


def test_error_for_a_key_that_is_too_long_has_the_length_of_the_key(caller):
    text = "idempotency_key has 129 characters: a key has 1 to 128 visible ASCII characters"
    assert caller.event(idempotency_key="a" * 129) == (400, {"error": text})


@pytest.mark.parametrize("key", [1, [], {}, True])
def test_key_that_is_not_a_text_is_400(caller, key):
    assert caller.event(idempotency_key=key)[0] == 400
    assert batch(caller, {"idempotency_key": key})[0] == 400
    assert caller.sent == []


def test_null_is_no_key(caller):
    assert caller.event(idempotency_key=None)[0] == 200
    assert caller.event(idempotency_key=None)[0] == 200
    assert len(caller.sent) == 2
    assert caller.answered.headers == b""


def test_white_space_around_the_header_is_not_part_of_the_key(caller):
    caller.idempotency_key = b" k\t "
    assert caller.event(idempotency_key="k")[0] == 200
    caller.idempotency_key = None
    caller.event(idempotency_key="k")
    assert caller.answered.headers == REPLAYED


def test_two_different_keys_are_400(caller):
    caller.idempotency_key = b"a"
    assert caller.event(idempotency_key="b") == (400, {"error": "idempotency_key and the header Idempotency-Key differ"})
    assert batch(caller, {"idempotency_key": "b"})[0] == 400
    assert caller.sent == []
    assert caller.event(idempotency_key="a")[0] == 200


# Batches


def test_events_of_a_batch_have_keys_of_their_own(caller, subscriber):
    events = [{"idempotency_key": "1"}, {"idempotency_key": "2"}, {"channel": "d", "idempotency_key": "1"}]
    batch(caller, *events)
    assert (delivered(caller, subscriber), caller.answered.headers) == (3, b"")
    assert batch(caller, *events) == (200, {})
    assert (delivered(caller, subscriber), caller.answered.headers, repeats(caller)) == (0, REPLAYED, 3)


def test_batch_with_a_new_event_is_not_marked_as_replayed(caller, subscriber):
    batch(caller, {"idempotency_key": "1"})
    batch(caller, {"idempotency_key": "1"}, {"idempotency_key": "2"}, {})
    assert (delivered(caller, subscriber), caller.answered.headers, repeats(caller)) == (3, b"", 1)


def test_header_is_the_key_of_the_whole_batch(caller, subscriber):
    caller.idempotency_key = b"k"
    batch(caller, {}, {}, {"channel": "d"})
    assert delivered(caller, subscriber) == 3
    batch(caller, {}, {}, {"channel": "d"}, {})
    assert (delivered(caller, subscriber), caller.answered.headers) == (1, b"")
    batch(caller, {}, {}, {"channel": "d"}, key=True)
    assert (delivered(caller, subscriber), caller.answered.headers) == (0, REPLAYED)


def test_same_key_twice_on_one_channel_of_a_batch_is_400(caller):
    found = batch(caller, {"idempotency_key": "k"}, {"idempotency_key": "l"}, {"idempotency_key": "k"})
    assert found == (400, {"error": "batch[2]: batch[0] has the same channel and the same idempotency_key"})
    assert caller.sent == []


def test_event_and_batch_with_one_header_are_different_requests(caller, subscriber):
    caller.idempotency_key = b"k"
    caller.event(), batch(caller, {})
    assert delivered(caller, subscriber) == 2


# Other calls


@pytest.mark.parametrize("header", [True, False])
def test_plain_body_is_published_once(caller, subscriber, header):
    caller.idempotency_key = b"k" if header else None
    query = "name=e" if header else "name=e&idempotency_key=k"
    for expected in (b"", REPLAYED):
        assert caller.post("channels/c/events", b"x", query=query) == (202, {})
        assert caller.answered.headers == expected
    assert delivered(caller, subscriber) == 1


def test_key_may_be_in_the_query_of_an_event(caller, subscriber):
    for _ in range(2):
        assert caller.post("events", {"data": "x"}, query="name=e&channel=c&idempotency_key=k")[0] == 200
    assert (delivered(caller, subscriber), caller.answered.headers) == (1, REPLAYED)


@pytest.mark.parametrize("path", ["channels", "channels/c", "hooks"])
def test_calls_that_publish_nothing_ignore_the_header(caller, path):
    caller.idempotency_key = b"not a key"
    assert caller.get(path, "info=subscription_count")[0] == 200


def test_result_of_a_publish_is_not_changed_by_its_repeat(caller):
    """The broker marks the stored result, and not the first one."""
    publish, stamp = caller.world.node.publish, caller.world.node.stamp()
    first = publish(caller.world.app, "c", "e", b"1", stamp, key="k")
    second = publish(caller.world.app, "c", "e", b"1", caller.world.node.stamp(), key="k")
    assert (first, second) == (Published(0), Published(0, repeats=stamp[0]))
