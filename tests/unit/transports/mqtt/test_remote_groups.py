"""The groups of a worker whose broker has several workers: which messages the worker takes, ends, and passes on."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from push1st.brokers.sessions import DueSession, Owner, SavedMessage, storable
from push1st.errors import LimitReached, Refused
from push1st.messages import Message, MqttFields, MqttMessage
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import APP

GROUP = "$share/g/a/+"
NAME = "$share/g/a.+"


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


class RemoteGroups:
    """The groups of several workers, of which the test is the other one. calls: the calls of `set_members`."""

    def __init__(self) -> None:
        self.receive: Any = None
        self.calls: list[tuple[int, bool]] = []
        self.ended: list[int] = []
        self.passed: list[int] = []
        self.others = False
        self.confirmation: asyncio.Future[None] | None = None
        self.room: LimitReached | None = None

    def check_room(self, _app: str, _name: str, _is_anonymous: bool) -> None:
        if self.room is not None:
            raise self.room

    def set_members(self, _app: str, name: str, count: int, is_first: bool = False) -> None:
        assert name == NAME
        self.calls.append((count, is_first))

    async def confirmed(self, _app: str, _name: str) -> None:
        if self.confirmation is not None:
            await self.confirmation

    def has_others(self, _app: str, _name: str) -> bool:
        return self.others

    def end(self, entries: Iterable[int]) -> None:
        self.ended += entries

    def pass_on(self, entries: Iterable[int]) -> None:
        self.passed += entries


@pytest.fixture
def remote(site: MqttSite) -> RemoteGroups:
    found: Any = RemoteGroups()
    site.world.node.groups = site.clients.groups.remote = found
    found.receive = site.clients.groups._receive
    return found  # type: ignore[no-any-return]


def message(data: bytes, qos: int = 1, channel: str = "a.b", event: str = "e", **more: Any) -> Message:
    return MqttMessage(APP, channel, event, data, int(data), 1, "1.1", mqtt=MqttFields(qos), **more)


async def member(site: MqttSite, name: str, qos: int = 1, version: int = MQTT_311, **fields: Any) -> MqttClient:
    client = await site.connected(version, name, **fields)
    assert (await client.subscribe(FilterOptions(GROUP, qos)))[-1] == qos
    return client


async def test_number_of_members_is_registered(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one")
    await member(site, "two")
    assert remote.calls == [(1, True), (2, False)]
    await one.unsubscribe(GROUP)
    assert remote.calls[2:] == [(1, False)]
    assert site.world.app.filters is not None


async def test_group_without_members_leaves_nothing_behind(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one")
    one.lose()
    await turns()
    assert remote.calls[1:] == [(0, False)]
    assert len(site.clients.groups) == 0
    assert site.world.app.filters is None


async def test_suback_follows_the_registration(site: MqttSite, remote: RemoteGroups) -> None:
    remote.confirmation = asyncio.get_running_loop().create_future()
    client = await site.connected()
    assert await client.subscribe(GROUP) == b""
    remote.confirmation.set_result(None)
    await turns()
    assert client.take() == bytes.fromhex("9003000100")


async def test_group_that_the_broker_does_not_confirm_is_refused(site: MqttSite, remote: RemoteGroups) -> None:
    remote.confirmation = asyncio.get_running_loop().create_future()
    remote.confirmation.set_exception(Refused(503, "the broker is away, try again"))
    client = await site.connected(MQTT_5)
    assert (await client.subscribe(GROUP))[-1] == 0x80
    assert remote.calls == [(1, True), (0, False)]
    assert len(site.clients.groups) == 0


async def test_connection_that_ends_before_the_registration_leaves_no_group(site: MqttSite, remote: RemoteGroups) -> None:
    remote.confirmation = asyncio.get_running_loop().create_future()
    client = await site.connected()
    await client.subscribe(GROUP)
    client.lose()
    remote.confirmation.set_exception(Refused(503, "the broker is away, try again"))
    await turns()
    assert remote.calls == [(1, True), (0, False)]
    assert len(site.clients.groups) == 0


async def test_app_with_too_many_groups_gets_no_other(site: MqttSite, remote: RemoteGroups) -> None:
    remote.room = LimitReached(403, "the app has too many filters with wildcards")
    client = await site.connected(MQTT_5)
    assert (await client.subscribe(GROUP))[-1] == 0x97
    assert remote.calls == []


async def test_members_take_turns_and_end_the_messages(site: MqttSite, remote: RemoteGroups) -> None:
    one, two = await member(site, "one"), await member(site, "two", qos=2)
    for number in range(1, 5):
        assert remote.receive(NAME, number, message(b"%d" % number, qos=2))
    await turns()
    assert one.take() == published("a/b", b"1", qos=1, packet_id=1) + published("a/b", b"3", qos=1, packet_id=2)
    assert two.take() == published("a/b", b"2", qos=2, packet_id=1) + published("a/b", b"4", qos=2, packet_id=2)
    await one.send(encode.acknowledgements(encode.PUBACK, (2,)))
    assert remote.ended == [3]
    await two.send(encode.acknowledgements(encode.PUBREC, (1,)))
    assert remote.ended == [3, 2]
    await two.send(encode.acknowledgements(encode.PUBCOMP, (1,)))
    assert remote.ended == [3, 2]


async def test_message_for_a_member_with_qos_0_ends_at_once(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one", qos=0)
    assert remote.receive(NAME, 7, message(b"7"))
    await turns()
    assert one.take() == published("a/b", b"7")
    assert remote.ended == [7]


async def test_message_that_no_member_may_receive_is_not_taken(site: MqttSite, remote: RemoteGroups) -> None:
    assert not remote.receive(NAME, 1, message(b"1"))
    one = await member(site, "one")
    assert not remote.receive(NAME, 2, message(b"2", channel="private-a.b"))
    session = one.connection._session
    assert session is not None
    assert not remote.receive(NAME, 3, message(b"3", exclude=session.client.id))
    await turns()
    assert one.take() == b""


async def test_event_that_mqtt_clients_do_not_get_ends(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one")
    assert remote.receive(NAME, 1, message(b"1", event="pusher:x"))
    await turns()
    assert one.take() == b""
    assert remote.ended == [1]


async def test_message_that_expired_at_another_worker_ends(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one")
    now = site.world.node.clock.wall()
    for number, expires in enumerate((now, now - 1_000_000_000, now + 1), 1):
        fields = MqttFields(1, expires=expires)
        remote.receive(NAME, number, MqttMessage(APP, "a.b", "e", b"%d" % number, number, 1, "1.1", mqtt=fields))
    await turns()
    assert one.take() == published("a/b", b"1", qos=1, packet_id=1) + published("a/b", b"3", qos=1, packet_id=2)
    assert remote.ended == [2]


async def test_messages_of_a_lost_member_are_passed_on(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one", version=MQTT_5, receive_maximum=1)
    for number in (1, 2, 3):
        remote.receive(NAME, number, message(b"%d" % number))
    await turns()
    one.lose()
    await turns()
    assert remote.calls[-1] == (0, False)
    assert (remote.passed, remote.ended) == ([1, 2, 3], [])


async def test_messages_of_a_lost_member_go_to_a_local_member_first(site: MqttSite, remote: RemoteGroups) -> None:
    one, two = await member(site, "one"), await member(site, "two")
    remote.receive(NAME, 1, message(b"1"))
    await turns()
    one.lose()
    await turns()
    assert two.take() == published("a/b", b"1", qos=1, packet_id=1)
    await two.send(encode.acknowledgements(encode.PUBACK, (1,)))
    assert (remote.passed, remote.ended) == ([], [1])


@pytest.mark.parametrize("others", [False, True])
async def test_messages_of_a_session_end_when_it_is_stored(site: MqttSite, remote: RemoteGroups, others: bool) -> None:
    remote.others = others
    one = await member(site, "one", version=MQTT_5, session_expiry=100, receive_maximum=1)
    for number in (1, 2):
        remote.receive(NAME, number, message(b"%d" % number))
    await turns()
    one.lose()
    await turns()
    assert (remote.passed, remote.ended) == (([1, 2], []) if others else ([], [1, 2]))


@pytest.mark.parametrize("expiry", [0, 100])
async def test_message_with_qos_2_ends_with_its_session(site: MqttSite, remote: RemoteGroups, expiry: int) -> None:
    one = await member(site, "one", qos=2, version=MQTT_5, session_expiry=expiry)
    remote.receive(NAME, 1, message(b"1", qos=2))
    remote.others = True
    await turns()
    one.lose()
    await turns()
    assert (remote.passed, remote.ended) == ([], [1])


async def test_messages_that_are_dropped_end() -> None:
    site = MqttSite(queue=2)
    remote: Any = RemoteGroups()
    site.clients.groups.remote = remote
    remote.receive = site.clients.groups._receive
    one = await member(site, "one", version=MQTT_5, receive_maximum=1)
    for number in range(1, 6):
        remote.receive(NAME, number, message(b"%d" % number))
    await turns()
    assert remote.ended == [2, 3]
    await one.unsubscribe(GROUP)
    assert remote.passed == [4, 5]


async def test_message_that_is_too_large_ends(site: MqttSite, remote: RemoteGroups) -> None:
    one = await member(site, "one", version=MQTT_5, maximum_packet_size=60)
    remote.receive(NAME, 1, message(b"1" * 100))
    await turns()
    assert one.take() == b""
    assert remote.ended == [1]


# Sessions that end


@pytest.mark.parametrize("is_refused", [False, True])
async def test_session_is_confirmed_when_the_broker_has_its_messages(
    site: MqttSite, remote: RemoteGroups, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """A member of this worker gets no message directly, because the message would end with the worker."""
    client = await member(site, "one")
    sessions, steps = site.world.node.sessions, list[Any]()
    assert sessions is not None

    async def give_back(_: Any, app: str, filter: str, messages: list[Message]) -> None:
        if is_refused:
            raise Refused(503, "away")
        await asyncio.sleep(0)
        steps.append((app, filter, [one.id for one in messages]))

    async def confirm(_: Any, due: list[DueSession]) -> None:
        steps.extend(one.client_id for one in due)

    monkeypatch.setattr(type(sessions.logs), "give_back", give_back)
    monkeypatch.setattr(type(sessions), "confirm", confirm)
    late = MqttMessage(APP, "a.b", "e", b"3", 3, 1, "1.1", mqtt=MqttFields(1, expires=1))
    returned = tuple(SavedMessage(storable(one), 1, group=NAME) for one in (message(b"1"), message(b"2"), late))
    await site.clients.end([DueSession(APP, "gone", Owner("anonymous"), None, True, returned=returned)])
    assert steps == ([] if is_refused else [(APP, NAME, [1, 2]), "gone"])
    assert client.take() == b""
