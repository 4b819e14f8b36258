"""`GET` and `DELETE /channels/{channel}/history`, and `info=position` (Push1st API, sections 3 and 4)."""

import json

import msgspec
import pytest

from push1st.api import history
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import Publish, Request, Subscribe
from push1st.positions import Position
from tests.support.http import signed
from tests.support.node import APP, app_config, token

PATH = "channels/c/history"


@pytest.fixture
def caller(calling):
    """A backend whose app keeps five messages of each channel, except of channels that begin with `off`."""
    filters = ("c", "private-*", "presence-*", "empty", "#server-to-user-*")
    return calling(app_config(history=(HistorySection(filter=filters, size=5),)))


def publish(caller, count: int = 1, **more) -> list[str]:
    """Publishes events with the data 1, 2, 3 …; returns their positions."""
    answers = [caller.event(data=number, info="position", **more)[1] for number in range(1, count + 1)]
    return [found["position"] for answer in answers for found in answer["channels"].values()]


def offsets(answer) -> list[int]:
    return [event["offset"] for event in answer["events"]]


# Reading


@pytest.mark.parametrize("key", [True, False])
def test_kept_events_are_listed_from_the_oldest(caller, key):
    positions = publish(caller, 7)
    status, answer = caller.get(PATH, key=key)
    assert status == 200
    assert list(answer) == ["position", "first", "recovered", "events", "next"]
    assert (answer["position"], answer["first"], answer["recovered"], answer["next"]) == (positions[-1], 3, True, None)
    assert offsets(answer) == [3, 4, 5, 6, 7]
    assert [event["data"] for event in answer["events"]] == [3, 4, 5, 6, 7]


def test_event_has_the_fields_that_raw_clients_receive(caller):
    _, published = caller.event(data={"id": 7}, headers={"a": 1})
    (event,) = caller.get(PATH)[1]["events"]
    assert event == {
        "offset": 1,
        "name": "e",
        "data": {"id": 7},
        "msg-id": published["msg-id"],
        "msg-from": "api",
        "time": caller.world.clock.wall() // 1_000_000,
        "headers": {"a": 1},
    }


@pytest.mark.parametrize("text", ['"x"', "1.50", "null", '{"a" : 1, "a":2}', '"\\u0436"'])
def test_data_is_the_json_text_that_was_published(caller, text):
    assert caller.post("events", f'{{"name":"e","channel":"c","data":{text}}}')[0] == 200
    caller.get(PATH)
    assert f'"data":{text},'.encode() in caller.answered.body


def test_client_event_has_its_sender_and_its_user(caller):
    session, _ = caller.world.session()
    data = '{"user_id":"ann"}'
    session.handle(Subscribe("presence-c", token(session, "presence-c", data), data))
    session.handle(Publish("presence-c", "client-e", b"1"))
    (event,) = caller.get("channels/presence-c/history")[1]["events"]
    assert (event["msg-from"], event["user_id"], event["name"]) == (session.id, "ann", "client-e")


def test_events_after_a_position_are_listed(caller):
    positions = publish(caller, 4)
    assert offsets(caller.get(PATH, f"since={positions[1]}")[1]) == [3, 4]
    answer = caller.get(PATH, f"since={positions[3]}")[1]
    assert (answer["recovered"], answer["events"], answer["next"]) == (True, [], None)


def test_next_leads_through_the_history_in_both_directions(caller):
    publish(caller, 5)
    for query, expected in (("limit=2", [1, 2, 3, 4, 5]), ("limit=2&reverse=1", [5, 4, 3, 2, 1])):
        answer = caller.get(PATH, query)[1]
        found = offsets(answer)
        while answer["next"] is not None:
            answer = caller.get(PATH, f"{query}&since={answer['next']}")[1]
            assert answer["recovered"] is True
            found += offsets(answer)
        assert found == expected


def test_position_that_is_not_kept_any_more_is_not_recovered_and_the_oldest_events_are_listed(caller):
    positions = publish(caller, 7)
    answer = caller.get(PATH, f"since={positions[0]}")[1]
    assert (answer["recovered"], offsets(answer)) == (False, [3, 4, 5, 6, 7])
    assert caller.get(PATH, f"since={positions[1]}")[1]["recovered"] is True


@pytest.mark.parametrize("since", ["anotherepoch:1", "anotherepoch:0"])
def test_position_of_another_epoch_is_not_recovered(caller, since):
    publish(caller, 2)
    answer = caller.get(PATH, f"since={since}")[1]
    assert (answer["recovered"], offsets(answer)) == (False, [1, 2])


def test_position_after_the_last_event_is_not_recovered(caller):
    position = Position.parse(publish(caller)[0])
    assert caller.get(PATH, f"since={position.epoch}:2")[1]["recovered"] is False


@pytest.mark.parametrize("query", ["", "reverse=1", "since=abc:7&reverse=1", "since=abc:7"])
def test_channel_without_a_publish_has_an_empty_history(caller, query):
    status, answer = caller.get("channels/empty/history", query)
    assert status == 200
    assert answer["position"].endswith(":0")
    assert (answer["first"], answer["events"], answer["next"]) == (1, [], None)
    assert answer["recovered"] is ("since" not in query)


def test_position_of_an_idle_channel_is_valid_later(caller):
    position = caller.get("channels/empty/history")[1]["position"]
    caller.event(channels=["empty"])
    answer = caller.get("channels/empty/history", f"since={position}")[1]
    assert (answer["recovered"], offsets(answer)) == (True, [1])


def test_event_whose_ttl_is_over_is_not_listed(caller):
    caller.event(options={"ttl": 5}), caller.event(options={"ttl": 60}), caller.event()
    assert offsets(caller.get(PATH)[1]) == [1, 2, 3]
    caller.world.clock.advance(6)
    answer = caller.get(PATH)[1]
    assert (answer["first"], offsets(answer)) == (1, [2, 3])


@pytest.mark.parametrize("options", [{"delivery": "unicast", "session": "1.2"}, {"delivery": "multicast", "session": "p"}])
def test_targeted_event_is_not_kept(caller, options):
    assert caller.event(options=options, info="position")[1] == {"channels": {"c": {}}}
    assert caller.get(PATH)[1]["events"] == []


def test_events_to_a_user_are_kept_if_a_filter_names_their_channel(caller):
    caller.event(channels=["#server-to-user-ann"])
    assert offsets(caller.get("channels/%23server-to-user-ann/history", key=True)[1]) == [1]


def test_events_of_every_api_call_are_kept(caller):
    caller.event()
    caller.post("batch_events", {"batch": [{"name": "e", "channel": "c", "data": 2}]})
    caller.post("channels/c/events", b"3", query="name=e")
    assert [event["data"] for event in caller.get(PATH)[1]["events"]] == ["x", 2, "3"]


def test_answer_ends_early_after_many_bytes_and_next_continues_it(caller, monkeypatch):
    monkeypatch.setattr(history, "MAX_ANSWER_BYTES", 25)
    for _ in range(5):
        caller.event(data="x" * 8)
    answer = caller.get(PATH)[1]
    assert offsets(answer) == [1, 2, 3]
    answer = caller.get(PATH, f"since={answer['next']}")[1]
    assert (offsets(answer), answer["next"]) == ([4, 5], None)
    assert offsets(caller.get(PATH, "reverse=1")[1]) == [5, 4, 3]


@pytest.mark.parametrize(
    "query",
    [
        "since=x",
        "since=:1",
        "since=abc:",
        "since=abc:-1",
        "since=abc:01",
        "since=abc:1%00",
        "since=abc:1%0a",
        "since=abc:1,abc:2",
        f"since=abc:{10**30}",
        f"since={'a' * 40}:1",
        "since=%D0%B6:1",
        "since=abc:%D9%A1",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=",
        "limit=ten",
        "limit=1.5",
        "limit=%D9%A1",
        "limit=" + "9" * 5000,
        "reverse=2",
        "reverse=yes",
    ],
)
def test_wrong_parameter_is_400_that_names_it(caller, query):
    status, answer = caller.get(PATH, query)
    assert status == 400
    assert answer["error"].startswith(query.partition("=")[0] + " ")
    assert len(answer["error"]) < 250


@pytest.mark.parametrize(
    "query", ["limit=1", "limit=1000", "reverse=0", "reverse=", "reverse=true", "reverse=false", "since=", "x=y"]
)
def test_other_parameters_are_accepted(caller, query):
    assert caller.get(PATH, query)[0] == 200


@pytest.mark.parametrize("channel", ["other", "C"])
def test_channel_without_history_is_404_that_names_the_setting(caller, channel):
    status, answer = caller.get(f"channels/{channel}/history")
    assert status == 404
    assert answer["error"].startswith(f"{channel} keeps no history: set history in ")


def test_app_without_history_is_404(calling):
    assert calling().get(PATH)[0] == 404


def test_history_that_was_turned_off_can_be_deleted(caller):
    """The events of this time have no position, so the earlier positions must not be valid when the history is on again."""
    position = publish(caller, 2)[-1]
    on = caller.world.app.config
    caller.world.node.configure(msgspec.structs.replace(on, history=()))
    caller.world.publish("c", b"3")
    assert caller.call("DELETE", PATH) == (200, {})
    caller.world.node.configure(on)
    assert caller.get(PATH, f"since={position}")[1]["recovered"] is False


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_invalid_channel_name_is_400(caller, method):
    assert caller.call(method, "channels/%00/history")[0] == 400
    assert caller.call(method, "channels/%23watch-ann/history")[0] == 400


def test_head_is_answered_like_get(caller):
    assert caller.call("HEAD", PATH)[0] == 200
    assert caller.call("HEAD", "channels/other/history")[0] == 404


def test_reads_are_limited_and_deletes_are_not(calling):
    caller = calling(app_config({"reads": 1}, history=(HistorySection(),)))
    assert [caller.get(PATH)[0], caller.get(PATH)[0]] == [200, 429]
    assert caller.call("DELETE", PATH)[0] == 200


def test_broker_that_is_away_is_503(calling):
    class Away:
        async def read(self, *_, **__):
            raise Refused(503, "the broker is away, try again")

    caller = calling(app_config(history=(HistorySection(),)))
    caller.world.node.history = Away()
    assert caller.get(PATH)[0] == 503
    assert caller.get("channels/c", "info=position")[0] == 503


# Dropping


@pytest.mark.parametrize("key", [True, False])
def test_deleted_history_is_empty_and_begins_a_new_epoch(caller, key):
    (position,) = publish(caller)
    assert caller.call("DELETE", PATH, key=key) == (200, {})
    answer = caller.get(PATH, f"since={position}")[1]
    assert (answer["recovered"], answer["events"], answer["first"]) == (False, [], 1)
    (following,) = publish(caller)
    assert Position.parse(following).offset == 1
    assert Position.parse(following).epoch != Position.parse(position).epoch


def test_delete_of_an_empty_history_succeeds(caller):
    assert caller.call("DELETE", "channels/empty/history") == (200, {})


def test_only_the_named_channel_loses_its_history(caller):
    publish(caller, channels=["c", "private-c"])
    caller.call("DELETE", PATH)
    assert offsets(caller.get("channels/private-c/history")[1]) == [1]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_call_from_elsewhere_needs_a_signature_for_its_method(caller, method):
    caller.trusted = False
    path = f"/apps/{APP}/{PATH}"
    assert caller.call(method, path)[0] == 401
    assert caller.call(method, path, key=True)[0] == 200
    other = "DELETE" if method == "GET" else "GET"
    query = signed(other, path, b"", {}, caller.world.clock)
    with pytest.raises(Refused, match="auth_signature"):
        caller.api.serve(Request(method, path, query, b"", "far away", 0))


# Positions of channels


@pytest.mark.parametrize("key", [True, False])
def test_position_of_one_channel_is_that_of_its_last_event(caller, key):
    position = publish(caller, 2)[-1]
    answer = caller.get("channels/c", "info=position", key)
    assert answer == (200, {"occupied": False, "position": position})
    answer = caller.get("channels/presence-c", "info=user_count,position,subscription_count", key)[1]
    assert list(answer) == ["occupied", "user_count", "subscription_count", "position"]


def test_position_of_a_channel_without_history_is_400(caller):
    status, answer = caller.get("channels/other", "info=position")
    assert status == 400
    assert answer["error"].startswith("other keeps no history")


def test_lists_of_channels_have_no_positions(caller):
    assert caller.get("channels", "info=position") == (
        400,
        {"error": "info 'position' is unknown, allowed are user_count, subscription_count"},
    )


@pytest.mark.parametrize("key", [True, False])
def test_publish_with_info_returns_the_position_of_the_event(caller, key):
    found = caller.event(key, channels=["c", "other"], info="position,subscription_count")
    channels = found[1]["channels"]
    assert channels["other"] == {"subscription_count": 0}
    assert channels["c"] == {"subscription_count": 0, "position": caller.get(PATH)[1]["position"]}


def test_batch_with_info_returns_the_position_of_each_event(caller):
    events = [{"name": "e", "channel": name, "data": 1, "info": "position"} for name in ("c", "c", "other")]
    first, second, other = caller.post("batch_events", {"batch": events})[1]["batch"]
    assert Position.parse(first["position"]).offset == 1
    assert Position.parse(second["position"]).offset == 2
    assert other == {}


def test_answers_without_info_are_unchanged(caller):
    assert list(caller.event()[1]) == ["channels", "msg-id", "time"]
    assert caller.event(key=True) == (200, {})
    assert caller.get("channels/c", key=True) == (200, {"occupied": False})
    assert json.loads(caller.answered.body) == {"occupied": False}
