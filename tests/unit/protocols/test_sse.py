"""Blocks of server-sent events."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.messages import KeptMessage, Message, Resumed, gap
from push1st.positions import Position
from push1st.protocols.sse import ENVELOPED, WIRES, begin_of, position_block, retry_block
from tests.support.sse import Block, blocks

ONE, MANY = WIRES[True, False], WIRES[False, False]
NAMED, MANY_NAMED = WIRES[True, True], WIRES[False, True]
MESSAGE = Message("app", "c", "e", b'{"a": 1}', 7, 1000)
KEPT = KeptMessage("app", "c", "e", b'{"a": 1}', 7, 1000, offset=1042, epoch="k3F9aQx2bT")


def test_a_kept_message_is_the_documented_bytes():
    assert ONE.message(KEPT, 1250) == (
        b'id: k3F9aQx2bT:1042\ndata: {"event":"e","channel":"c","data":{"a": 1},"pos":"k3F9aQx2bT:1042"}\n\n'
    )


def test_blocks_of_several_channels_have_no_id():
    assert MANY.message(KEPT, 0) == b'data: {"event":"e","channel":"c","data":{"a": 1},"pos":"k3F9aQx2bT:1042"}\n\n'


def test_a_message_without_history_has_no_position():
    for wire in (ONE, MANY):
        assert wire.message(MESSAGE, 0) == b'data: {"event":"e","channel":"c","data":{"a": 1},"pos":null}\n\n'


def test_a_cached_event_has_no_position():
    assert b"id:" not in ONE.message(KeptMessage("app", "cache-c", "e", b"1", 7, 0), 0)


def test_headers_are_in_the_envelope():
    message = Message("app", "c", "e", b"1", 7, 0, headers=b'{"a":\n1}')
    assert ONE.message(message, 0).endswith(b'"data":1,"pos":null,"headers":{"a": 1}}\n\n')


def test_the_name_of_an_event_may_be_the_type_of_its_block():
    assert NAMED.message(KEPT, 0) == b'id: k3F9aQx2bT:1042\nevent: e\ndata: {"a": 1}\n\n'
    assert MANY_NAMED.message(KEPT, 0) == b'event: e\ndata: {"a": 1}\n\n'


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", *sorted(ENVELOPED)])
def test_names_that_are_no_type_are_enveloped(name):
    (block,) = blocks(NAMED.message(Message("app", "c", name, b"1", 7, 0), 0))
    assert (block.type, block.id) == ("message", "")
    assert json.loads(block.data) == {"event": name, "channel": "c", "data": 1, "pos": None}


texts = st.text(st.characters(codec="utf-8"), max_size=60)
values = st.recursive(st.none() | st.integers() | texts, st.lists)


@given(texts, texts, values, st.sampled_from(list(WIRES)), st.sampled_from(["\n", "\r", "\r\n", "\r\r"]))
def test_no_message_adds_a_field_or_a_block(event, channel, data, wire, indent):
    """JSON text may contain line ends between its tokens, and a block may not."""
    written = json.dumps([data], indent=1).replace("\n", indent).encode()
    message = KeptMessage("app", channel, event, written, 1, 0, offset=3, epoch="E")
    (block,) = blocks(WIRES[wire].message(message, 0))
    assert block.id == ("E:3" if wire[0] else "")
    got = json.loads(block.data)
    if block.type == "message" and isinstance(got, dict):
        assert got == {"event": event, "channel": channel, "data": [data], "pos": "E:3"}
    else:
        assert (block.type, got) == (event, [data])


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_data_with_line_ends_forge_no_field(end):
    data = f"[1,{end}id: forged{end}{end}]".replace("id: forged", '"id: forged"').encode()
    (block,) = blocks(ONE.message(KeptMessage("app", "c", "e", data, 1, 0, offset=3, epoch="E"), 0))
    assert block.id == "E:3"
    assert json.loads(block.data)["data"] == [1, "id: forged"]


def test_a_channel_begins_with_resumed():
    reply = Resumed("c", None, 3, False, Position("E", 7))
    data = '{"recovered":true,"replayed":3,"repeats":false,"position":"E:7"}'
    assert ONE.resumed(reply) == MANY.resumed(reply) == f'data: {{"event":"resumed","channel":"c","data":{data}}}\n\n'.encode()
    assert NAMED.resumed(reply) == f'event: resumed\ndata: {{"channel":"c",{data[1:]}\n\n'.encode()


def test_a_gap_is_resumed_with_the_position_after_it():
    lost = gap("app", "c", "state-lost", Position("E", 7), 1, 2)
    reply = Resumed("c", "state-lost", position=Position("E", 7))
    for wire, id in ((ONE, b"id: E:7\n"), (NAMED, b"id: E:7\n"), (MANY, b""), (MANY_NAMED, b"")):
        assert wire.message(lost, 0) == id + wire.resumed(reply)


def test_a_rejected_channel_is_an_error_without_a_position():
    """The field `pos` distinguishes a message with the name `error`."""
    for wire in WIRES.values():
        (block,) = blocks(wire.refused("\n", 403, "no"))
        assert (block.type, block.id) == ("message", "")
        assert json.loads(block.data) == {"event": "error", "channel": "\n", "data": {"code": 403, "message": "no"}}


def test_blocks_of_the_server():
    assert blocks(retry_block(1500)) == [Block(retry=1500)]
    assert blocks(position_block("E:1,-")) == [Block("position", "E:1,-", "E:1,-")]


SINCE = Position("E", 3)


@pytest.mark.parametrize(
    ("reply", "begin"),
    [
        (Resumed("c", None, 4, False, Position("E", 7)), SINCE),
        (Resumed("c", None, 0, False, Position("E", 3)), SINCE),
        (Resumed("c", "trimmed", 0, False, Position("E", 7)), Position("E", 7)),
        (Resumed("c", "unknown", 2, False, Position("E", 7)), Position("E", 5)),
        (Resumed("c", "unknown", 9, False, Position("E", 7)), Position("E", 0)),
        (Resumed("c", "no-history"), None),
    ],
)
def test_the_first_id_is_not_ahead_of_the_messages_that_follow(reply, begin):
    assert begin_of(reply, SINCE) == begin
