"""Golden packets of clients in each version of MQTT, input in any pieces, and the bounds of the decoder's memory."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.mqtt import decode
from push1st.protocols.mqtt.decode import MAX_CONNECT_BYTES, PacketDecoder
from push1st.protocols.mqtt.packets import (
    ClientPacket,
    ConnectPacket,
    DisconnectPacket,
    FilterOptions,
    PingreqPacket,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
    SubscribePacket,
    UnsubscribePacket,
    Violation,
    Will,
)
from tests.support.mqtt_packets import framed

MOST = 1000
ALIASES = 10
CONNECTS = {
    3: "10 0F 0006 4D5149736470 03 02 000A 0001 70",
    4: "10 0D 0004 4D515454 04 02 000A 0001 70",
    5: "10 0E 0004 4D515454 05 02 000A 00 0001 70",
}


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def connected(version: int, most: int = MOST) -> PacketDecoder:
    decoder = PacketDecoder(most, ALIASES)
    assert decoder.feed(octets(CONNECTS[version])) == [ConnectPacket(version, "p", keep_alive=10, session_expiry=expiry(version))]
    return decoder


def expiry(version: int) -> int | None:
    return 0 if version == 5 else None


def decoded(version: int, text: str) -> list[ClientPacket]:
    return connected(version).feed(octets(text))


# -- golden packets


@pytest.mark.parametrize("version", [3, 4, 5])
def test_minimal_connect(version: int):
    connected(version)


def test_connect_of_3_1_1_with_all_fields():
    packet = "10 22 0004 4D515454 04 EC 003C 0003 646576 0004 672F6864 0003 6F6666 0002 7573 0002 FF00"
    will = Will("g/hd", b"off", 1, True)
    assert PacketDecoder(MOST, ALIASES).feed(octets(packet)) == [ConnectPacket(4, "dev", False, 60, "us", b"\xff\0", will)]


def test_connect_of_5_0_with_all_fields():
    packet = (
        "10 65 0004 4D515454 05 F6 0100"
        " 26 11 00000E10 21 0014 27 00001000 22 0005 17 00 19 01 15 0003 6A7774 16 0002 0102 26 0001 61 0001 62"
        " 0003 646576"
        " 1F 18 00000005 01 01 02 0000000A 03 0001 63 08 0001 72 09 0001 FF 26 0001 61 0001 62"
        " 0001 77 0002 3132 0002 7573 0002 7077"
    )
    properties = octets("01 01 03 0001 63 08 0001 72 09 0001 FF 26 0001 61 0001 62")
    will = Will("w", b"12", 2, True, 5, properties, 10)
    decoder = PacketDecoder(MOST, ALIASES)
    assert decoder.feed(octets(packet)) == [
        ConnectPacket(5, "dev", True, 256, "us", b"pw", will, 3600, 20, 4096, 5, False, "jwt")
    ]


def test_will_has_the_name_of_its_event():
    packet = "10 21 0004 4D515454 05 06 000A 00 0001 70 0D 26 0005 6576656E74 0003 6F6666 0001 77 0000"
    (found,) = PacketDecoder(MOST, ALIASES).feed(octets(packet))
    assert isinstance(found, ConnectPacket)
    assert found.will == Will("w", b"", properties=octets("26 0005 6576656E74 0003 6F6666"), event="off")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("30 08 0003 612F62 6F6E21", PublishPacket("a/b", b"on!")),
        ("31 05 0003 612F62", PublishPacket("a/b", b"", 0, True)),
        ("32 09 0003 612F62 0007 6F6E", PublishPacket("a/b", b"on", 1, False, 7)),
        ("3D 08 0003 612F62 FFFF 6E", PublishPacket("a/b", b"n", 2, True, 65_535, True)),
        ("40 02 0007", PubackPacket((7,))),
        ("50 02 0107", PubrecPacket((263,))),
        ("62 02 0007", PubrelPacket((7,))),
        ("70 02 0007", PubcompPacket((7,))),
        (
            "82 0E 0007 0003 612F2B 01 0003 622F23 02",
            SubscribePacket(7, (FilterOptions("a/+", 1), FilterOptions("b/#", 2))),
        ),
        ("A2 0C 0007 0003 612F2B 0003 622F23", UnsubscribePacket(7, ("a/+", "b/#"))),
        ("C0 00", PingreqPacket()),
        ("E0 00", DisconnectPacket()),
    ],
)
def test_packets_of_3_1_and_3_1_1(version: int, text: str, packet: ClientPacket):
    assert decoded(version, text) == [packet]


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("30 09 0003 612F62 00 6F6E21", PublishPacket("a/b", b"on!")),
        ("35 0A 0003 612F62 0007 00 6F6E", PublishPacket("a/b", b"on", 2, True, 7)),
        (
            (
                "32 35 0003 612F62 0007 2A 01 01 02 0000003C 03 0001 63 08 0003 722F31 09 0002 FF00 26 0001 61 0001 62"
                " 26 0005 6576656E74 0003 6F7074 6F6E6F"
            ),
            PublishPacket(
                "a/b",
                b"ono",
                1,
                False,
                7,
                False,
                octets("01 01 03 0001 63 08 0003 722F31 09 0002 FF00 26 0001 61 0001 62 26 0005 6576656E74 0003 6F7074"),
                60,
                "opt",
            ),
        ),
        ("30 0B 0001 61 05 02 00000000 6E6E", PublishPacket("a", b"nn", expiry=0)),
        ("40 02 0007", PubackPacket((7,))),
        ("40 03 0007 10", PubackPacket((7,), ReasonCode.NO_MATCHING_SUBSCRIBERS)),
        ("40 04 0007 97 00", PubackPacket((7,), ReasonCode.QUOTA_EXCEEDED)),
        ("50 0F 0007 80 0B 1F 0001 72 26 0001 61 0001 62", PubrecPacket((7,), ReasonCode.UNSPECIFIED_ERROR)),
        ("62 03 0007 92", PubrelPacket((7,), ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)),
        ("70 03 0007 00", PubcompPacket((7,))),
        (
            "82 17 0007 09 0B 7F 26 0001 61 0001 62 0003 612F2B 2D 0002 2F23 1A",
            SubscribePacket(7, (FilterOptions("a/+", 1, True, True, 2), FilterOptions("/#", 2, False, True, 1)), 127),
        ),
        ("82 0C 0007 05 0B FFFFFF7F 0001 61 00", SubscribePacket(7, (FilterOptions("a"),), 268_435_455)),
        ("82 10 0007 00 000A 2473686172652F672F61 01", SubscribePacket(7, (FilterOptions("$share/g/a", 1),))),
        ("A2 0D 0007 07 26 0001 61 0001 62 0001 61", UnsubscribePacket(7, ("a",))),
        ("C0 00", PingreqPacket()),
        ("E0 00", DisconnectPacket()),
        ("E0 01 04", DisconnectPacket(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)),
        ("E0 02 00 00", DisconnectPacket()),
        ("E0 0B 00 09 11 0000000A 1F 0001 72", DisconnectPacket(session_expiry=10)),
        ("E0 06 00 04 1C 0001 70", DisconnectPacket()),
    ],
)
def test_packets_of_5_0(text: str, packet: ClientPacket):
    assert decoded(5, text) == [packet]


def test_properties_that_are_not_passed_on_are_cut_out():
    text = "30 17 0001 61 11 26 0001 61 0001 62 23 0001 26 0001 63 0001 64 6E6E"
    assert decoded(5, text) == [PublishPacket("a", b"nn", properties=octets("26 0001 61 0001 62 26 0001 63 0001 64"))]


def test_byte_order_mark_is_kept():
    assert decoded(4, "30 06 0004 EFBBBF61") == [PublishPacket("\ufeffa", b"")]


@pytest.mark.parametrize("version", [3, 4])
def test_remaining_length_may_be_longer_than_needed_before_5_0(version: int):
    assert decoded(version, "C0 8000 30 858000 0003 612F62") == [PingreqPacket(), PublishPacket("a/b", b"")]


# -- MQTT 3.1, which leaves more open


def test_3_1_ignores_unused_flags():
    assert decoded(3, "C1 00 6A 02 0007 80 06 0007 0001 61 00 EF 00") == [
        PingreqPacket(),
        PubrelPacket((7,)),
        SubscribePacket(7, (FilterOptions("a"),)),
        DisconnectPacket(),
    ]


def test_connect_of_3_1_may_have_unused_flags():
    packet = "1E 0F 0006 4D5149736470 03 39 000A 0001 70"
    assert PacketDecoder(MOST, ALIASES).feed(octets(packet)) == [ConnectPacket(3, "p", False, 10)]


def test_connect_of_3_1_may_end_before_the_user_name_and_password():
    packet = "10 0F 0006 4D5149736470 03 C2 000A 0001 70"
    assert PacketDecoder(MOST, ALIASES).feed(octets(packet)) == [ConnectPacket(3, "p", True, 10)]


# -- bridges


@pytest.mark.parametrize(("version", "name"), [(3, "0006 4D5149736470"), (4, "0004 4D515454")])
def test_bridge_gets_no_local_and_retain_as_published(version: int, name: str):
    decoder = PacketDecoder(MOST, ALIASES)
    connect = framed(0x10, octets(f"{name} {0x80 | version:02X} 02 000A 0001 70"))
    assert decoder.feed(connect) == [ConnectPacket(version, "p", keep_alive=10)]
    assert decoder.feed(octets("82 13 0007 0001 23 01 000A 2473686172652F672F61 00")) == [
        SubscribePacket(7, (FilterOptions("#", 1, True, True), FilterOptions("$share/g/a")))
    ]


# -- acknowledgements


@pytest.mark.parametrize("version", [4, 5])
def test_consecutive_short_acknowledgements_are_one_packet(version: int):
    assert decoded(version, "40 02 0001 40 02 0002 40 02 0100 50 02 0001 62 02 0001 62 02 0002 40 02 0003") == [
        PubackPacket((1, 2, 256)),
        PubrecPacket((1,)),
        PubrelPacket((1, 2)),
        PubackPacket((3,)),
    ]


def test_acknowledgement_with_a_reason_code_is_a_packet_of_its_own():
    assert decoded(5, "40 02 0001 40 03 0002 97 40 02 0003 40 02 0004") == [
        PubackPacket((1,)),
        PubackPacket((2,), ReasonCode.QUOTA_EXCEEDED),
        PubackPacket((3, 4)),
    ]


def test_acknowledgements_before_a_wrong_one_are_decoded():
    found = decoded(4, "40 02 0001 40 02 0002 40 02 0000 40 02 0003")
    assert found[0] == PubackPacket((1, 2))
    assert [type(one) for one in found] == [PubackPacket, Violation]


# -- topic aliases


def test_topic_alias_stands_for_its_topic():
    decoder = connected(5)
    assert decoder.feed(octets("30 08 0001 61 03 23 0001 31")) == [PublishPacket("a", b"1")]
    assert decoder.feed(octets("30 07 0000 03 23 0001 32 30 08 0001 62 03 23 0001 33")) == [
        PublishPacket("a", b"2"),
        PublishPacket("b", b"3"),
    ]
    assert decoder.feed(octets("30 07 0000 03 23 0001 34")) == [PublishPacket("b", b"4")]


def test_all_topic_aliases_up_to_the_maximum_are_accepted():
    decoder = connected(5)
    for alias in range(1, ALIASES + 1):
        assert decoder.feed(octets(f"30 08 0001 {0x60 + alias:02X} 03 23 {alias:04X} 31")) == [
            PublishPacket(chr(0x60 + alias), b"1")
        ]
    for alias in range(1, ALIASES + 1):
        assert decoder.feed(octets(f"30 07 0000 03 23 {alias:04X} 31")) == [PublishPacket(chr(0x60 + alias), b"1")]


def test_topic_aliases_are_not_shared_by_connections():
    assert decoded(5, "30 08 0001 61 03 23 0001 31") == [PublishPacket("a", b"1")]
    (found,) = decoded(5, "30 07 0000 03 23 0001 32")
    assert isinstance(found, Violation)
    assert found.answer == octets("E0 01 82")


# -- the end


@pytest.mark.parametrize("version", [4, 5])
def test_nothing_follows_disconnect(version: int):
    decoder = connected(version)
    assert decoder.feed(octets("E0 00 C0 00")) == [DisconnectPacket()]
    assert decoder.feed(octets("C0 00")) == []


def test_nothing_follows_a_violation():
    decoder = connected(5)
    found = decoder.feed(octets("C0 00 C1 00 C0 00"))
    assert [type(one) for one in found] == [PingreqPacket, Violation]
    assert decoder.feed(octets("C0 00")) == []


# -- bounds


@pytest.mark.parametrize("first", [byte for byte in range(256) if byte >> 4 != 1])
def test_first_packet_that_is_not_connect_is_not_kept(first: int):
    decoder = PacketDecoder(MOST, ALIASES)
    (found,) = decoder.feed(bytes((first, 0xFF, 0xFF, 0xFF, 0x7F)))
    assert isinstance(found, Violation)
    assert found.answer == b""
    assert decoder._rest is None


def test_first_byte_alone_ends_a_connection_that_is_not_mqtt():
    (found,) = PacketDecoder(MOST, ALIASES).feed(b"G")
    assert isinstance(found, Violation)


def test_too_large_connect_is_not_kept():
    decoder = PacketDecoder(MOST, ALIASES)
    assert decoder.feed(b"\x10\x80\x80") == []
    (found,) = decoder.feed(b"\x08")
    assert isinstance(found, Violation)
    assert found.answer == b""
    assert decoder._rest is None


def test_connect_may_be_larger_than_other_packets():
    tail = octets("0001 70 0001 77 FFF0") + b"x" * 0xFFF0
    packet = framed(0x10, octets("0004 4D515454 04 06 000A") + tail)
    assert MOST < len(packet) < MAX_CONNECT_BYTES
    (found,) = PacketDecoder(MOST, ALIASES).feed(packet)
    assert isinstance(found, ConnectPacket)


@pytest.mark.parametrize("size", [MOST - 3, MOST - 2])
def test_packet_has_at_most_the_maximum_size(size: int):
    decoder = connected(5)
    packet = framed(0x30, b"\0\x01a\0".ljust(size, b"x"))
    found = decoder.feed(packet[:4])
    assert (found == []) is (len(packet) <= MOST)
    if found:
        assert found == [Violation(ReasonCode.PACKET_TOO_LARGE, f"the packet has {MOST + 1} bytes", octets("E0 01 95"))]
        assert decoder._rest is None


@pytest.mark.parametrize("most", [30, 128, 129, 130, 131])
def test_small_maximum_size_is_exact(most: int):
    for size in (most - 3, most - 2, most - 1, most):
        packet = framed(0x30, b"\0\x01a\0".ljust(size, b"x"))
        (found,) = connected(5, most).feed(packet)
        assert isinstance(found, Violation) is (len(packet) > most), (size, found)


def test_byte_by_byte_input_takes_linear_time():
    decoder = connected(4, 2_000_000)
    packet = framed(0x30, b"\0\x01a".ljust(1_000_000, b"x"))
    for at in range(1000):
        assert decoder.feed(packet[at : at + 1]) == []
    kept = decoder._rest
    for at in range(1000, 200_000):
        decoder.feed(packet[at : at + 1])
    assert decoder._rest is kept, "the bytes are not copied for each piece"


def test_idle_decoder_keeps_no_buffers():
    decoder = connected(5)
    decoder.feed(octets("C0"))
    decoder.feed(octets("00"))
    assert decoder._rest is None
    assert decoder._aliases is None
    assert sys.getsizeof(decoder) <= 112


def test_different_topics_and_properties_do_not_fill_the_memory():
    decoder = connected(5)
    for number in range(2 * decode.MAX_KNOWN):
        pair = octets("26 0001 61 0006") + b"%06d" % number
        (found,) = decoder.feed(framed(0x30, octets("0006") + b"%06d" % number + bytes((len(pair),)) + pair))
        assert found == PublishPacket(f"{number:06}", b"", properties=pair)
    assert len(decode._topics) <= decode.MAX_KNOWN
    assert len(decode._properties) <= decode.MAX_KNOWN


def test_long_properties_are_not_remembered():
    pair = octets("26 0001 61 0078") + b"x" * 120
    (found,) = connected(5).feed(framed(0x30, octets("0001 61") + bytes((len(pair),)) + pair + b"on"))
    assert found == PublishPacket("a", b"on", properties=pair)
    long = pair * 2
    (found,) = connected(5).feed(framed(0x30, octets("0001 61 FC01") + long + b"on"))
    assert found == PublishPacket("a", b"on", properties=long)
    assert octets("FC01") + long not in decode._properties


def test_known_properties_that_are_longer_than_their_packet_are_malformed():
    decoder = connected(5)
    assert decoder.feed(octets("30 0A 0001 61 05 02 00000000 6E")) != []
    found = decoder.feed(octets("30 04 0001 61 05 02 00000000"))
    assert [type(one) for one in found] == [Violation]


# -- cuts

STREAMS = {
    4: "30 08 0003 612F62 6F6E21 40 02 0001 40 02 0002 32 09 0003 612F62 0007 6F6E 82 06 0007 0001 61 01 C0 00 50 02 0009 C8 00",
    5: "30 08 0001 61 03 23 0001 31 30 07 0000 03 23 0001 32 40 02 0001 40 03 0002 10 40 02 0003 40 02 0004 C0 00"
    " 82 09 0007 02 0B 7F 0001 61 00 30 0B 0001 61 05 02 00000000 6E6E 38 00",
}


def flat(packets: list[ClientPacket]) -> list[ClientPacket]:
    """Returns the packets with each acknowledgement in a packet of its own."""
    every: list[ClientPacket] = []
    for packet in packets:
        if isinstance(packet, PubackPacket | PubrecPacket | PubrelPacket | PubcompPacket):
            every += [type(packet)((id,), packet.reason) for id in packet.packet_ids]
        else:
            every.append(packet)
    return every


@given(st.sampled_from([4, 5]), st.lists(st.integers(0, 120)), st.binary(max_size=6))
def test_cuts_do_not_change_the_packets(version: int, cuts: list[int], tail: bytes):
    stream = octets(CONNECTS[version] + STREAMS[version]) + tail
    whole = flat(PacketDecoder(MOST, ALIASES).feed(stream))
    decoder = PacketDecoder(MOST, ALIASES)
    found: list[ClientPacket] = []
    at = 0
    for to in (*sorted(cuts), len(stream)):
        found += flat(decoder.feed(stream[at:to]))
        at = max(at, to)
    assert found == whole
    assert len(found) >= 9


@pytest.mark.parametrize("version", [4, 5])
def test_single_bytes_give_the_same_packets(version: int):
    stream = octets(CONNECTS[version] + STREAMS[version])
    decoder = PacketDecoder(MOST, ALIASES)
    found = [packet for at in range(len(stream)) for packet in decoder.feed(stream[at : at + 1])]
    assert found == flat(PacketDecoder(MOST, ALIASES).feed(stream))
