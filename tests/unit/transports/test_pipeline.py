"""Pipelines of HTTP connections: answers in the order of the requests, and requests that wait for others."""

import socket
import time

import pytest

from push1st.errors import Refused
from push1st.protocols import http
from push1st.transports import turn
from push1st.transports.http import HEAD_SECONDS
from push1st.transports.http_output import ANSWER_SECONDS, MAX_WAITING
from push1st.transports.pipeline import SAMPLED
from push1st.transports.sweep import NEVER
from tests.support.http import Answer, answers, handshake, request, statuses
from tests.support.loop import turns
from tests.support.node import APP, KEY
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


# Pipelining and keep-alive


async def test_pipelined_requests_are_answered_in_order_and_in_one_write(site):
    transport = await site.ask(b"".join(request("GET", f"/{n}") for n in range(9)))
    assert [answer.body for answer in answers(transport.data)] == [b"/%d " % n for n in range(9)]
    assert len(transport.writes) == 1


async def test_requests_of_every_kind_mix_on_one_connection(site, served):
    transport = await site.ask(
        request("GET", "/a")
        + request("POST", "/b", "body")
        + request("POST", "/c", None, "Transfer-Encoding: chunked")
        + b"1\r\nx\r\n0\r\n\r\n"
        + request("GET", "/refused")
        + request("GET", "/e")
    )
    assert statuses(transport.data) == [200, 200, 200, 403, 200]
    assert [one.body for one in served.requests] == [b"", b"body", b"x", b"", b""]


async def test_pipelined_requests_are_the_same_split_at_every_byte(site, served):
    data = (
        request("POST", "/a?q", "body", "Connection: keep-alive")
        + request("POST", "/c", None, "Transfer-Encoding: chunked")
        + b"3\r\nabc\r\n0\r\n\r\n"
        + request("GET", "/refused")
        + request("GET", "/d", None, "Connection: close")
    )
    whole = undated((await site.ask(data)).data)
    assert statuses(whole) == [200, 200, 403, 200]
    wanted = [(one.path, one.body) for one in served.requests]
    for cut in range(1, len(data)):
        served.requests.clear()
        connection, transport = site.connect()
        connection.data_received(data[:cut])
        await turns(1)
        connection.data_received(data[cut:])
        await turns(1)
        assert undated(transport.data) == whole, f"cut at {cut}"
        assert [(one.path, one.body) for one in served.requests] == wanted


async def test_a_request_byte_by_byte_is_the_same(site, served):
    connection, transport = site.connect()
    for byte in request("POST", "/a?q", "body"):
        connection.data_received(bytes((byte,)))
    await turns()
    assert statuses(transport.data) == [200]
    assert served.last.body == b"body"


async def test_the_same_request_again_and_again_is_answered_alike(site, served):
    connection, transport = site.connect()
    seen = []
    for n in range(5):
        connection.data_received(request("POST", "/a", f"body{n}", "User-Agent: x"))
        await turns()
        seen.append(undated(transport.take()).replace(b"body%d" % n, b""))
    assert len(set(seen)) == 1
    assert [one.body for one in served.requests] == [b"body%d" % n for n in range(5)]


async def test_remembered_head_does_not_affect_other_connections(site, served):
    """Heads are remembered by their bytes; trust and order belong to the connection."""
    data = request("POST", "/a", "body")
    await site.ask(data)
    await site.ask(data, OUTSIDE)
    assert [not one.distrust for one in served.requests] == [True, False]
    transport = await site.ask(data + data)
    assert len(answers(transport.data)) == 2


async def test_remembered_head_in_two_parts_is_parsed(site, served):
    data = request("POST", "/a", "body")
    await site.ask(data)
    end = data.index(b"\r\n\r\n") + 4
    for cut in (1, end, end + 2):
        connection, transport = site.connect()
        connection.data_received(data[:cut])
        connection.data_received(data[cut:])
        await turns()
        assert statuses(transport.data) == [200]
    assert {one.body for one in served.requests} == {b"body"}


@pytest.mark.parametrize(
    "head",
    [
        "Origin: http://x",
        "X-Forwarded-For: 1.2.3.4",
        "Forwarded: for=1.2.3.4",
        "X-Real-IP: 1.2.3.4",
        "Via: 1.1 proxy",
        "CF-Connecting-IP: 1.2.3.4",
        "Connection: close",
    ],
)
async def test_heads_with_connection_options_are_not_remembered(site, served, head):
    await site.ask(request("GET", "/a", None, head))
    transport = await site.ask(request("GET", "/a", None, head))
    assert site.handlers.rules.heads == {}
    assert (not served.last.distrust) is (head == "Connection: close")
    assert transport.closed is (head == "Connection: close")


async def test_remembered_heads_are_bounded(site, monkeypatch):
    monkeypatch.setattr(http, "MAX_HEADS", 3)
    for n in range(10):
        await site.ask(request("GET", f"/{n}"))
    assert len(site.handlers.rules.heads) <= 3
    await site.ask(request("GET", "/" + "x" * 2000))
    assert all(len(head) <= 1024 for head in site.handlers.rules.heads)


@pytest.mark.parametrize(
    ("version", "header", "keeps"),
    [
        ("1.1", "X: y", True),
        ("1.1", "Connection: close", False),
        ("1.1", "Connection: Close", False),
        ("1.1", "Connection: keep-alive", True),
        ("1.0", "X: y", False),
        ("1.0", "Connection: keep-alive", False),
    ],
)
async def test_connection_is_kept_as_the_request_demands(site, version, header, keeps):
    transport = await site.ask(request("GET", "/x", None, header, version=version))
    (answer,) = answers(transport.data)
    assert answer.keeps is keeps
    assert transport.closed is not keeps


async def test_nothing_is_served_after_the_last_request(site, served):
    transport = await site.ask(request("GET", "/a", None, "Connection: close") + request("GET", "/b"))
    assert len(answers(transport.data)) == 1
    assert len(served.requests) == 1
    transport.protocol.data_received(request("GET", "/c"))
    await turns()
    assert len(served.requests) == 1


async def test_blank_lines_before_a_request_are_skipped(site):
    transport = await site.ask(b"\r\n\r\n" + request("GET", "/x") + b"\r\n" + request("GET", "/y"))
    assert statuses(transport.data) == [200, 200]


async def test_while_draining_answers_close(site):
    site.node.draining = True
    transport = await site.ask(request("GET", "/x"))
    assert not Answer(transport.data).keeps
    assert transport.closed


# Requests that wait


async def test_waiting_request_delays_later_requests_of_its_connection(site, served):
    transport = await site.ask(request("GET", "/a") + request("GET", "/wait/b") + request("GET", "/c"))
    assert [one.body for one in answers(transport.take())] == [b"/a "]
    await served.answer("/wait/b")
    assert [one.body for one in answers(transport.data)] == [b"/wait/b", b"/c "]
    assert [one.path for one in served.requests] == ["/a", "/wait/b", "/c"]


async def test_several_that_wait_are_answered_in_order(site, served):
    connection, transport = site.connect()
    for n in range(3):
        connection.data_received(request("GET", f"/wait/{n}"))
        await turns()
    for n in range(3):
        await served.answer(f"/wait/{n}")
    assert [one.body for one in answers(transport.data)] == [b"/wait/0", b"/wait/1", b"/wait/2"]


async def test_when_many_wait_the_socket_is_not_read_until_they_are_fewer(site, served):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/wait/a"))
    for _ in range(MAX_WAITING - 1):
        connection.data_received(request("GET", "/x"))
    await turns()
    assert transport.reading
    connection.data_received(request("GET", "/x"))
    await turns()
    assert not transport.reading
    await served.answer("/wait/a")
    assert transport.reading
    assert len(answers(transport.data)) == MAX_WAITING + 1


async def test_client_that_does_not_read_its_answers_is_not_read(site):
    connection, transport = site.connect()
    connection.pause_writing()
    assert not transport.reading
    connection.resume_writing()
    assert transport.reading


async def test_the_last_request_may_wait(site, served):
    transport = await site.ask(request("GET", "/wait/a", None, "Connection: close"))
    assert not transport.closed
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200]
    assert not Answer(transport.data).keeps
    assert transport.closed


async def test_a_request_that_fails_after_a_wait_is_answered(site, served):
    transport = await site.ask(request("GET", "/wait/a") + request("GET", "/wait/b") + request("GET", "/c"))
    served.waiting["/wait/a"].set_exception(Refused(503, "the broker is away"))
    await turns()
    served.waiting["/wait/b"].set_exception(ValueError("a secret of ours"))
    await turns()
    assert statuses(transport.data) == [503, 500, 200]
    assert isinstance(site.failures[0], ValueError)


async def test_invalid_request_after_a_waiting_request_is_answered_after_it(site, served):
    transport = await site.ask(request("GET", "/wait/a") + request("GET", "/b") + b"nonsense\r\n\r\n")
    assert transport.data == b""
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200, 200, 400]
    assert transport.ended


async def test_requests_of_a_lost_client_are_served_but_not_answered(site, served):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/wait/a") + request("GET", "/b"))
    await turns()
    transport.abort()
    connection.connection_lost(None)
    await served.answer("/wait/a")
    assert transport.writes == []
    assert [one.path for one in served.requests] == ["/wait/a", "/b"]
    assert connection not in site.context.open
    assert connection.due_at == NEVER
    assert site.failures == []


@pytest.mark.parametrize("secure", [False, True])
async def test_backlog_of_a_lost_client_is_served_in_slices(site, served, secure):
    connection, transport = site.connect(secure=secure)
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(500)))
    await turns(1)
    transport.abort()
    connection.connection_lost(BrokenPipeError())
    assert 0 < len(served.requests) < 150
    assert connection in site.context.open
    await turns(20)
    assert [one.path for one in served.requests] == [f"/{number}" for number in range(500)]
    assert (transport.late, site.failures) == ([], [])
    assert connection not in site.context.open
    assert connection.due_at == NEVER


async def test_lost_client_becomes_no_websocket_and_holds_no_poll(site, served):
    connection, transport = site.connect()
    poll = request("POST", "/app/app-key/1/lostlostlost/xhr?protocol=7", "")
    connection.data_received(request("GET", "/wait/a") + poll + poll + request("GET", "/b"))
    await turns()
    transport.abort()
    connection.connection_lost(None)
    await served.answer("/wait/a")
    await turns()
    assert served.last.path == "/b"
    assert connection not in site.context.open
    other, transport = site.connect()
    other.data_received(b"".join(request("GET", f"/{number}") for number in range(500)) + handshake(f"/app/{KEY}?protocol=7"))
    await turns(1)
    other.connection_lost(None)
    await turns(20)
    assert site.metrics.opened["pusher"] == 0
    assert other not in site.context.open
    assert site.failures == []


async def test_backlog_of_a_connection_that_the_server_ends_is_discarded(site, served):
    connection, _transport = site.connect()
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(500)))
    await turns(1)
    connection.abort()
    served.requests.clear()
    connection.connection_lost(None)
    await turns(20)
    assert served.requests == []
    assert connection not in site.context.open


async def test_lost_client_has_no_backlog_while_a_thousand_others_have_one(site, served, monkeypatch):
    monkeypatch.setattr(turn, "MAX_BACKLOGS", 1)
    connection, _transport = site.connect()
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(500)))
    await turns(1)
    connection.connection_lost(None)
    served.requests.clear()
    await turns(20)
    assert served.requests == []
    assert connection not in site.context.open


async def test_input_in_the_socket_of_a_lost_client_is_read_and_served(site, served):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        connection, _transport = site.connect(number=ours.fileno())
        theirs.send(request("GET", "/x"))
        connection.connection_lost(BrokenPipeError())
        await turns()
    assert served.last.path == "/x"


async def test_backlog_is_served_after_the_end_of_the_stream_and_answered(site, served):
    connection, transport = site.connect()
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(500)))
    assert connection.eof_received() is True
    assert 0 < len(served.requests) < 80
    await turns(20)
    assert [one.body for one in answers(transport.data)] == [b"/%d " % number for number in range(500)]
    assert transport.closed


async def test_deadline_waits_for_a_backlog(site, served):
    connection, transport = site.connect()
    connection.data_received(b"".join(request("GET", f"/{number}") for number in range(500)))
    site.context.turn.catch_up()
    site.clock.advance(HEAD_SECONDS + ANSWER_SECONDS)
    assert connection.due(site.clock.monotonic()) is not None
    assert not transport.closed
    await turns(20)
    assert len(served.requests) == 500


async def test_half_closed_client_gets_its_answers(site, served):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/wait/a") + request("GET", "/b"))
    assert connection.eof_received() is True
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200, 200]
    assert transport.closed


async def test_silent_half_closed_client_is_disconnected(site):
    connection, _ = site.connect()
    assert not connection.eof_received()


async def test_on_tls_the_end_of_reading_is_the_end(site):
    connection, _ = site.connect(secure=True)
    connection.data_received(request("GET", "/wait/a"))
    assert not connection.eof_received()


# Metrics


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (("POST", f"/apps/{APP}/events", PUBLISH), "events"),
        (("POST", f"/apps/{APP}/batch_events", '{"batch":[{"name":"e","channel":"c","data":"x"}]}'), "batch"),
        (("GET", f"/apps/{APP}/channels"), "channels"),
        (("GET", f"/apps/{APP}/channels/c"), "channel"),
        (("GET", f"/apps/{APP}/channels/presence-c/users"), "users"),
        (("GET", "/health"), "other"),
        (("GET", "/nothing"), "other"),
        (("GET", "/metrics"), "other"),
    ],
)
async def test_each_request_to_the_api_counts_its_duration_and_endpoint(line, endpoint):
    site = Site()
    site.handlers.rules.clock = lambda: time.perf_counter_ns() & ~SAMPLED
    transport = await site.ask(request(*line))
    while not transport.writes:
        await turns()
    found = {name: sum(one.counts) for name, one in site.metrics.api_seconds.items()}
    assert found == {name: int(name == endpoint) for name in found}
    assert 0 < site.metrics.api_seconds[endpoint].sum < 60


@pytest.mark.parametrize("bit", range(5))
async def test_only_a_sample_of_the_requests_is_measured(bit):
    site = Site()
    site.handlers.rules.clock = lambda: 1 << 10 + bit
    await site.ask(request("POST", f"/apps/{APP}/events", PUBLISH))
    assert sum(site.metrics.api_seconds["events"].counts) == 0


async def test_a_rejected_request_counts_for_its_app():
    site = Site()
    for path in (f"/apps/{APP}/events", "/apps/unknown/events", f"/apps/{APP}/x"):
        await site.ask(request("POST", path, "{}"))
    assert site.world.app.counts.refusals == 1
    assert list(site.metrics.apps) == [APP]
