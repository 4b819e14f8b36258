"""MQTT clients that vanish at any step: nothing fails, nothing stays, and sessions lose no message."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from push1st.config.model import Authorize
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    ConnectPacket,
    FilterOptions,
    PublishPacket,
    SubscribePacket,
    UnsubscribePacket,
    Will,
)
from push1st.transports.mqtt import clients, retained
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite
from tests.support.node import app_config

STEPS = 300
RETAINED = 300
FILTERS = (
    "a",
    "a/b",
    "a/+",
    "+/b",
    "#",
    "private-a",
    "cache-a",
    "$share/g/a/+",
    "$share/g/a",
    "$share/h/#",
    "$user/ann",
    "a/c",
    "r/+",
    "r/1",
)
TOPICS = ("a", "a/b", "a/c", "private-a", "cache-a", "b/b", "r/1")
SAVED = "a/b"
"""the topic to which the clients with a session are subscribed with QoS 1 from the beginning"""


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Returns the first byte and the content of each packet."""
    found, at = [], 0
    while at < len(data):
        size, shift, end = 0, 0, at + 1
        while True:
            size |= (data[end] & 127) << shift
            shift += 7
            end += 1
            if data[end - 1] < 128:
                break
        found.append((data[at], data[end : end + size]))
        at = end + size
    return found


class Player:
    """A client id that connects and vanishes. missed: the payloads that the server has acknowledged and that must still come."""

    def __init__(self, site: MqttSite, number: int, rng: random.Random) -> None:
        self.site, self.rng = site, rng
        self.id = f"p{number}"
        self.version = rng.choice((MQTT_31, MQTT_311, MQTT_5))
        self.is_lasting = number < 3
        self.client: MqttClient | None = None
        self.missed: set[bytes] = set()
        self.is_subscribed = False
        self.is_forgetful = True
        self.is_accepted = False
        self.packet_id = 0
        self.published: dict[int, tuple[bytes, list[Player]]] = {}
        """packet id → the payload, and the clients that must receive it if the server acknowledges it"""
        self.seen: set[bytes] = set()
        self.qos = min(number, 2) or 1
        self.received: set[bytes] = set()
        """the packet ids with QoS 2 that the server has not released"""
        self.copies: Counter[bytes] = Counter()
        """the number of times that a message with QoS 2 was received"""

    def next_id(self) -> int:
        self.packet_id = self.packet_id % 60_000 + 1
        return self.packet_id

    def connect(self) -> None:
        rng = self.rng
        self.lose()
        fields: dict[str, Any] = {"clean": not self.is_lasting}
        if self.version == MQTT_5:
            fields["session_expiry"] = 1000 if self.is_lasting else 0
            fields["receive_maximum"] = rng.choice((1, 3, 65_535))
            if not self.is_lasting:
                fields["topic_alias_maximum"] = rng.choice((0, 2))
                fields["maximum_packet_size"] = rng.choice((None, 64))
        if rng.random() < 0.4:
            fields["will"] = Will(rng.choice(TOPICS[:3]), b"will", rng.choice((0, 1, 2)), rng.random() < 0.3, rng.choice((0, 5)))
        if self.id[1] in "024":
            fields |= {"username": "x", "password": self.site.token("*", sub=self.id)}
        self.client = self.site.client(self.version)
        self.is_accepted = False
        self.published = {}
        self.send(packets.connect(ConnectPacket(self.version, self.id, **fields)))
        if self.is_lasting and not self.is_subscribed:
            self.send(packets.subscribe(SubscribePacket(60_001, (FilterOptions(SAVED, self.qos),)), self.version))

    def send(self, data: bytes) -> None:
        assert self.client is not None
        if not self.client.is_closed():
            self.client.connection.data_received(data)

    def lose(self) -> None:
        if self.client is not None:
            client, self.client = self.client, None
            client.lose()

    def subscribe(self) -> None:
        rng = self.rng
        filters = tuple(self.options(one) for one in rng.sample(FILTERS, rng.randint(1, 3)))
        if self.is_lasting:
            filters = tuple(one for one in filters if one.filter != SAVED and one.filter[:1] != "$") or (FilterOptions("z"),)
        number = rng.choice((0, 7)) if self.version == MQTT_5 else 0
        self.send(packets.subscribe(SubscribePacket(self.next_id(), filters, number), self.version))

    def options(self, filter: str) -> FilterOptions:
        rng, new = self.rng, self.version == MQTT_5
        no_local = new and not filter.startswith("$share") and rng.random() < 0.2
        return FilterOptions(
            filter, rng.choice((0, 1, 2)), no_local, new and rng.random() < 0.3, rng.choice((0, 1, 2)) if new else 0
        )

    def unsubscribe(self) -> None:
        filters = [one for one in self.rng.sample(FILTERS, 2) if not (self.is_lasting and one == SAVED)] or ["y"]
        self.send(packets.unsubscribe(UnsubscribePacket(self.next_id(), tuple(filters)), self.version))

    def publish(self, payload: bytes, players: list["Player"]) -> None:
        rng = self.rng
        qos, topic = rng.choice((0, 1, 1, 2)), rng.choice(TOPICS)
        packet_id = self.next_id() if qos else 0
        retain = rng.random() < 0.3
        if rng.random() < 0.05 and retain:
            payload = b""
        elif qos and topic == SAVED:
            self.published[packet_id] = payload, [one for one in players if one.is_subscribed]
        self.send(packets.message(PublishPacket(topic, payload, qos, retain, packet_id), self.version))

    def read(self) -> None:
        """Reads and acknowledges packets."""
        if self.client is None:
            return
        answers = b""
        for first, content in split(self.client.take()):
            kind = first >> 4
            if kind == 2:
                self.is_accepted = content[1] == 0
                if self.is_lasting and self.is_subscribed and self.is_accepted and self.version != MQTT_31:
                    assert content[0] == 1, "the session is lost"
            elif kind == 3:
                answers += self.receive(first, content)
            elif kind in (4, 5):
                packet_id = int.from_bytes(content[:2], "big")
                payload, receivers = self.published.pop(packet_id, (b"", []))
                if len(content) < 3 or content[2] < 128:
                    for one in receivers:
                        one.due(payload)
                if kind == 5:
                    answers += b"\x62\x02" + content[:2]
            elif kind == 6:
                self.received.discard(content[:2])
                answers += b"\x70\x02" + content[:2]
            elif kind == 9 and content[:2] == (60_001).to_bytes(2, "big"):
                self.is_subscribed = True
        if answers and not (self.is_forgetful and self.rng.random() < 0.1):
            self.send(answers)

    def due(self, payload: bytes) -> None:
        if payload not in self.seen:
            self.missed.add(payload)

    def receive(self, first: int, content: bytes) -> bytes:
        qos = first >> 1 & 3
        size = int.from_bytes(content[:2], "big")
        at = 2 + size
        packet_id = content[at : at + 2]
        if qos:
            at += 2
        if self.version == MQTT_5:
            at += 1 + content[at]
        if qos == 2 and packet_id not in self.received:
            self.received.add(packet_id)
            self.copies[content[at:]] += not first & 1  # a new subscription may bring the retained message again
        self.seen.add(content[at:])
        self.missed.discard(content[at:])
        return b"" if not qos else (b"\x40\x02" if qos == 1 else b"\x50\x02") + packet_id


def expect_nothing_left(site: MqttSite) -> None:
    assert site.failures == []
    app = site.world.app
    assert not site.clients._connections
    assert not site.context.open
    assert not any(site.metrics.connections.values())
    assert dict(app.tenant.channels) == {}
    assert app.filters is None
    assert not app.tenant.sessions
    assert not site.world.sessions._apps
    assert not site.world.sessions.logs._watched
    assert not site.clients.wills._waiting


def answer_backend(site: MqttSite, decision: Decision) -> None:
    """Sends the answers of the app's backend that wait, and sets its further answers."""
    hooks = site.world.hooks
    hooks.decision = decision
    if hooks.waits is not None:
        hooks.waits.set_result(None)
        hooks.waits = None


async def step(site: MqttSite, player: Player, players: list[Player], what: float, payload: bytes, slow: bool) -> None:
    """Does one thing with a connected client, with the broker, or with the backend. what: a number from 0 to 1."""
    rng, broker, client = player.rng, site.world.broker, player.client
    assert client is not None
    if what < 0.15:
        player.subscribe()
    elif what < 0.2:
        player.unsubscribe()
    elif what < 0.6:
        player.publish(payload, players)
    elif what < 0.63:
        player.send(packets.message(PublishPacket("a/b", b"partial", 1, packet_id=9), player.version)[:5])
        player.lose()
    elif what < 0.7:
        player.lose()
    elif what < 0.73:
        player.connect()
    elif what < 0.76:
        player.send(b"\xe0\0")
    elif what < 0.78:
        client.connection.pause_writing()
    elif what < 0.79:
        client.transport.unsent = rng.choice((0, 0, 1 << 30))
    elif what < 0.8:
        site.pass_seconds(1)
    elif what < 0.81:
        answer_backend(site, Decision(rng.choice((None, Refused(403, "no"), Refused(503, "away")))))
    elif what < 0.82:
        answer_backend(site, Decision())
        site.world.hooks.waits = asyncio.get_running_loop().create_future()
    elif what < 0.85 and slow:
        broker.held = set(rng.sample(("publish", "join", "leave", "subscribe", "unsubscribe"), 2))
    elif what < 0.9 and slow:
        await broker.let_all()


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_nothing_fails_and_nothing_is_lost(seed: int, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "REPEAT_SECONDS", 0)
    monkeypatch.setattr(clients, "DELAY_SECONDS", 0)
    rng = random.Random(seed)  # noqa: S311 - a test
    decided = Authorize(url="http://127.0.0.1/", on=frozenset(("publish", "subscribe")), filter=("private-",))
    site = MqttSite(app_config(authorize=(decided,)), slow=slow, publishes=0, session_expiry=1000, inflight=5)
    owner = await site.connected(MQTT_5, "owner", username="x", password=site.token("*"))
    for number in range(RETAINED):
        await owner.publish(f"r/{number}", b"%0400d" % number, retain=True)
    owner.lose()
    players = [Player(site, number, rng) for number in range(6)]
    for number in range(STEPS):
        player = rng.choice(players)
        if player.client is None or player.client.is_closed():
            player.connect()
        else:
            await step(site, player, players, rng.random(), b"m%d." % number, slow)
        if rng.random() < 0.7:
            await turns(rng.randint(1, 4))
        if rng.random() < 0.6:
            player.read()
    if slow:
        await site.world.broker.let_all()
    answer_backend(site, Decision())
    await turns(20)
    for one in players:
        one.read()
    for one in players[:3]:
        one.connect()
        one.is_forgetful = False
        for _ in range(2000):
            await turns(3)
            one.read()
            if one.is_accepted and not one.missed:
                break
        assert one.is_accepted
        repeated = {payload: count for payload, count in one.copies.items() if payload[:1] == b"m" and count > 1}
        assert not repeated, (one.id, repeated)
        assert not one.missed, (one.id, sorted(one.missed))
    for one in players:
        one.lose()
    await turns(20)
    site.pass_seconds(1100)
    await turns(20)
    expect_nothing_left(site)
