"""Nodes with MQTT clients within one process, and clients that compare each message with a model of their sessions.

A client fails at once if it receives a message without a subscription, a message twice, or messages in a wrong order.
"""

import asyncio
import math
import sys
from collections import deque
from itertools import count
from typing import Any

from push1st.config.model import PROTOCOLS, Config, ServerConfig
from push1st.config.mqtt import Mqtt
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    ConnectPacket,
    FilterOptions,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    SubscribePacket,
    UnsubscribePacket,
)
from push1st.transports.context import EdgeContext
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.sweep import Sweep
from tests.cluster.places import Place
from tests.support import mqtt_packets as packets
from tests.support.node import APP
from tests.support.transport import Transport

SETTINGS = Mqtt(app=APP, anonymous_push=Mqtt().push, publishes=0)
FAILURE = 0x80
"""the lowest reason code that stands for a failure"""


class MqttPlace(Place):
    """A node with its broker, which serves MQTT clients."""

    async def open(self) -> "MqttPlace":
        await super().open()
        config = Config(server=ServerConfig(mqtt=SETTINGS, proto=frozenset(PROTOCOLS)), apps=(self.config,))
        self.sweep = Sweep(self.node.clock.monotonic, lambda: self.failed("sweep"), self._each_second)
        self.mqtt = MqttClients(EdgeContext(self.node, config, {}, self.sweep, self.failed))
        self.sweep.start()
        return self

    def _each_second(self) -> None:
        spawn(self.node.tick())
        spawn(self.mqtt.tick())

    def failed(self, where: str) -> None:
        if not self.dead:
            self.failures.append(f"{where}: {sys.exception()!r}")

    def cut(self) -> None:
        """Ends the connections to the broker, and lets no other connection begin until `heal`."""

        async def refuse() -> Any:
            raise OSError("the network is cut")

        for one in self.shards:
            one.connection._connect = refuse  # type: ignore[method-assign]
        self.drop()

    def heal(self) -> None:
        for one in self.shards:
            one.connection.__dict__.pop("_connect", None)
            one.connection.retry()

    def crash(self) -> None:
        """Ends the node without deregistering it. All its waiting calls fail, because a crashed process has no tasks."""

        async def refuse() -> Any:
            raise Refused(503, "the node has crashed")

        super().crash()
        self.sweep.stop()
        for one in self.shards:
            one.connection.usable = refuse  # type: ignore[method-assign]
            one.tick(math.inf)

    async def close(self) -> None:
        self.sweep.stop()
        await self.mqtt.close()
        await super().close()


class Published:
    """A message of a client or of the API.

    publisher: the connection or the node; the messages of a publisher to a topic arrive in their order.
    sent: the time (`Clock`) of the publish.
    done: the time of its confirmation, or the time from which on it cannot be confirmed any more; None before.
    is_empty: whether the message removes the retained message.
    is_replaced: whether another message is retained instead of this one.
    """

    def __init__(self, number: int, topic: str, qos: int, retain: bool, publisher: object, sent: int, is_empty: bool) -> None:
        self.number = number
        self.is_empty = is_empty
        self.topic = topic
        self.qos = qos
        self.retain = retain
        self.publisher = publisher
        self.sent = sent
        self.done: int | None = None
        self.confirmed = self.is_replaced = False
        self.obliges: list[tuple[ModelSession, int, Subscription]] = []
        """the sessions that must receive the message, their number of voids, and the subscription that matches"""


class Subscription:
    """active: whether the client has a SUBACK, and has not unsubscribed. ended: the time of UNSUBACK."""

    def __init__(self, filter: str) -> None:
        self.filter = filter
        self.qos = 0
        self.active = False
        self.ended: int | None = None


class ModelSession:
    """The session of a client.

    expects: whether the server must have the session at the next CONNECT.
    is_void: whether the model expects no messages, because the session ends or may have ended.
    is_ambiguous: whether the server may have another session, because a CONNECT failed that would have ended this session.
    """

    def __init__(self) -> None:
        self.lasting = False
        self.expects: bool | None = False
        self.is_void = self.is_ambiguous = False
        self.voids = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.past: list[Subscription] = []
        self.due: dict[int, set[Subscription]] = {}
        """the messages that the client must receive, and the subscriptions because of which it must"""
        self.seen: dict[int, Link] = {}
        self.acknowledged: set[int] = set()
        self.stored: set[int] = set()
        """the messages that do not arrive again even after a crash"""
        self.unreleased: set[int] = set()
        self.last: dict[tuple[object, str, int], int] = {}

    def void(self) -> None:
        self.is_void = True
        self.voids += 1
        self.due.clear()

    def forget(self, subscription: Subscription) -> None:
        """The client need not receive messages of a subscription any more."""
        for number in list(self.due):
            self.due[number].discard(subscription)
            if not self.due[number]:
                del self.due[number]


def matches(filter: str, topic: str) -> bool:
    levels, wanted = topic.split("/"), filter.split("/")
    if wanted[-1] == "#":
        return wanted[:-1] == levels[: len(wanted) - 1]
    return len(levels) == len(wanted) and all(one in ("+", level) for one, level in zip(wanted, levels, strict=True))


class Pipe(Transport):
    """The server's end of a connection in memory."""

    def __init__(self, link: "Link") -> None:
        super().__init__(("192.0.2.1", 40_000))
        self.link = link

    def write(self, data: Any) -> None:
        if not self.is_closing() and not self.link.place.dead:
            self.link.arrive(bytes(data))

    def close(self) -> None:
        if not self.is_closing():
            asyncio.get_running_loop().call_soon(self.link.closed_by_server)
        super().close()

    def abort(self) -> None:
        self.close()

    def write_eof(self) -> None:
        self.close()


class Link:
    """A connection of a device, in memory."""

    def __init__(self, device: "Device", place: MqttPlace, clean: bool, expiry: int) -> None:
        self.device = device
        self.place = place
        self.clean = clean
        self.expiry = expiry
        self.is_connected = self.is_over = False
        self.unconfirmed: dict[int, Published] = {}
        self.releasing: set[int] = set()
        self.subscribing: dict[int, list[tuple[Subscription, int]]] = {}
        self.unsubscribing: dict[int, Subscription] = {}
        self.unacknowledged: deque[tuple[int, int, int | None]] = deque()
        """the packet ids of received messages, their QoS and their numbers"""
        self.ids = device.ids
        self.end: int | None = None
        """the reason code of the server's DISCONNECT"""
        self._input = bytearray()
        self._is_scheduled = False
        self.pipe = Pipe(self)
        self.connection = MqttConnection(place.mqtt)
        self.pipe.protocol = self.connection
        self.connection.connection_made(self.pipe)
        self.send(packets.connect(ConnectPacket(MQTT_5, device.name, clean=clean, session_expiry=expiry)))

    def send(self, data: bytes) -> bool:
        """Sends bytes; returns whether the server reads them."""
        if self.is_over or self.pipe.is_closing() or self.place.dead:
            return False
        self.connection.data_received(data)
        return True

    def arrive(self, data: bytes) -> None:
        self._input += data
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._read)

    def _read(self) -> None:
        self._is_scheduled = False
        try:
            while len(self._input) > 1:
                at, size = 1, self._input[1] & 0x7F
                while self._input[at] & 0x80:
                    size |= (self._input[at + 1] & 0x7F) << 7 * at
                    at += 1
                packet = bytes(self._input[at + 1 : at + 1 + size])
                first = self._input[0]
                del self._input[: at + 1 + size]
                if self.device.link is self:
                    self.device.receive(self, first, packet)
        except Exception:
            self.place.failed(self.device.name)

    def closed_by_server(self) -> None:
        self._read()
        self.lose()
        if self.device.link is self:
            self.device.lost()

    def lose(self) -> None:
        """Ends the connection without DISCONNECT."""
        if not self.is_over:
            self.is_over = True
            if not self.place.dead:
                self.connection.connection_lost(None)


class Clock:
    """Orders the events of the model."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.is_state_lost = False
        """whether the broker has lost its state since the last comparison"""
        self.is_faulty = False
        """whether anything has failed since the last comparison"""
        self.settled = 0
        """the time of the last comparison"""
        self.published: dict[int, Published] = {}
        self.cut: set[object] = set()
        """the nodes that have lost their connection since the last comparison"""

    def now(self) -> int:
        return next(self._numbers)


class Device:
    """An MQTT client with a client id, and the model of its session. holds: whether the client acknowledges no messages."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.session = ModelSession()
        self.link: Link | None = None
        self.holds = False
        self.ids = count(1)
        """the packet ids, which no later connection uses again: the server may still wait for PUBREL"""
        self.retained: dict[str, bytes] = {}
        """the retained messages that the client has received since its last connection"""

    @property
    def is_connected(self) -> bool:
        return self.link is not None and self.link.is_connected

    @property
    def may_publish(self) -> bool:
        """Whether the client is connected, and has fewer unconfirmed messages than the Receive Maximum of the server."""
        link = self.link
        return link is not None and link.is_connected and len(link.unconfirmed) + len(link.releasing) < SETTINGS.inflight

    # Commands

    def connect(self, place: MqttPlace, clean: bool, expiry: int) -> None:
        """Connects; an earlier connection is not closed by the client, which reads it no more."""
        if self.link is not None:
            self.lost()
        session = self.session
        if clean or not session.lasting:
            session.void()
        self.retained = {}
        self.link = Link(self, place, clean, expiry)

    def lose(self) -> None:
        """Ends the connection without DISCONNECT."""
        if self.link is not None:
            self.link.lose()
            self.lost()

    def lost(self) -> None:
        """Handles the end of the connection."""
        link, session, self.link = self.link, self.session, None
        assert link is not None
        if not link.is_connected:
            if link.clean or not link.expiry or not session.lasting:
                session.expects, session.is_ambiguous = None, True
                session.void()
        elif not session.lasting:
            session.expects = None if link.place in self.clock.cut else False
            session.is_ambiguous |= link.place in self.clock.cut
            session.void()
        else:
            session.expects = True
        if self.clock.is_state_lost:
            session.expects = None
            session.void()

    def subscribe(self, filter: str, qos: int) -> None:
        link = self._connected()
        one = self.session.subscriptions.setdefault(filter, Subscription(filter))
        if not qos:
            one.qos = 0
            self.session.forget(one)
        packet_id = next(link.ids)
        link.subscribing[packet_id] = [(one, qos)]
        link.send(packets.subscribe(SubscribePacket(packet_id, (FilterOptions(filter, qos),)), MQTT_5))

    def unsubscribe(self, filter: str) -> None:
        link = self._connected()
        if (one := self.session.subscriptions.get(filter)) is None:
            return
        one.active = False
        self.session.forget(one)
        packet_id = next(link.ids)
        link.unsubscribing[packet_id] = one
        link.send(packets.unsubscribe(UnsubscribePacket(packet_id, (filter,)), MQTT_5))

    def publish(self, message: Published, payload: bytes) -> None:
        link = self._connected()
        packet_id = next(link.ids) if message.qos else 0
        if message.qos:
            link.unconfirmed[packet_id] = message
        packet = PublishPacket(message.topic, payload, message.qos, message.retain, packet_id=packet_id)
        link.send(packets.message(packet, MQTT_5))

    def acknowledge(self, most: int) -> None:
        """Acknowledges the oldest messages."""
        link = self._connected()
        while link.unacknowledged and most:
            most -= 1
            packet_id, qos, number = link.unacknowledged.popleft()
            kind = PubackPacket if qos == 1 else PubrecPacket
            if link.send(packets.acknowledgement(kind((packet_id,)))):
                if number is not None:
                    self.session.acknowledged.add(number)
                    self.session.due.pop(number, None)
                if qos == 2:
                    self.session.unreleased.add(packet_id)

    def _connected(self) -> Link:
        assert self.link is not None
        assert self.link.is_connected
        return self.link

    # Packets

    def receive(self, link: Link, first: int, body: bytes) -> None:
        packet_id = int.from_bytes(body[:2], "big")  # of most packets
        match first >> 4:
            case 2:  # CONNACK
                self._accepted(link, bool(body[0]), body[1])
            case 3:  # PUBLISH
                self._message(link, first, body)
            case 4 | 5:  # PUBACK, PUBREC
                message = link.unconfirmed.pop(packet_id)
                assert len(body) < 3 or body[2] < FAILURE or self.clock.is_faulty, f"{self.name}: publish failed: {body.hex()}"
                if len(body) < 3 or body[2] < FAILURE:
                    confirm(message, self.clock)
                    if first >> 4 == 5:
                        link.releasing.add(packet_id)
                        link.send(packets.acknowledgement(PubrelPacket((packet_id,))))
            case 6:  # PUBREL
                self.session.unreleased.discard(packet_id)
                link.send(packets.acknowledgement(PubcompPacket((packet_id,))))
            case 7:  # PUBCOMP
                link.releasing.discard(packet_id)
            case 9:  # SUBACK
                for (one, qos), code in zip(link.subscribing.pop(packet_id), body[-1:], strict=True):
                    one.active = code < FAILURE
                    one.qos = qos
                    assert code == qos or (code >= FAILURE and self.clock.is_faulty), f"{self.name}: SUBACK {code:x}"
            case 11:  # UNSUBACK
                one = link.unsubscribing.pop(packet_id)
                if body[-1] < FAILURE and self.session.subscriptions.get(one.filter) is one:
                    one.ended = self.clock.now()
                    self.session.past.append(self.session.subscriptions.pop(one.filter))
            case _:  # DISCONNECT
                assert first >> 4 == 14
                link.end = body[0] if body else 0
                assert self.clock.is_faulty, f"{self.name}: DISCONNECT {link.end:x}"

    def _accepted(self, link: Link, is_present: bool, reason: int) -> None:
        if reason >= FAILURE:
            link.end = reason
            assert self.clock.is_faulty, f"{self.name}: CONNACK {reason:x}"
            return
        link.is_connected = True
        session = self.session
        expected = False if link.clean else session.expects
        assert expected in (None, is_present), f"{self.name}: the session is {'' if is_present else 'not '}present"
        if not is_present:
            self.session = session = ModelSession()
        session.lasting = link.expiry > 0
        is_cut = link.place in self.clock.cut and not session.lasting
        session.is_void = session.is_ambiguous or self.clock.is_state_lost or is_cut

    def _message(self, link: Link, first: int, body: bytes) -> None:
        qos, retain = first >> 1 & 3, bool(first & 1)
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        packet_id = 0
        if qos:
            packet_id = int.from_bytes(body[end : end + 2], "big")
            end += 2
        payload = body[end + 1 + body[end] :]
        session, clock = self.session, self.clock
        if retain:
            self.retained[topic] = payload
        number = int(payload) if payload else None
        if number is not None and not (qos == 2 and packet_id in session.unreleased):
            self._check(link, clock.published[number], topic, qos, retain)
            session.seen[number] = link
        if qos:
            link.unacknowledged.append((packet_id, qos, number))
            if not self.holds:
                self.acknowledge(1)

    def _check(self, link: Link, message: Published, topic: str, qos: int, retain: bool) -> None:
        session, clock, number = self.session, self.clock, message.number
        what = f"{self.name}: message {number} to {topic}"
        assert message.topic == topic, what
        subscriptions = [*session.subscriptions.values(), *session.past]
        ended = [one.ended for one in subscriptions if matches(one.filter, topic)]
        assert ended or session.is_ambiguous, f"{what} has no subscription"
        if retain:
            assert message.retain, f"{what} is retained"
            return
        is_late = all(end is not None and end < message.sent for end in ended)
        assert not is_late or session.is_ambiguous, f"{what} comes after UNSUBACK"
        if number in session.seen:
            is_repeated = session.seen[number] is not link and number not in session.acknowledged and qos > 0
            assert is_repeated or (clock.is_faulty and number not in session.stored), f"{what} comes twice"
            return
        if not clock.is_faulty:
            assert message.done is None or message.done > clock.settled, f"{what} is late"
        key = message.publisher, topic, qos
        assert session.last.get(key, 0) < number, f"{what} comes after {session.last[key]}"
        session.last[key] = number


def confirm(message: Published, clock: Clock) -> None:
    """Handles the confirmation of a publish: from now on, its message must reach the sessions that it obliges."""
    message.done, message.confirmed = clock.now(), True
    for session, voids, one in message.obliges:
        if session.voids == voids and one.active and one.qos and message.number not in session.acknowledged:
            session.due.setdefault(message.number, set()).add(one)


def oblige(message: Published, devices: list[Device], clock: Clock) -> None:
    """Stores the sessions that must receive a message if its publish is confirmed."""
    if not message.qos or clock.is_state_lost:
        return
    for device in devices:
        session, link = device.session, device.link
        if session.is_void or (not session.lasting and (link is None or not link.is_connected)):
            continue
        for one in session.subscriptions.values():
            if one.active and one.qos and matches(one.filter, message.topic):
                message.obliges.append((session, session.voids, one))
