"""MQTT with clients of other projects: aiomqtt, gmqtt, mosquitto_pub, mosquitto_sub, mosquitto_rr, and a bridge of mosquitto."""

import asyncio
import contextlib
import queue
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import gmqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import DEADLINE, ServerProcess, free_ports, program, running, wait_until

PUSH = ["public", "private", "presence"]
VERSIONS = pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
QOS = pytest.mark.parametrize("qos", [0, 1, 2])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    """Runs a server whose anonymous clients may publish."""
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "app": "app-test", "push": PUSH}
    with running({"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}) as process:
        yield process


class Command:
    """A command that runs in the background; its output is read line by line."""

    def __init__(self, folder: Path, name: str, *arguments: str, port: int) -> None:
        self.output = folder / f"{name}-{len(list(folder.iterdir()))}"
        command = (program("stdbuf", "coreutils"), "-oL", program(name, "mosquitto-clients"), "-h", "127.0.0.1", "-p", str(port))
        with open(self.output, "wb") as out:
            self.process = subprocess.Popen([*command, *arguments], stdout=out, stderr=subprocess.STDOUT)

    @property
    def lines(self) -> list[str]:
        """The output without the lines of the option `-d`."""
        return [line for line in self.output.read_text().splitlines() if not line.startswith(("Client ", "Subscribed "))]

    def until_shown(self, text: str) -> None:
        wait_until(lambda: text in self.output.read_text() or self.process.poll(), f"{text} in {self.output.name}")
        assert text in self.output.read_text(), self.output.read_text()

    def wait(self) -> list[str]:
        """Waits until the command ends with success; returns its output."""
        assert self.process.wait(DEADLINE) == 0, self.output.read_text()
        return self.lines

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Commands:
    """Starts the commands of mosquitto-clients, and stops them at the end."""

    def __init__(self, folder: Path, port: int, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.port = port
        self.stack = stack

    def start(self, name: str, *arguments: str) -> Command:
        command = Command(self.folder, name, *arguments, port=self.port)
        self.stack.callback(command.stop)
        return command

    def subscriber(self, *arguments: str) -> Command:
        """Runs mosquitto_sub, and waits for its SUBACK."""
        command = self.start("mosquitto_sub", "-d", *arguments)
        command.until_shown("Subscribed ")
        return command

    def publish(self, *arguments: str) -> None:
        assert self.start("mosquitto_pub", *arguments).wait() == []


@pytest.fixture
def commands(server: ServerProcess, port: int, tmp_path: Path, stack: contextlib.ExitStack) -> Commands:
    return Commands(tmp_path, port, stack)


# aiomqtt


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
@QOS
async def test_aiomqtt_receives_what_it_publishes(
    server: ServerProcess, port: int, channel: str, version: aiomqtt.ProtocolVersion, qos: int
) -> None:
    async with (
        aiomqtt.Client("127.0.0.1", port, protocol=version) as receiver,
        aiomqtt.Client("127.0.0.1", port, protocol=version) as sender,
    ):
        await receiver.subscribe(f"{channel}/+/state", qos=qos)
        for number in range(100):
            await sender.publish(f"{channel}/{number % 7}/state", str(number), qos=qos)
        await sender.publish(f"{channel}/other", "x", qos=qos)
        async with asyncio.timeout(DEADLINE):
            messages = [await anext(receiver.messages) for _ in range(100)]
    assert [(str(one.topic), one.payload, one.qos) for one in messages] == [
        (f"{channel}/{number % 7}/state", str(number).encode(), qos) for number in range(100)
    ]


async def test_aiomqtt_receives_a_retained_message(server: ServerProcess, port: int, channel: str) -> None:
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.publish(channel, "kept", qos=1, retain=True)
        await client.subscribe(channel, qos=1)
        async with asyncio.timeout(DEADLINE):
            message = await anext(client.messages)
        assert (message.payload, message.qos, message.retain) == (b"kept", 1, True)
        await client.publish(channel, "", qos=1, retain=True)


def absent(client_id: str, version: aiomqtt.ProtocolVersion, port: int) -> aiomqtt.Client:
    """Returns a client whose session outlives its connection."""
    if version == aiomqtt.ProtocolVersion.V311:
        return aiomqtt.Client("127.0.0.1", port, identifier=client_id, protocol=version, clean_session=False)
    properties: Any = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 600
    return aiomqtt.Client("127.0.0.1", port, identifier=client_id, protocol=version, clean_start=False, properties=properties)


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
async def test_aiomqtt_receives_the_messages_of_its_absence(
    server: ServerProcess, port: int, channel: str, version: aiomqtt.ProtocolVersion
) -> None:
    async with absent(channel, version, port) as client:
        await client.subscribe(f"{channel}/#", qos=2)
        await client.subscribe(f"{channel}/+", qos=1)
    async with aiomqtt.Client("127.0.0.1", port) as sender:
        for number in range(100):
            await sender.publish(f"{channel}/{number % 7}", str(number), qos=1 + number % 2)
    async with absent(channel, version, port) as client, asyncio.timeout(DEADLINE):
        messages = [await anext(client.messages) for _ in range(100)]
    found = [(str(one.topic), int(one.payload), one.qos) for one in messages]
    # The library returns a message with QoS 2 after its PUBREL, so the order between both QoS may change.
    assert sorted(found, key=lambda one: one[2]) == [
        (f"{channel}/{number % 7}", number, qos) for qos in (1, 2) for number in range(qos - 1, 100, 2)
    ]
    async with aiomqtt.Client("127.0.0.1", port, identifier=channel):
        pass


# gmqtt


@contextlib.asynccontextmanager
async def gmqtt_client(port: int, client_id: str, **more: Any) -> AsyncIterator[tuple[gmqtt.Client, "asyncio.Queue[Any]"]]:
    """Connects a client with MQTT 5.0; its messages arrive in the queue as topic, payload, QoS and properties."""
    client: gmqtt.Client = gmqtt.Client(client_id, **more)
    messages: asyncio.Queue[Any] = asyncio.Queue()
    granted: asyncio.Queue[Any] = asyncio.Queue()

    async def on_message(_client: object, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
        messages.put_nowait((topic, payload, qos, properties))
        return 0

    client.on_message = on_message
    client.on_subscribe = lambda _client, _id, reasons, _properties: granted.put_nowait(reasons)
    client.granted = granted
    client.set_auth_credentials("app-key", None)
    await client.connect("127.0.0.1", port)
    try:
        yield client, messages
    finally:
        await client.disconnect()


@QOS
async def test_gmqtt_receives_the_properties_of_a_message(server: ServerProcess, port: int, channel: str, qos: int) -> None:
    async with gmqtt_client(port, f"{channel}-a") as (receiver, messages), gmqtt_client(port, f"{channel}-b") as (sender, _):
        receiver.subscribe(channel, qos=qos, subscription_identifier=7)
        async with asyncio.timeout(DEADLINE):
            assert list(await receiver.granted.get()) == [qos]
            for number in range(15):
                pairs = [("a", "1"), ("b", str(number)), ("a", "2")]
                sender.publish(channel, f"{number}", qos=qos, content_type="text/plain", user_property=pairs)
            for number in range(15):
                topic, payload, received, properties = await messages.get()
                assert (topic, payload, received) == (channel, str(number).encode(), qos)
                assert properties["content_type"] == ["text/plain"]
                assert properties["subscription_identifier"] == [7]
                assert properties["user_property"] == [("a", "1"), ("b", str(number)), ("a", "2")]


async def test_gmqtt_receives_the_messages_of_its_absence(server: ServerProcess, port: int, channel: str) -> None:
    session: dict[str, Any] = {"clean_session": False, "session_expiry_interval": 600}
    async with gmqtt_client(port, channel, **session) as (client, messages), asyncio.timeout(DEADLINE):
        client.subscribe(f"{channel}/a", qos=2)
        await client.granted.get()
    async with gmqtt_client(port, f"{channel}-sender") as (sender, own), asyncio.timeout(DEADLINE):
        sender.subscribe(f"{channel}/a")
        await sender.granted.get()
        for number in range(15):
            sender.publish(f"{channel}/a", str(number), qos=1 + number % 2)
        for _ in range(15):  # gmqtt does not wait for acknowledgements before it closes the connection
            await own.get()
    async with gmqtt_client(port, channel, **session) as (_, messages), asyncio.timeout(DEADLINE):
        found = [await messages.get() for _ in range(15)]
        assert [(int(payload), qos) for _, payload, qos, _ in found] == [(number, 1 + number % 2) for number in range(15)]


# The commands of mosquitto


@VERSIONS
@QOS
def test_mosquitto_pub_reaches_mosquitto_sub(commands: Commands, channel: str, version: str, qos: int) -> None:
    receiver = commands.subscriber("-V", version, "-q", str(qos), "-t", f"{channel}/#", "-v", "-C", "3")
    for number, topic in enumerate((channel, f"{channel}/a", f"{channel}/a/b")):
        commands.publish("-V", version, "-q", str(qos), "-t", topic, "-m", f"text {number}")
    assert receiver.wait() == [f"{channel} text 0", f"{channel}/a text 1", f"{channel}/a/b text 2"]


def test_mosquitto_sub_receives_events_of_the_api(server: ServerProcess, commands: Commands, channel: str) -> None:
    form = "%t %q %r %P %p"
    receiver = commands.subscriber("-V", "mqttv5", "-q", "2", "-t", f"{channel}/+", "-F", form, "-C", "1")
    server.publish(f"{channel}.1", "changed", "paid")
    assert receiver.wait() == [f"{channel}/1 1 0 event:changed paid"]


def test_mosquitto_pub_retains_a_message(commands: Commands, channel: str) -> None:
    commands.publish("-t", channel, "-m", "kept", "-q", "1", "-r")
    receiver = commands.start("mosquitto_sub", "-t", channel, "-q", "1", "-F", "%q %r %p", "-C", "1")
    assert receiver.wait() == ["1 1 kept"]
    commands.publish("-t", channel, "-n", "-q", "1", "-r")
    assert commands.start("mosquitto_sub", "-t", channel, "-E").wait() == []


@VERSIONS
def test_mosquitto_sub_receives_the_messages_of_its_absence(commands: Commands, channel: str, version: str) -> None:
    session = ("-V", version, "-c", "-i", channel, "-q", "1", "-t", f"{channel}/+")
    commands.subscriber(*session).stop()
    for number in range(3):
        commands.publish("-t", f"{channel}/{number}", "-m", str(number), "-q", "2")
    assert commands.start("mosquitto_sub", *session, "-F", "%t %q %p", "-C", "3").wait() == [
        f"{channel}/{number} 1 {number}" for number in range(3)
    ]
    commands.publish("-i", channel, "-t", channel, "-m", "ends the session")


@VERSIONS
def test_will_of_a_killed_mosquitto_sub_is_published(commands: Commands, channel: str, version: str) -> None:
    watcher = commands.subscriber("-t", f"{channel}/will", "-q", "1", "-F", "%q %r %p", "-C", "1")
    will = ("--will-topic", f"{channel}/will", "--will-payload", "gone", "--will-qos", "1", "--will-retain")
    commands.subscriber("-V", version, "-t", channel, *will).stop()
    assert watcher.wait() == ["1 0 gone"]
    late = commands.start("mosquitto_sub", "-t", f"{channel}/will", "-q", "1", "-F", "%q %r %p", "-C", "1")
    assert late.wait() == ["1 1 gone"]
    commands.publish("-t", f"{channel}/will", "-n", "-r", "-q", "1")


def test_mosquitto_rr_receives_the_response(commands: Commands, port: int, channel: str) -> None:
    with paho_client(port, V5) as responder:
        responder.subscribe(f"{channel}/request")
        topics = ("-t", f"{channel}/request", "-e", f"{channel}/response")
        identification = ("-D", "publish", "correlation-data", "1")
        requester = commands.start("mosquitto_rr", "-V", "mqttv5", "-q", "1", *topics, "-m", "ping", *identification)
        request: Any = responder.messages.get(timeout=DEADLINE).properties
        assert request.ResponseTopic == f"{channel}/response"
        response: Any = Properties(PacketTypes.PUBLISH)
        response.CorrelationData = request.CorrelationData
        responder.publish(request.ResponseTopic, b"pong", properties=response)
        assert requester.wait() == ["pong"]


# A bridge

BRIDGE = """
listener {local} 127.0.0.1
allow_anonymous true
persistence false
connection push1st
address 127.0.0.1:{port}
remote_username app-key
remote_clientid {channel}-bridge
bridge_protocol_version {version}
topic # out 1 {channel}/out/ {channel}/out/
topic # in 1 {channel}/in/ {channel}/in/
topic # both 2 {channel}/both/ {channel}/both/
start_type {start}
threshold 1
restart_timeout 1
"""


@contextlib.contextmanager
def bridge(folder: Path, port: int, channel: str, version: str, start: str = "automatic", killed: bool = False) -> Iterator[int]:
    """Runs mosquitto with a bridge to the server; gives the port of mosquitto.

    start: `lazy`: the bridge connects when it has a message for the server.
    killed: whether mosquitto is killed at the end.
    """
    (local,) = free_ports(1)
    file = folder / "bridge.conf"
    file.write_text(BRIDGE.format(local=local, port=port, channel=channel, version=version, start=start))
    process = subprocess.Popen([program("mosquitto"), "-v", "-c", str(file)], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: accepts(local) or process.poll() is not None, "mosquitto accepts connections")
        yield local
    finally:
        process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
        _, log = process.communicate(timeout=DEADLINE)
        print(log)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until_bridged(inside: PahoClient, outside: PahoClient, channel: str) -> None:
    """Waits until the bridge forwards, since it subscribes at some time after mosquitto accepts clients."""

    def is_forwarded() -> bool:
        outside.publish(f"{channel}/in/probe", b"")
        with contextlib.suppress(queue.Empty):
            return inside.messages.get(timeout=0.1) is not None
        return False

    wait_until(is_forwarded, "a message passes the bridge")


BRIDGES = pytest.mark.parametrize("version", ["mqttv311", "mqttv50"])


@BRIDGES
def test_bridge_of_mosquitto_forwards_in_both_directions(
    server: ServerProcess, port: int, tmp_path: Path, channel: str, version: str
) -> None:
    with (
        bridge(tmp_path, port, channel, version) as local,
        paho_client(local, V311) as inside,
        paho_client(port, V311) as outside,
    ):
        inside.subscribe(f"{channel}/#")
        outside.subscribe(f"{channel}/out/#", f"{channel}/both/#")
        until_bridged(inside, outside, channel)
        for number in range(20):
            inside.publish(f"{channel}/out/{number}", f"{number}", qos=1)
            outside.publish(f"{channel}/in/{number}", f"{number}", qos=1)
        inside.publish(f"{channel}/both/a", b"from inside", qos=2, retain=True)
        outside.publish(f"{channel}/both/b", b"from outside", qos=2)
        received = [outside.expect() for _ in range(22)]
        assert [one for one in received if "/out/" in one[0]] == [(f"{channel}/out/{n}", str(n).encode()) for n in range(20)]
        assert sorted(one for one in received if "/both/" in one[0]) == [
            (f"{channel}/both/a", b"from inside"),
            (f"{channel}/both/b", b"from outside"),
        ]
        forwarded: list[tuple[str, bytes]] = []
        while len(forwarded) < 21:
            topic, payload = inside.expect()
            if topic in (f"{channel}/both/b", *(f"{channel}/in/{number}" for number in range(20))):
                forwarded.append((topic, payload))
        assert forwarded[-1:] == [(f"{channel}/both/b", b"from outside")]
        assert forwarded[:-1] == [(f"{channel}/in/{n}", str(n).encode()) for n in range(20)]


def test_bridge_of_mosquitto_receives_the_messages_of_its_absence(
    server: ServerProcess, port: int, tmp_path: Path, channel: str
) -> None:
    version = "mqttv311"  # with 5.0, mosquitto requests no session expiry, so its session ends with its connection
    with paho_client(port, V311) as outside:
        with bridge(tmp_path, port, channel, version, killed=True) as local, paho_client(local, V311) as inside:
            inside.subscribe(f"{channel}/in/#")
            until_bridged(inside, outside, channel)
        for number in range(20):
            outside.publish(f"{channel}/in/{number}", f"{number}", qos=1)
        with bridge(tmp_path, port, channel, version, "lazy") as local, paho_client(local, V311) as inside:
            inside.subscribe(f"{channel}/in/+")
            inside.publish(f"{channel}/out/start", b"", qos=1)
            assert [inside.expect() for _ in range(20)] == [(f"{channel}/in/{n}", str(n).encode()) for n in range(20)]
