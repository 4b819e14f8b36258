"""Strategies of hypothesis for the packets of MQTT clients."""

from hypothesis import strategies as st
from msgspec.structs import replace

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import ConnectPacket, PublishPacket, Will
from push1st.protocols.mqtt.topics import is_filter, is_topic
from tests.support.mqtt_packets import binary

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn")), max_size=20)
names = texts.filter(is_topic)
filters = (st.lists(st.sampled_from(["a", "", "+", "é"]), min_size=1, max_size=4).map("/".join) | names).filter(is_filter)
levels = st.sampled_from(["", "a", "b", "$a"])
channels = st.lists(levels, min_size=1, max_size=5).map(".".join).filter(bool)
channel_filters = (
    st.tuples(st.lists(levels | st.just("+"), max_size=4), st.sampled_from(["a", "", "+", "#"]))
    .map(lambda parts: ".".join((*parts[0], parts[1])))
    .filter(bool)
)
"""filters, written as channel names"""
packet_ids = st.integers(1, 65_535)
qualities = st.integers(0, 2)
pairs = st.lists(st.tuples(st.sampled_from(["event", "a"]) | texts, texts), max_size=3)
seconds = st.none() | st.integers(0, 0xFFFFFFFF)


def properties(user: list[tuple[str, str]], content: str | None, data: bytes | None) -> bytes:
    encoded = b"".join(encode.user_property(*pair) for pair in user)
    encoded += b"" if content is None else b"\x03" + encode.string(content)
    return encoded + (b"" if data is None else b"\x09" + binary(data))


@st.composite
def messages(draw: st.DrawFn, version: int) -> PublishPacket:
    qos = draw(qualities)
    user = draw(pairs) if version == 5 else []
    return PublishPacket(
        draw(names),
        draw(st.binary()),
        qos,
        draw(st.booleans()),
        draw(packet_ids) if qos else 0,
        draw(st.booleans()) if qos else False,
        properties(user, draw(st.none() | texts), draw(st.none() | st.binary())) if version == 5 else b"",
        draw(seconds) if version == 5 else None,
        next((value for name, value in user if name == "event"), None),
    )


@st.composite
def connects(draw: st.DrawFn, version: int) -> ConnectPacket:
    will = None
    if draw(st.booleans()):
        message = draw(messages(version))
        delay = draw(st.integers(0, 100)) if version == 5 else 0
        will = Will(
            message.topic.replace("$", "S"),
            message.payload,
            message.qos,
            message.retain,
            delay,
            message.properties,
            message.expiry,
            message.event,
        )
    packet = ConnectPacket(
        version,
        draw(texts.filter(bool)),
        draw(st.booleans()),
        draw(st.integers(0, 65_535)),
        draw(texts if version != 5 else st.none() | texts),
        draw(st.none() | st.binary()),
        will,
        session_expiry=0 if version == 5 else None,
    )
    if version != 5:
        return packet
    return replace(
        packet,
        session_expiry=draw(st.integers(0, 0xFFFFFFFF)),
        receive_maximum=draw(st.integers(1, 65_535)),
        maximum_packet_size=draw(st.none() | st.integers(1, 0xFFFFFFFF)),
        topic_alias_maximum=draw(st.integers(0, 65_535)),
        wants_reasons=draw(st.booleans()),
        authentication_method=draw(st.none() | texts),
    )
