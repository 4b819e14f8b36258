"""MQTT devices in one thread: they reconnect after each loss, publish numbered messages, and record what arrives.

A device keeps the state that MQTT requires of a client: it sends its unacknowledged messages again on the next connection, and
delivers a message with QoS 2 once for each packet id. `mqtt_counts` compares the records of all devices.

The payload of a message is `NAME:NUMBER`: the client id of its publisher, and a number that grows by one with each message.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from push1st.protocols.mqtt.packets import (
    MQTT_5,
    ConnectPacket,
    DisconnectPacket,
    FilterOptions,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    SubscribePacket,
    Will,
)
from tests.support import mqtt_packets as packets
from tests.support.process import DEADLINE, wait_until

WINDOW = 20
"""the maximum number of unacknowledged messages of a device"""
PATIENCE_SECONDS = 6.0
"""a device gives up a connection on which the server does not answer for this time"""
RETRY_SECONDS = 0.05
T = TypeVar("T")


class Sent:
    """A message of a publisher. began, acknowledged: times; attempts: the number of connections on which it was sent.

    Only PUBACK and PUBREC acknowledge a message. reason: the reason code, if it rejects the message; otherwise 0.
    """

    __slots__ = ("acknowledged", "attempts", "began", "number", "packet_id", "publisher", "qos", "reason", "released", "topic")

    def __init__(self, publisher: str, number: int, topic: str, qos: int) -> None:
        self.publisher = publisher
        self.number = number
        self.topic = topic
        self.qos = qos
        self.began = 0.0
        self.acknowledged: float | None = None
        self.released = False
        self.attempts = 0
        self.reason = 0
        self.packet_id = 0


class Arrival(NamedTuple):
    """A message that a device has received. connection: the number of the device's connection."""

    at: float
    publisher: str
    number: int
    topic: str
    qos: int
    retain: bool
    connection: int


class Connected(NamedTuple):
    """An accepted connection of a device."""

    at: float
    port: int
    is_present: bool


class Ended(NamedTuple):
    """The end of an accepted connection. reason: the reason code of the server's DISCONNECT; None without one."""

    at: float
    reason: int | None


class Link(asyncio.Protocol):
    """A connection of a device."""

    def __init__(self, device: "Device", port: int) -> None:
        self.device = device
        self.port = port
        self.reason: int | None = None
        self.is_accepted = False
        self.heard = time.monotonic()
        self.ended = asyncio.get_running_loop().create_future()
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.device.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.device.lost(self)
        self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        data = self._data + data
        at, answers = 0, []
        while (found := _next(data, at)) is not None:
            first, start, end = found
            answer = self.device.receive(self, first, data[start:end])
            if answer:
                answers.append(answer)
            at = end
        self._data = data[at:]
        if answers:
            self.transport.write(b"".join(answers))


def _next(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Returns the first byte of the packet at a place, and the start and the end of its body; None if it is incomplete."""
    size, shift, place = 0, 0, at + 1
    while True:
        if place >= len(data):
            return None
        byte = data[place]
        place += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return (data[at], place, place + size) if place + size <= len(data) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a variable byte integer, and the place after it."""
    value, shift = 0, 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


class Device:
    """A client. All its methods run in the thread of its `Fleet`; a test reads its records from its own thread.

    ports: the device connects to the next of them after each loss; first: the index of the first one. filters: filter → QoS.
    expiry: the seconds for which the session outlives a connection; 0: each connection begins a new session. reconnects: whether
    the device connects again after a loss. password: an access token.
    """

    def __init__(
        self,
        ports: Sequence[int],
        client_id: str,
        filters: Mapping[str, int] | None = None,
        *,
        expiry: int = 3600,
        version: int = MQTT_5,
        will: Will | None = None,
        reconnects: bool = True,
        first: int = 0,
        password: str | None = None,
    ) -> None:
        self.client_id = client_id
        self.filters = dict(filters or {})
        self.expiry = expiry
        self.version = version
        self.will = will
        self.password = None if password is None else password.encode()
        self.reconnects = reconnects
        self.may_connect = True
        self.arrivals: list[Arrival] = []
        self.connections: list[Connected] = []
        self.ends: list[Ended] = []
        self.rejections: list[int] = []
        """the reason codes of all CONNACK packets that reject the connection"""
        self.granted: list[int] = []
        """the reason codes of the last SUBACK"""
        self.is_ready = False
        """whether the device is connected, and its filters are subscribed"""
        self.ready_at: float | None = None
        """the first time at which the device was ready"""
        self.sent: list[Sent] = []
        self._ports = list(ports)
        self._turns = itertools.count(first)
        self._link: Link | None = None
        self._unacknowledged: dict[int, Sent] = {}
        self._backlog: deque[Sent] = deque()
        self._held: set[int] = set()
        self._packet_ids = itertools.cycle(range(1, 65_536))
        self._subscribing = 0
        self._is_subscribed = False
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None

    # The connection

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._over:
            if not self.may_connect:
                await asyncio.sleep(0.02)
                continue
            port = self._ports[next(self._turns) % len(self._ports)]
            try:
                _, link = await loop.create_connection(lambda port=port: Link(self, port), "127.0.0.1", port)  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            while not link.ended.done():
                await asyncio.wait([link.ended], timeout=0.5)
                if self._waits() and time.monotonic() - link.heard > PATIENCE_SECONDS:
                    link.transport.abort()
            if not self.reconnects:
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _waits(self) -> bool:
        """Returns whether the server owes an answer."""
        return not self.is_ready or bool(self._unacknowledged)

    def opened(self, link: Link) -> None:
        self._link = link
        expiry = self.expiry if self.version == MQTT_5 and self.expiry else None
        connect = ConnectPacket(
            self.version,
            self.client_id,
            clean=not self.expiry,
            username="app-key",
            password=self.password,
            session_expiry=expiry,
            will=self.will,
        )
        link.transport.write(packets.connect(connect))

    def lost(self, link: Link) -> None:
        if link.is_accepted:
            self.ends.append(Ended(time.monotonic(), link.reason))
        if self._link is link:
            self._link, self.is_ready = None, False

    def lose(self) -> None:
        """Ends the connection without DISCONNECT."""
        if self._link is not None:
            self._link.transport.abort()

    def leave(self) -> None:
        """Ends the connection with DISCONNECT, and stays away until `may_connect` is set."""
        self.may_connect = False
        if self._link is not None:
            self._link.transport.write(packets.disconnect(DisconnectPacket(), self.version))
            self._link.transport.close()

    @property
    def is_over(self) -> bool:
        """Whether the connection of a device that does not reconnect has ended."""
        return self._task is not None and self._task.done()

    async def stop(self) -> None:
        self._over = True
        self.leave()
        for task in (self._publishing, self._task):
            if task is not None:
                task.cancel()
        await asyncio.gather(*[task for task in (self._publishing, self._task) if task], return_exceptions=True)

    # Packets of the server

    def receive(self, link: Link, first: int, body: bytes) -> bytes:
        """Handles a packet; returns the answer."""
        if link is not self._link:
            return b""
        match first >> 4:
            case 2:
                return self._connack(link, body)
            case 3:
                return self._publish(first, body)
            case 4:
                self._acknowledged(body)
            case 5:
                return self._pubrec(body)
            case 6:
                packet_id = int.from_bytes(body[:2], "big")
                self._held.discard(packet_id)
                return packets.acknowledgement(PubcompPacket((packet_id,)))
            case 7:
                self._unacknowledged.pop(int.from_bytes(body[:2], "big"), None)
                self._fill()
            case 9:
                assert int.from_bytes(body[:2], "big") == self._subscribing
                start = 2 if self.version != MQTT_5 else sum(reversed(_varint(body, 2)))
                self.granted, self._is_subscribed = list(body[start:]), True
                self._ready()
            case 14:
                link.reason = body[0] if body else 0
        return b""

    def _connack(self, link: Link, body: bytes) -> bytes:
        if body[1]:
            self.rejections.append(body[1])
            return b""
        link.is_accepted = True
        is_present = bool(body[0] & 1)
        self.connections.append(Connected(time.monotonic(), link.port, is_present))
        link.transport.write(self._resent(is_present))  # before the messages of `_ready`
        self._is_subscribed &= is_present
        if self.filters and not self._is_subscribed:
            self._subscribing = next(self._packet_ids)
            filters = tuple(FilterOptions(one, qos) for one, qos in self.filters.items())
            return packets.subscribe(SubscribePacket(self._subscribing, filters), self.version)
        self._ready()
        return b""

    def _ready(self) -> None:
        self.is_ready = True
        self.ready_at = self.ready_at or time.monotonic()
        self._fill()

    def _resent(self, is_present: bool) -> bytes:
        """Returns the packets that the device sends first: its unacknowledged messages (MQTT 5.0, section 4.4)."""
        if not is_present:
            self._held.clear()
            lost = [sent for sent in self._unacknowledged.values() if not sent.released]
            self._unacknowledged.clear()
            self._backlog.extendleft(reversed(lost))
            return b""
        found = []
        for packet_id, sent in self._unacknowledged.items():
            if sent.released:
                found.append(packets.acknowledgement(PubrelPacket((packet_id,))))
            else:
                sent.attempts += 1
                found.append(self._encoded(sent, dup=True))
        return b"".join(found)

    def _publish(self, first: int, body: bytes) -> bytes:
        qos, at = first >> 1 & 3, 2 + int.from_bytes(body[:2], "big")
        topic, packet_id = body[2:at].decode(), 0
        if qos:
            packet_id = int.from_bytes(body[at : at + 2], "big")
            at += 2
        if self.version == MQTT_5:
            at = sum(reversed(_varint(body, at)))
        if qos < 2 or packet_id not in self._held:
            name, _, number = body[at:].decode().partition(":")
            arrival = Arrival(time.monotonic(), name, int(number or 0), topic, qos, bool(first & 1), len(self.connections))
            self.arrivals.append(arrival)
        if qos == 2:
            self._held.add(packet_id)
        if not qos:
            return b""
        return packets.acknowledgement(PubackPacket((packet_id,)) if qos == 1 else PubrecPacket((packet_id,)))

    def _acknowledged(self, body: bytes) -> None:
        sent = self._unacknowledged.pop(int.from_bytes(body[:2], "big"), None)
        if sent is not None:
            self._settle(sent, body)
        self._fill()

    def _pubrec(self, body: bytes) -> bytes:
        packet_id = int.from_bytes(body[:2], "big")
        sent = self._unacknowledged.get(packet_id)
        if sent is not None and not sent.released:
            self._settle(sent, body)
            if sent.reason:
                del self._unacknowledged[packet_id]
                self._fill()
                return b""
            sent.released = True
        return packets.acknowledgement(PubrelPacket((packet_id,)))

    @staticmethod
    def _settle(sent: Sent, body: bytes) -> None:
        reason = body[2] if len(body) > 2 else 0
        if reason >= 0x80:
            sent.reason = reason
        else:
            sent.acknowledged = time.monotonic()

    # Publishing

    def publish(self, topic: str, qos: int = 1) -> Sent:
        """Publishes one message, as soon as the device is connected and fewer than `WINDOW` messages are unacknowledged."""
        sent = Sent(self.client_id, len(self.sent) + 1, topic, qos)
        self.sent.append(sent)
        self._backlog.append(sent)
        self._fill()
        return sent

    def publish_often(self, topics: Sequence[str], per_second: float, qos: Sequence[int] = (1,)) -> None:
        """Publishes until `stop_publishing`, to each topic and with each QoS in turn."""
        self._publishing = asyncio.get_running_loop().create_task(self._publish_often(topics, per_second, qos))

    async def _publish_often(self, topics: Sequence[str], per_second: float, qos: Sequence[int]) -> None:
        due = time.monotonic()
        for topic, one in zip(itertools.cycle(topics), itertools.cycle(qos), strict=False):
            if len(self._backlog) < WINDOW:  # otherwise the server is slow or away
                self.publish(topic, one)
            due = max(due + 1 / per_second, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def stop_publishing(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether the server has answered all messages, or the device is over."""
        return self.is_over or (not self._backlog and not self._unacknowledged)

    def _fill(self) -> None:
        link = self._link
        if link is None or not self.is_ready:
            return
        found = []
        while self._backlog and len(self._unacknowledged) < WINDOW:
            sent = self._backlog.popleft()
            sent.began = sent.began or time.monotonic()
            sent.attempts += 1
            if sent.qos:
                sent.packet_id = next(one for one in self._packet_ids if one not in self._unacknowledged)
                self._unacknowledged[sent.packet_id] = sent
            found.append(self._encoded(sent))
        if found:
            link.transport.write(b"".join(found))

    def _encoded(self, sent: Sent, dup: bool = False) -> bytes:
        payload = f"{sent.publisher}:{sent.number}".encode()
        packet = PublishPacket(sent.topic, payload, sent.qos, dup=dup, packet_id=sent.packet_id)
        return packets.message(packet, self.version)


def _each(devices: Iterable[Device], action: Callable[[Device], object]) -> None:
    for device in devices:
        action(device)


class Fleet:
    """The devices of a test, and the thread that runs them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.failures.append(repr(context)))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.devices: list[Device] = []
        self.failures: list[str] = []

    def do(self, action: Callable[[], T]) -> T:
        """Runs a function in the thread of the devices."""

        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(DEADLINE)

    def device(self, *arguments: Any, **options: Any) -> Device:
        """Starts a device; see `Device`."""
        return self.start(Device(*arguments, **options))[0]

    def start(self, *devices: Device) -> Sequence[Device]:
        self.devices += devices
        self.do(lambda: _each(devices, Device.start))
        return devices

    def publish_often(self, publishers: Sequence[Device], topics: Sequence[str], per_second: float, qos: Sequence[int]) -> None:
        """Makes each publisher publish until `until_acknowledged`; see `Device.publish_often`."""
        self.do(lambda: _each(publishers, lambda one: one.publish_often(topics, per_second, qos)))

    def until_ready(self, devices: Iterable[Device] | None = None, deadline: float = DEADLINE) -> None:
        """Waits until devices are connected and subscribed; by default all devices."""
        wanted = self.devices if devices is None else list(devices)
        wait_until(lambda: all(one.is_ready for one in wanted), "all devices are connected", deadline)

    def until_acknowledged(self, deadline: float = 20) -> None:
        """Stops all publishers, and waits until the server has answered all messages."""
        self.do(lambda: _each(self.devices, Device.stop_publishing))
        wait_until(lambda: all(one.is_idle for one in self.devices), "all messages are answered", deadline)

    def close(self) -> None:
        async def stop() -> None:
            await asyncio.gather(*(one.stop() for one in self.devices))

        try:
            asyncio.run_coroutine_threadsafe(stop(), self._loop).result(6 * DEADLINE)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        assert self.failures == []


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    """Runs devices for the length of a `with` block."""
    one = Fleet()
    try:
        yield one
    finally:
        one.close()
