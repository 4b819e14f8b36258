"""MQTT clients with many filters that are lost at once: the worker stores their sessions in several turns."""

import contextlib
import re

from push1st.protocols.mqtt.packets import MQTT_311, FilterOptions, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import connected
from tests.support.process import free_ports, running, wait_until
from tests.support.signing import access_token

CLIENTS, FILTERS = 60, 1000


def test_other_clients_are_served_while_many_sessions_are_stored() -> None:
    port = free_ports(1)[0]
    token = access_token({"app": "app-test", "origin": "*", "channel": ["*"], "sub": "ada"}).encode()
    with running({"server": {"proto": ["mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}}) as server:

        def absent() -> int:
            found = re.search(
                r'^push1st_mqtt_sessions\{state="absent"\} (\d+)', server.get("/metrics").body.decode(), re.MULTILINE
            )
            assert found is not None
            return int(found[1])

        with connected(port, MQTT_311, "other") as other, contextlib.ExitStack() as lost:
            for number in range(CLIENTS):
                client = lost.enter_context(connected(port, MQTT_311, f"c{number}", clean=False, password=token))
                filters = tuple(FilterOptions(f"device/{number}/{index}", 1) for index in range(FILTERS))
                client.send(packets.subscribe(SubscribePacket(1, filters), MQTT_311))
                client.expect(b"\x90\xea\x07\0\1" + b"\1" * FILTERS)
            lost.close()
            counts: list[int] = []

            def count() -> bool:
                other.expect_nothing()
                counts.append(absent())
                return counts[-1] == CLIENTS

            wait_until(count, "all sessions are stored")
            assert any(0 < one < CLIENTS for one in counts), "the server answers between two sessions"
