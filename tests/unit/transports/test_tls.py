"""TLS records in memory: data of any size is read unchanged, and no client decrypts too much in a turn."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from push1st.process.tls import self_signed
from push1st.transports.lost import has_unread
from push1st.transports.tls import MAX_RESUMED, MAX_WITHOUT_DATA, PIECE, Decryption, Records


class Reading:
    """A transport that decrypts in the next turn when its reading resumes."""

    def __init__(self) -> None:
        self.is_closed = False
        self.is_paused = False
        self.resumed = 0

    def is_closing(self) -> bool:
        return self.is_closed

    def is_reading(self) -> bool:
        return not self.is_paused

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.resumed += self.is_paused
        self.is_paused = False


class Pair:
    """A client and the server's side, which reads like uvloop: as long as bytes are available."""

    def __init__(self, certificate: str, key: str, decryption: Decryption | None = None) -> None:
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
        self.next_turn: list[Callable[[], None]] = []
        self.now = 1.0
        self.decryption = decryption or Decryption(self._flooded, lambda run: self.next_turn.append(run), self._clock)
        server.follow(self.incoming, self.decryption)
        self.transport = Reading()
        self.client = trusting.wrap_bio(self.to_client, self.from_client)
        sides = [(self.client, self.from_client, self.incoming), (server, self.outgoing, self.to_client)]
        for side, source, sink in sides * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            sink.write(source.read())

    def _flooded(self) -> None:
        self.floods += 1

    def _clock(self) -> float:
        """Each reading of the clock is 0.2 ms later than the last, so a slice ends after six pieces."""
        self.now += 0.0002
        return self.now

    def attach(self) -> None:
        self.server.attach(cast(asyncio.Transport, self.transport))

    def turn(self) -> None:
        self.next_turn, due = [], self.next_turn
        for run in due:
            run()

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
def test_data_in_any_chunks_is_read_whole(pair: Pair, size: int, step: int) -> None:
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


@pytest.mark.parametrize("size", [3, 1000, 16_384])
def test_slice_ends_after_its_time_and_the_rest_is_read_in_later_turns(pair: Pair, size: int) -> None:
    count = 600_000 // size
    for _ in range(count):
        pair.client.write(b"x" * size)
    pair.attach()
    found = pair.arrive(pair.from_client.read())
    assert 0 < len(found) <= 7 * PIECE + size
    turns = 0
    while pair.next_turn:
        resumed = pair.transport.resumed
        more = pair.arrive(b"")  # this turn's slice is over
        assert len(more) <= PIECE + size
        pair.turn()
        assert pair.transport.resumed <= resumed + 1
        found += more + pair.arrive(b"")
        turns += 1
    assert found == b"x" * size * count
    assert turns > 10
    assert pair.floods == 0


def test_data_that_arrives_during_a_pause_is_read_after_it(pair: Pair) -> None:
    numbers = [b"%d," % number for number in range(20_000)]
    pair.attach()
    found = b""
    for number in numbers:
        pair.client.write(number)
    sent = pair.from_client.read()
    for at in range(0, len(sent), 50_001):
        found += pair.arrive(sent[at : at + 50_001])
        pair.turn()
    found += pair.arrive(b"")
    while pair.next_turn:
        pair.turn()
        found += pair.arrive(b"")
    assert found == b"".join(numbers)


def test_connection_whose_reading_is_paused_does_not_resume(pair: Pair) -> None:
    pair.client.write(b"x" * 200_000)
    pair.attach()
    pair.arrive(pair.from_client.read())
    pair.transport.is_paused = True
    pair.turn()
    assert pair.transport.resumed == 0
    assert pair.transport.is_paused


def test_encrypted_input_counts_as_unread(pair: Pair) -> None:
    pair.attach()
    transport = asyncio.Transport({"ssl_object": pair.server})
    assert not has_unread(transport)
    pair.client.write(b"x" * 200_000)
    pair.arrive(pair.from_client.read())
    assert has_unread(transport)
    while pair.next_turn:
        pair.turn()
        pair.arrive(b"")
    assert not has_unread(transport)


def test_all_connections_together_have_the_time_of_one_turn(files: tuple[str, str]) -> None:
    first = Pair(*files)
    pairs = [first, *(Pair(*files, decryption=first.decryption) for _ in range(40))]
    found = []
    for one in pairs:
        one.client.write(b"x" * 100_000)
        one.attach()
        found.append(one.arrive(one.from_client.read()))
    assert sum(map(bool, found)) == MAX_RESUMED - 1  # a slice takes 1.2 ms
    for _ in range(len(pairs) * 40):
        first.turn()
        resumed = [index for index, one in enumerate(pairs) if one.transport.resumed]
        assert len(resumed) <= MAX_RESUMED
        for index in resumed:
            pairs[index].transport.resumed = 0
            found[index] += pairs[index].arrive(b"")
    assert found == [b"x" * 100_000] * len(pairs)


def test_lost_connection_reads_the_rest_at_once(pair: Pair) -> None:
    for _ in range(5000):
        pair.client.write(b"abc")
    pair.attach()
    found = pair.arrive(pair.from_client.read())
    assert len(found) < 5000
    assert found + pair.server.unread(262_144) == b"abc" * 5000


def test_slice_that_reads_all_ends(pair: Pair) -> None:
    pair.attach()
    pair.client.write(b"x" * 10_000)
    assert pair.arrive(pair.from_client.read()) == b"x" * 10_000
    pair.now += 1
    for _ in range(5000):
        pair.client.write(b"abc")
    pair.incoming.write(pair.from_client.read())
    assert pair.server.unread(262_144) == b"abc" * 5000


def test_lost_connections_together_have_the_time_of_one_turn(files: tuple[str, str]) -> None:
    first = Pair(*files)
    pairs = [first, *(Pair(*files, decryption=first.decryption) for _ in range(2))]
    for one in pairs:
        one.client.write(b"x" * 10_000)
        one.incoming.write(one.from_client.read())
    first.decryption.left_for_lost = 0.0003  # reading the clock at the beginning and at the end takes 0.2 ms
    assert [len(one.server.unread(262_144)) for one in pairs] == [10_000, 10_000, 0]
    first.turn()
    assert len(pairs[2].server.unread(262_144)) == 10_000


def test_input_after_the_close_is_discarded_encrypted(pair: Pair) -> None:
    pair.attach()
    pair.transport.is_closed = True
    for _ in range(1000):
        pair.client.write(b"abc")
    assert pair.arrive(pair.from_client.read()) == b""
    pair.client.write(b"abc")  # OpenSSL would find this record damaged, because the records before it are missing
    assert pair.arrive(pair.from_client.read()) == b""
    assert pair.incoming.pending == 0
    assert pair.floods == 0


def test_few_bytes_after_the_close_are_decrypted(pair: Pair) -> None:
    pair.attach()
    pair.transport.is_closed = True
    pair.client.write(b"abc")
    assert pair.arrive(pair.from_client.read()) == b"abc"


def test_client_that_sends_on_after_the_close_is_disconnected(pair: Pair) -> None:
    pair.attach()
    pair.transport.is_closed = True
    for _ in range(24):
        pair.client.write(b"x" * 10_900)
        pair.arrive(pair.from_client.read())
    pair.client.write(b"x" * 10_900)
    with pytest.raises(ssl.SSLError, match="after the end"):
        pair.arrive(pair.from_client.read())
    assert pair.floods == 1
