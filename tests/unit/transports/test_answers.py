"""Responses as bytes."""

import pytest

from push1st.messages import Response
from push1st.transports.answers import CLOSE, encoded, endless, error, keeping, ok
from tests.support.http import Answer

KEPT = keeping(10)


@pytest.mark.parametrize("status", [200, 202, 400, 404, 426, 503])
@pytest.mark.parametrize("keep", [True, False])
def test_response_has_its_length_and_whether_the_connection_stays(status, keep):
    answer = Answer(encoded(Response(status, "{é}".encode()), 1.5, KEPT if keep else CLOSE, head=False))
    assert (answer.status, answer.body, answer.keeps, answer.rest) == (status, "{é}".encode(), keep, b"")


def test_an_answer_to_head_has_the_length_and_no_body():
    data = encoded(Response(200, b"12345"), 1.5, KEPT, head=True)
    assert data.endswith(b"\r\n\r\n")
    assert Answer(data, head_only=True).headers["content-length"] == "5"


def test_the_frequent_answer_is_the_same_as_any():
    body = b"{}"
    whole = Answer(ok(7.1, b"text/plain", KEPT) + b"%d\r\n\r\n%b" % (len(body), body))
    other = Answer(encoded(Response(200, body, b"text/plain"), 7.9, KEPT, head=False))
    assert (whole.status, whole.headers, whole.body) == (other.status, other.headers, other.body)


def test_the_frequent_answer_follows_second_and_listener():
    first = ok(7.1, b"text/plain", KEPT)
    assert ok(7.9, b"text/plain", keeping(10)) is first
    assert b"Keep-Alive: timeout=2\r\n" in ok(7.9, b"text/plain", keeping(2))
    assert b"Keep-Alive: timeout=10\r\n" in ok(7.9, b"text/plain", KEPT)


def test_an_endless_answer_has_no_length_and_ends_its_connection():
    head = endless(7.0, b"text/plain", b"X: y\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nX: y\r\nConnection: close\r\n\r\n" in head
    assert b"content-length" not in head.lower()


def test_an_error_is_json():
    assert Answer(encoded(error(400, 'a "word"\n'), 1, KEPT, head=False)).json == {"error": 'a "word"\n'}
