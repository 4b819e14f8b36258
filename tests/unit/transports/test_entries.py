"""Entries of protocols: the table admits clients of any protocol that has a codec, an entry, and a line in the registry."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from websockets.frames import Opcode

from push1st.config.model import ProtocolConfig
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import Command, Failure, Message, Publish, Reply, Subscribe
from push1st.process.server import named
from push1st.protocols import PROTOCOLS, Codec
from push1st.protocols.websocket import text_frame
from push1st.transports import entries
from push1st.transports.admission import admit
from push1st.transports.entries import EntryTable
from push1st.transports.handlers import Handlers, Handshake
from push1st.transports.listener import Listener
from push1st.transports.websocket import WebSocketConnection
from tests.support.frames import frames, masked
from tests.support.http import Answer, handshake
from tests.support.loop import turns
from tests.support.node import KEY
from tests.support.transport import Site


class Lines:
    """A codec: `channel event data`."""

    name = "lines"
    binary = False

    def message(self, message: Message, now: int) -> bytes:
        return text_frame(f"{message.channel} {message.event} ".encode() + message.data)

    def decode(self, text: str) -> Command:
        channel, event, data = (*text.split(" ", 2), "", "")[:3]
        if not event:
            raise Refused(400, "not a line")
        return Publish(channel, event, data.encode())

    def reply(self, reply: Reply) -> bytes:
        match reply:
            case Failure(code, text):
                return text_frame(f"! {code} {text}".encode())
            case _:
                return b""

    def slow(self) -> tuple[int, str]:
        return 1008, "slow"


class LinesEntry:
    """A way in: `/lines/KEY/CHANNEL`."""

    statuses: Mapping[int, int] = {4001: 403}

    def __init__(self, site: Site) -> None:
        self._context = site.context
        self.codec: Codec = Lines()
        self.settings = ProtocolConfig(path="/lines/")
        self.bases: tuple[str, ...] = ("/lines/",)

    def enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        key, _, channel = tail.partition("/")
        context, client = self._context, handshake.client
        app = admit(context, self.settings, key, client.origin, handshake.ip, handshake.crowded)
        if not channel:
            raise Disconnect(4005, "no channel")
        session = Session(context.node, app, connection, self.codec, connection.write, handshake.ip, "", None, self.settings.push)
        connection.open(session)
        session.connect(client, lambda: None)
        session.handle(Subscribe(channel))


@pytest.fixture
def site() -> Site:
    """A site with the protocol `lines` as the only one."""
    site = Site()
    site.handlers = Handlers(site.context, site.serve, (), EntryTable(site.context, [LinesEntry(site)]).upgrade)
    site.listener = Listener(site.context, site.handlers, True, site.config.api.whitelist, 10)
    return site


async def test_a_protocol_with_a_codec_and_an_entry_serves_clients(site):
    reader = await site.websocket(f"/lines/{KEY}/orders")
    writer = await site.websocket(f"/lines/{KEY}/orders")
    reader.take()
    writer.take()
    writer.protocol.data_received(masked(Opcode.TEXT, "orders paid 7"))
    await turns()
    assert frames(reader.take()) == [(Opcode.TEXT, b"orders paid 7")]
    writer.protocol.data_received(masked(Opcode.TEXT, "what"))
    await turns()
    assert frames(writer.take())[-1] == (Opcode.TEXT, b"! 400 not a line")
    assert site.metrics.connections == {"lines": 2}


async def test_a_code_with_a_status_is_answered_before_the_upgrade(site):
    transport = await site.ask(handshake("/lines/nobody/orders"))
    answer = Answer(transport.data)
    assert (answer.status, answer.json["error"]) == (403, "App key nobody does not exist")
    assert transport.closed


async def test_a_code_without_a_status_closes_the_websocket(site):
    transport = await site.websocket(f"/lines/{KEY}")
    ((opcode, payload),) = frames(transport.data.partition(b"\r\n\r\n")[2])
    assert (opcode, int.from_bytes(payload[:2], "big"), payload[2:]) == (Opcode.CLOSE, 4005, b"no channel")


async def test_slashes_of_a_base_url_are_ignored(site):
    await site.websocket(f"//lines//{KEY}/orders")


async def test_a_path_without_an_entry_is_rejected(site):
    answer = Answer((await site.ask(handshake(f"/app/{KEY}"))).data)
    assert (answer.status, answer.json["error"]) == (404, f"no WebSocket is served at /app/{KEY}")


async def test_the_first_entry_with_the_path_serves_it():
    site = Site()
    one, two = LinesEntry(site), LinesEntry(site)
    two.codec = Lines()
    found = EntryTable(site.context, [one, two])
    site.handlers = Handlers(site.context, site.serve, (), found.upgrade)
    site.listener = Listener(site.context, site.handlers, True, site.config.api.whitelist, 10)
    transport = await site.websocket(f"/lines/{KEY}/orders")
    assert transport.protocol.codec is one.codec


def test_every_file_with_an_entry_is_registered():
    folder = Path(entries.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    registered = {parts.entry.partition(":")[0].rpartition(".")[2] for parts in PROTOCOLS.values() if parts.entry}
    assert registered == files


@pytest.mark.parametrize("name", [name for name, parts in PROTOCOLS.items() if parts.entry])
def test_an_entry_belongs_to_its_protocol_and_is_off_with_it(name):
    site = Site()
    entry = named(PROTOCOLS[name].entry)(site.context)
    assert entry.codec.name == named(PROTOCOLS[name].codec)().name == name
    assert entry.bases == site.config.server.bases(name) != ()
    server = msgspec.structs.replace(site.config.server, proto=frozenset())
    assert named(PROTOCOLS[name].entry)(Site(server=server).context).bases == ()
