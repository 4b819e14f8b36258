"""Fuzzes the MQTT decoder: any bytes, in any chunks, are packets, and perhaps a violation at the end; topics and payloads too."""

from random import Random

from fuzz.runner import cut, main
from push1st.filters import FilterTrie, matches, overlap
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.connect import MAX_CLIENT_ID_BYTES
from push1st.protocols.mqtt.decode import MAX_CONNECT_BYTES, PacketDecoder
from push1st.protocols.mqtt.packets import (
    MAX_PACKET_ID,
    ClientPacket,
    ConnackPacket,
    ConnectPacket,
    DisconnectPacket,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
    SubscribePacket,
    UnsubscribePacket,
    Violation,
)
from push1st.protocols.mqtt.payload import data_of, payload_of
from push1st.protocols.mqtt.topics import channel_of, exchange, is_filter, is_text, is_topic, share_of, topic_of

MOST = 1000
ALIASES = 10
CONNECT_3 = "100f 0006 4d5149736470 03 02 000a 0001 70"
CONNECT_4 = "101c 0004 4d515454 04 ee 003c 0001 70 0002 6161 0001 ff 0001 75 0003 78797a"
CONNECT_5 = "102a 0004 4d515454 05 06 000a 0c 11 00000e10 26 0001 61 0001 62 0001 70 0a 18 00000005 02 00000000 0001 77 0000"
START_4 = "100d 0004 4d515454 04 02 000a 0001 70"
START_5 = "100e 0004 4d515454 05 02 000a 00 0001 70"

SEEDS = [
    bytes.fromhex(CONNECT_3 + "3007 0003 612f62 6f6e 8206 0007 0001 61 00 6a02 0007 c000 e000"),
    bytes.fromhex(CONNECT_4 + "c000"),
    bytes.fromhex(CONNECT_5 + "d000"),
    bytes.fromhex(START_4 + "3209 0003 612f62 0007 6f6e 4002 0001 4002 0002 a205 0007 0001 61 e000"),
    bytes.fromhex(START_5 + "3008 0001 61 03 23 0001 31 3007 0000 03 23 0001 32 4003 0002 10 5002 ffff"),
    bytes.fromhex(START_5 + "3218 0001 61 0007 0f 02 00000000 26 0005 6576656e74 0000 6e6e6e 4004 0007 00 00"),
    bytes.fromhex(START_5 + "8218 0007 02 0b7f 0003 612f2b 2d 000a 2473686172652f672f2b 01"),
    bytes.fromhex(START_5 + "e007 00 05 11 00000001"),
    bytes.fromhex(START_5 + "30ffffff7f"),
    b"GET /mqtt HTTP/1.1\r\n\r\n",
    b'{"base64":"AA=="}',
    b"a/+/b\na/x/b\n#\n$SYS/#\n$SYS/x\na/b/#\na/b\n+/+\n/\n$share/g/a",
]


def run(data: bytes, random: Random) -> None:
    whole = packets_of([data])
    assert packets_of(list(cut(data, random))) == whole, "chunks change the packets"
    for packet in whole:
        check(packet)
    assert payload_of(data_of(data)) == data
    text = data.decode(errors="ignore")
    names = [name for name in text.split("\n") if is_text(name)]
    check_names(names[:20])


def packets_of(chunks: list[bytes]) -> list[ClientPacket]:
    """Returns the packets, with each acknowledgement in a packet of its own."""
    decoder = PacketDecoder(MOST, ALIASES)
    packets: list[ClientPacket] = []
    for chunk in chunks:
        for packet in decoder.feed(chunk):
            if isinstance(packet, PubackPacket | PubrecPacket | PubrelPacket | PubcompPacket):
                packets += [type(packet)((id,), packet.reason) for id in packet.packet_ids]
            else:
                packets.append(packet)
        kept = len(decoder._rest or b"")
        assert kept <= (MOST if decoder.version else MAX_CONNECT_BYTES) + len(chunk)
        assert len(decoder._aliases or ()) <= ALIASES
    ends = [isinstance(packet, Violation | DisconnectPacket) for packet in packets]
    assert not any(ends[:-1]), "a packet follows the end"
    assert all(
        isinstance(packet, ConnectPacket) == (not at) for at, packet in enumerate(packets) if not isinstance(packet, Violation)
    )
    return packets


def check(packet: ClientPacket) -> None:
    match packet:
        case PublishPacket():
            assert is_topic(packet.topic)
            assert (packet.packet_id > 0) == (packet.qos > 0)
            assert packet.qos <= 2
            assert packet.packet_id <= MAX_PACKET_ID
            once = encode.publish(5, packet.topic, packet.payload, packet.qos, packet.retain, packet.properties, packet.expiry)
            frame = once.frame(packet.packet_id, packet.dup) if packet.qos else once.head
            if len(frame) <= MOST:
                assert packets_of([bytes.fromhex(START_5) + frame])[1:] == [packet], "the packet changes in a round trip"
        case SubscribePacket() | UnsubscribePacket():
            assert packet.filters
            assert packet.packet_id
        case ConnectPacket():
            assert len(packet.client_id.encode()) <= MAX_CLIENT_ID_BYTES
            assert packet.receive_maximum
            assert packet.maximum_packet_size != 0
        case Violation():
            assert packet.text
            connacks = [encode.connack(ConnackPacket(packet.reason), version) for version in (3, 4, 5)]
            assert packet.answer in (b"", encode.disconnect(packet.reason), *connacks)
            assert packet.reason >= ReasonCode.UNSPECIFIED_ERROR
        case _:
            pass


def check_names(names: list[str]) -> None:
    trie: FilterTrie[str] = FilterTrie()
    filters = {exchange(name) for name in names if is_filter(name) and share_of(name) == ("", name)}
    for name in filters:
        trie[name] = name
    for name in filter(is_topic, names):
        assert topic_of(channel_of(name)) == name
        channel = exchange(name)
        found, _ = trie.match(channel)
        assert sorted(found) == sorted(one for one in filters if matches(one, channel))
        assert all(overlap(one, other) for one in found for other in found)


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
