"""A Redis server for unit tests of a shard: the test sets its replies, and the connections exist in memory only."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import hiredis
import pytest

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import connection, scripts
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.entries import OwnFilters
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.resp import RespConnection
from push1st.brokers.redis.scripts import Script
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.states import ConnectionState
from push1st.brokers.redis.views import Views
from push1st.config.brokerurl import parse
from push1st.config.mqtt import Mqtt
from push1st.messages import HookEvent, Message
from push1st.metrics import Metrics
from tests.support.loop import turns
from tests.support.transport import Transport

NAMES = {value.digest: name for name, value in vars(scripts).items() if isinstance(value, Script)}
"""digest → name of a script"""
Command = list[bytes]
EPOCH = b"epoch-1"


def resp(value: object) -> bytes:
    """Encodes a reply."""
    match value:
        case None:
            return b"_\r\n"
        case Exception():
            return f"-{value}\r\n".encode()
        case int():
            return b":%d\r\n" % value
        case str():
            return resp(value.encode())
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(resp, value))
    raise AssertionError(f"no reply is like {value!r}")


class ServerTransport(Transport):
    """The server's end of a connection: parses the commands of the shard, and replies in the next turn."""

    def __init__(self, server: "Server", connection: RespConnection) -> None:
        super().__init__()
        self._server = server
        self._connection = connection
        self._parser = hiredis.Reader()

    def write(self, data: Any) -> None:
        super().write(data)
        self._parser.feed(data)
        while (command := self._parser.gets()) is not False:
            asyncio.get_running_loop().call_soon(self._reply, command)

    def _reply(self, command: Command) -> None:
        if self.aborted or self._server.is_silent:
            return
        self._connection.data_received(self._server.reply(command))

    def get_write_buffer_size(self) -> int:
        return self._server.unread


class Server:
    """See the module.

    replies: by the name of a command or script: a reply, or a function from the command to the reply.
    commands: the commands that arrived, with their names.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, Command]] = []
        self.connections: list[RespConnection] = []
        self.failures: list[Exception] = []
        """errors of the next attempts to connect"""
        self.filters: list[bytes] = []
        """the fields and values of the filters of all nodes; the command that reads them is not in `commands`"""
        self.is_silent = False
        self.missing = 0
        """living nodes that are not subscribed to their topics"""
        self.unread = 0
        self.run_id = "run1"
        self.replies: dict[str, Any] = {
            "REGISTER": lambda _: [EPOCH, 0, 7, self.missing, 0, b"Gen01"],
            "RENEW": lambda _: [EPOCH, 0, 0, [], 0, self.missing, []],
            "HSCAN": [b"0", []],
        }
        monkeypatch.setattr(connection, "connect", self._connect)

    async def _connect(
        self, _: Any, __: str, ___: str, on_push: Callable[[bytes], None], lost: Callable[[], None]
    ) -> RespConnection:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        made = RespConnection(on_push, lost)
        made.run_id = self.run_id
        made.connection_made(ServerTransport(self, made))
        self.connections.append(made)
        return made

    def reply(self, command: Command) -> bytes:
        verb = command[0].decode()
        name = NAMES[command[1].decode()] if verb == "EVALSHA" else verb
        if name == "HSCAN" and command[1].endswith(b":f"):
            return resp([b"0", self.filters])
        self.commands.append((name, command[4:] if verb == "EVALSHA" else command[1:]))
        if name.endswith("SUBSCRIBE"):
            return b"".join(b">3\r\n" + resp(verb.lower()) + resp(topic) + resp(1) for topic in command[1:])
        reply = self.replies.get(name)
        return resp(reply(command) if callable(reply) else reply)

    def names(self) -> list[str]:
        """Returns the names of the commands that arrived since the last call."""
        names = [name for name, _ in self.commands]
        self.commands.clear()
        return names


class Node:
    """A node with one shard on the server."""

    def __init__(self, hooked: Mapping[str, str] = MappingProxyType({}), **timings: float) -> None:
        self.recounted: list[tuple[str, str]] = []
        self.received: list[Message] = []
        self.events_consumer: list[HookEvent] = []
        self.local_roster = LocalRoster()
        self.views = Views()
        ids = iter(range(1, 1_000_000))
        self.context = NodeContext(
            "node",
            lambda: (next(ids), 5),
            lambda: hooked,
            self.events_consumer.append,
            lambda *key: self.recounted.append(key),
            self.receive,
            self.local_roster,
            OwnFilters(),
            self.views,
            Metrics(),
            Mqtt(),
            LogDedup(),
            Timings(**{"backoff": 0, **timings}),
        )
        self.shard = Shard(parse("redis://localhost"), "0", self.context, lambda _: None, lambda *_: True, None)
        self.connection = self.shard.connection

    def receive(self, message: Message) -> int:
        self.received.append(message)
        return 1

    def is_in(self, state: ConnectionState) -> bool:
        return self.connection.state is state

    async def start(self) -> "Node":
        self.connection.start()
        await settle()
        return self

    def tick(self, seconds: float = 0) -> None:
        self.shard.tick(asyncio.get_running_loop().time() + seconds)


async def settle() -> None:
    """Waits until all commands have their replies, and further commands that the replies cause, too."""
    for _ in range(10):
        await turns()
        await asyncio.sleep(0)
