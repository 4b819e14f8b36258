"""Filters with wildcards on the fan-out: who receives a message, when the lanes are searched again, rights, bounds."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.auth import Claims
from push1st.config.model import Authorize
from push1st.core import fanout, filters
from push1st.core.filters import rights_of
from push1st.errors import LimitReached
from push1st.filters import has_wildcard, matches
from push1st.messages import DEFAULT_OPTIONS, INTERNAL, NODE_MESSAGE, Options
from tests.support.frames import Wire
from tests.support.node import APP, Listening, Stage, app_config

channels = st.sampled_from(["a", "b", "a.b", "b.b", "a.", "$a", "$a.b", "#a", "a.+", "+", "a+"])
wildcards = st.sampled_from(["#", "+", "a.#", "+.b", "a.+"])
clients = st.integers(0, 3)
steps = st.lists(
    st.tuples(st.just("publish"), channels, st.just(-1) | clients)
    | st.tuples(st.just("watch"), wildcards, clients)
    | st.tuples(st.just("join"), st.sampled_from(["a", "a.b"]), clients)
    | st.tuples(st.sampled_from(["leave", "lose", "direct", "turn"]), st.just(""), clients)
    | st.tuples(st.just("unicast"), channels, clients),
    max_size=40,
)


def claims(*names: str) -> Claims:
    return Claims(APP, "*", names, None)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def takes(filter: str, channel: str) -> bool:
    """Returns whether a client with a filter or a channel's name receives a message of a channel."""
    if has_wildcard(filter):
        return not channel.startswith("#") and not has_wildcard(channel) and matches(filter, channel)
    return filter == channel


@given(steps, st.sampled_from([1, 3, 2048]))
def test_each_client_receives_what_its_filter_matches_in_order(steps: list[tuple[str, str, int]], writes: int) -> None:
    with pytest.MonkeyPatch.context() as bounds:
        bounds.setattr(fanout, "SLICE_WRITES", writes)
        stage = Stage()
        one = [stage.client() for _ in range(4)]
        on: list[str | None] = [None] * 4
        owed = [b""] * 4
        for number, (step, name, who) in enumerate(steps):
            frame = b"<%d>" % number
            match step:
                case "publish":
                    out = "" if who < 0 else one[who]
                    got = [i for i in range(4) if i != who and (mine := on[i]) is not None and takes(mine, name)]
                    assert stage.publish(name, frame, out) == len(got)
                    for i in got:
                        owed[i] += frame
                case "unicast":
                    mine = on[who]
                    is_due = mine is not None and takes(mine, name)
                    assert stage.unicast(name, frame, one[who]) == is_due
                    owed[who] += frame if is_due else b""
                case "watch" | "join" if on[who] is None:
                    stage.watch(one[who], name) if step == "watch" else stage.join(one[who], name)
                    on[who] = name
                case "leave" if (mine := on[who]) is not None:
                    stage.unwatch(one[who], mine) if has_wildcard(mine) else stage.leave(one[who], mine)
                    assert one[who].received == owed[who]
                    on[who] = None
                case "lose":
                    stage.settle(one[who])
                    stage.lose(one[who])
                    on[who], one[who], owed[who] = None, stage.client(), b""
                case "direct":
                    stage.direct(one[who], frame)
                    owed[who] += frame
                case "turn":
                    stage.turns.end()
        stage.turns.drain()
        assert [client.received for client in one] == owed
        assert (stage.tenant.filters is None) == (not any(mine is not None and has_wildcard(mine) for mine in on))


def test_message_reaches_the_exact_channel_and_matching_filters(stage: Stage) -> None:
    exact, plus, hash, other = stage.client("a.b"), stage.client(), stage.client(), stage.client()
    stage.watch(plus, "a.+")
    stage.watch(hash, "#")
    stage.watch(other, "b.#")
    assert stage.publish("a.b", b"1") == 3
    stage.turns.end()
    assert [one.received for one in (exact, plus, hash, other)] == [b"1", b"1", b"1", b""]


def test_subscribers_of_a_filter_share_one_frame(stage: Stage) -> None:
    many = [stage.client() for _ in range(9)]
    for one in many:
        stage.watch(one, "bench.#")
    assert stage.publish("bench.1", b"1") == 9
    assert stage.wire.encoded == 1


@pytest.mark.parametrize("event", [INTERNAL + "member_added", NODE_MESSAGE])
def test_events_of_the_server_match_no_filter(stage: Stage, event: str) -> None:
    one = stage.client()
    stage.watch(one, "#")
    assert stage.world.publish("a", b"1", event) == 0


def test_wildcard_is_no_subscription_of_a_channel(stage: Stage) -> None:
    one = stage.client()
    stage.watch(one, "#")
    stage.publish("a", b"1")
    assert not stage.tenant.channels
    assert one.session.subscriptions == {}
    assert list(one.session.lanes) == list((one.session.filters or {}).values())


# Changes


def test_new_and_ended_filters_apply_at_once(stage: Stage) -> None:
    one, two = stage.client(), stage.client()
    stage.watch(one, "a.+")
    assert stage.publish("a.b", b"1") == 1
    stage.watch(two, "+.b")
    assert stage.publish("a.b", b"2") == 2
    assert stage.unwatch(two, "+.b")
    assert not stage.unwatch(two, "+.b")
    assert stage.publish("a.b", b"3") == 1
    stage.turns.end()
    assert (one.received, two.received) == (b"123", b"2")


def test_new_subscriber_of_a_filter_gets_no_earlier_message(stage: Stage) -> None:
    one, two = stage.client(), stage.client()
    stage.watch(one, "#")
    stage.publish("a", b"1")
    stage.watch(two, "#")
    stage.publish("a", b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"12", b"2")


def test_same_filter_again_moves_to_the_new_wire_without_a_gap(stage: Stage) -> None:
    one, other = stage.client(), Wire("other")
    stage.watch(one, "+")
    stage.publish("a", b"1")
    stage.watch(one, "+", wire=other)
    stage.publish("a", b"2")
    stage.watch(one, "+", wire=other)
    stage.turns.end()
    assert one.received == b"12"
    assert (stage.wire.encoded, other.encoded) == (1, 1)


def test_moved_subscription_keeps_its_rights_without_a_gap(stage: Stage) -> None:
    one, two, other = stage.client(), stage.client(), Wire("other")
    mine = rights_of(claims("private-a"), False)
    stage.watch(one, "+", rights=mine)
    stage.watch(two, "+")
    stage.publish("private-a", b"1")
    stage.world.node.wildcards.move(stage.world.app, one.session, "+", other)
    for channel in ("private-a", "private-b", "c"):
        stage.publish(channel, b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"122", b"2")
    assert (stage.wire.encoded, other.encoded) == (2, 2)


def test_last_filter_leaves_nothing_behind(stage: Stage) -> None:
    one, two = stage.client(), stage.client()
    stage.watch(one, "a.#")
    stage.watch(two, "a.#")
    stage.lose(one)
    assert stage.publish("a", b"1") == 1
    stage.unwatch(two, "a.#")
    assert stage.tenant.filters is None
    assert stage.world.app.filters is None


def test_lost_client_receives_nothing_more(stage: Stage) -> None:
    one = stage.client()
    stage.watch(one, "#")
    stage.publish("a", b"1")
    stage.lose(one)
    stage.turns.end()
    assert one.received == b""


def test_muted_client_receives_nothing_more(stage: Stage) -> None:
    one = stage.client()
    stage.watch(one, "#")
    stage.publish("a", b"1")
    one.session.mute(lambda _: None)
    stage.publish("a", b"2")
    stage.turns.end()
    assert one.received == b""


# Some connections only


def test_excluded_client_receives_nothing_through_its_filter(stage: Stage) -> None:
    one, two = stage.client(), stage.client()
    stage.watch(one, "#")
    stage.watch(two, "#")
    assert stage.publish("a", b"1", one) == 1
    stage.turns.end()
    assert (one.received, two.received) == (b"", b"1")


def test_unicast_and_multicast_reach_clients_through_filters(stage: Stage) -> None:
    one, two = stage.client(prefix="x.1"), stage.client(prefix="x.2")
    stage.watch(one, "a.+")
    stage.watch(two, "a.+")
    assert stage.unicast("a.b", b"1", one) == 1
    assert stage.multicast("a.b", b"2", "x") == 2
    assert stage.multicast("b", b"3", "x") == 0
    stage.turns.end()
    assert (one.received, two.received) == (b"12", b"2")


async def test_reach_counts_the_subscribers_of_filters(stage: Stage) -> None:
    one, two = stage.client("a"), stage.client(prefix="x")
    stage.watch(two, "+")
    reach = stage.world.node.controller.reach
    app = stage.world.app
    assert await reach(app, "a", "", DEFAULT_OPTIONS) == 2
    assert await reach(app, "a", two.session.id, DEFAULT_OPTIONS) == 1
    assert await reach(app, "b", "", DEFAULT_OPTIONS) == 1
    assert await reach(app, "b", "", Options(0, "unicast", two.session.id)) == 1
    assert await reach(app, "b", "", Options(0, "unicast", one.session.id)) == 0


# Rights


def reads(stage: Stage, one: Listening, channel: str) -> bool:
    """Returns whether a client receives a message of a channel."""
    before = one.received
    stage.publish(channel, b"1")
    stage.turns.end()
    return one.received != before


def test_filter_delivers_public_channels_and_those_of_the_token(stage: Stage) -> None:
    nobody, holder, granted = stage.client(), stage.client(), stage.client()
    stage.watch(nobody, "#")
    stage.watch(holder, "#", rights_of(claims("private-a*", "presence-x"), False))
    stage.watch(granted, "private-b.+", rights_of(None, True))
    expected = {
        "a": (True, True, False),
        "cache-a": (True, True, False),
        "private-a.1": (False, True, False),
        "private-b.1": (False, False, True),
        "private-encrypted-b.1": (False, False, False),
        "presence-x": (False, True, False),
        "protected-a": (False, False, False),
    }
    for _ in range(2):
        assert {name: tuple(reads(stage, one, name) for one in (nobody, holder, granted)) for name in expected} == expected


def test_types_of_channels_that_the_app_has_not_are_not_delivered(stage: Stage) -> None:
    one = stage.client()
    stage.watch(one, "#", rights_of(claims("*"), False))
    assert reads(stage, one, "private-a")
    stage.world.node.configure(app_config(channels=frozenset(("public",))))
    assert not reads(stage, one, "private-a")
    assert reads(stage, one, "a")


def test_public_channels_about_which_the_backend_decides_need_a_token(stage: Stage) -> None:
    one, holder = stage.client(), stage.client()
    stage.watch(one, "#")
    stage.watch(holder, "#", rights_of(claims("vip.*"), False))
    assert reads(stage, one, "vip.1")
    decides = Authorize(url="http://127.0.0.1:1/", on=frozenset({"subscribe"}), filter=("vip.*",))
    stage.world.node.configure(app_config(authorize=(decides,)))
    assert not reads(stage, one, "vip.1")
    assert reads(stage, holder, "vip.1")
    assert reads(stage, one, "free")


def test_equal_rights_are_one_object() -> None:
    one = rights_of(claims("a", "b*"), False)
    assert rights_of(claims("a", "b*"), False) is one
    assert rights_of(claims("a"), False) is not one
    assert rights_of(None, True) is not rights_of(None, False)


def test_number_of_shared_rights_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(filters, "MAX_SHARED_RIGHTS", len(filters._rights) + 1)
    one = rights_of(claims("one"), False)
    assert rights_of(claims("one"), False) is one
    assert rights_of(claims("two"), False) is not rights_of(claims("two"), False)


def test_rights_end_with_their_last_subscriber(stage: Stage) -> None:
    """The decisions about the channels of a client that has left must not use up the rights that clients share."""
    first, second, other = stage.client(), stage.client(), stage.client()
    stage.watch(other, "#")
    gc.collect()
    before = len(filters._rights)
    for client in (first, second):
        stage.watch(client, "#", rights_of(claims("private-a"), False))
    stage.publish("private-a", b"1")
    assert len(filters._rights) == before + 1
    stage.unwatch(first, "#")
    stage.publish("private-a", b"2")
    assert len(filters._rights) == before + 1
    stage.lose(second)
    assert len(filters._rights) == before
    found = stage.world.app.filters
    assert found is not None
    assert len(found._decisions) == 1


# Bounds


def test_lanes_of_a_channel_are_searched_once(stage: Stage) -> None:
    one = stage.client()
    stage.watch(one, "a.+")
    found = stage.world.app.filters
    assert found is not None
    stage.publish("a.b", b"1")
    cost = found.cost
    assert cost == 4  # the root, `a`, `+`, and the lane
    stage.publish("a.b", b"2")
    assert found.cost == cost


def test_number_of_kept_channels_and_decisions_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_CHANNELS", 3)
    one = stage.client()
    stage.watch(one, "#")
    found = stage.world.app.filters
    assert found is not None
    for number in range(9):
        assert stage.publish(f"{number}", b"1") == 1
    assert list(found._matched) == [*"678"]
    assert [[*decisions] for decisions in found._decisions.values()] == [[*"678"]]
    monkeypatch.setattr(filters, "MAX_MATCHES", 1)
    assert stage.publish("9", b"1") == 1
    assert list(found._matched) == ["9"]


def test_number_of_filters_of_an_app_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_APP_FILTERS", 4)
    one = stage.client()
    stage.watch(one, "1.#", anonymous=True)
    stage.watch(one, "2.#", anonymous=True)
    with pytest.raises(LimitReached):
        stage.watch(one, "3.#", anonymous=True)
    stage.watch(stage.client(), "2.#", anonymous=True)
    stage.watch(one, "3.#")
    stage.watch(one, "4.#")
    with pytest.raises(LimitReached):
        stage.watch(one, "5.#")
    stage.unwatch(one, "4.#")
    stage.watch(one, "5.#")


def test_rejected_first_filter_leaves_nothing_behind(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_APP_FILTERS", 0)
    with pytest.raises(LimitReached):
        stage.watch(stage.client(), "#")
    assert stage.tenant.filters is None


def test_number_of_levels_of_an_app_is_bounded(stage: Stage) -> None:
    one, many = stage.client(), ".+" * 199
    for number in range(125):
        stage.watch(one, f"{number}{many}", anonymous=True)
    with pytest.raises(LimitReached):
        stage.watch(one, f"a{many}", anonymous=True)
    for number in range(125, 250):
        stage.watch(one, f"{number}{many}")
    with pytest.raises(LimitReached):
        stage.watch(one, "a.#")
