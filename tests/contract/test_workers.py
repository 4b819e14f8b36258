"""Workers in this process: one worker whose supervisor is the test, and two nodes that forward requests to each other."""

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from itertools import count

import msgspec

from push1st.config.model import Config, demo
from push1st.process import worker
from push1st.process.control import Alive, ControlConnection, ControlReply, ControlRequest, Ready, Retire, StartWorker, pack
from push1st.process.server import Server
from push1st.process.sockets import ROLES, BoundSocket, addresses, bind, with_ports
from tests.contract.inside import plain_process
from tests.contract.redis import valkey
from tests.contract.xhr import SUBSCRIBE, frames, open_session, poll, request, xhr
from tests.support.process import DEADLINE

_prefixes = count(1)


def bound(broker: str = demo().broker) -> tuple[Config, list[BoundSocket]]:
    """Returns the demo on free ports, without a drain, and its sockets."""
    config = demo()
    server = msgspec.structs.replace(config.server, drain=0)
    listening = [msgspec.structs.replace(address, port=0) for address in (*server.listen, *config.api.listen)]
    server = msgspec.structs.replace(server, listen=(listening[0],))
    api = msgspec.structs.replace(config.api, listen=(listening[1],))
    config = msgspec.structs.replace(config, server=server, api=api, broker=broker)
    doors = [door for role in ROLES for address in addresses(config, role) for door in bind(role, address)]
    return with_ports(config, doors), doors


def port(config: Config, role: str) -> int:
    return (config.server if role == "server" else config.api).listen[0].port


def call(port: int, method: str, target: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_worker_serves_as_its_supervisor_orders_until_it_retires() -> None:
    config, doors = bound()
    ours, theirs = socket.socketpair()
    with plain_process():
        work = asyncio.ensure_future(worker._work(theirs))
        line = await ControlConnection.on(ours)
        places = [(door.role, door.address, door.socket.detach()) for door in doors]
        line.send(StartWorker(7, pack(config), places, "", []))
        assert isinstance(await line.receive(), Ready)
        line.send(Alive())
        assert await line.receive() == Alive()
        for app in (None, "app-test"):
            line.send(ControlRequest(1, app))
            answer = await line.receive()
            assert isinstance(answer, ControlReply)
            assert [number for number, _ in answer.packed] == [7]
        asking = asyncio.ensure_future(asyncio.to_thread(call, port(config, "api"), "GET", "/metrics"))
        question = await line.receive()
        assert isinstance(question, ControlRequest)
        line.send(ControlReply(question.id, []))
        status, body = await asking
        assert status == 200
        assert b'worker="7"' in body
        line.send(Retire())
        assert await work == 0
        await line.close()


class Pair:
    """Two nodes that share only the broker."""

    def __init__(self) -> None:
        url = f"{valkey().url}?prefix=pair{next(_prefixes)}"
        self._made = [bound(url) for _ in range(2)]
        self.servers = [Server(config, doors) for config, doors in self._made]
        self.ports = [port(config, "server") for config, _ in self._made]
        self.apis = [port(config, "api") for config, _ in self._made]

    def publish(self, node: int, data: str) -> None:
        body = json.dumps({"name": "e", "channels": ["c"], "data": data})
        assert call(self.apis[node], "POST", "/apps/app-test/events", body)[0] == 200

    async def visited(self, visit: Callable[["Pair"], None]) -> None:
        """Runs both nodes, and `visit` in a thread."""
        with plain_process():
            for server in self.servers:
                await server.start()
            try:
                await asyncio.to_thread(visit, self)
            finally:
                for server in self.servers:
                    server.stop()
                    await server.run()


async def test_session_is_polled_through_another_node() -> None:
    def visit(pair: Pair) -> None:
        one, two = pair.ports
        open_session(one)
        with xhr(two, "xhr_send", SUBSCRIBE) as sent:
            assert sent.status == 200
        assert frames(poll(two)[0])[0]["event"] == "pusher_internal:subscription_succeeded"
        for node, data in ((0, "one"), (1, "two")):
            with request(two, "xhr") as waiting:
                pair.publish(node, data)
                assert frames(waiting.getresponse().read())[0]["data"] == data

    await Pair().visited(visit)


async def test_session_streams_through_another_node() -> None:
    def visit(pair: Pair) -> None:
        one, two = pair.ports
        open_session(one)
        with xhr(two, "xhr_streaming") as stream:
            with xhr(two, "xhr_send", SUBSCRIBE) as sent:
                assert sent.status == 200
            assert b"subscription_succeeded" in next(iter(line for line in stream if line.startswith(b"a")))
            pair.publish(0, "hello")
            assert frames(stream.readline())[0]["data"] == "hello"

    await Pair().visited(visit)


async def test_a_stream_at_a_node_ends_when_another_node_gets_the_next_stream_of_the_session() -> None:
    def visit(pair: Pair) -> None:
        one, two = pair.ports
        open_session(one)
        with xhr(two, "xhr_streaming") as first, xhr(one, "xhr_streaming") as second:
            assert first.status == second.status == 200
            first.read()

    await Pair().visited(visit)


async def test_a_request_of_no_session_is_rejected_by_both_nodes() -> None:
    def visit(pair: Pair) -> None:
        for node in pair.ports:
            with xhr(node, "xhr_send", SUBSCRIBE) as sent:
                assert sent.status == 404

    await Pair().visited(visit)
