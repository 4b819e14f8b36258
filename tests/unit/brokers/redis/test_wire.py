"""Encoding and decoding of the payloads of topics."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.redis.resp import pack
from push1st.brokers.redis.retained import encode_stored
from push1st.brokers.redis.wire import (
    EDGE,
    KEPT,
    MESSAGES,
    MQTT_MESSAGES,
    REPLY,
    REQUEST,
    Edge,
    TopicRequest,
    copy_of,
    decode_copy,
    decode_edge,
    decode_kept,
    decode_messages,
    decode_mqtt_messages,
    decode_reply,
    decode_request,
    encode_kept,
    encode_messages,
    encode_reply,
    encode_request,
    split_kept,
)
from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, (1 << 63) - 1)
messages = st.builds(
    Message,
    words,
    words,
    words,
    st.binary(),
    numbers,
    numbers,
    words,
    words,
    st.just("unicast"),
    words,
    words | st.none(),
    st.binary(),
)


@given(st.lists(messages, min_size=1, max_size=20))
def test_messages_decode_as_they_were_encoded_and_have_their_own_first_byte(sent):
    data = encode_messages(sent)
    assert data[0] >= MESSAGES > max(EDGE, REQUEST, REPLY)
    assert decode_messages(data) == sent


fields = st.builds(MqttFields, st.integers(0, 2), st.booleans(), numbers, st.binary())
mqtt_messages = st.builds(lambda message, mqtt: MqttMessage(**msgspec.structs.asdict(message), mqtt=mqtt), messages, fields)
kept_messages = st.builds(
    lambda message, expires, mqtt: KeptMessage(**msgspec.structs.asdict(message), expires=expires, mqtt=mqtt),
    *(messages, numbers, fields | st.none()),
)


@given(st.lists(messages | mqtt_messages, min_size=1, max_size=20), mqtt_messages)
def test_messages_of_mqtt_clients_keep_their_fields(sent, one):
    data = encode_messages([*sent, one])
    assert data[0] == MQTT_MESSAGES
    decoded = decode_mqtt_messages(data)
    assert [one.mqtt for one in decoded] == [one.mqtt for one in (*sent, one)]
    assert decode_copy(copy_of(data, is_kept=False)) == decoded
    for old, new in (
        (decode_messages(data), (*sent, one)),
        (decode_messages(data), decoded),
    ):  # `decode_messages`: earlier builds
        assert [msgspec.structs.astuple(one) for one in old] == [msgspec.structs.astuple(one)[:12] for one in new]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 65_535, 65_536])
def test_the_length_of_a_batch_of_mqtt_clients_is_its_number_of_messages(count: int):
    one = MqttMessage("app", "c", "e", b"1", 1, 1, mqtt=MqttFields(1))
    assert decode_mqtt_messages(encode_messages([one] * count)) == [one] * count


@given(st.lists(kept_messages, min_size=1, max_size=20))
def test_kept_messages_of_mqtt_clients_keep_their_fields(sent):
    decoded = decode_kept(encode_kept(sent), 7, "e")
    assert [(one.mqtt, one.data, one.expires) for one in decoded] == [(one.mqtt, one.data, one.expires) for one in sent]
    assert [(one.offset, one.epoch) for one in decoded] == [(7 + number, "e") for number in range(len(sent))]
    copies = decode_copy(copy_of(encode_kept(sent), is_kept=True))
    assert [(one.mqtt, one.data) for one in copies] == [(one.mqtt, one.data) for one in sent]


@given(words, words, words, words, words, numbers, numbers, st.binary())
def test_an_edge_is_read_as_a_script_writes_it(kind, app, channel, user, socket, id, received, info):
    texts = [one.encode() for one in (kind, app, channel, user, socket, str(id), str(received))]
    assert decode_edge(b"\1" + b"\0".join([*texts, info])) == Edge(kind, app, channel, user, socket, id, received, info)


@given(words, numbers, st.binary())
def test_requests_and_replies_decode_as_they_were_encoded(text, number, data):
    request = TopicRequest(text, number, text, text, data)
    assert encode_request(request)[0] == REQUEST
    assert decode_request(encode_request(request)) == request
    assert encode_reply(number, data)[0] == REPLY
    assert decode_reply(encode_reply(number, data)) == (number, data)


EVENT = Message("app-test", "c", "e", b'{"a":1}', 1876543210123456512, 1779811200000000000)
CLIENT_EVENT = Message(
    *("app-test", "presence-c", "client-e", b'"x"', 1876543210123456513, 1779811200000000001),
    *("1.2", "1.2", "multicast", "shop.1", "u1", b'{"h":1}'),
)


def test_publish_has_the_bytes_of_earlier_builds():
    """Recorded with the build before `KeptMessage`: nodes of both builds may share a broker."""
    recorded = (
        b'\x9c\xa8app-test\xa1c\xa1e\xc4\x07{"a":1}\xcf\x1a\n\xd2\x1bu\x14p\x00\xcf\x18\xb3(\xdbGC\x00\x00'
        b"\xa3api\xa0\xa9broadcast\xa0\xc0\xc4\x00"
    )
    assert encode_messages([EVENT, CLIENT_EVENT]) == (
        b"\x92"
        + recorded
        + b'\x9c\xa8app-test\xaapresence-c\xa8client-e\xc4\x03"x"\xcf\x1a\n\xd2\x1bu\x14p\x01\xcf\x18\xb3(\xdbGC\x00'
        b'\x01\xa31.2\xa31.2\xa9multicast\xa6shop.1\xa2u1\xc4\x07{"h":1}'
    )
    command = b"*3\r\n$7\r\nPUBLISH\r\n$20\r\npush1st:t:app-test/c\r\n$61\r\n\x91" + recorded + b"\r\n"
    assert pack(("PUBLISH", "push1st:t:app-test/c", encode_messages([EVENT]))) == command


def test_received_messages_have_no_place_until_the_receiver_gives_them_one():
    (received,) = decode_messages(encode_messages([CLIENT_EVENT]))
    assert type(received) is Message
    kept = KeptMessage(**msgspec.structs.asdict(received))
    kept.offset, kept.epoch = 5, "k3F9aQx2bT"
    assert (kept.offset, kept.epoch) == (5, "k3F9aQx2bT")
    assert [getattr(kept, name) for name in Message.__struct_fields__] == list(msgspec.structs.astuple(received))


def at(message: Message, offset: int, epoch: str) -> KeptMessage:
    return KeptMessage(**msgspec.structs.asdict(message), expires=9, offset=offset, epoch=epoch)


def test_kept_messages_have_no_position_on_the_wire_and_get_it_from_the_receiver():
    sent = [at(one, 1234, "elsewhere") for one in (EVENT, CLIENT_EVENT)]
    data = encode_kept(sent)
    assert b"elsewhere" not in data
    assert {len(one) for one in msgspec.msgpack.decode(data)} == {13}
    epoch, first, messages = split_kept(bytes((KEPT,)) + b"k3F9aQx2bT\x0041\0" + data)
    assert decode_kept(messages, first, epoch) == [
        at(one, offset, "k3F9aQx2bT") for offset, one in ((41, EVENT), (42, CLIENT_EVENT))
    ]


def test_cached_message_has_the_bytes_of_earlier_builds():
    message = at(EVENT, 1, "k3F9aQx2bT")
    assert encode_stored(message) == encode_stored(EVENT) == encode_messages([EVENT])[1:]
