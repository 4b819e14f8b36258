"""Encoding and decoding of the payloads of topics."""

from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.redis import MESSAGES
from push1st.brokers.redis.wire import (
    ANSWER,
    EDGE,
    QUESTION,
    Edge,
    Question,
    decode_answer,
    decode_edge,
    decode_messages,
    decode_question,
    encode_answer,
    encode_messages,
    encode_question,
)
from push1st.messages import Message

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
    assert data[0] >= MESSAGES > max(EDGE, QUESTION, ANSWER)
    assert decode_messages(data) == sent


@given(words, words, words, words, words, numbers, numbers, st.binary())
def test_an_edge_is_read_as_a_script_writes_it(kind, app, channel, user, socket, id, received, info):
    texts = [one.encode() for one in (kind, app, channel, user, socket, str(id), str(received))]
    assert decode_edge(b"\1" + b"\0".join([*texts, info])) == Edge(kind, app, channel, user, socket, id, received, info)


@given(words, numbers, st.binary())
def test_requests_and_replies_decode_as_they_were_encoded(text, number, data):
    question = Question(text, number, text, text, data)
    assert encode_question(question)[0] == QUESTION
    assert decode_question(encode_question(question)) == question
    assert encode_answer(number, data)[0] == ANSWER
    assert decode_answer(encode_answer(number, data)) == (number, data)
