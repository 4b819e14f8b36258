"""Publishers and clients of the recovery tests: they write what `tests/support/recovery.py` checks.

A publisher retries each publish with the same idempotency key until it is confirmed. A client connects again after each loss,
and subscribes again. `PageClient` is Pusher's protocol with a page's name in the URL; `RawClient` sends its positions;
`NodePages` are real instances of pusher-js. The events of the publishers have the data `{"seq": N}`.
"""

import contextlib
import http.client
import itertools
import json
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, running, wait_until
from tests.support.pusher_socket import PLAIN, QUERY
from tests.support.recovery import Answer, Joined, Log, Lost, Received, Sent, check
from tests.support.signing import channel_auth
from tests.support.sse import blocks
from tests.support.valkey import Valkey

ATTEMPT_SECONDS = 5.0
"""the seconds after which a publisher gives up one request"""
SETTLED_SECONDS = 30
"""the maximum seconds until all clients have received the last events"""
ACKNOWLEDGE = 1
"""the seconds between two acknowledgements (`kept`); the acknowledgements of one page are up to a fifth later"""
BOUND = 1.2 * ACKNOWLEDGE + 0.3
"""the seconds before a cut whose events may be repeated, without the margin of the checker"""

CONFIG: dict[str, Any] = {"server": {"proto": ["pusher", "websocket", "sse"]}}
"""the configuration of a server for all kinds of clients"""


def kept(*sections: dict[str, Any], resume: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Returns the apps of a server whose app keeps a history; by default all channels, 1000 messages."""
    found = list(sections) or [{"size": 1000, "ttl": 600}]
    return {"app-test": {**APP, "history": found, "resume": {"acknowledge": ACKNOWLEDGE, **(resume or {})}, **more}}


@contextlib.contextmanager
def running_with(broker: str, apps: dict[str, Any]) -> Iterator[ServerProcess]:
    """Runs a server for all kinds of clients. broker: "memory" or "Valkey"."""
    with contextlib.ExitStack() as stack:
        config = CONFIG
        if broker == "Valkey":
            config = CONFIG | {"broker": stack.enter_context(contextlib.closing(Valkey())).url}
        yield stack.enter_context(running(config, apps))


def page_name() -> str:
    return secrets.token_hex(16)


class Publisher:
    """Publishes numbered events to channels in a thread, one after another.

    ports: the ports of the API. A request that fails is sent again to the next port. per_second: the number of requests a second;
    each request publishes to all channels. padding: the bytes that each event has in addition.
    """

    def __init__(
        self, ports: Sequence[int], channels: Sequence[str], per_second: float, *, padding: int = 0, exclude: str = ""
    ) -> None:
        self.channels = channels
        self.published: list[Sent] = []
        self.statuses: set[int] = set()
        self.repeated = 0
        """the number of responses with the header Idempotent-Replayed"""
        self._ports = itertools.cycle(ports)
        self._pause = 1 / per_second
        self._padding = "x" * padding
        self._numbers = itertools.count(1)
        self._is_over = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Sent]:
        """Ends the publisher after its present event; returns all publishes."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._connection is not None:
            self._connection.close()
        return self.published

    def _run(self) -> None:
        due = time.monotonic()
        while not self._is_over.is_set():
            self.publish()
            due = max(due + self._pause, time.monotonic() - 1)
            self._is_over.wait(max(0.0, due - time.monotonic()))

    def publish(self, **fields: Any) -> list[Sent]:
        """Publishes one event to all channels, and repeats the request until it is confirmed."""
        seq, key, began = next(self._numbers), secrets.token_hex(16), time.monotonic()
        body = json.dumps({"name": "e", "channels": self.channels, "data": self.data(seq), "idempotency_key": key, **fields})
        confirmed, attempts = None, 0
        while confirmed is None and (not attempts or not self._is_over.is_set()):
            attempts += 1
            if self._request(body):
                confirmed = time.monotonic()
            else:
                time.sleep(0.05)
        sent = [Sent(channel, seq, began, confirmed, attempts) for channel in self.channels]
        self.published += sent
        return sent

    def data(self, seq: int) -> dict[str, Any]:
        """Returns the data of one event."""
        return {"seq": seq, **({"x": self._padding} if self._padding else {})}

    def _request(self, body: str) -> bool:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", next(self._ports), timeout=ATTEMPT_SECONDS)
        try:
            self._connection.request("POST", "/apps/app-test/events", body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            answer.read()
            self.statuses.add(answer.status)
            self.repeated += answer.headers.get("Idempotent-Replayed") == "true"
            if answer.status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        self._connection.close()
        self._connection = None
        return False


class RecoveringClient:
    """A client in a thread, which connects again after each loss, and logs what it receives.

    port: a server's port, or a proxy's. patience: the seconds of silence after which the client gives up a connection.
    """

    receives_own = False

    def __init__(self, port: int, channels: Sequence[str], name: str = "", *, patience: float = 1e9, user: str = "") -> None:
        self.port = port
        self.channels = channels
        self.name = name or secrets.token_hex(16)
        self.log = Log(self.name, channels, receives_own=self.receives_own)
        self.patience = patience
        self.user = user
        self.codes: list[int | None] = []
        """the close codes of all connections"""
        self.connection: ClientConnection | None = None
        self.is_connected = False
        self._is_over = threading.Event()
        self.may_connect = threading.Event()
        self.may_connect.set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.may_connect.set()
        self._thread.join()

    @property
    def logs(self) -> list[Log]:
        return [self.log]

    def _run(self) -> None:
        while not self._is_over.is_set():
            self.may_connect.wait()
            with contextlib.suppress(OSError, InvalidHandshake, ConnectionClosed, EOFError):
                self._connect()
            self._is_over.wait(0.1)

    def _connect(self) -> None:
        with connect(f"ws://127.0.0.1:{self.port}{self.path()}", open_timeout=min(5.0, self.patience), **PLAIN) as connection:
            self.connection, self.is_connected = connection, True
            heard = time.monotonic()
            try:
                while not self._is_over.is_set():
                    try:
                        text = connection.recv(0.1)
                    except TimeoutError:
                        if time.monotonic() > heard + self.patience:
                            return
                        continue
                    heard = time.monotonic()
                    self.handle(json.loads(text), heard)
            except ConnectionClosed:
                self.codes.append(connection.close_code)
            finally:
                self.is_connected = False
                if not self._is_over.is_set():
                    self.log.entries.append(Lost(time.monotonic()))
                connection.socket.close()

    def path(self) -> str:
        raise NotImplementedError

    def handle(self, frame: dict[str, Any], at: float) -> None:
        raise NotImplementedError


class PageClient(RecoveringClient):
    """A client of Pusher's protocol; `name` is its page. answers: whether it answers pings of the protocol."""

    answers = True
    socket_id = ""

    def path(self) -> str:
        return f"/resume/{self.name}/app/app-key?{QUERY}"

    def handle(self, frame: dict[str, Any], at: float) -> None:
        channel, entries = frame.get("channel", ""), self.log.entries
        given = frame.get("data", {})
        data: dict[str, Any] = json.loads(given) if isinstance(given, str) else given
        match frame["event"]:
            case "pusher:connection_established":
                self.socket_id = data["socket_id"]
                for name in self.channels:
                    self.subscribe(name)
            case "pusher:ping":
                if self.answers:
                    self.send("pusher:pong", {})
            case "pusher_internal:subscription_succeeded":
                entries.append(Joined(at, channel))
            case "pusher:resumed":
                entries.append(answer(at, channel, data))
            case "e":
                entries.append(Received(at, channel, data["seq"]))

    def subscribe(self, name: str) -> None:
        fields: dict[str, Any] = {"channel": name}
        if name.startswith("presence-"):
            fields["channel_data"] = json.dumps({"user_id": self.user or self.name})
        if name.startswith(("private-", "presence-")):
            fields["auth"] = channel_auth(self.socket_id, name, fields.get("channel_data", ""))
        self.send("pusher:subscribe", fields)

    def send(self, event: str, data: Any, **more: Any) -> None:
        assert self.connection is not None
        with contextlib.suppress(ConnectionClosed):
            self.connection.send(json.dumps({"event": event, "data": data, **more}))


class RawClient(RecoveringClient):
    """A raw client, which sends the position of the last message of each channel."""

    receives_own = True
    token = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.positions: dict[str, str] = {}
        self._joined: set[str] = set()

    def path(self) -> str:
        self._joined.clear()
        since = ",".join(self.positions.get(name, "-") for name in self.channels)
        token = f"&token={self.token}" if self.token else ""
        return f"/ws/app/app-key/{'/'.join(self.channels)}/?positions=1&since={since}{token}"

    def handle(self, frame: dict[str, Any], at: float) -> None:
        channel, entries = frame.get("channel", ""), self.log.entries
        if frame["event"] == "resumed":
            if channel not in self._joined:
                self._joined.add(channel)
                entries.append(Joined(at, channel))
            found = answer(at, channel, frame["data"])
            entries.append(found)
            if found.reason is not None:
                self.positions[channel] = found.position
        elif frame["event"] == "e":
            entries.append(Received(at, channel, frame["data"]["seq"], frame["#msg-pos"]))
            self.positions[channel] = frame["#msg-pos"]


class StreamClient(RecoveringClient):
    """A client of an event stream. With one channel, it sends the last id, like an EventSource; else it sends positions."""

    receives_own = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.last_id = ""
        self.positions: dict[str, str] = {}

    def _connect(self) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id and len(self.channels) == 1 else {}
        since = ",".join(self.positions.get(name, "-") for name in self.channels)
        query = f"?since={since}" if len(self.channels) > 1 else ""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=min(5.0, self.patience))
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]  # no proxy sends chunks then
        is_open = False
        try:
            connection.request("GET", f"/sse/app/app-key/{'/'.join(self.channels)}{query}", headers=headers)
            stream = connection.getresponse()
            is_open = self.is_connected = stream.status == 200
            with stream:
                self._read(stream)
        finally:
            self.is_connected = False
            if is_open and not self._is_over.is_set():
                self.log.entries.append(Lost(time.monotonic()))
            connection.close()

    def _read(self, stream: http.client.HTTPResponse) -> None:
        descriptor, heard, data, joined = stream.fileno(), time.monotonic(), b"", set[str]()
        data = stream.peek()
        stream.read1(len(data))
        while not self._is_over.is_set():
            *whole, data = data.split(b"\n\n")
            for one in blocks(b"".join(text + b"\n\n" for text in whole)):
                self.last_id = one.id or self.last_id
                if one.type == "message":
                    self._handle(json.loads(one.data), time.monotonic(), joined)
            if not select.select([descriptor], [], [], 0.1)[0]:
                if time.monotonic() > heard + self.patience:
                    return
                continue
            heard, more = time.monotonic(), os.read(descriptor, 65_536)
            if not more:
                return
            data += more

    def _handle(self, envelope: dict[str, Any], at: float, joined: set[str]) -> None:
        channel, entries = envelope["channel"], self.log.entries
        if envelope["event"] == "resumed":
            if channel not in joined:
                joined.add(channel)
                entries.append(Joined(at, channel))
            found = answer(at, channel, envelope["data"])
            entries.append(found)
            if found.reason is not None:
                self.positions[channel] = found.position
        else:
            entries.append(Received(at, channel, envelope["data"]["seq"], envelope["pos"]))
            self.positions[channel] = envelope["pos"]


def answer(at: float, channel: str, data: dict[str, Any]) -> Answer:
    """Returns the entry of an event `resumed`; checks its fields."""
    if data["recovered"]:
        assert set(data) == {"recovered", "replayed", "repeats", "position"}, data
    else:
        assert set(data) <= {"recovered", "reason", "replayed", "position"}, data
    return Answer(at, channel, data.get("reason"), data.get("replayed", 0), data.get("repeats", False), data.get("position", ""))


class PusherPages:
    """Instances of pusher-js; each is a page with channels of its own. pages: name of the page → channels."""

    def __init__(self, pages: dict[str, Sequence[str]]) -> None:
        self.logs = [Log(name, channels) for name, channels in pages.items()]
        self._by_name = {log.name: log for log in self.logs}

    def rows(self) -> list[list[Any]]:
        """Returns what the pages have logged since the last call: page, time, kind, and the fields of the kind."""
        raise NotImplementedError

    def update(self) -> None:
        for name, at, kind, *fields in self.rows():
            entries = self._by_name[name].entries
            if kind == "joined":
                entries.append(Joined(at, *fields))
            elif kind == "resumed":
                entries.append(answer(at, *fields))
            elif kind == "event":
                entries.append(Received(at, *fields))
            else:
                entries.append(Lost(at))


class NodePages(PusherPages):
    """Pages in one process of Node.js. prefix: a command that runs the process. client: further options of pusher-js."""

    def __init__(self, port: int, pages: dict[str, Sequence[str]], *, prefix: Sequence[str] = (), **client: Any) -> None:
        super().__init__(pages)
        options = {"wsHost": "127.0.0.1", "wsPort": port, "httpHost": "127.0.0.1", "httpPort": port, **client}
        given = {"pages": pages, "client": options, "key": "app-key", "secret": "secret"}
        self.process = NodeProcess("recovering.mjs", given, prefix=prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()

    def rows(self) -> list[list[Any]]:
        found: list[list[Any]] = self.process.ask("log")
        return found


Clients = RecoveringClient | PusherPages


def updated(clients: Iterable[Clients]) -> list[Log]:
    """Returns the logs of all clients, with all entries up to now."""
    logs: list[Log] = []
    for one in clients:
        if isinstance(one, PusherPages):
            one.update()
        logs += one.logs
    return logs


def until(clients: Sequence[Clients], true: Callable[[Log, str], bool], what: str, deadline: float = SETTLED_SECONDS) -> None:
    """Waits until a condition is true for each log and channel."""

    def all_true() -> bool:
        return all(true(log, channel) for log in updated(clients) for channel in log.channels)

    wait_until(all_true, what, deadline)


def until_joined(clients: Sequence[Clients], times: int = 1, deadline: float = SETTLED_SECONDS) -> None:
    """Waits until each client has joined its channels this number of times, and each subscription is answered."""
    until(clients, lambda log, channel: len(log.answers(channel)) >= times, f"{times} answers", deadline)


def until_received(clients: Sequence[Clients], published: Sequence[Sent], deadline: float = SETTLED_SECONDS) -> None:
    """Waits until each client has received the last confirmed event of its channels."""
    last = {one.channel: one.seq for one in published if one.confirmed is not None}
    until(clients, lambda log, channel: last.get(channel, 0) in [0, *log.seqs(channel)[-50:]], "the last events", deadline)


def verify(clients: Sequence[Clients], publishers: Sequence[Publisher], **expected: Any) -> int:
    """Stops the publishers, waits for the last events, and checks all logs; returns the number of repeats."""
    published = [one for publisher in publishers for one in publisher.stop()]
    published.sort(key=lambda one: one.began)
    with contextlib.suppress(AssertionError):  # the checker says what is missing
        until_received(clients, published)
    return sum(check(log, published, **expected).repeats for log in updated(clients))


@contextlib.contextmanager
def together(*clients: Any) -> Iterator[list[Any]]:
    """Starts clients and publishers, and stops them at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one) for one in clients]


# The clients of the scenarios with several servers


def channels_of(channel: str) -> list[str]:
    """Returns five channels of three kinds, whose names contain the name of `channel`."""
    return [channel, f"private-{channel}", f"presence-{channel}", f"{channel}-4", f"{channel}-5"]


def clients_of(ports: Sequence[int], channels: Sequence[str], each: int = 2) -> list[Clients]:
    """Returns `each` clients of every kind at each port. Clients that are not pages subscribe to the public channels only."""
    found: list[Clients] = []
    for port in ports:
        found.append(NodePages(port, {page_name(): channels for _ in range(each)}))
        found += [PageClient(port, channels) for _ in range(each)]
        public = [one for one in channels if not one.startswith("p")]
        found += [kind(port, public) for _ in range(each) for kind in (RawClient, StreamClient)]
    return found


def rejoined(clients: Sequence[Clients]) -> int:
    """Returns the number of logs with more than one subscription to their first channel."""
    return sum(len(log.answers(log.channels[0])) > 1 for log in updated(clients))  # type: ignore[index]
