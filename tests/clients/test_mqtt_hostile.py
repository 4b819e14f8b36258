"""Input that no MQTT client should send, as bytes over TCP: the server answers as documented, and serves other clients.

Each test ends with a check that the server answers. When the server stops, its log must have no trace of an exception.
"""

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from push1st.protocols.mqtt.decode import MAX_PACKET_FILTERS
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket, FilterOptions, SubscribePacket, UnsubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running, wait_until
from tests.support.signing import access_token

LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
MESSAGES = 2000
"""the number of messages while other clients change their filters, at 1,000 a second"""


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "publishes": 0, "push": ["public"]}
    app = merged(APP, {"limits": {"subscriptions": 0}})
    with running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}, apps={"app-test": app}) as process:
        yield process


@pytest.fixture(autouse=True)
def survives(server: ServerProcess) -> Iterator[None]:
    """Checks that the server answers after each test."""
    yield
    server.assert_alive()


# Malformed packets

MALFORMED = {
    # a fixed header that is not valid
    "type 0": ("00 00", "00 00", "82"),
    "AUTH": ("f0 00", "f0 00", "82"),
    "second CONNECT": ("10 0d 0004 4d515454 04 02 003c 0001 63", "10 0d 0004 4d515454 04 02 003c 0001 63", "82"),
    "CONNACK": ("20 02 0000", "20 02 0000", "82"),
    "SUBACK": ("90 03 0007 00", "90 03 0007 00", "82"),
    "UNSUBACK": ("b0 02 0007", "b0 02 0007", "82"),
    "PINGRESP": ("d0 00", "d0 00", "82"),
    "flags of PUBACK": ("41 02 0007", "41 02 0007", "81"),
    "flags of PUBREC": ("52 02 0007", "52 02 0007", "81"),
    "flags of PUBREL": ("60 02 0007", "60 02 0007", "82"),
    "flags of PUBCOMP": ("71 02 0007", "71 02 0007", "81"),
    "flags of SUBSCRIBE": ("80 06 0007 0001 61 00", "80 07 0007 00 0001 61 00", "81"),
    "flags of UNSUBSCRIBE": ("a0 05 0007 0001 61", "a0 06 0007 00 0001 61", "81"),
    "flags of PINGREQ": ("c1 00", "c1 00", "81"),
    "flags of DISCONNECT": ("e1 00", "e1 00", "82"),
    "QoS 3": ("36 05 0001 61 0007", "36 06 0001 61 0007 00", "81"),
    "DUP with QoS 0": ("38 03 0001 61", "38 04 0001 61 00", "81"),
    "length of five bytes": ("30 8080808001", "30 8080808001", ""),
    # a field that is missing or not valid
    "PUBLISH without a topic": ("30 00", "30 00", "81"),
    "PUBLISH without an alias": ("30 03 0000 6e", "30 04 0000 00 6e", "81"),
    "PUBLISH with +": ("30 05 0003 612f2b", "30 06 0003 612f2b 00", "81"),
    "PUBLISH with #": ("30 03 0001 23", "30 04 0001 23 00", "81"),
    "PUBLISH with U+0000": ("30 03 0001 00", "30 04 0001 00 00", "81"),
    "PUBLISH with a surrogate": ("30 05 0003 eda080", "30 06 0003 eda080 00", "81"),
    "PUBLISH with the packet id 0": ("32 05 0001 61 0000", "32 06 0001 61 0000 00", "82"),
    "PUBLISH without its packet id": ("32 03 0001 61", "32 03 0001 61", "81"),
    "PUBACK with one byte": ("40 01 00", "40 01 00", "81"),
    "PUBACK with the packet id 0": ("40 02 0000", "40 02 0000", "82"),
    "PUBREC with the packet id 0": ("50 02 0000", "50 02 0000", "82"),
    "PUBREL with the packet id 0": ("62 02 0000", "62 02 0000", "82"),
    "PUBCOMP with the packet id 0": ("70 02 0000", "70 02 0000", "82"),
    "SUBSCRIBE without filters": ("82 02 0007", "82 03 0007 00", "81"),
    "SUBSCRIBE with the packet id 0": ("82 06 0000 0001 61 00", "82 07 0000 00 0001 61 00", "81"),
    "SUBSCRIBE with QoS 3": ("82 06 0007 0001 61 03", "82 07 0007 00 0001 61 03", "81"),
    "SUBSCRIBE with reserved bits": ("82 06 0007 0001 61 40", "82 07 0007 00 0001 61 40", "81"),
    "SUBSCRIBE with an empty filter": ("82 05 0007 0000 00", "82 06 0007 00 0000 00", "81"),
    "SUBSCRIBE with # before the end": ("82 08 0007 0003 232f61 00", "82 09 0007 00 0003 232f61 00", "81"),
    "SUBSCRIBE with + in a level": ("82 07 0007 0002 612b 00", "82 08 0007 00 0002 612b 00", "81"),
    "UNSUBSCRIBE without filters": ("a2 02 0007", "a2 03 0007 00", "81"),
    "UNSUBSCRIBE with the packet id 0": ("a2 05 0000 0001 61", "a2 06 0000 00 0001 61", "81"),
    "PINGREQ with a body": ("c0 01 00", "c0 01 00", ""),
    "DISCONNECT with a body": ("e0 01 00", "e0 01 05", ""),
}
"""the packet of 3.1.1, the packet of 5.0, and the reason code of DISCONNECT in 5.0; without a code the server only closes"""
MALFORMED_5 = {
    "retain handling 3": ("82 07 0007 00 0001 61 30", "81"),
    "no local of a group": ("82 10 0007 00 000a 2473686172652f672f61 04", "82"),
    "subscription id 0": ("82 09 0007 02 0b00 0001 61 00", "82"),
    "two subscription ids": ("82 0b 0007 04 0b01 0b01 0001 61 00", "82"),
    "unknown property": ("30 08 0001 61 04 01 01 04 00", "81"),
    "property of another packet": ("30 0a 0001 61 06 21 0001 21 0001", "82"),
    "property of another packet in SUBSCRIBE": ("82 0a 0007 03 21 0001 0001 61 00", "81"),
    "property twice": ("30 08 0001 61 04 01 01 01 01", "82"),
    "property with a flag of 2": ("30 06 0001 61 02 01 02", "82"),
    "subscription id in PUBLISH": ("30 06 0001 61 02 0b 01", "82"),
    "response topic with a wildcard": ("30 08 0001 61 04 08 0001 2b", "82"),
    "alias 0": ("30 07 0001 61 03 23 0000", "94"),
    "alias above the maximum": ("30 07 0001 61 03 23 000b", "94"),
    "unknown alias": ("30 06 0000 03 23 0001", "82"),
    "length of properties that is not minimal": ("30 05 0001 61 8000", "81"),
    "reason code of another packet": ("40 03 0007 92", "82"),
    "session expiry from 0": ("e0 07 00 05 11 0000003c", "82"),
    "packet above the maximum size": ("30 ffffff7f", "95"),
}


@pytest.mark.parametrize("name", MALFORMED)
@LEVELS
def test_malformed_packet_ends_the_connection(port: int, level: int, name: str) -> None:
    packet, packet_5, reason = MALFORMED[name]
    expect_end(port, level, packet_5 if level == MQTT_5 else packet, reason)


@pytest.mark.parametrize("name", MALFORMED_5)
def test_malformed_packet_of_5_0_ends_the_connection(port: int, name: str) -> None:
    expect_end(port, MQTT_5, *MALFORMED_5[name])


def expect_end(port: int, level: int, packet: str, reason: str) -> None:
    """Sends a PINGREQ, a packet and another PINGREQ, which the server must not answer."""
    with connected(port, level) as client:
        client.send(b"\xc0\0" + bytes.fromhex(packet) + b"\xc0\0")
        client.expect_end(b"\xd0\0" + (bytes((0xE0, 1, int(reason, 16))) if reason and level == MQTT_5 else b""))


# Memory


def test_huge_first_packets_cost_no_memory(server: ServerProcess, port: int) -> None:
    before = server.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
            connection.sendall(b"\x10\xff\xff\xff\x7f")
            with contextlib.suppress(OSError):
                for _ in range(10):
                    connection.sendall(b"x" * 100_000)
        server.assert_alive()
        assert server.resident_bytes() - before < 4 << 20


HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 1883\r\n"
"""the header of the PROXY protocol, because the bound of an address does not apply to loopback addresses"""


@contextlib.contextmanager
def vanishing(port: int, client_id: str, level: int, header: bytes = b"", **fields: Any) -> Iterator[bytes]:
    """Connects with a session that outlives the connection, and resets the connection. Yields the first bytes of CONNACK."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
        if level == MQTT_5:
            fields["session_expiry"] = 600
        packet = ConnectPacket(level, client_id, clean=False, username="app-key", **fields)
        connection.sendall(header + packets.connect(packet))
        yield connection.recv(100)[:4]


def absent(server: ServerProcess) -> int:
    lines = server.get("/metrics").body.decode().splitlines()
    return int(float(next(line for line in lines if 'sessions{state="absent"}' in line).rpartition(" ")[2]))


@LEVELS
@pytest.mark.parametrize("together", [False, True])
def test_anonymous_clients_at_one_address_have_100_absent_sessions(level: int, together: bool) -> None:
    own = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{own}", "proxy-protocol": True}
    with running({"server": {"proto": ["mqtt"], "mqtt": mqtt, "proxies": ["127.0.0.1"]}}) as server:
        with contextlib.ExitStack() as stack:
            for number in range(150 if together else 100):
                with contextlib.nullcontext(stack) if together else contextlib.ExitStack() as one:
                    assert one.enter_context(vanishing(own, f"device-{number}", level, HEADER))[3] == 0
        wait_until(lambda: absent(server) == 100, "the sessions are absent")
        for number in range(200, 400):
            with vanishing(own, f"device-{number}", level, HEADER) as found:
                assert found[3] == (0x97 if level == MQTT_5 else 3)
        assert absent(server) == 100
        with vanishing(own, "device-99", level, HEADER) as found:
            assert found[2:] == b"\1\0"  # a known session is resumed


@pytest.mark.long
@pytest.mark.timeout(300)
def test_identified_clients_of_an_app_have_100000_absent_sessions() -> None:
    own = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{own}"}
    claims = {"app": "app-test", "origin": "*", "channel": ["a"], "sub": "ada"}
    password = access_token(claims).encode()
    with running({"server": {"proto": ["mqtt"], "mqtt": mqtt}}) as server:
        before = server.resident_bytes()
        for number in range(100_000):
            with vanishing(own, f"device-{number}", MQTT_311, password=password) as found:
                assert found == b"\x20\2\0\0"
        wait_until(lambda: absent(server) == 100_000, "all sessions are absent")
        used = (server.resident_bytes() - before) / 100_000
        print(f"{used:.0f} bytes a session")
        assert used < 2048
        for number in range(100_000, 100_100):
            with vanishing(own, f"device-{number}", MQTT_311, password=password) as found:
                assert found == b"\x20\2\0\3"
        with vanishing(own, "device-7", MQTT_311, password=password) as found:
            assert found == b"\x20\2\1\0"


# Many filters


@LEVELS
def test_connection_has_1000_filters_of_one_packet(port: int, level: int) -> None:
    """One SUBSCRIBE has the maximum number of filters; another client is served in between."""
    count = MAX_PACKET_FILTERS
    filters = tuple(FilterOptions(f"{number:04}") for number in range(count))
    with connected(port, level) as client, paho_client(port) as other:
        client.send(packets.subscribe(SubscribePacket(1, filters), level))
        other.subscribe("calm")
        other.publish("calm", b"x")
        assert other.expect() == ("calm", b"x")
        refused = 0x97 if level == MQTT_5 else 0x80
        body = (b"\0\1\0" if level == MQTT_5 else b"\0\1") + bytes(1000) + bytes((refused,)) * (count - 1000)
        client.expect(packets.framed(0x90, body))
        client.expect_nothing()


@LEVELS
def test_packet_with_more_filters_ends_the_connection(port: int, level: int) -> None:
    filters = [f"{number:04}" for number in range(MAX_PACKET_FILTERS + 1)]
    subscribe = packets.subscribe(SubscribePacket(1, tuple(map(FilterOptions, filters))), level)
    unsubscribe = packets.unsubscribe(UnsubscribePacket(1, tuple(filters)), level)
    for packet in (subscribe, unsubscribe):
        expect_end(port, level, packet.hex(), "97")


# Floods

ACKNOWLEDGEMENTS = {"PUBACK": 0x40, "PUBREC": 0x50, "PUBREL": 0x62, "PUBCOMP": 0x70, "PINGREQ": 0xC0}


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("name", ACKNOWLEDGEMENTS)
def test_flood_of_acknowledgements_does_not_stop_other_clients(server: ServerProcess, port: int, name: str, reads: bool) -> None:
    first = ACKNOWLEDGEMENTS[name]
    before = server.resident_bytes()
    end = time.monotonic() + 1

    def flood() -> None:
        with contextlib.suppress(OSError), connected(port, MQTT_311, "flood") as client:
            unit = b"\xc0\0" if first == 0xC0 else b"".join(bytes((first, 2)) + id.to_bytes(2, "big") for id in range(1, 3000))
            client.flood(unit * (3000 if first == 0xC0 else 1), end, reads)

    thread = threading.Thread(target=flood)
    thread.start()
    with paho_client(port) as client:
        client.subscribe("calm/1")
        slowest = 0.0
        while time.monotonic() < end:
            start = time.monotonic()
            client.publish("calm/1", b"x")
            client.expect()
            slowest = max(slowest, time.monotonic() - start)
    thread.join(DEADLINE)
    assert slowest < 1
    assert server.resident_bytes() - before < 16 << 20


@LEVELS
def test_storm_of_takeovers_leaves_one_connection(port: int, level: int) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE)) for _ in range(100)]
        packet = packets.connect(ConnectPacket(level, "storm", clean=False, username="app-key", session_expiry=60 * (level == 5)))
        for connection in connections:
            connection.sendall(packet)
        with paho_client(port) as other:
            other.subscribe("calm/2")
            other.publish("calm/2", b"x")
            assert other.expect() == ("calm/2", b"x")
        ended: set[socket.socket] = set()
        deadline = time.monotonic() + 3 * DEADLINE
        while len(ended) < 99:
            assert time.monotonic() < deadline, len(ended)
            for one in select.select([one for one in connections if one not in ended], [], [], 1)[0]:
                if not one.recv(1000):
                    ended.add(one)
        (last,) = set(connections) - ended
        last.sendall(b"\xc0\0")
        data = b""
        while not data.endswith(b"\xd0\0"):
            piece = last.recv(1000)
            assert piece
            data += piece


# Changes of filters


@pytest.mark.parametrize("churned", ["steady/#", "steady/1", "$share/g/steady/+", "+/1"])
def test_no_message_is_lost_while_other_clients_change_their_filters(server: ServerProcess, port: int, churned: str) -> None:
    stop = threading.Event()
    changes = itertools.count()

    def churn_until_stop(level: int, number: int) -> None:
        while not stop.is_set():
            churn(level, number)

    def churn(level: int, number: int) -> None:
        with connected(port, level, f"churn-{number}") as client:
            filters = (churned, *(f"{'+/' * depth}{number}/#" for depth in range(4)))
            one = packets.subscribe(SubscribePacket(1, tuple(FilterOptions(name, number % 2) for name in filters)), level)
            two = packets.unsubscribe(UnsubscribePacket(2, filters), level)
            for _ in range(1000):  # a connection that changes its filters more often is disconnected
                client.send(one + two)
                client.discard()
                next(changes)
                if stop.is_set():
                    break

    threads = [
        threading.Thread(target=churn_until_stop, args=(level, number)) for number, level in enumerate((MQTT_311, MQTT_5) * 2)
    ]
    steady = [("steady/1", 0, V311), ("steady/+", 0, V5), ("#", 1, V5), ("$share/alone/steady/#", 1, V311), ("steady/1", 1, V5)]
    with contextlib.ExitStack() as stack:
        clients: list[PahoClient] = []
        for filter, qos, version in steady:
            client = stack.enter_context(paho_client(port, version))
            assert client.subscribe(filter, qos=qos) == [qos]
            clients.append(client)
        sender = stack.enter_context(paho_client(port))
        for thread in threads:
            thread.start()
        try:
            start = time.monotonic()
            for number in range(MESSAGES):
                sender.publish("steady/1", str(number), qos=1)
                time.sleep(max(0, start + number / 1000 - time.monotonic()))
            sender.until_acknowledged()
            for client in clients:
                assert [int(client.expect()[1]) for _ in range(MESSAGES)] == [*range(MESSAGES)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE)
    assert next(changes) > 50
