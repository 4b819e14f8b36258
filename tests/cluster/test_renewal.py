"""A certificate is renewed while clients are connected over TLS: none of them is disconnected."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.cluster.machine import command, until_workers
from tests.support.certificates import Links
from tests.support.process import ServerProcess, running, wait_until
from tests.support.pusher_socket import QUERY


@pytest.fixture
def links(tmp_path: Path) -> Links:
    return Links(tmp_path)


@contextlib.contextmanager
def serving(links: Links, workers: int) -> Iterator[ServerProcess]:
    tls = {"enable": True, "key": str(links.key), "cert": str(links.cert)}
    quiet = {"activity-timeout": 600}  # the clients answer no pings while a test waits
    with running({"server": {"ssl": tls, "workers": workers, "pusher": quiet}}) as server:
        if workers > 1:
            until_workers(server, workers)
        yield server


class Client:
    """A Pusher client over TLS that is subscribed to the channel `c`."""

    def __init__(self, server: ServerProcess, trust: ssl.SSLContext) -> None:
        self._port = server.ws_port
        self._trust = trust

    async def open(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._trust)
        self.serial = x509.load_der_x509_certificate(
            self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        ).serial_number
        self._protocol = ClientProtocol(parse_uri(f"wss://127.0.0.1:{self._port}/app/app-key?{QUERY}"))
        self._protocol.send_request(self._protocol.connect())
        await self._exchange()
        self._protocol.send_text(json.dumps({"event": "pusher:subscribe", "data": {"channel": "c"}}).encode())
        await self.expect("pusher_internal:subscription_succeeded")
        return self

    async def _exchange(self) -> list[dict]:
        """Writes what waits, and reads what the server sends; returns the events."""
        for data in self._protocol.data_to_send():
            self._writer.write(data)
        data = await asyncio.wait_for(self._reader.read(65536), 60)
        assert data, "the connection has ended"
        self._protocol.receive_data(data)
        frames = [one for one in self._protocol.events_received() if isinstance(one, Frame) and one.opcode is Opcode.TEXT]
        return [json.loads(bytes(one.data)) for one in frames]

    async def expect(self, name: str) -> None:
        while not any(event["event"] == name for event in await self._exchange()):
            assert self._protocol.state is State.OPEN

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def clients(server: ServerProcess, links: Links, count: int) -> AsyncIterator[list[Client]]:
    found: list[Client] = []
    try:
        for _ in range(0, count, 50):
            found += await asyncio.gather(*(Client(server, links.trust).open() for _ in range(min(50, count))))
        yield found
    finally:
        for one in found:
            one.close()


async def serial_of_a_new_connection(server: ServerProcess, links: Links) -> int:
    client = await Client(server, links.trust).open()
    client.close()
    return client.serial


async def all_receive(server: ServerProcess, found: list[Client]) -> None:
    await asyncio.to_thread(server.publish, "c", "e", 1)
    await asyncio.gather(*(one.expect("e") for one in found))


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_uses_a_renewed_certificate_and_keeps_all_connections(links: Links, workers: int) -> None:
    with serving(links, workers) as server:
        async with clients(server, links, 50) as found:
            first = links.serial
            links.renew(fits=False)
            done = await asyncio.to_thread(command, server)
            assert done.returncode == 1
            assert "cannot use the key" in done.stderr
            assert "it does not belong to the certificate" in done.stderr
            assert await serial_of_a_new_connection(server, links) == first, "the old pair stays"
            links.renew()
            done = await asyncio.to_thread(command, server)
            assert (done.returncode, done.stderr) == (0, "")
            assert "server: new certificate, valid until" in done.stdout
            for _ in range(4):  # on each worker
                assert await serial_of_a_new_connection(server, links) == links.serial != first
            await all_receive(server, found)
        text = (await asyncio.to_thread(server.get, "/metrics")).body.decode()
        assert text.count('push1st_certificate_expiry_timestamp_seconds{listener="server"') == workers


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_1000_connections_stay_over_a_renewal_without_a_reload(links: Links) -> None:
    """The server finds the files within a minute; a pair that does not fit changes nothing before."""
    with serving(links, 1) as server:
        async with clients(server, links, 1000) as found:
            first = links.serial
            links.renew(fits=False)
            await asyncio.to_thread(wait_until, lambda: "certificate refused, the old one stays" in server.output, "refused", 75)
            assert await serial_of_a_new_connection(server, links) == first
            links.renew()
            await asyncio.to_thread(wait_until, lambda: "certificate renewed" in server.output, "renewed", 75)
            assert await serial_of_a_new_connection(server, links) == links.serial
            await all_receive(server, found)
            text = (await asyncio.to_thread(server.get, "/metrics")).body.decode()
            assert 'push1st_reloads_total{result="refused"} 1.0' in text
            assert 'push1st_reloads_total{result="renewed"} 1.0' in text
