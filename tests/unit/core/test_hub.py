"""The hub: channels, lanes, and the prefixes by which a multicast finds connections."""

import gc

import pytest

from push1st.channels import kind_of
from push1st.core.hub import MAX_PREFIX_PARTS, Channel, Lane, LanesOf, Tenant
from push1st.messages import Member, Message
from push1st.metrics import AppCounts
from push1st.positions import Position
from tests.support.frames import Wire
from tests.support.node import APP

PLAIN, OTHER = Wire("plain"), Wire("other")


class CountedApp:
    counts = AppCounts()


class Client:
    """Makes a subscriber with the attributes that the hub uses."""

    def __init__(self, id: str, wire: Wire) -> None:
        self.id = id
        self.wire = wire
        self.lanes: tuple[Lane, ...] = ()
        self.app = CountedApp()

    def write(self, data: bytes) -> None: ...


@pytest.fixture
def tenant():
    return Tenant(AppCounts())


def client(id: str = "1.1", wire: Wire = PLAIN) -> Client:
    return Client(id, wire)


def message(**how) -> Message:
    return Message(APP, "c", "e", b"1", 1, 0, **how)


# Channels and lanes


def test_the_first_subscriber_makes_the_channel(tenant):
    one = client()
    lane = tenant.subscribe(one, "presence-c")
    channel = tenant.channels["presence-c"]
    assert (channel.name, channel.kind.type, len(channel)) == ("presence-c", "presence", 1)
    assert channel.lanes == [lane]
    assert list(channel.subscribers()) == [one]


def test_subscribers_of_one_wire_share_a_lane(tenant):
    assert tenant.subscribe(client("1.1"), "c") is tenant.subscribe(client("1.2"), "c")
    assert len(tenant.channels["c"]) == 2


def test_subscriptions_without_a_member_share_one_object(tenant):
    lane = tenant.subscribe(client(), "c")
    assert lane.subscription(None) is lane.subscription(None)
    assert (lane.subscription(None).lane, lane.subscription(None).member) == (lane, None)


def test_each_member_has_a_subscription_of_its_own(tenant):
    lane = tenant.subscribe(client(), "presence-c")
    one, two = lane.subscription(Member("a")), lane.subscription(Member("a"))
    assert one is not two
    assert (one.lane, one.member) == (lane, Member("a"))


@pytest.mark.parametrize("others", [0, 1])
def test_lane_that_ends_does_not_refer_to_its_subscription(tenant, others):
    one = client()
    lane = tenant.subscribe(one, "c")
    if others:
        tenant.subscribe(client("1.2", OTHER), "c")
    subscription = lane.subscription(None)
    tenant.unsubscribe(one, "c")
    assert subscription not in gc.get_referents(lane)


def test_lanes_of_subscriptions_are_listed_without_a_copy(tenant):
    subscriptions = {name: tenant.subscribe(client(), name).subscription(None) for name in "ab"}
    lanes = LanesOf(subscriptions)
    assert (len(lanes), list(lanes)) == (2, [one.lane for one in subscriptions.values()])
    assert subscriptions["a"].lane in lanes
    assert Lane(AppCounts(), PLAIN) not in lanes
    del subscriptions["a"]
    assert len(lanes) == 1


def test_lanes_of_a_client_are_also_those_of_its_filters():
    one, other = Lane(AppCounts(), PLAIN), Lane(AppCounts(), PLAIN)
    filters = {"#": other}
    lanes = LanesOf({"a": one.subscription(None)}, ({}, filters))
    assert (len(lanes), list(lanes)) == (2, [one, other])
    assert other in lanes
    del filters["#"]
    assert (len(lanes), other in lanes) == (1, False)


def test_each_wire_has_a_lane_of_its_own(tenant):
    one, two = client("1.1"), client("1.2", OTHER)
    first, second = tenant.subscribe(one, "c"), tenant.subscribe(two, "c")
    channel = tenant.channels["c"]
    assert first is not second
    assert channel.lane(PLAIN) is first
    assert channel.lane(OTHER) is second
    assert list(channel.subscribers()) == [one, two]


def test_wire_without_subscribers_has_no_lane(tenant):
    tenant.subscribe(client(), "c")
    assert tenant.channels["c"].lane(OTHER) is None


def test_a_lane_keeps_the_order_of_joining(tenant):
    clients = [client(f"1.{n}") for n in range(5)]
    lanes = [tenant.subscribe(one, "c") for one in clients]
    assert list(lanes[0].writes) == clients


def test_subscribing_twice_is_once(tenant):
    one = client()
    tenant.subscribe(one, "c")
    tenant.subscribe(one, "c")
    assert len(tenant.channels["c"]) == 1


def test_channel_is_removed_with_its_last_subscriber(tenant):
    one, two = client("1.1"), client("1.2")
    tenant.subscribe(one, "c")
    tenant.subscribe(two, "c")
    assert tenant.unsubscribe(one, "c") is False
    assert tenant.unsubscribe(two, "c") is True
    assert tenant.channels == {}


def test_a_channel_lives_while_any_lane_has_subscribers(tenant):
    one, two = client("1.1"), client("1.2", OTHER)
    tenant.subscribe(one, "c")
    tenant.subscribe(two, "c")
    assert tenant.unsubscribe(one, "c") is False
    assert [lane.wire for lane in tenant.channels["c"].lanes] == [OTHER]
    assert tenant.unsubscribe(two, "c") is True


def test_an_empty_lane_that_still_owes_something_is_kept(tenant):
    one, two = client("1.1"), client("1.2", OTHER)
    lane = tenant.subscribe(one, "c")
    tenant.subscribe(two, "c")
    lane.frames.append(b"x")
    tenant.unsubscribe(one, "c")
    assert tenant.subscribe(client("1.3"), "c") is lane


@pytest.mark.parametrize("name", ["c", "other"])
def test_leaving_without_a_subscription_changes_nothing(tenant, name):
    tenant.subscribe(client("1.1"), "c")
    assert tenant.unsubscribe(client("1.2"), name) is False
    assert tenant.unsubscribe(client("1.2", OTHER), name) is False
    assert len(tenant.channels["c"]) == 1


def test_lane_is_due_with_frames_overrides_or_slices():
    lane = Lane(AppCounts(), PLAIN)
    assert not lane.due
    for what, value in (("frames", [b"x"]), ("overrides", {client(): [b"x"]}), ("slices", [object()])):
        lane = Lane(AppCounts(), PLAIN)
        setattr(lane, what, value)
        assert lane.due


# Targets


def test_unicast_finds_a_connection_by_its_whole_id(tenant):
    one = client("1.1")
    tenant.connect(one)
    assert list(tenant.targets(message(delivery="unicast", target="1.1"))) == [one]
    assert list(tenant.targets(message(delivery="unicast", target="1"))) == []


def test_multicast_finds_connections_by_their_prefix(tenant):
    one, two, three = client("a.1.1"), client("a.1.2"), client("b.1.3")
    for each in (one, two, three):
        tenant.connect(each, each.id[0])
    assert set(tenant.targets(message(delivery="multicast", target="a"))) == {one, two}
    assert list(tenant.targets(message(delivery="multicast", target="c"))) == []


def test_a_prefix_of_parts_is_found_by_each_of_its_beginnings(tenant):
    one = client("a.b.c.1.1")
    tenant.connect(one, "a.b.c")
    for target in ("a", "a.b", "a.b.c"):
        assert list(tenant.targets(message(delivery="multicast", target=target))) == [one]
    for target in ("", "b", "a.", "a.b.", "a.b.c.1", "ab"):
        assert list(tenant.targets(message(delivery="multicast", target=target))) == []


@pytest.mark.parametrize("prefix", ["a..b", ".a", "a.", "..", "/users/{7} | *", "50%"])
def test_a_prefix_may_be_any_text(tenant, prefix):
    one = client(f"{prefix}.1.1")
    tenant.connect(one, prefix)
    beginnings = [prefix[:at] for at, letter in enumerate(prefix) if letter == "." and at]
    for target in (prefix, *beginnings):
        assert list(tenant.targets(message(delivery="multicast", target=target))) == [one]
    tenant.disconnect(one, prefix)
    assert tenant.prefixes == {}


def test_a_prefix_of_many_parts_has_few_entries_and_is_found_by_each_of_its_beginnings(tenant):
    prefix = ".".join("abcdefghijklmnopqrstuvwxyz")
    one, two = client(f"{prefix}.1.1"), client(f"{prefix[:29]}.1.2")
    tenant.connect(one, prefix)
    tenant.connect(two, prefix[:29])
    assert len(tenant.prefixes) == MAX_PREFIX_PARTS
    for end in range(1, len(prefix) + 1, 2):
        found = set(tenant.targets(message(delivery="multicast", target=prefix[:end])))
        assert found == ({one} if end > 29 else {one, two}), prefix[:end]
    assert list(tenant.targets(message(delivery="multicast", target=prefix[:-1] + "x"))) == []
    tenant.disconnect(one, prefix)
    tenant.disconnect(two, prefix[:29])
    assert tenant.prefixes == {}


def test_a_prefix_is_forgotten_with_its_last_connection(tenant):
    one, two = client("a.b.1.1"), client("a.1.2")
    tenant.connect(one, "a.b")
    tenant.connect(two, "a")
    tenant.disconnect(one, "a.b")
    assert tenant.prefixes == {"a": {two}}
    tenant.disconnect(two, "a")
    assert tenant.prefixes == {}
    assert tenant.sessions == {}


def test_a_prefix_of_one_connection_has_no_set(tenant):
    one, two = client("a.1.1"), client("a.1.2")
    tenant.connect(one, "a")
    assert tenant.prefixes == {"a": one}
    tenant.disconnect(two, "a")
    assert list(tenant.targets(message(delivery="multicast", target="a"))) == [one]
    tenant.disconnect(one, "a")
    assert tenant.prefixes == {}


def test_disconnecting_twice_is_once(tenant):
    one = client("a.1.1")
    tenant.connect(one, "a")
    tenant.disconnect(one, "a")
    tenant.disconnect(one, "a")
    assert tenant.sessions == {}


def test_channel_moves_to_the_position_of_a_join_in_a_new_epoch():
    """Otherwise an acknowledgement would confirm a position of an epoch that has ended, and the next recovery would fail."""
    channel = Channel("c", kind_of("c"))
    channel.begin_at(Position("e1", 4))
    channel.begin_at(Position("e1", 3))
    assert (channel.epoch, channel.offset) == ("e1", 4)
    channel.begin_at(Position("e2", 0))
    assert (channel.epoch, channel.offset) == ("e2", 0)


def test_subscribers_of_a_channel_share_its_position() -> None:
    channel = Channel("news", kind_of("news"))
    positions = [channel.position]
    for epoch, offset in (("e1", 4), ("e1", 4), ("e1", 5), ("e2", 5)):
        channel.epoch, channel.offset = epoch, offset
        positions.append(channel.position)
    assert positions == [None, Position("e1", 4), Position("e1", 4), Position("e1", 5), Position("e2", 5)]
    assert positions[1] is positions[2]


def test_subscription_may_have_another_wire_than_its_subscriber(tenant: Tenant) -> None:
    one, two = client("1.1"), client("2.2")
    first, second = tenant.subscribe(one, "a"), tenant.subscribe(two, "a", OTHER)
    assert (first.wire, second.wire) == (PLAIN, OTHER)
    assert tenant.channels["a"].lane_of(two) is second
    assert tenant.unsubscribe(two, "a") is False
    assert tenant.channels["a"].lanes == [first]


def test_subscriber_moves_to_another_wire(tenant: Tenant) -> None:
    one = client()
    tenant.subscribe(one, "a")
    lane = tenant.move(one, "a", OTHER)
    assert tenant.channels["a"].lanes == [lane]
    assert lane.wire is OTHER
    assert tenant.move(one, "a", OTHER) is lane
    assert tenant.channels["a"].lanes == [lane]
    assert tenant.unsubscribe(one, "a") is True
