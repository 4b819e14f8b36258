"""Groups of clients that share a filter: each message goes to one member."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.core.filters import FilterRights, Filters
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, PublishPacket
from push1st.transports.mqtt import groups
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published

VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
FILTERS = pytest.mark.parametrize("filter", ["a/b", "a/+", "#"])
GROUP = "$share/g/a/b"


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def suback(*codes: int) -> bytes:
    return bytes((0x90, 3 + len(codes), 0, 1, 0, *codes))


async def members(site: MqttSite, count: int, filter: str = GROUP, qos: int = 0, version: int = MQTT_311) -> list[MqttClient]:
    """Returns clients that have subscribed to a filter, one after another."""
    clients = [await site.connected(version, f"{filter} {number}") for number in range(count)]
    for client in clients:
        assert (await client.subscribe(FilterOptions(filter, qos)))[-1] == qos
    return clients


async def publish(site: MqttSite, count: int, qos: int = 0, topic: str = "a/b") -> None:
    """Publishes messages with the payloads 0, 1, and so on, each in a turn of its own, with QoS 0 or 1."""
    sender = await site.connected(MQTT_311, "sender")
    for number in range(count):
        await sender.publish(topic, b"%d" % number, qos=qos, packet_id=number + 1 if qos else 0)
    sender.lose()


def payloads(client: MqttClient) -> list[int]:
    """Returns the payloads of the PUBLISH packets to the topic `a/b` that a client has received."""
    data, found = client.take(), []
    while data:
        packet, data = data[: data[1] + 2], data[data[1] + 2 :]
        if packet[0] & 0xF0 == 0x30:
            found.append(int(packet[9 if packet[0] & 6 else 7 :].lstrip(b"\0")))
    return found


# One member for each message


@VERSIONS
@FILTERS
@pytest.mark.parametrize("qos", [0, 1])
async def test_members_take_turns_in_the_order_of_subscribing(site: MqttSite, version: int, filter: str, qos: int) -> None:
    clients = await members(site, 3, f"$share/g/{filter}", qos, version)
    await publish(site, 7, qos)
    assert [payloads(client) for client in clients] == [[0, 3, 6], [1, 4], [2, 5]]


async def test_messages_of_one_turn_take_turns(site: MqttSite) -> None:
    clients = await members(site, 2)
    sender = await site.connected(MQTT_311, "sender")
    await sender.send(b"".join(packets.message(PublishPacket("a/b", b"%d" % number), MQTT_311) for number in range(5)))
    assert [payloads(client) for client in clients] == [[0, 2, 4], [1, 3]]
    assert len(clients[0].transport.writes) == 0


async def test_each_group_gets_each_message(site: MqttSite) -> None:
    one, two = await members(site, 1), await members(site, 1, "$share/h/a/b")
    (three,) = await members(site, 1, "a/b")
    await publish(site, 2)
    assert [payloads(client) for client in (*one, *two, three)] == [[0, 1]] * 3


async def test_member_gets_the_messages_of_its_own_subscription_too(site: MqttSite) -> None:
    one, two = await members(site, 2)
    await one.subscribe("a/#")
    await publish(site, 2)
    assert (sorted(payloads(one)), payloads(two)) == ([0, 0, 1], [1])


async def test_each_copy_has_the_identifier_of_its_own_filter(site: MqttSite) -> None:
    client, sender = await site.connected(MQTT_5, "c"), await site.connected(MQTT_5, "sender")
    for filter, number in (("a/#", 1), (GROUP, 2), ("+/b", 3), ("$share/h/#", 4)):
        await client.subscribe(filter, subscription_id=number)
    await sender.publish("a/b")
    ids = [b"\x0b\1\x0b\3", b"\x0b\2", b"\x0b\4"]
    copies = [published("a/b", b"x", MQTT_5, properties=one) for one in ids]
    assert sorted(client.take().split(b"x")[:-1]) == sorted(copy[:-1] for copy in copies)


@pytest.mark.parametrize("published_qos", [0, 1, 2])
async def test_member_has_its_own_options(site: MqttSite, published_qos: int) -> None:
    old, new = await site.connected(MQTT_311, "old"), await site.connected(MQTT_5, "new")
    await old.subscribe(FilterOptions(GROUP, 2))
    await new.subscribe(FilterOptions(GROUP, 1, retain_as_published=True), subscription_id=5)
    sender = await site.connected(MQTT_5, "sender")
    for packet_id in (1, 2):
        await sender.publish("a/b", qos=published_qos, retain=True, packet_id=packet_id if published_qos else 0)
    qos = min(published_qos, 1)
    copy = published("a/b", b"x", MQTT_5, qos=qos, retain=True, packet_id=qos, properties=b"\x0b\x05")
    assert old.take() == published("a/b", b"x", qos=published_qos, packet_id=1 if published_qos else 0)
    assert new.take() == copy


async def test_same_filter_again_replaces_the_options_and_keeps_the_turn(site: MqttSite) -> None:
    one, two = await members(site, 2, version=MQTT_5)
    assert await one.subscribe(FilterOptions(GROUP, 1), subscription_id=9) == suback(1)
    await publish(site, 3, qos=1)
    assert one.take() == b"".join(
        published("a/b", payload, MQTT_5, qos=1, packet_id=packet_id, properties=b"\x0b\x09")
        for payload, packet_id in ((b"0", 1), (b"2", 2))
    )
    assert payloads(two) == [1]


async def test_event_of_the_api_excludes_a_member(site: MqttSite) -> None:
    one, two = await members(site, 2)
    session = one.connection._session
    assert session is not None
    for _ in range(2):
        site.node.publish(site.world.app, "a.b", "e", b"1", site.node.stamp(), exclude=session.client.id)
    await turns()
    assert (payloads(one), payloads(two)) == ([], [1, 1])


async def test_events_of_the_server_reach_no_member(site: MqttSite) -> None:
    (client,) = await members(site, 1, "$share/g/#")
    site.node.publish(site.world.app, "a.b", "pusher_internal:member_added", b"{}", site.node.stamp())
    site.node.publish(site.world.app, "a.b", "pusher:ping", b"{}", site.node.stamp())
    site.node.publish(site.world.app, "a/+", "e", b"{}", site.node.stamp())
    await turns()
    assert client.take() == b""


# Windows


async def test_member_with_room_is_preferred(site: MqttSite) -> None:
    full, free = [await site.connected(MQTT_5, name, receive_maximum=most) for name, most in (("full", 1), ("free", 9))]
    for client in (full, free):
        await client.subscribe(FilterOptions(GROUP, 1))
    await publish(site, 5, qos=1)
    assert (payloads(full), payloads(free)) == ([0], [1, 2, 3, 4])


async def test_messages_of_one_turn_count_for_the_window(site: MqttSite) -> None:
    full, free = [await site.connected(MQTT_5, name, receive_maximum=most) for name, most in (("full", 1), ("free", 9))]
    for client in (full, free):
        await client.subscribe(FilterOptions(GROUP, 1))
    messages = [packets.message(PublishPacket("a/b", b"%d" % id, 1, packet_id=id), MQTT_311) for id in range(1, 6)]
    await (await site.connected(MQTT_311, "sender")).send(b"".join(messages))
    assert (payloads(full), payloads(free)) == ([1], [2, 3, 4, 5])


async def test_messages_wait_if_no_member_has_room(site: MqttSite) -> None:
    clients = [await site.connected(MQTT_5, name, receive_maximum=1) for name in "ab"]
    for client in clients:
        await client.subscribe(FilterOptions(GROUP, 1))
    await publish(site, 5, qos=1)
    assert [payloads(client) for client in clients] == [[0], [1]]
    clients[0].connection.data_received(encode.acknowledgements(encode.PUBACK, (1,)))
    await turns()
    assert [payloads(client) for client in clients] == [[2], []]


async def test_qos_0_needs_no_room(site: MqttSite) -> None:
    clients = [await site.connected(MQTT_5, name, receive_maximum=1) for name in "ab"]
    for client in clients:
        await client.subscribe(FilterOptions(GROUP, 1))
    await publish(site, 2, qos=1)
    await publish(site, 4)
    assert [payloads(client) for client in clients] == [[0, 0, 2], [1, 1, 3]]


async def test_member_whose_session_is_not_restored_has_no_room(site: MqttSite) -> None:
    one, two = await members(site, 2, qos=1)
    session = one.connection._session
    assert session is not None
    session.sending().hold()
    await publish(site, 2, qos=1)
    assert payloads(two) == [0, 1]


# Members that leave


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
async def test_unacknowledged_messages_go_to_another_member(site: MqttSite, version: int) -> None:
    one, two = await members(site, 2, qos=1, version=version)
    await publish(site, 4, qos=1)
    one.connection.data_received(encode.acknowledgements(encode.PUBACK, (1,)))
    await turns()
    assert (payloads(one), payloads(two)) == ([0, 2], [1, 3])
    one.lose()
    await turns()
    assert two.take() == published("a/b", b"2", version, qos=1, packet_id=3)  # a new delivery, so without DUP


@pytest.mark.parametrize("qos", [1, 2])
async def test_message_that_a_member_rejects_goes_to_no_other_member(site: MqttSite, qos: int) -> None:
    one, two = await members(site, 2, qos=qos, version=MQTT_5)
    sender = await site.connected(MQTT_5, "sender")
    await sender.publish("a/b", b"0", qos=qos, packet_id=1)
    one.take()
    assert await one.send(bytes((0x30 + 0x10 * qos, 3, 0, 1, 0x83))) == b""
    one.lose()
    await turns()
    assert two.take() == b""


async def test_messages_that_wait_go_to_another_member(site: MqttSite) -> None:
    clients = [await site.connected(MQTT_5, name, receive_maximum=1) for name in "ab"]
    for client in clients:
        await client.subscribe(FilterOptions(GROUP, 2))
    await publish(site, 4, qos=1)
    clients[0].lose()
    await turns()
    for packet_id in (1, 2, 3, 4):
        clients[1].connection.data_received(encode.acknowledgements(encode.PUBACK, (packet_id,)))
        await turns()
    assert payloads(clients[1]) == [1, 3, 0, 2]


async def test_message_with_qos_2_ends_with_its_session(site: MqttSite) -> None:
    one, two = await members(site, 2, qos=2)
    sender = await site.connected(MQTT_311, "sender")
    await sender.publish("a/b", b"0", qos=2, packet_id=1)
    one.lose()
    await turns()
    assert (payloads(one), payloads(two)) == ([0], [])


async def test_pending_messages_do_not_go_to_a_member_that_disconnects(site: MqttSite) -> None:
    one, two = await members(site, 2)
    sender = await site.connected(MQTT_311, "sender")
    sender.connection.data_received(packets.message(PublishPacket("a/b", b"0"), MQTT_311))
    one.connection.data_received(bytes.fromhex("e000"))
    await turns()
    assert (payloads(one), payloads(two)) == ([], [0])


async def test_unsubscribed_member_completes_its_deliveries(site: MqttSite) -> None:
    one, two = [await site.connected(MQTT_5, name, receive_maximum=1) for name in "ab"]
    for client in (one, two):
        await client.subscribe(FilterOptions(GROUP, 1))
    await publish(site, 4, qos=1)
    assert payloads(one) == [0]
    assert await one.unsubscribe(GROUP) == bytes.fromhex("b004000200 00")
    for client in (one, two, two, two):
        client.connection.data_received(encode.acknowledgements(encode.PUBACK, (1, 2, 3)))
        await turns()
    assert (payloads(one), payloads(two)) == ([], [1, 3, 2])


async def test_group_without_members_leaves_nothing_behind(site: MqttSite) -> None:
    one, two = await members(site, 2, qos=1)
    await publish(site, 2, qos=1)
    one.lose()
    await turns()
    assert payloads(two) == [1, 0]
    await two.unsubscribe(GROUP)
    await publish(site, 2, qos=1)
    assert (len(site.clients.groups), site.world.app.filters, site.world.app.tenant.filters) == (0, None, None)
    assert payloads(two) == []
    assert site.failures == []


async def test_unsubscribe_of_an_unknown_group(site: MqttSite) -> None:
    (client,) = await members(site, 1, version=MQTT_5)
    assert await client.unsubscribe("$share/h/a/b", "a/b", GROUP) == bytes.fromhex("b00600020011 1100")


async def test_turns_stay_when_a_member_leaves(site: MqttSite) -> None:
    clients = await members(site, 4)
    await publish(site, 2)
    clients[0].lose()
    await turns()
    await publish(site, 3)
    assert [payloads(client) for client in clients[1:]] == [[1, 2], [0], [1]]


# Rights


async def test_only_members_with_the_right_get_a_message(site: MqttSite) -> None:
    stranger = await site.connected(MQTT_311, "s")
    holder = await site.connected(MQTT_311, "h", username="app-key:x", password=site.token("private-a"))
    for client in (stranger, holder):
        await client.subscribe("$share/g/#")
    for channel in ("private-a", "private-a", "private-b", "open", "open"):
        site.node.publish(site.world.app, channel, "e", b"1", site.node.stamp())
    await turns()
    assert stranger.take() == published("open", b"1")
    assert holder.take() == published("private-a", b"1") * 2 + published("open", b"1")


async def test_members_without_the_right_cost_a_message_nothing(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers that join a group do not slow down the messages of private channels."""
    holder = await site.connected(MQTT_311, "h", username="app-key:x", password=site.token("private-a"))
    await holder.subscribe("$share/g/#")
    await members(site, 50, "$share/g/#")
    filters = site.world.app.filters
    assert filters is not None
    decisions: list[str] = []
    may_read = filters.may_read

    def counted(_: Filters, rights: FilterRights, channel: str) -> bool:
        decisions.append(channel)
        return may_read(rights, channel)

    monkeypatch.setattr(Filters, "may_read", counted)
    for channel in ("private-a", "private-b"):
        site.node.publish(site.world.app, channel, "e", b"1", site.node.stamp())
    await turns()
    assert holder.take() == published("private-a", b"1")
    assert len(decisions) <= 8


async def test_lists_of_members_are_bounded(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_READERS", 2)
    clients = []
    for name in "abcd":
        clients.append(await site.connected(MQTT_311, name, username="app-key:x", password=site.token(f"private-{name}")))
        await clients[-1].subscribe("$share/g/#")
    for name in "abcdabcd":
        site.node.publish(site.world.app, f"private-{name}", "e", b"1", site.node.stamp())
    await turns()
    assert [client.take() for client in clients] == [2 * published(f"private-{name}", b"1") for name in "abcd"]
    (group,) = site.clients.groups._groups.values()
    assert len(group._readers) <= 2


async def test_decisions_about_a_member_end_with_the_member(site: MqttSite) -> None:
    await members(site, 1, "$share/g/#")
    holder = await site.connected(MQTT_311, "h", username="app-key:x", password=site.token("private-only-here"))
    await holder.subscribe("$share/g/#")
    site.node.publish(site.world.app, "private-only-here", "e", b"1", site.node.stamp())
    await turns()
    filters = site.world.app.filters
    assert filters is not None
    before = len(filters._decisions)
    holder.lose()
    await turns()
    assert len(filters._decisions) == before - 1


async def test_replaced_rights_of_a_member_apply(site: MqttSite) -> None:
    one, two = await members(site, 2, "$share/g/#")
    for _ in range(2):
        await one.subscribe("$share/g/#")
    one.lose()
    await turns()
    await publish(site, 2)
    assert payloads(two) == [0, 1]
    await two.unsubscribe("$share/g/#")
    assert len(site.clients.groups) == 0


async def test_exact_filter_in_a_group_needs_the_right(site: MqttSite) -> None:
    stranger = await site.connected(MQTT_5, "s")
    holder = await site.connected(MQTT_5, "h", username="app-key:x", password=site.token("private-a", sub="ann"))
    wanted = ("$share/g/private-a", "$share/g/private-b", "$share/g/$user/ann", "$share/g/$SYS/uptime")
    assert await stranger.subscribe(*wanted) == suback(0x87, 0x87, 0x87, 0)
    assert await holder.subscribe(*wanted) == suback(0, 0x87, 0x87, 0)


async def test_changed_configuration_of_the_app_applies(site: MqttSite) -> None:
    holder = await site.connected(MQTT_311, "h", username="app-key:x", password=site.token("private-a"))
    await holder.subscribe("$share/g/private-a")
    site.node.configure(msgspec.structs.replace(site.world.app.config, channels=frozenset({"public"})))
    site.node.publish(site.world.app, "private-a", "e", b"1", site.node.stamp())
    await turns()
    assert holder.take() == b""


# Answers


@pytest.mark.parametrize("filter", ["$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a"])
async def test_invalid_group_is_rejected(site: MqttSite, filter: str) -> None:
    old, new = await site.connected(MQTT_311, "old"), await site.connected(MQTT_5, "new")
    assert await old.subscribe(filter) == bytes.fromhex("9003000180")
    assert await new.subscribe(filter) == (suback(0x8F) if filter.endswith("a") else bytes.fromhex("E00182"))


async def test_group_counts_as_one_receiver(site: MqttSite) -> None:
    sender = await site.connected(MQTT_5, "sender")
    assert await sender.publish("a/b", qos=1, packet_id=1) == bytes.fromhex("4003000110")
    await members(site, 2)
    assert await sender.publish("a/b", qos=1, packet_id=1) == bytes.fromhex("40020001")
    assert site.node.publish(site.world.app, "a.b", "e", b"1", site.node.stamp()).count == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("filter", ["+/b", "private-a/+", "#"])
@pytest.mark.parametrize("others", [(), ("private-a/b",), ("private-a/+",), ("$share/h/private-a/b",)])
async def test_group_without_a_member_that_may_read_the_channel_is_no_receiver(
    site: MqttSite, filter: str, others: tuple[str, ...]
) -> None:
    await members(site, 1, f"$share/g/{filter}")
    sender = await site.connected(MQTT_5, "sender", username="app-key", password=site.token("private-a.*"))
    for other in others:
        assert (await sender.subscribe(other))[-1] == 0
    assert (await sender.publish("private-a/b", qos=2, packet_id=1)).startswith(bytes.fromhex("50020001"))
    answer = await sender.publish("private-a/b", qos=1, packet_id=2)
    assert bytes.fromhex("40020002" if others else "4003000210") in answer


async def test_group_is_no_subscription_of_a_channel(site: MqttSite) -> None:
    await members(site, 2)
    assert list(await site.node.channels(site.world.app)) == []
    assert site.world.app.sessions("a.b") == []


async def test_retained_message_is_not_sent_to_a_group(site: MqttSite) -> None:
    sender = await site.connected(MQTT_5, "sender")
    await sender.publish("a/b", retain=True)
    (client,) = await members(site, 1)
    await turns()
    assert client.take() == b""


async def test_shared_filters_count_with_filters_with_wildcards(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.subscribe(*(f"$share/g/{number}" for number in range(9)), "+", "#") == suback(*[0] * 10, 0x97)
    assert await client.subscribe("$share/h/a", "$share/g/1") == suback(0x97, 0)
    await client.unsubscribe("$share/g/1")
    assert await client.subscribe("$share/h/a") == suback(0)


Step = tuple[str, int]


class GroupRun:
    """A run in which members join, acknowledge messages and end. Messages are numbered by the steps that publish them."""

    def __init__(self, site: MqttSite, sender: MqttClient) -> None:
        self.site = site
        self.sender = sender
        self.members: dict[int, MqttClient] = {}
        self.inflight: dict[int, dict[int, int]] = {}
        """member → packet id → message"""
        self.owed: set[int] = set()
        """the messages that no member has acknowledged"""

    async def publish(self, at: int) -> None:
        if self.members:
            self.owed.add(at)
        await self.sender.publish("a/b", b"%d" % at, qos=1, packet_id=at + 1)

    async def join(self, number: int) -> None:
        self.members[number], self.inflight[number] = await self.site.connected(MQTT_311, f"member-{number}"), {}
        await self.members[number].subscribe(FilterOptions(GROUP, 1))

    async def read(self, number: int) -> None:
        """Reads the messages to a member. No message is in flight to two members, or arrives after its acknowledgement."""
        await turns()
        data = self.members[number].take()
        while data:
            packet, data = data[: data[1] + 2], data[data[1] + 2 :]
            message = int(packet[9:])
            assert packet[0] == 0x32
            assert message in self.owed
            assert not any(message in ids.values() for ids in self.inflight.values())
            self.inflight[number][int.from_bytes(packet[7:9])] = message

    async def acknowledge(self, number: int) -> None:
        await self.read(number)
        ids, self.inflight[number] = self.inflight[number], {}
        self.owed.difference_update(ids.values())
        if ids:
            self.members[number].connection.data_received(encode.acknowledgements(encode.PUBACK, tuple(ids)))
        await self.read(number)

    async def end(self, number: int) -> None:
        """Ends a connection; the messages of the last member end with it."""
        for one in self.members:
            await self.read(one)
        self.members.pop(number).lose()
        del self.inflight[number]
        if not self.members:
            self.owed.clear()


async def run_steps(steps: Sequence[Step]) -> None:
    site = MqttSite()
    run = GroupRun(site, await site.connected(MQTT_311, "sender"))
    for at, (kind, number) in enumerate(steps):
        if kind == "publish":
            await run.publish(at)
        elif (kind == "join") != (number in run.members):
            await getattr(run, kind)(number)
    while run.owed:
        before = len(run.owed)
        for number in run.members:
            await run.acknowledge(number)
        assert len(run.owed) < before
    assert site.failures == []


@given(st.lists(st.tuples(st.sampled_from(["publish", "publish", "join", "acknowledge", "end"]), st.integers(0, 3)), max_size=60))
def test_each_message_is_acknowledged_by_one_member(steps: list[Step]) -> None:
    asyncio.run(run_steps(steps))
