"""MQTT clients with many filters that are lost at once: the worker stores their sessions in several turns."""

import contextlib
import http.client
import re
import signal

from push1st.protocols.mqtt.packets import MQTT_311, FilterOptions, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import PINGREQ, PINGRESP, connected
from tests.support.process import DEADLINE, free_ports, running, wait_until
from tests.support.signing import access_token

CLIENTS, FILTERS = 20, 1000


def test_other_clients_are_served_while_many_sessions_are_stored() -> None:
    port = free_ports(1)[0]
    token = access_token({"app": "app-test", "origin": "*", "channel": ["*"], "sub": "ada"}).encode()
    with running({"server": {"proto": ["mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}}) as server:
        assert server.process is not None
        api = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=DEADLINE)

        def stored() -> int:
            text = api.getresponse().read().decode()
            found = re.search(r'^push1st_mqtt_sessions\{state="absent"\} (\d+)', text, re.MULTILINE)
            assert found is not None
            return int(found[1])

        with connected(port, MQTT_311, "other") as other, contextlib.ExitStack() as lost, contextlib.closing(api):
            for number in range(CLIENTS):
                client = lost.enter_context(connected(port, MQTT_311, f"c{number}", clean=False, password=token))
                filters = tuple(FilterOptions(f"device/{number}/{index}", 1) for index in range(FILTERS))
                client.send(packets.subscribe(SubscribePacket(1, filters), MQTT_311))
                client.expect(b"\x90\xea\x07\0\1" + b"\1" * FILTERS)
            api.request("GET", "/metrics")
            assert stored() == 0
            # The server finds all ends in one turn, and then the two requests.
            server.process.send_signal(signal.SIGSTOP)
            lost.close()
            other.send(PINGREQ)
            api.request("GET", "/metrics")
            server.process.send_signal(signal.SIGCONT)
            other.expect(PINGRESP)
            assert stored() < CLIENTS

            def all_are_stored() -> bool:
                api.request("GET", "/metrics")
                return stored() == CLIENTS

            wait_until(all_are_stored, "all sessions are stored")
