"""Packets that break the protocol, with the reason code and the last packet to the client, in each version of MQTT."""

import pytest

from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.fields import READERS, USER_PROPERTY
from push1st.protocols.mqtt.packets import ClientPacket, ConnectPacket, PublishPacket, Violation
from tests.support.mqtt_packets import binary, framed

CONNECTS = {
    3: "0006 4D5149736470 03 02 000A 0001 70",
    4: "0004 4D515454 04 02 000A 0001 70",
    5: "0004 4D515454 05 02 000A 00 0001 70",
}
NOT_UTF8 = (
    "746F700000",
    "746FEDA080",
    "746F700170",
    "746F701F70",
    "746F707F70",
    "746FC29F70",
    "746FEFBFBF",
    "74F09FBFBE",
    "C080",
    "FF",
)
"""strings that no field may contain: U+0000, U+D800, controls, noncharacters, and bytes that are not UTF-8"""

VALUES = {
    "flag": ("00",),
    "two_bytes": ("0101", "01"),
    "four_bytes": ("00000001", "000000"),
    "varint": ("01", "80"),
    "string": ("0001 70", "0002 70"),
    "binary": ("0001 70", "00"),
}
"""a valid and, but for flags, an incomplete value for each type of properties"""
PROPERTIES = {id: VALUES[reader.__name__] for id, reader in READERS.items()} | {
    USER_PROPERTY: ("0001 70 0001 71", "0001 70", "0001 70 0002 71", "00", "")
}
UNKNOWN = ("00", "04", "05", "06", "07", "0A", "0C", "14", "1B", "1D", "1E", "20", "2B", "7F", "8000", "8001", "FF7F")


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def first(text: str) -> ClientPacket:
    """Decodes the body of a CONNECT."""
    (found,) = PacketDecoder(1000, 10).feed(framed(0x10, octets(text)))
    return found


def after_connect(version: int, data: bytes) -> list[ClientPacket]:
    decoder = PacketDecoder(1000, 10)
    (found,) = decoder.feed(framed(0x10, octets(CONNECTS[version])))
    assert isinstance(found, ConnectPacket)
    return decoder.feed(data)


def answer(found: ClientPacket) -> str:
    assert isinstance(found, Violation), found
    assert found.text
    return found.answer.hex(" ").upper()


def code(version: int, text: str) -> str:
    """Returns the reason code in the DISCONNECT that answers a packet; "" if the server only closes."""
    (found,) = after_connect(version, octets(text))
    if not (last := answer(found)):
        return ""
    assert last.startswith("E0 01 ")
    assert isinstance(found, Violation)
    assert last == f"E0 01 {found.reason:02X}"
    return last[6:]


# -- CONNECT


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # the protocol name and the protocol level
        ("0004 4D515455 04 02 000A 0001 70", ""),
        ("0003 4D5154 04 02 000A 0001 70", ""),
        ("0005 4D51545454 05 02 000A 00 0001 70", ""),
        ("0000 04 02 000A 0001 70", ""),
        ("0004 4D515454", ""),
        ("0004 4D51", ""),
        ("00", ""),
        ("", ""),
        ("0004 4D515454 02 02 000A 0001 70", "20 03 00 84 00"),
        ("0004 4D515454 06 02 000A 0001 70", "20 03 00 84 00"),
        ("0006 4D5149736470 06 02 000A 0001 70", "20 03 00 84 00"),
        ("0004 4D515454 86 02 000A 0001 70", "20 03 00 84 00"),
        ("0004 414D5150 00 09 01", "20 03 00 84 00"),
        ("0004 4D515454 03 02 000A 0001 70", "20 02 00 01"),
        ("0006 4D5149736470 04 02 000A 0001 70", "20 02 00 01"),
        ("0006 4D5149736470 05 02 000A 00 0001 70", "20 02 00 01"),
        # 3.1
        ("0006 4D5149736470 03 02 000A 0000", "20 02 00 02"),
        ("0006 4D5149736470 03 1E 000A 0001 70 0001 70 0001 70", ""),
        ("0006 4D5149736470 03 82 000A 0001 70 00", ""),
        # 3.1.1
        ("0004 4D515454 04", ""),
        ("0004 4D515454 04 02 00", ""),
        ("0004 4D515454 04 03 000A 0001 70", ""),
        ("0004 4D515454 04 0A 000A 0001 70", ""),
        ("0004 4D515454 04 22 000A 0001 70", ""),
        ("0004 4D515454 04 1E 000A 0001 70 0001 70 0001 70", ""),
        ("0004 4D515454 04 42 000A 0001 70 0001 70", ""),
        ("0004 4D515454 04 02 000A", ""),
        ("0004 4D515454 04 02 000A 0002 70", ""),
        ("0004 4D515454 04 00 000A 0000", "20 02 00 02"),
        ("0004 4D515454 04 06 000A 0001 70", ""),
        ("0004 4D515454 04 06 000A 0001 70 0001 70", ""),
        ("0004 4D515454 04 06 000A 0001 70 0000 0001 70", ""),
        ("0004 4D515454 04 06 000A 0001 70 0003 612F23 0001 70", ""),
        ("0004 4D515454 04 02 000A 0001 70 0001 70", ""),
        ("0004 4D515454 04 82 000A 0001 70", ""),
        ("0004 4D515454 04 82 000A 0001 70 0001 70 0001 70", ""),
        ("0004 4D515454 04 C2 000A 0001 70 0001 70", ""),
        # 5.0
        ("0004 4D515454 05 02 000A", "20 03 00 81 00"),
        ("0004 4D515454 05 03 000A 00 0001 70", ""),
        ("0004 4D515454 05 0A 000A 00 0001 70", ""),
        ("0004 4D515454 05 22 000A 00 0001 70", ""),
        ("0004 4D515454 05 1E 000A 00 0001 70 00 0001 70 0001 70", ""),
        ("0004 4D515454 05 02 000A 00", ""),
        ("0004 4D515454 05 02 000A 00 0002 70", ""),
        ("0004 4D515454 05 06 000A 00 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 06 000A 00 0001 70 00", "20 03 00 81 00"),
        ("0004 4D515454 05 06 000A 00 0001 70 00 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 06 000A 00 0001 70 00 0000 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 06 000A 00 0001 70 00 0003 612F23 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 02 000A 00 0001 70 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 82 000A 00 0001 70", ""),
        ("0004 4D515454 05 82 000A 00 0001 70 0002 70", ""),
        ("0004 4D515454 05 82 000A 00 0001 70 0001 70 0001 70", "20 03 00 81 00"),
        ("0004 4D515454 05 C2 000A 00 0001 70 0001 70", ""),
    ],
)
def test_connect_that_breaks_the_protocol(body: str, expected: str):
    assert answer(first(body)) == expected


@pytest.mark.parametrize("flags", [1, 2, 4, 8])
@pytest.mark.parametrize("version", [4, 5])
def test_connect_with_reserved_flags_closes(version: int, flags: int):
    (found,) = PacketDecoder(1000, 10).feed(framed(0x10 | flags, octets(CONNECTS[version])))
    assert answer(found) == ""


@pytest.mark.parametrize("raw", NOT_UTF8)
def test_client_id_that_is_not_valid_text(raw: str):
    field = binary(octets(raw)).hex()
    assert answer(first(f"0004 4D515454 04 02 000A {field}")) == ""
    assert answer(first(f"0004 4D515454 05 02 000A 00 {field}")) == "20 03 00 85 00"


@pytest.mark.parametrize("raw", NOT_UTF8)
def test_user_name_that_is_not_valid_text_closes(raw: str):
    field = binary(octets(raw)).hex()
    assert answer(first(f"0004 4D515454 04 82 000A 0001 70 {field}")) == ""
    assert answer(first(f"0004 4D515454 05 82 000A 00 0001 70 {field}")) == ""


@pytest.mark.parametrize("raw", [*NOT_UTF8, b"$CONTROL/x".hex(), b"$share/g/a".hex(), b"a/+".hex(), (b"a" * 1025).hex()])
def test_topic_of_a_will_that_is_not_valid(raw: str):
    field = binary(octets(raw)).hex()
    assert answer(first(f"0004 4D515454 04 06 000A 0001 70 {field} 0000")) == ""
    assert answer(first(f"0004 4D515454 05 06 000A 00 0001 70 00 {field} 0000")) == "20 03 00 81 00"


def test_client_id_has_at_most_256_bytes():
    longest, longer = ((size.to_bytes(2, "big") + b"x" * size).hex() for size in (256, 257))
    assert isinstance(first(f"0004 4D515454 04 02 000A {longest}"), ConnectPacket)
    assert answer(first(f"0004 4D515454 04 02 000A {longer}")) == "20 02 00 02"
    assert answer(first(f"0004 4D515454 05 02 000A 00 {longer}")) == "20 03 00 85 00"


@pytest.mark.parametrize("client_id", ["0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ", "0"])
def test_client_id_may_have_23_letters_and_digits(client_id: str):
    for head in ("0004 4D515454 04 02 000A", "0004 4D515454 05 02 000A 00"):
        found = first(f"{head} {binary(client_id.encode()).hex()}")
        assert isinstance(found, ConnectPacket)
        assert found.client_id == client_id


def test_empty_client_id_is_permitted_with_a_clean_session_and_in_5_0():
    for body in ("0004 4D515454 04 02 000A 0000", "0004 4D515454 05 02 000A 00 0000", "0004 4D515454 05 00 000A 00 0000"):
        found = first(body)
        assert isinstance(found, ConnectPacket)
        assert found.client_id == ""


def test_password_without_a_user_name_is_permitted_in_5_0():
    found = first("0004 4D515454 05 42 000A 00 0001 70 0002 7077")
    assert isinstance(found, ConnectPacket)
    assert (found.username, found.password) == (None, b"pw")


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ("21 0000", "82"),
        ("27 00000000", "82"),
        ("17 02", "82"),
        ("19 02", "82"),
        ("16 0001 70", "82"),
        ("15 0001 70", None),
        ("15 0001 70 16 0001 70", None),
        ("22 0000", None),
        ("11 FFFFFFFF", None),
        ("26 0000 0000 26 0000 0000", None),
        ("11 000000", "81"),
        ("26 0001 70", "81"),
        ("26 0001 00 0000", "81"),
        ("15 0003 EDA080", "81"),
    ],
)
def test_properties_of_connect(properties: str, expected: str | None):
    found = first(f"0004 4D515454 05 02 000A {len(octets(properties)):02X} {properties} 0001 70")
    assert isinstance(found, ConnectPacket) if expected is None else answer(found) == f"20 03 00 {expected} 00"


IN_CONNECT = {0x11, 0x15, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27}
"""the properties of CONNECT, but for 0x16, which needs 0x15"""


@pytest.mark.parametrize("id", PROPERTIES)
def test_each_property_in_connect(id: int):
    value, *_ = PROPERTIES[id]
    once, twice = octets(f"{id:02X} {value}"), octets(f"{id:02X} {value} {id:02X} {value}")
    head, tail = "0004 4D515454 05 02 000A", "0001 70"
    found = first(f"{head} {len(once):02X} {once.hex()} {tail}")
    assert isinstance(found, ConnectPacket) if id in IN_CONNECT else answer(found) == "20 03 00 82 00"
    if id != 0x26:
        assert answer(first(f"{head} {len(twice):02X} {twice.hex()} {tail}")) == "20 03 00 82 00"


# -- all other packets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # fixed headers
        ("00 00", "82"),
        ("0F 00", "82"),
        ("10 0D 0004 4D515454 04 02 000A 0001 70", "82"),
        ("20 02 0000", "82"),
        ("90 03 0007 00", "82"),
        ("B0 02 0007", "82"),
        ("D0 00", "82"),
        ("D1 00", "81"),
        ("91 04 0007 00 00", "81"),
        ("B8 04 0007 00 00", "81"),
        ("21 03 00 00 00", "82"),
        ("F1 00", "82"),
        ("D0 01 00", ""),
        ("F0 00", "82"),
        ("36 08 0001 61 0007 00 6E6E", "81"),
        ("38 05 0001 61 00 6E", "81"),
        ("39 05 0001 61 00 6E", "81"),
        ("41 02 0007", "81"),
        ("48 02 0007", "81"),
        ("52 02 0007", "81"),
        ("60 02 0007", "82"),
        ("63 02 0007", "82"),
        ("72 02 0007", "81"),
        ("80 07 0007 00 0001 61 00", "81"),
        ("83 07 0007 00 0001 61 00", "81"),
        ("8A 07 0007 00 0001 61 00", "81"),
        ("A0 06 0007 00 0001 61", "81"),
        ("A3 06 0007 00 0001 61", "81"),
        ("C1 00", "81"),
        ("C2 00", "81"),
        ("E1 00", "82"),
        ("E8 00", "82"),
        ("30 80808080", ""),
        ("30 8080808001", ""),
        ("E0 8080808001", ""),
        ("D0 8080808001", ""),
        ("F0 8080808001", ""),
        ("00 8080808001", "82"),
        ("0A C0", "82"),
        ("0A", "82"),
        ("C0 8000", "81"),
        ("30 848000 0001 61 00", "81"),
        ("30 E907", "95"),
        ("30 FFFFFF7F", "95"),
        # PUBLISH
        ("30 00", "81"),
        ("30 01 00", "81"),
        ("30 02 0001", "81"),
        ("30 03 0001 61", "81"),
        ("32 04 0001 6100", "81"),
        ("32 05 0001 61 0007", "81"),
        ("32 03 0001 61 32 03 0001 61", "81"),
        ("30 04 0000 00 6E", "81"),
        ("30 06 0003 612F2B 00", "81"),
        ("30 06 0003 236162 00", "81"),
        ("32 06 0001 61 0000 00", "82"),
        ("34 06 0001 61 0000 00", "82"),
        ("30 04 0001 61 01", "81"),
        ("30 05 0001 61 80 00", "81"),
        ("30 05 0001 61 8000", "81"),
        ("30 06 0001 61 02 01 02", "82"),
        ("30 07 0001 61 03 23 0000", "94"),
        ("30 07 0001 61 03 23 000B", "94"),
        ("30 06 0000 03 23 0001", "82"),
        ("30 0A 0000 07 26 0001 61 0001 62", "81"),
        ("30 06 0000 03 23 0000", "94"),
        ("30 0A 0001 61 06 23 0001 23 0001", "82"),
        ("30 06 0001 61 02 0B 01", "82"),
        ("30 0A 0001 61 06 08 0003 612F2B", "82"),
        ("30 0A 0001 61 06 08 0003 EDA080", "81"),
        ("30 0A 0001 61 06 03 0003 EDA080", "81"),
        # acknowledgements
        ("40 00", "81"),
        ("40 01 00", "81"),
        ("40 02 0000", "82"),
        ("40 03 0000 00", "82"),
        ("40 02 0000 40 02 0001", "82"),
        ("50 02 0000", "82"),
        ("62 02 0000", "82"),
        ("70 02 0000", "82"),
        ("40 03 0007 FF", "82"),
        ("40 03 0007 92", "82"),
        ("50 04 0007 01 00", "82"),
        ("62 03 0007 10", "82"),
        ("70 03 0007 80", "82"),
        ("40 04 0007 00 01", "81"),
        ("40 05 0007 00 00 00", "81"),
        ("40 0C 0007 00 08 1F 0001 70 1F 0001 71", "82"),
        ("40 08 0007 00 04 23 0001 70", "81"),  # a property that is not permitted, before one that does not exist
        ("30 08 0001 61 04 0B 01 01 02", "82"),
        ("30 08 0001 61 04 0B 01 70 00", "81"),
        ("62 06 0007 00 02 1F 00", "81"),
        # SUBSCRIBE
        ("82 0F 1234 00 0009 2473686172652F702F 00", "82"),  # $share/p/
        ("82 0E 1234 00 0008 2473686172652F70 00", "82"),  # $share/p
        ("82 00", "81"),
        ("82 01 00", "81"),
        ("82 02 0007", "81"),
        ("82 03 0007 00", "81"),
        ("82 07 0000 00 0001 61 00", "81"),
        ("82 06 0007 00 0001 61", "81"),
        ("82 08 0007 00 0001 61 00 00", "81"),
        ("82 06 0007 00 0000 00", "81"),
        ("82 0A 0007 00 0001 61 00 0000 00", "81"),
        ("82 07 0007 00 0001 61 03", "81"),
        ("82 07 0007 00 0001 61 30", "81"),
        ("82 07 0007 00 0001 61 40", "81"),
        ("82 07 0007 00 0001 61 80", "81"),
        ("82 09 0007 00 0003 612F23 34", "81"),
        ("82 09 0007 00 0003 232F61 00", "81"),
        ("82 08 0007 00 0002 612B 00", "81"),
        ("82 10 0007 00 000A 2473686172652F672F61 04", "82"),
        ("82 09 0007 02 0B00 0001 61 00", "82"),
        ("82 0B 0007 04 0B01 0B01 0001 61 00", "82"),
        ("82 0A 0007 03 0B8000 0001 61 00", "81"),
        ("82 0D 0007 06 0B8080808001 0001 61 00", "81"),
        # UNSUBSCRIBE
        ("A2 00", "81"),
        ("A2 02 0007", "81"),
        ("A2 03 0007 00", "81"),
        ("A2 06 0000 00 0001 61", "81"),
        ("A2 05 0007 00 0000", "81"),
        ("A2 06 0007 00 0002 61", "81"),
        ("A2 08 0007 00 0003 612323", "81"),
        # PINGREQ, DISCONNECT
        ("C0 01 00", ""),
        ("E0 01 01", ""),
        ("E0 01 05", ""),
        ("E0 01 87", ""),
        ("E0 01 8D", ""),
        ("E0 01 8E", ""),
        ("E0 01 A2", ""),
        ("E0 03 00 00 00", "81"),
        ("E0 03 00 01 11", "81"),
        ("E0 0C 00 0A 1100000000 1100000000", "82"),
        ("E0 07 00 05 0200000001", "82"),
    ],
)
def test_packet_that_breaks_5_0(text: str, expected: str):
    assert code(5, text) == expected


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    "text",
    [
        "00 00",
        "10 0D 0004 4D515454 04 02 000A 0001 70",
        "20 02 0000",
        "90 03 0007 00",
        "B0 02 0007",
        "D0 00",
        "F0 00",
        "36 07 0001 61 0007 6E6E",
        "38 04 0001 61 6E",
        "30 8080808001",
        "30 E907",
        "30 00",
        "30 02 0001",
        "32 04 0001 6100",
        "30 03 0000 6E",
        "30 05 0003 612F2B",
        "32 05 0001 61 0000",
        "40 01 00",
        "40 02 0000",
        "40 03 0007 00",
        "62 00",
        "62 02 0000",
        "82 02 0007",
        "82 06 0000 0001 61 00",
        "82 06 0007 0001 61 03",
        "82 06 0007 0001 61 04",
        "82 06 0007 0001 61 08",
        "82 06 0007 0001 61 80",
        "82 05 0007 0001 61",
        "82 05 0007 0000 00",
        "82 08 0007 0003 232F61 00",
        "A2 02 0007",
        "A2 05 0000 0001 61",
        "A2 04 0007 0000",
        "C0 01 00",
        "E0 01 00",
    ],
)
def test_packet_that_breaks_3_1_1_closes(version: int, text: str):
    assert code(version, text) == ""


@pytest.mark.parametrize(
    "text", ["41 02 0007", "60 02 0007", "80 06 0007 0001 61 00", "A0 05 0007 0001 61", "C1 00", "D1 00", "E1 00"]
)
def test_wrong_flags_close_3_1_1(text: str):
    assert code(4, text) == ""


@pytest.mark.parametrize("raw", NOT_UTF8)
def test_text_of_packets_that_is_not_valid(raw: str):
    field = binary(octets(raw))
    assert code(5, framed(0x30, field + b"\0").hex()) == "81"
    assert code(4, framed(0x30, field).hex()) == ""
    assert code(5, framed(0x82, b"\0\7\0" + field + b"\0").hex()) == "81"
    assert code(4, framed(0x82, b"\0\7" + field + b"\0").hex()) == ""
    assert code(5, framed(0xA2, b"\0\7\0" + field).hex()) == "81"
    assert code(4, framed(0xA2, b"\0\7" + field).hex()) == ""
    for pair in (b"\x26\0\1a" + field, b"\x26" + field + b"\0\1a"):
        assert code(5, framed(0x30, b"\0\1a" + bytes((len(pair),)) + pair).hex()) == "81"


@pytest.mark.parametrize("name", ["a" * 1025, "/" * 201, "é" * 513])
def test_topic_or_filter_over_the_limits(name: str):
    field = binary(name.encode())
    decoder = PacketDecoder(10_000, 10)
    decoder.feed(framed(0x10, octets(CONNECTS[5])))
    (found,) = decoder.feed(framed(0x30, field + b"\0"))
    assert answer(found) == "E0 01 81"
    decoder = PacketDecoder(10_000, 10)
    decoder.feed(framed(0x10, octets(CONNECTS[4])))
    (found,) = decoder.feed(framed(0x82, b"\0\7" + field + b"\0"))
    assert answer(found) == ""


def test_packets_before_a_violation_are_decoded():
    found = after_connect(5, octets("30 05 0001 61 00 6E 38 05 0001 61 00 6E"))
    assert found[0] == PublishPacket("a", b"n")
    assert answer(found[1]) == "E0 01 81"


# -- properties of 5.0 in each packet

PERMITTED = {
    "30": {0x01, 0x02, 0x03, 0x08, 0x09, 0x26},  # and 0x23, whose value here is not permitted
    "40": {0x1F, 0x26},
    "50": {0x1F, 0x26},
    "62": {0x1F, 0x26},
    "70": {0x1F, 0x26},
    "82": {0x0B, 0x26},
    "A2": {0x26},
    "E0": {0x11, 0x1C, 0x1F, 0x26},
}
HEADS = {
    "30": "0001 61",
    "40": "0007 00",
    "50": "0007 00",
    "62": "0007 00",
    "70": "0007 00",
    "82": "0007",
    "A2": "0007",
    "E0": "00",
}
TAILS = {"82": "0001 61 00", "A2": "0001 61"}


def with_properties(first: str, properties: bytes) -> str:
    body = octets(HEADS[first]) + bytes((len(properties),)) + properties + octets(TAILS.get(first, ""))
    return framed(int(first, 16), body).hex()


@pytest.mark.parametrize("id", PROPERTIES)
@pytest.mark.parametrize("first", HEADS)
def test_each_property_in_each_packet(first: str, id: int):
    value, *incomplete = PROPERTIES[id]
    property = octets(f"{id:02X} {value}")
    other = "94" if (first, id) == ("30", 0x23) else "81" if first in TAILS else "82"
    if id in PERMITTED[first]:
        (found,) = after_connect(5, octets(with_properties(first, property)))
        assert not isinstance(found, Violation)
        if id != 0x26:
            assert code(5, with_properties(first, property * 2)) == "82"
    else:
        assert code(5, with_properties(first, property)) == other
    assert code(5, with_properties(first, property[:1])) == "81"
    for part in incomplete:
        assert code(5, with_properties(first, octets(f"{id:02X} {part}"))) == "81"


@pytest.mark.parametrize("id", UNKNOWN)
@pytest.mark.parametrize("first", HEADS)
def test_unknown_property_is_malformed(first: str, id: str):
    assert code(5, with_properties(first, octets(f"{id} 01"))) == "81"


@pytest.mark.parametrize("first", HEADS)
def test_properties_longer_than_their_packet_are_malformed(first: str):
    assert code(5, framed(int(first, 16), octets(HEADS[first]) + b"\x7f").hex()) == "81"


@pytest.mark.parametrize("properties", ["26 0001 C3 0001 A9", "26 0001 70 0001 C3 26 0001 A9 0001 70"])
def test_character_is_not_divided_between_strings(properties: str):
    assert code(5, with_properties("30", octets(properties))) == "81"


@pytest.mark.parametrize(("version", "answer"), [(4, b""), (5, b"\xe0\1\x97")])
@pytest.mark.parametrize(("first", "filter"), [(0x82, b"\0\1a\0"), (0xA2, b"\0\1a")])
def test_number_of_filters_in_a_packet_is_bounded(version: int, answer: bytes, first: int, filter: bytes):
    def decoded(number: int) -> ClientPacket:
        decoder = PacketDecoder(100_000, 10)
        decoder.feed(framed(0x10, octets(CONNECTS[version])))
        (found,) = decoder.feed(framed(first, b"\0\7" + b"\0" * (version == 5) + filter * number))
        return found

    assert not isinstance(decoded(2000), Violation)
    for number in (2001, 20_000):
        found = decoded(number)
        assert isinstance(found, Violation)
        assert found.answer == answer
