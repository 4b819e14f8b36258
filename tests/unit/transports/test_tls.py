"""TLS records in memory: data of any size is read unchanged."""

import contextlib
import os
import ssl
from collections.abc import Iterator

import pytest

from push1st.process.tls import self_signed
from push1st.transports.tls import MAX_WITHOUT_DATA, PIECE, Records


class Pair:
    """A client and the server's side, which reads like uvloop: as long as bytes are available."""

    def __init__(self, certificate: str, key: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = Records
        context.load_cert_chain(certificate, key)
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.from_client, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        assert isinstance(server, Records)
        self.server = server
        self.floods = 0
        server.follow(self.incoming, self._flooded)
        self.client = trusting.wrap_bio(self.to_client, self.from_client)
        sides = [(self.client, self.from_client, self.incoming), (server, self.outgoing, self.to_client)]
        for side, source, sink in sides * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            sink.write(source.read())

    def _flooded(self) -> None:
        self.floods += 1

    def arrive(self, data: bytes) -> bytes:
        """Returns what the server reads when these bytes arrive."""
        self.incoming.write(data)
        found = b""
        try:
            while self.incoming.pending or self.server.pending():
                found += self.server.read(262_144)
        except ssl.SSLWantReadError:
            pass
        return found


@pytest.fixture(scope="module")
def files() -> Iterator[tuple[str, str]]:
    key, certificate = self_signed()
    yield certificate, key
    os.unlink(key)
    os.unlink(certificate)


@pytest.fixture
def pair(files: tuple[str, str]) -> Pair:
    return Pair(*files)


@pytest.mark.parametrize("size", [1, 6, PIECE - 30, PIECE, 16_384, 16_385, 300_000])
@pytest.mark.parametrize("step", [100, PIECE, PIECE + 1, 60_000, 262_144])
def test_data_is_read_whole_however_it_arrives(pair: Pair, size: int, step: int) -> None:
    data = (b"%d," % size * size)[:size]
    pair.client.write(data)
    sent = pair.from_client.read()
    assert b"".join(pair.arrive(sent[at : at + step]) for at in range(0, len(sent), step)) == data
    assert pair.floods == 0


def test_small_records_are_read_whole(pair: Pair) -> None:
    for _ in range(5000):
        pair.client.write(b"abc")
    assert pair.arrive(pair.from_client.read()) == b"abc" * 5000
    assert pair.floods == 0


def test_record_that_arrives_in_parts_is_no_flood(pair: Pair) -> None:
    pair.client.write(b"x" * 16_384)
    record = pair.from_client.read()
    assert len(record) < MAX_WITHOUT_DATA
    assert pair.arrive(record[:-1]) == b""
    assert pair.arrive(record[-1:]) == b"x" * 16_384
    assert pair.floods == 0
