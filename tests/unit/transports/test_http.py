"""The input of HTTP connections on a fake socket: limits, trust, and upgrades to a WebSocket."""

import asyncio
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from push1st.config.addresses import Networks
from push1st.config.model import ApiConfig, ServerConfig
from push1st.protocols.http import MAX_HEAD
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS
from push1st.transports.http_output import ANSWER_SECONDS
from tests.support.frames import masked
from tests.support.http import Answer, answers, handshake, request, statuses
from tests.support.loop import turns
from tests.support.node import app_config
from tests.support.served import Served, undated
from tests.support.transport import Site

OUTSIDE = ("203.0.113.9", 1234)
PROXY = ("10.0.0.1", 1234)
PUBLISH = '{"name":"e","channel":"c","data":"x"}'


@pytest.fixture
def served():
    return Served()


@pytest.fixture
def site(served):
    return Site(serve=served)


# One request


async def test_a_request_is_answered(site, served):
    transport = await site.ask(request("GET", "/x"))
    (answer,) = answers(transport.data)
    assert (answer.status, answer.body, answer.keeps) == (200, b"/x ", True)
    assert (served.last.method, served.last.path, served.last.query, served.last.body) == ("GET", "/x", "", b"")


async def test_a_body_and_a_query_reach_the_api(site, served):
    await site.ask(request("POST", "/x?a=%20b&c", "жук"))
    assert (served.last.path, served.last.query, served.last.body) == ("/x", "a=%20b&c", "жук".encode())


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ((), None),
        (("X-Idempotency-Key: k",), None),
        (("Idempotency-Key: k",), b"k"),
        (("idempotency-key:  k",), b"k"),
        (("IDEMPOTENCY-KEY:",), b""),
        (("Idempotency-Key: a", "Idempotency-Key: b"), b"a, b"),
    ],
)
async def test_idempotency_key_reaches_the_api(site, served, headers, key):
    await site.ask(request("POST", "/x", "body", *headers))
    assert served.last.idempotency_key == key


async def test_waiting_request_has_its_own_idempotency_key(site, served):
    first = request("POST", "/wait/1", "a", "Idempotency-Key: k")
    transport = await site.ask(first + request("POST", "/x", "b") + request("POST", "/x", "b", "Idempotency-Key: l"))
    await served.answer("/wait/1")
    assert len(answers(transport.data)) == 3
    assert [one.idempotency_key for one in served.requests] == [b"k", None, b"l"]


async def test_an_answer_has_type_length_and_date(site):
    answer = Answer((await site.ask(request("GET", "/x"))).data)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["content-length"] == "3"
    assert parsedate_to_datetime(answer.headers["date"]).tzname() == "UTC"


async def test_a_chunked_body_is_put_together(site, served):
    await site.ask(request("POST", "/x", None, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n")
    assert served.last.body == b"abcde"


async def test_head_is_answered_without_a_body(site, served):
    answer = Answer((await site.ask(request("HEAD", "/x"))).data, head_only=True)
    assert (answer.status, answer.headers["content-length"], answer.rest) == (200, "3", b"")
    assert served.last.method == "HEAD"


async def test_head_request_is_answered_without_a_body_after_any_wait(site, served):
    transport = await site.ask(request("HEAD", "/wait/x") + request("GET", "/y"))
    await served.answer("/wait/x")
    answer = Answer(transport.data, head_only=True)
    assert answer.headers["content-length"] == "7"
    assert Answer(answer.rest).body == b"/y "


async def test_a_refused_head_is_answered_without_a_body(site):
    answer = Answer((await site.ask(request("HEAD", "/refused"))).data, head_only=True)
    assert (answer.status, answer.rest) == (403, b"")


async def test_call_rejected_by_the_api_is_an_error_and_the_connection_stays(site):
    transport = await site.ask(request("GET", "/refused"))
    (answer,) = answers(transport.data)
    assert (answer.status, answer.json, answer.keeps) == (403, {"error": "no"}, True)
    assert site.metrics.refusals["403"] == 1
    assert not transport.closed


async def test_a_defect_is_answered_without_details_and_logged(site):
    transport = await site.ask(request("GET", "/broken"))
    (answer,) = answers(transport.data)
    assert (answer.status, answer.json) == (500, {"error": "internal error"})
    assert isinstance(site.failures[0], ValueError)


async def test_requests_are_counted_by_status(site):
    await site.ask(request("GET", "/x") + request("GET", "/refused") + request("GET", "/x"))
    assert site.metrics.requests == {200: 2, 403: 1}


async def test_the_absolute_form_is_cut_to_its_path(site, served):
    await site.ask(request("GET", "http://example.com:80/a/b?c=d"))
    assert (served.last.path, served.last.query) == ("/a/b", "c=d")
    await site.ask(request("GET", "http://example.com"))
    assert served.last.path == "/"


@pytest.mark.parametrize("line", [b"OPTIONS * HTTP/1.1", b"CONNECT h:1 HTTP/1.1"])
async def test_other_forms_of_the_target_do_no_harm(site, served, line):
    await site.ask(line + b"\r\nHost: h\r\n\r\n")
    assert served.last.path == "/"
    assert site.failures == []


async def test_bytes_in_a_path_reach_the_api_one_by_one(site, served):
    await site.ask(b"GET /\xd0\xb6 HTTP/1.1\r\nHost: h\r\n\r\n")
    if served.requests:  # the parser may refuse it
        assert served.last.path.encode("latin-1") == b"/\xd0\xb6"


# With the real API


async def test_publish_over_http_reaches_the_subscriber():
    site = Site()
    transport = await site.ask(request("POST", "/apps/app-test/events", PUBLISH))
    (answer,) = answers(transport.data)
    assert answer.json["channels"] == {"c": 0}


# Limits and invalid HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\x00: d\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_invalid_http_is_rejected_and_ends_the_connection(site, served, data):
    transport = await site.ask(data)
    (answer,) = answers(transport.data)
    assert answer.status == 400
    assert "error" in answer.json
    assert transport.ended
    assert served.requests == []
    assert site.failures == []


@pytest.mark.parametrize(
    "data", [b"GET /\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/1.2\r\n\r\n"]
)
async def test_other_versions_are_refused(site, served, data):
    transport = await site.ask(data)
    (answer,) = answers(transport.data)
    assert answer.status in (400, 505)
    assert transport.ended
    assert served.requests == []


def head_of(size: int) -> bytes:
    """Returns a request without a body that has this number of bytes."""
    start = b"GET /x HTTP/1.1\r\nHost: h\r\nX: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


async def test_a_head_of_the_most_bytes_is_read(site):
    assert statuses((await site.ask(head_of(MAX_HEAD))).data) == [200]


@pytest.mark.parametrize("size", [MAX_HEAD + 64, 2 * MAX_HEAD, 10 * MAX_HEAD])
async def test_a_larger_head_is_refused(site, served, size):
    transport = await site.ask(head_of(size))
    assert statuses(transport.data) == [431]
    assert transport.ended
    assert served.requests == []


@pytest.mark.parametrize("chunk", [1000, 8192, MAX_HEAD - 1])
async def test_a_larger_head_in_parts_is_refused(site, served, chunk):
    connection, transport = site.connect()
    data = head_of(2 * MAX_HEAD - 2)
    for at in range(0, len(data), chunk):
        connection.data_received(data[at : at + chunk])
    await turns()
    assert statuses(transport.data) == [431]
    assert served.requests == []


async def test_head_without_an_end_is_rejected(site):
    connection, transport = site.connect()
    connection.data_received(b"GET /")
    for _ in range(100):
        connection.data_received(b"x" * 1000)
    await turns()
    assert statuses(transport.data) == [431]


@pytest.mark.parametrize("rest", [1, 20, 60])
async def test_a_large_chunk_of_small_requests_is_served_wherever_it_is_cut(site, rest):
    """The limit counts the head of one request, without earlier bytes of the same chunk."""
    one = request("POST", "/x", "y" * 300)
    data = one * (3 * MAX_HEAD // len(one))
    connection, transport = site.connect()
    connection.data_received(data + one[:rest])
    connection.data_received(one[rest:])
    await turns()
    assert set(statuses(transport.data)) == {200}


async def test_head_after_a_large_body_is_served_at_any_split(site):
    data = request("POST", "/x", "y" * 2 * MAX_HEAD)
    connection, transport = site.connect()
    connection.data_received(data + b"GET /x HT")
    connection.data_received(b"TP/1.1\r\nHost: h\r\n\r\n")
    await turns()
    assert statuses(transport.data) == [200, 200]


async def test_trailers_are_bounded(site):
    connection, transport = site.connect()
    connection.data_received(request("POST", "/x", None, "Transfer-Encoding: chunked") + b"0\r\n")
    for n in range(30 * site.handlers.max_body("/x") // 10_000):
        connection.data_received(b"T%d: %b\r\n" % (n, b"y" * 1000))
        await turns(1)
    (answer,) = answers(transport.data)
    assert answer.status in (400, 413, 431)
    assert transport.ended


async def test_body_announced_too_large_is_rejected_before_it_arrives(site, served):
    transport = await site.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (site.handlers.max_body("/x") + 1))
    assert statuses(transport.data) == [413]
    assert transport.ended
    assert served.requests == []


async def test_a_body_of_the_most_bytes_is_read(site, served):
    transport = await site.ask(request("POST", "/x", b"y" * site.handlers.max_body("/x")))
    assert statuses(transport.data) == [200]
    assert len(served.last.body) == site.handlers.max_body("/x")


async def test_a_chunked_body_that_becomes_too_large_is_refused(site, served):
    connection, transport = site.connect()
    connection.data_received(request("POST", "/x", None, "Transfer-Encoding: chunked"))
    for _ in range(site.handlers.max_body("/x") // 10_000 + 1):
        connection.data_received(b"2710\r\n" + b"y" * 10_000 + b"\r\n")
    await turns()
    assert statuses(transport.data) == [413]
    assert served.requests == []


BATCH = "/apps/big/batch_events"


@pytest.mark.parametrize(
    "path", ["/apps/app-test/events", "/apps/nobodys/events", "/apps/off/events", "/x", "/pusher/app/app-key/7/abcdefgh/xhr_send"]
)
async def test_a_body_has_the_limit_of_the_app_it_is_for(served, path):
    big = {"payload": 1_000_000}
    apps = app_config(), app_config(big, id="big", key="big-key"), app_config(big, id="off", key="off-key", enable=False)
    site = Site(*apps, serve=served)
    assert statuses((await site.ask(b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n" % path.encode())).data) == [
        413
    ]
    connection, transport = site.connect()
    connection.data_received(request("POST", path, None, "Transfer-Encoding: chunked") + b"%x\r\n" % 300_000 + b"y" * 300_000)
    await turns()
    assert statuses(transport.data) == [413]
    assert served.requests == []
    assert statuses((await site.ask(request("POST", BATCH, b"y" * 20_000_000))).data) == [200]
    assert statuses((await site.ask(request("POST", "//apps///big//events", b"y" * 300_000))).data) == [200]


async def test_known_headers_do_not_raise_the_limit(served):
    site = Site(app_config(), app_config({"payload": 1_000_000}, id="big", key="big-key"), serve=served)
    connection, transport = site.connect()
    for path in (BATCH, BATCH, "/apps/app-test/events"):
        connection.data_received(request("POST", path, b"y" * 300_000))
        await turns()
    assert statuses(transport.data) == [200, 200, 413]


TOO_LARGE = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n"


@pytest.mark.parametrize("secure", [False, True])
async def test_a_client_that_is_refused_may_send_on_until_it_reads_why(site, served, secure):
    """Closing a socket with unread bytes resets the connection, and the client loses the answer."""
    connection, transport = site.connect(secure=secure)
    connection.data_received(TOO_LARGE)
    await turns()
    assert statuses(transport.data) == [413]
    assert (transport.ended, transport.closed) == (not secure, False)
    for _ in range(10):
        connection.data_received(b"y" * 100_000)
    connection.data_received(request("GET", "/smuggled"))
    await turns()
    assert served.requests == []
    assert statuses(transport.data) == [413]
    assert not transport.closed
    assert connection.eof_received() is False


async def test_rejected_client_may_send_on_for_a_short_time_only(site):
    connection, transport = site.connect()
    connection.data_received(TOO_LARGE)
    await turns()
    for _ in range(LINGER_SECONDS + 1):
        connection.data_received(b"y")
        await turns()
        site.pass_seconds(1)
    assert transport.closed
    assert statuses(transport.data) == [413]
    site.pass_seconds(ANSWER_SECONDS + 1)
    assert transport.aborted


async def test_rejected_client_may_send_on_a_bounded_number_of_bytes_only(site):
    connection, transport = site.connect()
    connection.data_received(TOO_LARGE)
    await turns()
    for _ in range(LINGER_BYTES // 1_000_000 + 1):
        assert not transport.closed
        connection.data_received(b"y" * 1_000_000)
        await turns()
    assert transport.closed


async def test_answers_before_a_rejected_request_are_sent(site):
    transport = await site.ask(request("GET", "/x") + b"nonsense\r\n\r\n" + request("GET", "/y"))
    assert statuses(transport.data) == [200, 400]
    assert [answer.keeps for answer in answers(transport.data)] == [True, False]


async def test_body_of_a_rejected_request_is_not_parsed_as_requests(site, served):
    body = request("GET", "/smuggled") * (site.handlers.max_body("/x") // 20)
    transport = await site.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert statuses(transport.data) == [413]
    assert served.requests == []


# Expect


async def test_client_that_expects_100_continue_gets_it(site, served):
    connection, transport = site.connect()
    connection.data_received(b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    await turns()
    assert transport.data == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"abc")
    await turns()
    assert [answer.status for answer in answers(transport.data)] == [100, 200]
    assert served.last.body == b"abc"


async def test_earlier_answers_are_sent_before_100_continue(site):
    transport = await site.ask(
        request("GET", "/a") + b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert [answer.status for answer in answers(transport.data)] == [200, 100, 200]


async def test_client_that_expects_100_continue_with_a_too_large_body_is_rejected_at_once(site):
    transport = await site.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    assert statuses(transport.data) == [413]


async def test_100_continue_after_a_waiting_request_keeps_the_order_of_answers(site, served):
    transport = await site.ask(
        request("GET", "/wait/a") + b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert transport.data == b""
    await served.answer("/wait/a")
    assert statuses(transport.data)[0] == 200
    transport.protocol.data_received(b"abc")
    await turns()
    assert [one.status for one in answers(transport.data)][-1] == 200


# Access and trust


async def test_address_outside_the_whitelist_is_rejected(served):
    site = Site(serve=served, api=ApiConfig(whitelist=Networks.parse(["10.0.0.0/8"])))
    connection, transport = site.connect(OUTSIDE)
    assert transport.aborted
    assert site.metrics.cut_offs["whitelist"] == 1
    connection.connection_lost(None)
    assert statuses((await site.ask(request("GET", "/x"), PROXY)).data) == [200]


@pytest.mark.parametrize("peer", ["", b"", None])
async def test_a_unix_socket_is_not_bound_by_the_whitelist(served, peer):
    site = Site(serve=served, api=ApiConfig(whitelist=Networks.parse(["10.0.0.0/8"])))
    assert statuses((await site.ask(request("GET", "/x"), peer)).data) == [200]


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        ("", True),
        (OUTSIDE, False),
        (PROXY, False),
    ],
)
async def test_callers_are_trusted_by_their_address(site, served, peer, trusted):
    await site.ask(request("GET", "/x"), peer)
    assert (not served.last.distrust) is trusted


async def test_client_listener_trusts_no_caller(served):
    site = Site(serve=served, trusting=False)
    for peer in (("127.0.0.1", 1), ""):
        await site.ask(request("GET", "/x"), peer)
        assert served.last.distrust


async def test_trusted_networks_are_configurable(served):
    site = Site(serve=served, api=ApiConfig(trust=Networks.parse(["203.0.113.0/24"])))
    for peer, trusted in ((OUTSIDE, True), (("127.0.0.1", 1), False), ("", False)):
        await site.ask(request("GET", "/x"), peer)
        assert (not served.last.distrust) is trusted


@pytest.mark.parametrize("origin", ["http://localhost", "null", ""])
async def test_a_web_page_is_not_trusted(site, served, origin):
    await site.ask(request("GET", "/x", None, f"Origin: {origin}"))
    assert served.last.distrust


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For: 127.0.0.1", "x-forwarded-for: 203.0.113.9", "X-Forwarded-For:", "Forwarded: for=127.0.0.1"]
)
@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ""])
async def test_address_forwarded_by_an_unknown_proxy_is_not_trusted(site, served, header, peer):
    await site.ask(request("GET", "/x", None, header), peer)
    assert served.last.distrust


@pytest.fixture
def proxied(served):
    api = ApiConfig(trust=Networks.parse(["127.0.0.0/8", "::1", "unix", "192.0.2.0/24"]))
    return Site(serve=served, server=ServerConfig(proxies=Networks.parse(["10.0.0.0/8"])), api=api)


@pytest.mark.parametrize(
    ("headers", "trusted"),
    [
        (["X-Forwarded-For: 192.0.2.1"], True),
        (["X-Forwarded-For: 203.0.113.9"], False),
        (["X-Forwarded-For: 192.0.2.1, 203.0.113.9"], False),
        (["X-Forwarded-For: 203.0.113.9, 192.0.2.1"], True),
        (["X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.0.0.7"], True),
        (["X-Forwarded-For: 192.0.2.1, 203.0.113.9, 10.0.0.7"], False),
        (["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 203.0.113.9"], False),
        (["X-Forwarded-For: 192.0.2.1", "Origin: http://x"], False),
        (["X-Forwarded-For: 10.0.0.7"], False),
        (["X-Forwarded-For: 127.0.0.1"], False),
        (["X-Forwarded-For: ::1"], False),
        (["X-Forwarded-For: ::ffff:127.0.0.1"], False),
        (["X-Forwarded-For: ::ffff:7f00:1"], False),
        (["X-Forwarded-For: 0:0:0:0:0:0:0:1"], False),
        (["X-Forwarded-For: ::1%lo"], False),
        (["X-Forwarded-For: "], False),
        (["X-Forwarded-For: 192.0.2.1,"], False),
        (["X-Forwarded-For: , 10.0.0.7"], False),
        (["X-Forwarded-For: unix"], False),
        (["X-Forwarded-For: unix:"], False),
        (["X-Forwarded-For: unknown"], False),
        (["X-Forwarded-For: 192.0.2.1:80"], True),
        (["Forwarded: for=192.0.2.1"], True),
        (["Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1"], True),
        (["Forwarded: for=192.0.2.1", "X-Forwarded-For: 203.0.113.9"], False),
        (["Forwarded: for=203.0.113.9", "X-Forwarded-For: 192.0.2.1"], False),
        (["X-Real-IP: 192.0.2.1"], False),
        (["Via: 1.1 proxy"], False),
        (["Via: 1.1 proxy", "X-Forwarded-For: 192.0.2.1"], True),
        (["X-Other: 1"], False),
    ],
)
async def test_address_forwarded_by_a_configured_proxy_is_used(proxied, served, headers, trusted):
    """A forwarded loopback address does not make the caller local."""
    await proxied.ask(request("GET", "/x", None, *headers), PROXY)
    assert (not served.last.distrust) is trusted


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("localhost", True),
        ("LOCALHOST:6002", True),
        ("app.localhost", True),
        ("127.0.0.1:6002", True),
        ("[::1]:6002", True),
        ("", True),
        ("evil.example", False),
        ("evil.example:6002", False),
        ("localhost.evil.example", False),
        ("evillocalhost", False),
        ("127.0.0.1.evil.example", False),
    ],
)
async def test_a_name_that_only_points_here_is_not_trusted(site, served, host, trusted):
    """DNS rebinding: a page whose host name resolves to 127.0.0.1 calls the API as its own origin, without an Origin header."""
    for _ in range(2):
        await site.ask(f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (not served.last.distrust) is trusted


@pytest.mark.parametrize("hosts", [[], ["Host: a", "Host: b"], ["Host: a, b"]])
async def test_a_request_has_one_host(site, served, hosts):
    transport = await site.ask("\r\n".join(["GET /x HTTP/1.1", *hosts, "", ""]).encode())
    assert statuses(transport.data) == [400]
    assert served.requests == []


async def test_a_trusted_address_behind_a_proxy_is_not_trusted_on_a_client_listener(served):
    site = Site(serve=served, trusting=False, server=ServerConfig(proxies=Networks.parse(["10.0.0.0/8"])))
    await site.ask(request("GET", "/x", None, "X-Forwarded-For: 127.0.0.1"), PROXY)
    assert served.last.distrust


# Unsupported requests


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Encoding: gzip"], 415),
        (["Content-Encoding: br, gzip"], 415),
        (["Content-Encoding: identity"], 200),
        (["Content-Encoding:"], 200),
        (["Expect: 200-maybe"], 417),
        (["Expect: 100-continue, 200-maybe"], 417),
        (["Expect: 100-Continue"], 200),
        (["Expect:"], 200),
    ],
)
async def test_a_coding_or_expectation_that_is_not_understood_is_refused(site, served, headers, status):
    transport = await site.ask(request("POST", "/x", "body", *headers))
    *_, answer = answers(transport.data)
    assert answer.status == status
    assert len(served.requests) == (status == 200)
    if status == 415:
        assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("coding", "status"), [("gzip, chunked", 501), ("Chunked", 200), ("gzip", 501), ("chunked, gzip", 400)])
async def test_a_transfer_coding_that_is_not_understood_is_refused(site, served, coding, status):
    body = b"4\r\nbody\r\n0\r\n\r\n"
    transport = await site.ask(request("POST", "/x", None, f"Transfer-Encoding: {coding}") + body + request("GET", "/y"))
    assert statuses(transport.data)[0] == status
    assert [one.path for one in served.requests] == (["/x", "/y"] if status == 200 else [])


async def test_an_expectation_of_http_1_0_is_ignored(site):
    transport = await site.ask(request("POST", "/x", "body", "Expect: 200-maybe", version="1.0"))
    assert statuses(transport.data) == [200]


# Upgrades

APP_PATH = "/app/app-key?protocol=7"


async def test_an_upgrade_makes_a_websocket():
    site = Site()
    transport = await site.websocket(APP_PATH)
    answer = Answer(transport.data)
    assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "Upgrade")
    assert type(transport.protocol).__name__ == "WebSocketConnection"
    assert site.context.open == {transport.protocol}


async def test_a_handshake_may_announce_that_it_has_no_body():
    """The HTTP client of Java sends such requests."""
    assert (await Site().websocket(APP_PATH, "Content-Length: 0")).protocol.codec.name == "pusher"
    refused = await Site().ask(handshake(APP_PATH, "Content-Length: 1") + b"x")
    assert Answer(refused.data).status == 400


@pytest.mark.parametrize(
    ("data", "status", "header"),
    [
        (handshake("/nowhere"), 404, None),
        (handshake("/"), 404, None),
        (handshake("/apps/app-test/events"), 404, None),
        (handshake("/ws/app/unknown/c"), 403, None),
        (handshake(APP_PATH, method="POST"), 405, ("allow", "GET")),
        (handshake(APP_PATH, method="HEAD"), 405, ("allow", "GET")),
        (handshake(APP_PATH, "Sec-WebSocket-Version: 8"), 426, ("sec-websocket-version", "13")),
        (handshake(APP_PATH, "Sec-WebSocket-Version: "), 426, ("sec-websocket-version", "13")),
        (handshake(APP_PATH, "Sec-WebSocket-Key: short"), 400, None),
        (handshake(APP_PATH, "Sec-WebSocket-Key: "), 400, None),
        (handshake(APP_PATH, "Sec-WebSocket-Key: ####aGUgc2FtcGxlIG5vbmNl"), 400, None),
        (handshake(APP_PATH, "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBva29r"), 400, None),
    ],
)
async def test_an_upgrade_that_cannot_be_is_refused(data, status, header):
    site = Site()
    transport = await site.ask(data)
    (answer,) = answers(transport.data)
    assert answer.status == status
    assert "error" in answer.json
    if header:
        assert answer.headers[header[0]] == header[1]
    assert transport.closed
    assert site.metrics.requests[status] == 1
    assert site.node.app(site.world.apps[0]).tenant.sessions == {}


@pytest.mark.parametrize("cut", range(1, 170, 3))
async def test_a_handshake_is_the_same_split_anywhere(cut):
    site = Site()
    data = handshake(APP_PATH)
    connection, transport = site.connect()
    connection.data_received(data[:cut])
    await turns(1)
    transport.protocol.data_received(data[cut:])
    await turns()
    assert transport.data.startswith(b"HTTP/1.1 101 ")
    assert b"pusher:connection_established" in transport.data


async def test_a_request_for_a_websocket_that_is_no_handshake_is_an_ordinary_one(site, served):
    await site.ask(request("GET", APP_PATH, None, "Upgrade: websocket"))
    assert served.last.path == "/app/app-key"


@pytest.mark.parametrize(
    "headers",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
        ["Connection: Upgrade", "Upgrade: TLS/1.2"],
    ],
)
async def test_another_upgrade_is_not_made_and_the_request_is_answered_once(site, served, headers):
    transport = await site.ask(request("GET", "/x", None, *headers) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert [(one.status, one.keeps) for one in answers(transport.data)] == [(200, True), (400, False)]
    assert [one.path for one in served.requests] == ["/x"]


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
"""the headers that curl --http2 and Java's HttpClient send with each request (RFC 7540 §3.2)"""


def chunked(path: str, body: bytes, *headers: str) -> bytes:
    return request("POST", path, None, "Transfer-Encoding: chunked", *headers) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


async def test_a_request_with_another_upgrade_has_its_body_and_its_connection(site, served):
    data = request("POST", "/a?q=1", "body", *H2C) + chunked("/b", b"more", *H2C) + request("GET", "/c", None, *H2C)
    whole = undated((await site.ask(data)).data)
    assert [(one.path, one.query, one.body) for one in served.requests] == [
        ("/a", "q=1", b"body"),
        ("/b", "", b"more"),
        ("/c", "", b""),
    ]
    assert [(one.status, one.keeps) for one in answers(whole)] == [(200, True)] * 3
    for cut in range(1, len(data)):
        connection, transport = site.connect()
        connection.data_received(data[:cut])
        await turns(1)
        connection.data_received(data[cut:])
        await turns(1)
        assert undated(transport.data) == whole, f"cut at {cut}"


@pytest.mark.parametrize(
    "headers", [("Connection: close, Upgrade", "Upgrade: h2c"), ("Connection: Upgrade, close", "Upgrade: foo/2")]
)
async def test_a_request_with_another_upgrade_may_be_the_last(site, headers):
    transport = await site.ask(request("POST", "/a", "body", *headers))
    (answer,) = answers(transport.data)
    assert (answer.status, answer.body, answer.keeps, transport.closed) == (200, b"/a body", False, True)


async def test_a_request_with_another_upgrade_gets_one_100_continue(site, served):
    connection, transport = site.connect()
    data = request("POST", "/a", "body", "Expect: 100-continue", *H2C)
    connection.data_received(data[:-4])
    await turns()
    assert transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(data[-4:])
    await turns()
    assert statuses(transport.data) == [200]
    assert served.last.body == b"body"


async def test_a_request_with_another_upgrade_has_its_limits_and_its_rights(site, served):
    assert Answer((await site.ask(request("POST", "/a", None, "Content-Length: 99999999", *H2C))).data).status == 413
    await site.ask(request("POST", "/a", "body", "Origin: http://x", *H2C))
    assert served.last.distrust
    await site.ask(request("POST", "/a", "body", *H2C), OUTSIDE)
    assert served.last.distrust


async def test_a_websocket_may_follow_a_request_with_another_upgrade():
    transport = await Site().ask(request("POST", "/apps/app-test/events", PUBLISH, *H2C) + handshake(APP_PATH))
    assert transport.data.count(b"HTTP/1.1 200 OK") == 1
    assert transport.data.count(b"HTTP/1.1 101 ") == 1


async def test_many_requests_with_another_upgrade_in_one_chunk_are_read_once(site, served):
    await site.ask(b"".join(request("POST", "/a", "body", *H2C) for _ in range(1000)))
    assert len(served.requests) == 1000


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket", "websocket ,h2c"])
async def test_a_websocket_is_found_among_several_upgrades(upgrade):
    transport = await Site().ask(handshake(APP_PATH).replace(b"Upgrade: websocket", f"Upgrade: {upgrade}".encode()))
    assert Answer(transport.data).status == 101


async def test_another_upgrade_of_a_request_that_waits_is_answered_once(site, served):
    transport = await site.ask(request("GET", "/wait/a", None, "Connection: Upgrade", "Upgrade: h2c"))
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200]
    assert not transport.closed


async def test_answers_to_requests_before_a_handshake_are_sent_first_and_once():
    site = Site()
    transport = await site.ask(request("GET", "/health") + handshake(APP_PATH))
    first = Answer(transport.data)
    assert first.status == 200
    assert first.rest.startswith(b"HTTP/1.1 101 ")
    assert transport.data.count(b"HTTP/1.1 ") == 2
    assert not transport.closed
    assert len(site.context.open) == 1


async def test_rejected_handshake_is_answered_after_earlier_requests():
    site = Site()
    transport = await site.ask(request("GET", "/health") + handshake("/nowhere"))
    assert statuses(transport.data) == [200, 404]


async def test_handshake_after_a_waiting_request_is_rejected_in_order(site, served):
    transport = await site.ask(request("GET", "/wait/a") + handshake(APP_PATH))
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200, 400]
    assert transport.ended


async def test_failed_handshake_leaves_no_http_connection():
    site = Site()
    transport = await site.ask(handshake("/nowhere"))
    transport.protocol.connection_lost(None)
    assert site.context.open == set()


# Bounds of the cost of one client for others


async def test_pipelined_requests_are_served_in_slices_and_in_order(site, served):
    flooding, transport = site.connect()
    other, quick = site.connect()
    count = 500
    flooding.data_received(b"".join(request("GET", f"/{number}") for number in range(count)))
    other.data_received(request("GET", "/other"))
    site.context.turn.catch_up()
    assert 0 < len(served.requests) < 80
    assert served.last.path == "/other"
    assert Answer(quick.data).body == b"/other "
    assert not transport.reading
    await turns(8)
    assert [one.body for one in answers(transport.data)] == [b"/%d " % number for number in range(count)]
    assert transport.reading


async def test_a_large_body_is_no_flood(site, served):
    connection, transport = site.connect()
    connection.data_received(request("POST", "/apps/app-test/events", "a" * 200_000))
    await turns(2)
    assert len(served.last.body) == 200_000
    assert transport.reading


async def test_request_after_a_large_body_is_served_next(site, served):
    transport = await site.ask(request("POST", "/x", "a" * 20_000) + request("GET", "/y"))
    assert [one.path for one in served.requests] == ["/x", "/y"]
    assert statuses(transport.data) == [200, 200]


async def test_requests_after_many_waiting_ones_stay_unparsed_until_these_are_answered(site, served):
    data = request("GET", "/wait/0") + b"".join(request("GET", f"/{number}") for number in range(300))
    transport = await site.ask(data)
    assert [one.path for one in served.requests] == ["/wait/0"]
    assert not transport.reading
    await served.answer("/wait/0")
    await turns(8)
    assert [one.path for one in served.requests] == ["/wait/0", *(f"/{number}" for number in range(300))]
    assert len(answers(transport.data)) == 301
    assert transport.reading


async def test_requests_wait_while_their_client_does_not_read_the_answers(site, served):
    connection, transport = site.connect()
    connection.pause_writing()
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(300)))
    await turns()
    assert len(served.requests) == 0
    connection.resume_writing()
    await turns(8)
    assert len(served.requests) == 300
    assert transport.reading


async def test_a_handshake_far_after_requests_still_makes_a_websocket(site):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/x") * 100 + handshake("/app/app-key?protocol=7") + masked(Opcode.PING, b"p"))
    await turns(8)
    assert transport.data.count(b"HTTP/1.1 200 ") == 100
    assert transport.data.endswith(b"\x8a\x01p")


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["/x", "/wait/x", "/refused", "/broken"]), max_size=60), st.lists(st.integers(1, 5000), max_size=6)
)
def test_any_chunking_of_pipelined_requests_gives_the_same_answers(paths, cuts):
    async def converse() -> list[int]:
        served = Served()
        site = Site(serve=served)
        connection, transport = site.connect()
        data = b"".join(request("POST", path, "b" * (len(path) ** 4)) for path in paths)
        for cut in cuts:
            connection.data_received(data[:cut]) if data[:cut] else None
            data = data[cut:]
            await turns(1)
        if data:
            connection.data_received(data)
        for _ in range(400):
            await turns(1)
            if served.waiting:
                await served.answer("/wait/x")
        return statuses(transport.data)

    expected = {"/x": 200, "/wait/x": 200, "/refused": 403, "/broken": 500}
    with asyncio.Runner() as runner:
        assert runner.run(converse()) == [expected[path] for path in paths]
