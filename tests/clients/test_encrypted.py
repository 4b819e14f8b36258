"""Encrypted channels, end to end: the server libraries encrypt, pusher-js decrypts, and the test reads the bytes between."""

import base64
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator

import pusher
import pytest

from tests.support.nodejs import MASTER_KEY, NodeProcess
from tests.support.process import ServerProcess
from tests.support.pusher_socket import PusherSocket

WORDS = "nobody-in-between-reads-this"


class Listener:
    """A proxy that records all bytes: connections to `port` are forwarded to the server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.heard: list[tuple[bool, bytearray]] = []
        """for each connection and direction: whether the client sent the bytes, and the bytes"""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self.server.ws_port))
            self._ends += (client, upstream)
            for source, target in ((client, upstream), (upstream, client)):
                kept = bytearray()
                self.heard.append((source is client, kept))
                thread = threading.Thread(target=self._pass_on, args=(source, target, kept))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(65_536):
                kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def text(self) -> bytes:
        """Returns all recorded bytes, with WebSocket frames of clients unmasked."""
        return b"\n".join(unmasked(bytes(data)) if client else bytes(data) for client, data in self.heard)


def unmasked(data: bytes) -> bytes:
    """Returns a request, and the unmasked frames after it if it is a handshake (RFC 6455 §5.2)."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if b"\r\nupgrade: websocket" not in head.lower():
        return data
    found = [head]
    while len(rest) >= 6:
        size, at = rest[1] & 0x7F, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(rest[2:at])
        mask, payload = rest[at : at + 4], rest[at + 4 : at + 4 + size]
        found.append(bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))
        rest = rest[at + 4 + size :]
    return b"\n".join(found)


@pytest.fixture
def tapped(server: ServerProcess) -> Iterator[Listener]:
    listener = Listener(server)
    yield listener
    listener.close()


@pytest.fixture(params=["node", "python"])
def trigger(
    request: pytest.FixtureRequest, tapped: Listener, node: Callable[..., NodeProcess]
) -> Callable[[str, object], object]:
    """Makes a backend that publishes through the recording proxy."""
    if request.param == "python":
        sdk = pusher.Pusher(
            "1234",
            "sdk-key",
            "secret",
            ssl=False,
            host="127.0.0.1",
            port=tapped.port,
            encryption_master_key_base64=MASTER_KEY,
        )
        return lambda channel, data: sdk.trigger(channel, "secret-event", data)
    options = {"appId": "1234", "key": "sdk-key", "secret": "secret", "encryptionMasterKeyBase64": MASTER_KEY}
    process = node("pusher_server.mjs", **options, host="127.0.0.1", port=tapped.port, useTLS=False)
    return lambda channel, data: process.ask("call", method="trigger", args=[channel, "secret-event", data])


@pytest.mark.parametrize("prefix", ["private-encrypted-", "private-encrypted-cache-"])
def test_only_ciphertext_passes_through_the_server(
    tapped: Listener, trigger: Callable[[str, object], object], node: Callable[..., NodeProcess], channel: str, prefix: str
) -> None:
    name = prefix + channel
    client = node(
        "pusher_js.mjs",
        key="sdk-key",
        client={"wsHost": "127.0.0.1", "wsPort": tapped.port},
        api="",
        authorize="self",
        secret="secret",
        masterKey=MASTER_KEY,
    )
    client.next(on="state", state="connected")
    client.tell("subscribe", channel=name, events=["secret-event"])
    client.next(on="subscribed", channel=name)
    trigger(name, {"words": WORDS})
    assert client.next(on="event", event="secret-event")["data"] == {"words": WORDS}
    if "cache" in prefix:
        client.tell("unsubscribe", channel=name)
        client.tell("subscribe", channel=name, events=["secret-event"])
        assert client.next(on="event", event="secret-event")["data"] == {"words": WORDS}

    said = tapped.text()
    master = base64.b64decode(MASTER_KEY)
    shared = hashlib.sha256(name.encode() + master).digest()
    assert said.count(b"secret-event") >= 2, "the wire was listened to, from the backend and to the client"
    assert name.encode() in said
    assert b"ciphertext" in said
    for secret in (WORDS.encode(), master, shared):
        assert secret not in said
        assert base64.b64encode(secret).rstrip(b"=") not in said


def test_a_client_event_is_refused(connect: Callable[..., PusherSocket], channel: str) -> None:
    """Such an event would be plain text on a channel whose members rely on encryption."""
    name = f"private-encrypted-{channel}"
    sender, other = connect(), connect()
    for client in (sender, other):
        client.subscribe(name)
    sender.send("client-e", {"pin": "1234"}, name)
    assert "encrypted" in sender.expect_error()["message"]
    assert other.round_trip() == []
