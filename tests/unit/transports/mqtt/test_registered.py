"""Filters with wildcards on a worker with a shared broker: their registration, and the copies of messages."""

import asyncio
from typing import Any

import pytest

from push1st.brokers import ALL_CHANNELS, PUBLIC_CHANNELS
from push1st.errors import LimitReached, Refused
from push1st.messages import Message
from push1st.protocols.mqtt.packets import MQTT_5, FilterOptions
from push1st.transports.mqtt.lasting import LastingSession
from tests.support.loop import turns
from tests.support.mqtt_site import MqttSite, published
from tests.support.node import APP


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def suback_5(*codes: int) -> bytes:
    return bytes((0x90, 3 + len(codes), 0, 1, 0, *codes))


class RegisteredFilters:
    """The filters that a worker registers, and the calls of `set`. confirmation: a future that `confirmed` waits for."""

    cost = 0

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.confirmation: asyncio.Future[None] | None = None
        self.room: LimitReached | None = None

    def check_room(self, _: str, __: str, is_anonymous: bool) -> None:
        if self.room is not None:
            raise self.room

    def set(self, _: str, name: str, value: int) -> None:
        self.calls.append((name, value))

    async def confirmed(self, _: str, __: str) -> None:
        if self.confirmation is not None:
            await self.confirmation


@pytest.fixture
def registered(site: MqttSite) -> Any:
    """The filters of a site with a shared broker."""
    filters = RegisteredFilters()
    site.world.node.wildcards.open(filters)  # type: ignore[arg-type]
    return filters


async def test_suback_follows_the_confirmation_of_the_filter(site: MqttSite, registered: Any) -> None:
    registered.confirmation = asyncio.get_running_loop().create_future()
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a/+") == b""
    registered.confirmation.set_result(None)
    await turns()
    assert client.take() == suback_5(0)


async def test_a_filter_that_the_broker_does_not_confirm_is_refused(site: MqttSite, registered: Any) -> None:
    registered.confirmation = asyncio.get_running_loop().create_future()
    registered.confirmation.set_exception(Refused(503, "the broker is away, try again"))
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a/+") == suback_5(0x80)
    assert registered.calls == [("a.+", PUBLIC_CHANNELS), ("a.+", 0)]
    assert await client.publish("a/b") == b""
    assert site.world.app.filters is None


async def test_a_filter_is_registered_while_it_has_subscribers(site: MqttSite, registered: Any) -> None:
    one, two = await site.connected(client_id="one"), await site.connected(client_id="two")
    await one.subscribe("a/+", "b/#")
    await two.subscribe("a/+")
    await one.unsubscribe("a/+")
    assert ("a.+", 0) not in registered.calls
    await two.unsubscribe("a/+")
    assert registered.calls[-1] == ("a.+", 0)
    one.lose()
    await turns()
    assert registered.calls[-1] == ("b.#", 0)


async def test_a_filter_is_registered_with_the_rights_of_its_subscribers(site: MqttSite, registered: Any) -> None:
    anonymous = await site.connected(client_id="anonymous")
    holder = await site.connected(client_id="holder", username="x", password=site.token("private-*"))
    await anonymous.subscribe("a/+")
    await holder.subscribe("a/+")
    await holder.unsubscribe("a/+")
    await anonymous.unsubscribe("a/+")
    assert registered.calls == [("a.+", value) for value in (PUBLIC_CHANNELS, ALL_CHANNELS, PUBLIC_CHANNELS, 0)]


async def test_a_connection_that_ends_before_the_confirmation_leaves_no_filter(site: MqttSite, registered: Any) -> None:
    registered.confirmation = asyncio.get_running_loop().create_future()
    client = await site.connected()
    await client.subscribe("a/+")
    client.lose()
    await turns()
    registered.confirmation.set_result(None)
    await turns()
    assert registered.calls == [("a.+", PUBLIC_CHANNELS), ("a.+", 0)]
    assert site.world.app.filters is None


async def test_a_filter_is_refused_if_the_app_has_too_many_on_all_workers(site: MqttSite, registered: Any) -> None:
    registered.room = LimitReached(403, "the app has too many filters with wildcards")
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a/+") == suback_5(0x97)
    assert registered.calls == []


async def test_a_refused_filter_needs_no_log(site: MqttSite, registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[str] = []

    async def watch(_: LastingSession, filter: str) -> None:
        watched.append(filter)

    monkeypatch.setattr(LastingSession, "watch", watch)
    registered.room = LimitReached(403, "the app has too many filters with wildcards")
    client = await site.connected(clean=False)
    for filter in ("a/+", "private-a"):
        assert await client.subscribe(FilterOptions(filter, 1)) == b"\x90\x03\0\x01\x80"
    assert watched == []
    registered.room = None
    await client.subscribe(FilterOptions("a/+", 1))
    assert watched == ["a.+"]


async def test_copies_of_a_message_reach_a_client_once(site: MqttSite, registered: Any) -> None:
    node = site.world.node
    wild, exact = await site.connected(client_id="wild"), await site.connected(client_id="exact")
    await wild.subscribe("a/+")
    await exact.subscribe("a/b")
    both = Message(APP, "a.b", "e", b'"x"', 1, 1)
    for deliver in (node.receive, node.wildcards.receive, node.wildcards.receive):
        deliver(both)
    await turns()
    assert (wild.take(), exact.take()) == (published("a/b", b"x"), published("a/b", b"x"))
    for deliver in (node.wildcards.receive, node.receive):
        deliver(Message(APP, "a.b", "e", b'"y"', 2, 1))
    await turns()
    assert (wild.take(), exact.take()) == (published("a/b", b"y"), published("a/b", b"y"))
    node.wildcards.receive(Message(APP, "a.c", "e", b'"z"', 2, 1))
    node.wildcards.receive(Message(APP, "b", "e", b'"z"', 3, 1))
    node.wildcards.receive(Message("unknown", "a.c", "e", b'"z"', 4, 1))
    await turns()
    assert (wild.take(), exact.take()) == (published("a/c", b"z"), b"")


async def test_searches_for_filters_of_all_workers_are_charged_to_the_publisher(registered: Any) -> None:
    site = MqttSite(publishes=100)
    client = await site.connected()
    site.world.node.filters = registered
    published = site.world.node.publish

    def publish(*args: Any, **more: Any) -> Any:
        registered.cost += 5000
        return published(*args, **more)

    site.world.node.publish = publish  # type: ignore[method-assign]
    sent = 0
    while not client.is_held():
        await client.publish(str(sent))
        sent += 1
    assert sent < 5, "each message counts as 51"
