"""WebSocket framing: any chunks of the same bytes are the same events; violations end the connection with their code."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from push1st.errors import Disconnect
from push1st.protocols.websocket import (
    PING_FRAME,
    Closed,
    Decoder,
    Fragment,
    Pinged,
    Ponged,
    Text,
    close_frame,
    pong_frame,
    text_frame,
    text_head,
    whole_text,
)
from tests.support.frames import frames, masked

MOST = 70_000
TEXT, CONT, BINARY, CLOSE, PING, PONG = Opcode.TEXT, Opcode.CONT, Opcode.BINARY, Opcode.CLOSE, Opcode.PING, Opcode.PONG


def decode(*chunks: bytes, most: int = MOST) -> list[object]:
    """Returns the events of these chunks; the last is the close code, if the connection ends."""
    decoder = Decoder(most)
    events: list[object] = []
    try:
        for chunk in chunks:
            events.extend(event for event in decoder.feed(chunk) if not isinstance(event, Fragment))
    except Disconnect as end:
        events.append(end.code)
    return events


def at_every_byte(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(data[:n], data[n:]) for n in range(1, len(data))]


# Whole and split


def test_a_text_message_is_its_text():
    assert decode(masked(TEXT, "жук")) == [Text("жук")]


def test_several_frames_in_one_chunk_are_several_events():
    data = masked(TEXT, "a") + masked(PING, "p") + masked(TEXT, "b")
    assert decode(data) == [Text("a"), Pinged(b"p"), Text("b")]


def test_an_empty_message_is_a_message():
    assert decode(masked(TEXT, "")) == [Text("")]


@pytest.mark.parametrize("text", ["", "жук", "x" * 125])
def test_one_short_text_frame_needs_no_decoder(text):
    assert whole_text(masked(TEXT, text)) == Text(text)


NOT_WHOLE = {
    "a long frame": masked(TEXT, "x" * 126),
    "a frame and a byte": masked(TEXT, "a") + b"\x81",
    "two frames": masked(TEXT, "a") * 2,
    "a fragment": masked(TEXT, "a", fin=False),
    "a ping": masked(PING, ""),
    "no mask": b"\x81\x05hello",
    "a reserved bit": b"\xc1\x80\0\0\0\0",
    **{f"{size} bytes": masked(TEXT, "a")[:size] for size in range(7)},
}


@pytest.mark.parametrize("data", NOT_WHOLE.values(), ids=NOT_WHOLE.keys())
def test_anything_but_one_short_text_frame_needs_a_decoder(data):
    assert whole_text(data) is None


def test_a_short_text_frame_that_is_not_utf8_is_1007():
    with pytest.raises(Disconnect) as caught:
        whole_text(masked(TEXT, b"\xff"))
    assert caught.value.code == 1007


BETWEEN = {
    "nothing": (b"", True),
    "a text": (masked(TEXT, "a"), True),
    "a ping": (masked(PING, "a"), True),
    "a text without its last byte": (masked(TEXT, "a")[:-1], False),
    "a text and a byte": (masked(TEXT, "a") + b"\x81", False),
    "a fragment": (masked(TEXT, "a", fin=False), False),
    "a fragment and a ping": (masked(TEXT, "a", fin=False) + masked(PING, ""), False),
    "two fragments": (masked(TEXT, "a", fin=False) + masked(CONT, "b"), True),
}


@pytest.mark.parametrize(("data", "between"), BETWEEN.values(), ids=BETWEEN.keys())
def test_decoder_is_between_messages_when_nothing_is_incomplete(data, between):
    decoder = Decoder(MOST)
    list(decoder.feed(data))
    assert decoder.is_between_messages is between


CONVERSATION = (
    masked(TEXT, "жук")
    + masked(TEXT, "x" * 200)
    + masked(TEXT, "first ", fin=False)
    + masked(PING, "between")
    + masked(CONT, "se", fin=False)
    + masked(PONG, "")
    + masked(CONT, "cond")
    + masked(CLOSE, b"\x03\xe8bye")
)
SAID = [Text("жук"), Text("x" * 200), Pinged(b"between"), Ponged(), Text("first second"), Closed(1000)]


def test_frames_are_the_same_split_at_every_byte():
    for chunks in at_every_byte(CONVERSATION):
        assert decode(*chunks) == SAID


def test_frames_are_the_same_byte_by_byte():
    assert decode(*(CONVERSATION[n : n + 1] for n in range(len(CONVERSATION)))) == SAID


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_messages_of_every_kind_of_length_are_read(size):
    data = masked(TEXT, "x" * size)
    assert decode(data) == [Text("x" * size)]
    for cut in (1, 2, 3, 4, 6, 8, 10, 13, 14, 15):
        assert decode(data[:cut], data[cut:]) == [Text("x" * size)]


def test_a_fragment_may_end_within_a_letter():
    letters = "жук".encode()
    assert decode(masked(TEXT, letters[:1], fin=False), masked(CONT, letters[1:4], fin=False), masked(CONT, letters[4:])) == [
        Text("жук")
    ]


def test_fragments_may_be_empty():
    assert decode(masked(TEXT, "", fin=False) + masked(CONT, "", fin=False) + masked(CONT, "a")) == [Text("a")]


def test_each_fragment_is_an_event_with_its_size():
    data = masked(TEXT, "ab", fin=False) + masked(CONT, "", fin=False) + masked(CONT, "c")
    assert list(Decoder(MOST).feed(data)) == [Fragment(2), Fragment(0), Text("abc")]


def test_an_idle_decoder_holds_nothing():
    decoder = Decoder(MOST)
    assert list(decoder.feed(masked(TEXT, "a"))) == [Text("a")]
    assert list(decoder.feed(masked(TEXT, "жук", fin=False) + masked(CONT, "")[:3])) == [Fragment(6)]
    assert list(decoder.feed(masked(CONT, "")[3:])) == [Text("жук")]
    assert decoder._message is None
    assert decoder._rest == b""


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_slowly_arriving_frame_is_stored_once(cut):
    """For headers, control frames and messages, the decoder stores only the received bytes."""
    decoder = Decoder(MOST)
    data = masked(PING, b"x" * 125) + masked(TEXT, "ж" * 300)
    for at in range(0, len(data), cut):
        list(decoder.feed(data[at : at + cut]))
        assert len(decoder._rest) <= 131
        assert len(decoder._message or b"") <= 600


pieces = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.lists(st.text(max_size=40), min_size=1, max_size=3)),
        st.tuples(st.just(PING), st.binary(max_size=125).map(lambda data: [data])),
        st.tuples(st.just(PONG), st.binary(max_size=125).map(lambda data: [data])),
        st.tuples(st.just(TEXT), st.integers(120, 300).map(lambda size: ["x" * size])),
    ),
    max_size=6,
)


@given(pieces, st.lists(st.integers(1, 40), max_size=60), st.lists(st.booleans(), max_size=20))
def test_any_chunking_of_any_frames_gives_the_same_events(sent, cuts, control):
    controls = iter(control)
    data = b""
    expected: list[object] = []
    for opcode, parts in sent:
        if opcode is TEXT:
            for n, part in enumerate(parts):
                data += masked(TEXT if n == 0 else CONT, part.encode(), fin=n == len(parts) - 1)
                if n < len(parts) - 1 and next(controls, False):
                    data += masked(PING, b"between")
                    expected.append(Pinged(b"between"))
            expected.append(Text("".join(parts)))
        else:
            data += masked(opcode, parts[0])
            expected.append(Pinged(parts[0]) if opcode is PING else Ponged())
    chunks = []
    for cut in cuts:
        chunks.append(data[:cut])
        data = data[cut:]
    assert decode(*filter(None, [*chunks, data])) == expected


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), max_size=10))
@example(b"\x81\xfe\x00\x01", [])
def test_any_chunking_of_any_bytes_gives_the_same_events(data, cuts):
    whole = decode(data)
    chunks, rest = [], data
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert decode(*filter(None, [*chunks, rest])) == whole


# Violations


def unmasked(opcode: Opcode, data: bytes) -> bytes:
    return bytes(Frame(opcode, data).serialize(mask=False))


WRONG = {
    "a frame that is not masked": (unmasked(TEXT, b"a"), 1002),
    "a continuation of nothing": (masked(CONT, "a"), 1002),
    "a new message within another": (masked(TEXT, "a", fin=False) + masked(TEXT, "b"), 1002),
    "a control frame in fragments": (b"\x09\x80\0\0\0\0", 1002),
    "a ping over 125 bytes": (b"\x89\xfe\x00\x7e\0\0\0\0" + b"\0" * 126, 1002),
    "a close over 125 bytes": (b"\x88\xfe\x00\x7e\0\0\0\0" + b"\x03\xe8" + b"\0" * 124, 1002),
    "a reserved bit": (b"\xc1\x80\0\0\0\0", 1002),
    "a second reserved bit": (b"\xa1\x80\0\0\0\0", 1002),
    "a reserved opcode": (b"\x83\x80\0\0\0\0", 1002),
    "a reserved control opcode": (b"\x8b\x80\0\0\0\0", 1002),
    "a close of one byte": (masked(CLOSE, b"\x03"), 1002),
    "a close code that is never sent": (masked(CLOSE, (1005).to_bytes(2, "big")), 1002),
    "another close code that is never sent": (masked(CLOSE, (1006).to_bytes(2, "big")), 1002),
    "a close code that does not exist": (masked(CLOSE, (999).to_bytes(2, "big")), 1002),
    "a close reason that is not UTF-8": (masked(CLOSE, b"\x03\xe8\xff"), 1007),
    "a text that is not UTF-8": (masked(TEXT, b"\xff"), 1007),
    "a text with half a letter": (masked(TEXT, "ж".encode()[:1]), 1007),
    "a text with a surrogate": (masked(TEXT, b"\xed\xa0\x80"), 1007),
    "fragments that are not UTF-8 together": (masked(TEXT, b"\xd0", fin=False) + masked(CONT, b"\xd0"), 1007),
    "a binary message": (masked(BINARY, b"a"), 1003),
    "a binary message in fragments": (masked(BINARY, b"a", fin=False), 1003),
    "a message that is too large": (masked(TEXT, "x" * (MOST + 1)), 1009),
    "a length of 2^63": (b"\x81\xff\x80" + b"\0" * 7 + b"\0\0\0\0", 1009),
    "a short length in two bytes": (b"\x81\xfe\x00\x7d" + b"\0\0\0\0" + b"x" * 125, 1002),
    "a short length in eight bytes": (b"\x81\xff" + (125).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 125, 1002),
    "a length of two bytes in eight": (b"\x81\xff" + (65_535).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 65_535, 1002),
    "a text that is not UTF-8 within fragments": (masked(TEXT, b"\xff", fin=False) + masked(CONT, "a"), 1007),
    "fragments that are too large together": (masked(TEXT, "x" * MOST, fin=False) + masked(CONT, "x"), 1009),
}


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG.keys())
def test_protocol_violation_ends_the_connection(data, code):
    assert decode(data)[-1] == code


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG.keys())
def test_messages_before_a_violation_are_decoded(data, code):
    first, *_, end = decode(masked(TEXT, "before") + data)
    assert (first, end) == (Text("before"), code)


SHORT = {name: one for name, one in WRONG.items() if len(one[0]) < 300}


@pytest.mark.parametrize(("data", "code"), SHORT.values(), ids=SHORT.keys())
def test_violation_split_at_any_byte_ends_the_connection(data, code):
    for chunks in at_every_byte(data):
        assert decode(*chunks)[-1] == code


def test_excessive_length_is_rejected_before_the_payload_arrives():
    assert decode(b"\x81\xff" + (MOST + 1).to_bytes(8, "big")) == [1009]


AT_ONCE = {
    "a text that is not UTF-8, in a fragment": (masked(TEXT, b"a\xff", fin=False), 1007),
    "a text that is not UTF-8, in a later fragment": (masked(TEXT, b"a\xd0", fin=False) + masked(CONT, b"a", fin=False), 1007),
    "a text that is not UTF-8, in half a frame": (masked(TEXT, b"a\xff" + b"x" * 100)[:8], 1007),
    "a letter that cannot go on, in half a frame": (masked(TEXT, b"\xf4\x90\x80\x80" + b"x" * 100)[:8], 1007),
    "a ping that declares two bytes of length": (b"\x89\xfe", 1002),
    "a ping that declares 65,536 bytes": (b"\x89\xff", 1002),
    "a close in fragments": (b"\x08\xff", 1002),
    "a binary message": (b"\x82\xfe", 1003),
    "a reserved opcode": (b"\x83\xfe", 1002),
    "a reserved bit": (b"\xc1\xfe", 1002),
    "a frame that is not masked": (b"\x81\x7e", 1002),
    "a continuation of nothing": (b"\x80\xfe", 1002),
    "a new message within another": (masked(TEXT, "a", fin=False) + b"\x81\xfe", 1002),
    "a short length in two bytes": (b"\x81\xfe\x00\x7d", 1002),
    "a short length in eight bytes": (b"\x81\xff" + (65_535).to_bytes(8, "big"), 1002),
    "fragments that are too large together": (masked(TEXT, "x" * MOST, fin=False) + masked(CONT, "x")[:6], 1009),
}


@pytest.mark.parametrize(("data", "code"), AT_ONCE.values(), ids=AT_ONCE.keys())
def test_a_violation_ends_the_connection_with_the_first_bytes_that_show_it(data, code):
    assert decode(data) == [code]


def test_a_message_of_the_most_bytes_is_read():
    assert decode(masked(TEXT, "x" * 10), most=10) == [Text("x" * 10)]
    assert decode(masked(TEXT, "x" * 4, fin=False) + masked(CONT, "x" * 6), most=10) == [Text("x" * 10)]


@pytest.mark.parametrize(("data", "code"), SHORT.values(), ids=SHORT.keys())
def test_bytes_after_the_end_raise_only_disconnect(data, code):
    """A closing connection still reads, because the client sends a close frame."""
    for first, rest in at_every_byte(data):
        decoder = Decoder(MOST)
        for chunk in (first, rest, *[masked(TEXT, "a")] * 3):
            with contextlib.suppress(Disconnect):
                list(decoder.feed(chunk))


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1011, 3000, 4000, 4200, 4999])
def test_close_codes_are_read(code):
    assert decode(masked(CLOSE, code.to_bytes(2, "big") + b"bye")) == [Closed(code)]


def test_a_close_without_a_code_is_1005():
    assert decode(masked(CLOSE, b"")) == [Closed(1005)]


# Frames to clients


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (1, b"\x81\x01"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (127, b"\x81\x7e\x00\x7f"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_has_the_shortest_length(size, head):
    assert text_head(size) == head
    assert text_frame(b"x" * size) == head + b"x" * size
    assert frames(text_frame(b"x" * size)) == [(TEXT, b"x" * size)]


def test_a_close_frame_has_code_and_reason():
    assert close_frame(4001, "no such app") == b"\x88\x0d\x0f\xa1no such app"


@pytest.mark.parametrize("reason", ["x" * 200, "ж" * 100, "a" + "ж" * 100, "😀" * 60, "ab😀" * 60])
def test_close_reason_is_cut_between_letters(reason):
    ((opcode, payload),) = frames(close_frame(1008, reason))
    assert opcode is CLOSE
    assert 120 < len(payload) <= 125
    assert reason.startswith(payload[2:].decode())


def test_pong_has_the_payload_of_the_ping():
    assert pong_frame(b"abc") == b"\x8a\x03abc"
    assert frames(pong_frame(b"x" * 125)) == [(PONG, b"x" * 125)]


def test_a_ping_is_empty():
    assert frames(PING_FRAME) == [(PING, b"")]
