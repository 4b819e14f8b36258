"""The decoder of HTTP requests: whatever the chunks, the same events; remembered heads are read like parsed ones."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols import http
from push1st.protocols.http import (
    BODY,
    HEAD,
    IDLE,
    MAX_HEAD,
    Continue,
    HttpEvent,
    HttpRequest,
    Reject,
    RequestDecoder,
    RequestRules,
    Upgrade,
)
from tests.support.http import handshake, request

LEAST_BODY = 1000


def make_rules() -> RequestRules:
    """Rules with a larger bound for `/large`, and with a clock that goes on by one."""
    ticks = iter(range(1, 1_000_000))
    return RequestRules(
        LEAST_BODY,
        lambda path: 5000 if path == "/large" else LEAST_BODY,
        frozenset((b"via",)),
        lambda host: host == b"localhost",
        "/(rooms)/",
        lambda: next(ticks),
    )


@pytest.fixture
def rules() -> RequestRules:
    return make_rules()


@pytest.fixture
def decoder(rules) -> RequestDecoder:
    return RequestDecoder(rules)


def decode(*chunks: bytes) -> list[HttpEvent]:
    one = RequestDecoder(make_rules())
    return [event for chunk in chunks for event in one.feed(chunk)]


def reject(data: bytes) -> Reject:
    """The rejection that these bytes end with."""
    *_, last = decode(data)
    assert isinstance(last, Reject)
    return last


# Requests


def test_a_request_has_its_line_needed_headers_and_body(decoder):
    data = request("POST", "/x?a=%20b&c", "body", "Via: a", "Via: b", "X-Other: c", "Cookie: d=1")
    assert decoder.feed(data) == [
        HttpRequest(
            "POST",
            "/x",
            "a=%20b&c",
            {b"host": b"localhost", b"via": b"a, b", b"cookie": b"d=1", b"content-length": b"4"},
            b"body",
            True,
            1,
        )
    ]
    assert (decoder.stage, decoder.is_done, decoder.has_completed) == (IDLE, False, True)


def test_an_absolute_target_is_cut_to_its_path(decoder):
    (event,) = decoder.feed(request("GET", "http://h:80/x/y?z"))
    assert (event.path, event.query) == ("/x/y", "z")


def test_a_chunked_body_is_joined_and_its_trailers_are_ignored(decoder):
    head = request("POST", "/x", None, "Transfer-Encoding: chunked")
    (event,) = decoder.feed(head + b"3\r\nabc\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\nVia: t\r\n\r\n")
    assert event.body == b"abcdef"
    assert b"via" not in event.headers


def test_pipelined_requests_are_decoded_in_order(decoder):
    events = decoder.feed(b"".join(request("POST", f"/{n}", f"{n}") for n in range(5)))
    assert [(event.path, event.body) for event in events] == [(f"/{n}", b"%d" % n) for n in range(5)]


@pytest.mark.parametrize(
    ("data", "keep"),
    [
        (request("GET", "/"), True),
        (request("GET", "/", None, "Connection: close"), False),
        (request("GET", "/", version="1.0"), False),
        (request("GET", "/", None, "Connection: keep-alive", version="1.0"), False),
        (request("CONNECT", "h:1"), False),
    ],
)
def test_nothing_is_decoded_after_the_last_request(decoder, data, keep):
    first, *others = decoder.feed(data + request("GET", "/next"))
    assert first.keep is keep
    assert [event.path for event in others] == ["/next"] * keep
    assert decoder.is_done is not keep
    assert len(decoder.feed(request("GET", "/more"))) == keep


def test_stage_and_start_follow_the_input(decoder):
    stages = []
    for chunk in (b"GET", b" / HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 3\r\n\r\n", b"a", b"bc"):
        decoder.feed(chunk)
        stages.append((decoder.stage, decoder.started, decoder.body_left, decoder.has_completed))
    assert stages == [(HEAD, 1, 0, False), (HEAD, 1, 0, False), (BODY, 1, 3, False), (BODY, 1, 2, False), (IDLE, 1, 0, True)]


def test_a_client_that_expects_100_is_continued_before_its_body(decoder):
    head = request("POST", "/", None, "Expect: 100-continue", "Content-Length: 2")
    assert decoder.feed(head) == [Continue()]
    (event,) = decoder.feed(b"ab")
    assert event.body == b"ab"


MIXED = (
    request("POST", "/a", "body")
    + request("POST", "/b", None, "Transfer-Encoding: chunked")
    + b"2\r\nab\r\n0\r\n\r\n"
    + request("POST", "/c", "xy", "Expect: 100-continue")
    + request("GET", "/d", None, "Connection: Upgrade", "Upgrade: h2c")
)


def same(events: list[HttpEvent]) -> list[object]:
    """Events without their time."""
    return [(e.method, e.path, e.headers, e.body, e.keep) if isinstance(e, HttpRequest) else e for e in events]


@given(st.lists(st.integers(1, len(MIXED) - 1), max_size=8), st.sampled_from([b"GET / HTTP/2.0\r\n\r\n", b"\x00", b""]))
def test_chunks_do_not_change_the_events(cuts, end):
    data = MIXED + end
    at = [0, *sorted(cuts), len(data)]
    chunks = [data[start:stop] for start, stop in pairwise(at)]
    assert same(decode(*chunks)) == same(decode(data))


# Rejections


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (request("GET", "/", None, "Content-Length: 5", "Content-Length: 6"), 400),
        (request("POST", "/", None, f"Content-Length: {LEAST_BODY + 1}"), 413),
        (request("POST", "/large", None, "Content-Length: 5001"), 413),
        (request("POST", "/", b"x", "Content-Encoding: gzip"), 415),
        (request("POST", "/", b"x", "Expect: maybe"), 417),
        (request("GET", "/", None, "X: " + "x" * MAX_HEAD), 431),
        (b"GET /" + b"x" * (MAX_HEAD + 1), 431),
        (request("POST", "/", None, "Transfer-Encoding: gzip, chunked"), 501),
        (request("GET", "/", version="2.0"), 505),
    ],
)
def test_a_request_that_is_not_supported_is_rejected(data, status):
    assert reject(data).status == status


@pytest.mark.parametrize("data", [request("POST", "/", b"x" * LEAST_BODY), request("POST", "/large", b"x" * 5000)])
def test_a_body_of_the_most_bytes_is_decoded(data):
    (event,) = decode(data)
    assert isinstance(event, HttpRequest)


def test_chunked_body_over_the_bound_is_rejected_on_any_path(decoder):
    decoder.feed(request("POST", "/x", None, "Transfer-Encoding: chunked"))
    events = [event for _ in range(20) for event in decoder.feed(b"64\r\n" + b"x" * 100 + b"\r\n")]
    assert [event.status for event in events] == [413]


def test_bytes_that_the_parser_passes_over_count(decoder):
    decoder.feed(request("POST", "/x", None, "Transfer-Encoding: chunked"))
    events = [event for _ in range(100) for event in decoder.feed(b"1;" + b"x" * 1000 + b"\r\ny\r\n")]
    assert [event.status for event in events] == [413]


def test_the_first_reason_is_the_one_that_is_answered():
    assert reject(request("POST", "/", b"x", "Expect: maybe", "Content-Encoding: br", version="1.1")).status == 415


def test_requests_before_a_rejected_one_are_decoded(decoder):
    first, second = decoder.feed(request("GET", "/a") + b"\x00\r\n")
    assert (first.path, second.status) == ("/a", 400)
    assert decoder.is_done
    assert decoder.feed(request("GET", "/b")) == []


def test_the_rejection_of_a_head_request_has_no_body():
    assert reject(request("HEAD", "/", None, "Content-Encoding: br")).is_head
    assert not reject(request("GET", "/", None, "Content-Encoding: br")).is_head
    assert not reject(request("HEAD", "/") + b"\x00\r\n").is_head


def test_a_client_that_is_rejected_is_not_continued():
    assert reject(request("POST", "/", None, "Expect: 100-continue", "Content-Length: 9999")).status == 413


# Upgrades


def test_a_handshake_is_an_upgrade_with_the_input_after_it(decoder):
    (event,) = decoder.feed(handshake("/app/key?protocol=7", "Origin: http://o") + b"\x81\x00")
    assert isinstance(event, Upgrade)
    assert (event.method, event.path, event.query) == ("GET", "/app/key", "protocol=7")
    assert (event.headers[b"origin"], event.is_valid, event.rest) == (b"http://o", True, b"\x81\x00")
    assert decoder.is_done
    assert decoder.feed(b"\x81\x00") == []


@pytest.mark.parametrize("header", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_a_handshake_with_a_body_is_not_valid(decoder, header):
    (event,) = decoder.feed(handshake("/app/key", header))
    assert isinstance(event, Upgrade)
    assert not event.is_valid


def test_a_handshake_may_offer_websocket_among_others(decoder):
    (event,) = decoder.feed(handshake("/app/key").replace(b"Upgrade: websocket", b"Upgrade: h2c, WebSocket"))
    assert isinstance(event, Upgrade)


def test_any_other_upgrade_is_ignored(decoder):
    data = request("POST", "/x", "body", "Connection: Upgrade", "Upgrade: h2c")
    (event,) = decoder.feed(data)
    assert (event.path, event.body, event.keep) == ("/x", b"body", True)
    assert len(decoder.feed(data + request("GET", "/y"))) == 2


# Remembered heads

BODY_REQUEST = request("POST", "/x", "body")


def remembered(rules: RequestRules, data: bytes) -> bool:
    """Whether the head of this request is remembered."""
    one = RequestDecoder(rules)
    one.feed(data)
    one.remember(data)
    return RequestDecoder(rules).known(data, "") is not None


def test_a_remembered_head_is_read_as_the_parser_reads_it(rules, decoder):
    (event,) = decoder.feed(BODY_REQUEST)
    assert decoder.known(BODY_REQUEST, "why") is None
    decoder.remember(BODY_REQUEST)
    other = RequestDecoder(rules)
    found = other.known(BODY_REQUEST, "why")
    assert found is not None
    assert (found.method, found.path, found.query, found.body) == (event.method, event.path, event.query, event.body)
    assert (found.distrust, found.started, other.started) == ("why", 2, 2)


def test_a_remembered_head_serves_other_lines_and_other_bodies(rules):
    assert remembered(rules, BODY_REQUEST)
    found = RequestDecoder(rules).known(request("POST", "/y?a=b", "ydob"), "")
    assert found is not None
    assert (found.path, found.query, found.body) == ("/y", "a=b", b"ydob")


@pytest.mark.parametrize(
    "data",
    [
        BODY_REQUEST[:-1],
        BODY_REQUEST + b"x",
        BODY_REQUEST + BODY_REQUEST,
        request("POST", "/rooms/a", "body"),
        request("PUT", "/x", "body"),
        request("POST", "/x", "body", version="1.0"),
        request("POST", "http://h/x", "body"),
        b"",
        b"\r\n\r\n",
    ],
)
def test_only_whole_requests_of_the_api_have_a_known_head(rules, data):
    assert remembered(rules, BODY_REQUEST)
    assert RequestDecoder(rules).known(data, "") is None


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/x", "body", "Origin: http://o"),
        request("POST", "/x", "body", "Via: proxy"),
        request("POST", "/x", "body", "Cookie: a=b"),
        request("POST", "/x", "body", "Connection: close"),
        request("POST", "/x", "body", "Idempotency-Key: k"),
        request("POST", "/x", "body", "X: " + "x" * http.MAX_REMEMBERED),
        request("POST", "/large", b"x" * (LEAST_BODY + 1)),
        request("POST", "/rooms/a", "body"),
        BODY_REQUEST.replace(b"localhost", b"evil.example"),
        BODY_REQUEST * 2,
        BODY_REQUEST[:-1],
    ],
)
def test_heads_that_mean_more_than_a_length_are_not_remembered(rules, data):
    assert not remembered(rules, data)
    assert rules.heads == {}


def test_a_long_request_is_remembered_when_it_came_in_pieces(rules, decoder):
    data = request("POST", "/x", b"x" * LEAST_BODY)
    for at in range(0, len(data), 100):
        decoder.feed(data[at : at + 100])
    decoder.remember(data)
    assert RequestDecoder(rules).known(data, "") is not None


def test_remembered_heads_and_lines_are_bounded(rules, monkeypatch):
    monkeypatch.setattr(http, "MAX_HEADS", 3)
    monkeypatch.setattr(http, "MAX_LINES", 3)
    for n in range(10):
        assert remembered(rules, request("POST", f"/{n}", "x" * n))
        assert len(rules.heads) <= 3
        assert len(rules.lines) <= 3
    assert remembered(rules, request("GET", "/" + "x" * http.MAX_LINE))
    assert all(len(line) <= http.MAX_LINE for line in rules.lines)
