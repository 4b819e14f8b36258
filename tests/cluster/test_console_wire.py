"""The wire between the consoles of two nodes that share a real server."""

import asyncio
from typing import Any

import msgspec
import pytest
import structlog

from push1st.console import wire
from push1st.console.wire import MAX_SERVED, ConsoleWire, Replies
from push1st.core.controller import Controller
from push1st.errors import Refused
from tests.cluster.places import nodes, until


async def test_request_reaches_all_nodes_with_a_console() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)
        for wire, name in ((near, b"near"), (far, b"far")):
            wire.serve("who", lambda data, name=name: name + data)  # type: ignore[misc]
        await until(lambda: two.name in near.peers().nodes)
        assert await near.request("who", b"?") == Replies([(one.name, b"near?")], [two.name], ""), "it cannot get replies yet"
        await near.open()
        async with asyncio.timeout(10):  # less than the time for which the request would wait for a reply
            replies = await near.request("who", b"?", seconds=60)
        assert replies.found == [(one.name, b"near?")], "a node without a console is not asked"
        await far.open()
        for wire, own, other in ((near, one.name, two.name), (far, two.name, one.name)):
            replies = await wire.request("who", b"!", seconds=5)
            assert {node for node, _ in replies.found} == {own, other}
            assert (replies.missing, replies.away) == ([], "")
        assert (await near.request("who", node=two.name, seconds=5)).found == [(two.name, b"far")]
        assert (await near.request("who", node="nobody")).missing == ["nobody"]
        assert one.node.used.keys() == two.node.used.keys() == {one.config.id}, "the topics belong to no app of the node"


async def test_handler_may_wait_and_refuse() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)

        async def slow(_data: bytes) -> bytes:
            await asyncio.sleep(0)
            return b"done"

        async def refuse(_data: bytes) -> bytes:
            raise Refused(400, "no")

        near.serve("slow", slow)
        far.serve("slow", slow)
        near.serve("refused", lambda _: b"own")
        far.serve("refused", refuse)
        await far.open()
        await near.open()
        assert len((await near.request("slow", seconds=5)).found) == 2
        replies = await near.request("refused", seconds=0.1)
        assert replies.found == [(one.name, b"own")]
        assert replies.missing == [two.name]


async def test_exceptions_of_a_part_do_not_end_the_connection_to_the_broker() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)

        def fail(_data: bytes) -> Any:
            raise OSError("the disk is gone")

        near.serve("failing", lambda _: b"own")
        far.serve("failing", fail)
        far.handle("failing", fail)
        near.serve("well", lambda _: b"near")
        far.serve("well", lambda _: b"far")
        await far.open()
        await near.open()
        with structlog.testing.capture_logs() as logged:
            replies = await near.request("failing", seconds=0.1)
            near.handle("failing", lambda _: None)
            assert near.send("failing", b"") == 2
            assert len((await near.request("well", seconds=10)).found) == 2
        assert (replies.found, replies.missing) == ([(one.name, b"own")], [two.name])
        assert [line["event"] for line in logged] == ["console request failed", "console message failed"]
        assert Replies([("a", b"1"), ("b", b"x")], ["c"], "").decoded(msgspec.json.decode) == [("a", 1)]


async def test_late_reply_is_ignored_and_further_requests_are_bounded() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)
        gate = asyncio.Event()
        served: list[bytes] = []

        async def wait(data: bytes) -> bytes:
            served.append(data)
            await gate.wait()
            return data

        near.serve("wait", lambda data: data)
        far.serve("wait", wait)
        later: list[bytes] = []
        far.handle("later", later.append)
        await far.open()
        await near.open()
        async with asyncio.TaskGroup() as group:
            for number in range(MAX_SERVED + 10):
                group.create_task(near.request("wait", b"%d" % number, seconds=0.3))
        near.send("later", b"")
        await until(lambda: later)  # the message follows all requests
        await asyncio.sleep(0)
        assert len(served) == MAX_SERVED
        gate.set()
        await until(lambda: not far._serving)
        assert not near._pending


async def test_message_reaches_all_nodes_or_one() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)
        got: list[tuple[str, bytes]] = []
        near.handle("news", lambda data: got.append(("near", data)))
        far.handle("news", lambda data: got.append(("far", data)))
        await far.open()
        await near.open()
        assert near.send("news", b"1") == 2
        await until(lambda: len(got) == 2)
        assert near.send("news", b"2", node=two.name) == 1
        await until(lambda: len(got) == 3)
        assert got == [("near", b"1"), ("far", b"1"), ("far", b"2")]


async def test_consoles_know_what_the_others_are_called_and_say_farewell() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 3), ConsoleWire(two.node, two.name, 7)
        near.serve("name", lambda _: b"near")
        await near.open()
        await far.open()
        assert [found and found.worker for found in (near.nodes.get(two.name), far.nodes.get(one.name))] == [7, 3]
        far.close()
        await until(lambda: near.left == {two.name})
        replies = await near.request("name", seconds=10)
        assert (replies.found, replies.missing) == ([(one.name, b"near")], [])


async def test_request_does_not_wait_for_a_console_that_says_farewell() -> None:
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)

        async def leave(_data: bytes) -> bytes:
            far.close()
            await until(lambda: two.name in near.left)
            return b"too late"

        near.serve("leave", lambda _: b"near")
        far.serve("leave", leave)
        await far.open()
        await near.open()
        async with asyncio.timeout(5):
            replies = await near.request("leave", seconds=10)
        assert (replies.found, replies.missing) == ([(one.name, b"near")], [])


async def test_console_without_the_broker_answers_alone_and_connects_later() -> None:
    async with nodes() as (valkey, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)
        near.serve("who", lambda _: b"near")
        far.serve("who", lambda _: b"far")
        await near.open()
        valkey.kill()
        await until(lambda: not one.publishes)
        replies = await near.request("who")
        assert replies.found == [(one.name, b"near")]
        assert replies.away
        await far.open()
        assert not far.is_open
        valkey.start()
        await until(lambda: far.is_open and one.connected)
        await until(lambda: two.name in near.consoles())
        assert len((await near.request("who", seconds=5)).found) == 2


async def test_greeting_that_is_refused_or_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "RETRY_SECONDS", 0.01)
    async with nodes() as (_, one, two):
        near, far = ConsoleWire(one.node, one.name, 0), ConsoleWire(two.node, two.name, 1)
        await near.open()
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logged:
            patch.setattr(wire, "MAX_PENDING", 0)
            await far.open()
        assert [line["event"] for line in logged] == ["console is not connected with other workers"]
        assert far.is_open
        assert not far.consoles()
        with monkeypatch.context() as patch:
            losses: list[bytes] = []

            def lose(_controller: Controller, _app: Any, _topic: str, data: bytes, lost: Any) -> None:
                losses.append(data)
                lost()

            patch.setattr(Controller, "send_to_topic", lose)
            await until(lambda: len(losses) == 2)
        assert not far.consoles()
        await until(lambda: far.consoles() and near.consoles())
        assert two.name in near.nodes
