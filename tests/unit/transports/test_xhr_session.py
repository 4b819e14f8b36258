"""A fallback session over its requests: displaced requests, stored frames, heartbeats, bounds and ends."""

import asyncio
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.config.history import HistorySection, Resume
from push1st.config.model import ProtocolConfig, ServerConfig
from push1st.transports import xhr_stream
from push1st.transports.http import HttpConnection
from push1st.transports.xhr_session import (
    GAP_SECONDS,
    HEARTBEAT_SECONDS,
    PONG_SECONDS,
    QUIET_SECONDS,
)
from tests.support.http import Answer, request, statuses
from tests.support.loop import turns
from tests.support.node import KEY, app_config, token
from tests.support.transport import Site, Transport
from tests.support.xhr import (
    PATH,
    POLL,
    SEND,
    STREAM,
    WELCOME,
    ask,
    events,
    frames_of,
    polled,
    publish,
    send,
    session_of,
    stream,
    subscribe,
    subscribed,
)

TIMEOUT = 120


async def test_stream_is_counted(site):
    await stream(site)
    assert (site.metrics.connections["pusher-xhr"], site.metrics.opened["pusher-xhr"]) == (1, 1)
    site.pass_seconds(1)
    session_of(site).disconnect(4009, "go")
    assert site.metrics.connections["pusher-xhr"] == 0


async def test_a_second_stream_displaces_the_first(site):
    first = await subscribed(site)
    second = await stream(site)
    assert first.closed
    assert not second.closed
    await publish(site, "1")
    assert frames_of(second) == ["1"]
    assert frames_of(first) == []
    first.protocol.connection_lost(None)
    await publish(site, "2")
    assert frames_of(second) == ["2"]
    assert len(site.world.app.tenant.sessions) == 1


async def test_a_second_poll_displaces_the_first(site):
    await polled(site)
    first, second = await ask(site, POLL), await ask(site, POLL)
    assert statuses(first.data) == [409]
    assert second.data == b""
    await subscribe(site)
    assert events(Answer(second.data).body) == ["subscription_succeeded"]


async def test_polls_that_displace_each_other_end(site):
    """Two connections have queued polls: each poll is answered or waits, and none is lost."""
    await polled(site)
    both = [site.connect(), site.connect()]
    for connection, _ in both:
        connection.data_received(request("POST", POLL, b"") * 5)
    await turns(50)
    found = [statuses(transport.data) for _, transport in both]
    assert {status for one in found for status in one} == {409}
    assert sum(map(len, found)) in (5, 6, 7, 8, 9)
    await subscribe(site)
    assert sum(statuses(transport.data).count(200) for _, transport in both) == 1


async def test_session_continues_from_stream_to_polls_and_back(site):
    transport = await subscribed(site)
    poll = await ask(site, POLL)
    assert transport.closed
    await publish(site, "1")
    assert events(Answer(poll.data).body) == ["1"]
    transport = await stream(site)
    await publish(site, "2")
    assert frames_of(transport) == ["2"]


async def test_frames_between_requests_are_stored(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "1", "2")
    await publish(site, "3")
    assert await polled(site) == ["1", "2", "3"]
    await publish(site, "4")
    assert frames_of(await stream(site)) == ["4"]


@pytest.mark.parametrize("how", ["eof", "lost"])
async def test_frames_after_a_lost_poll_are_stored(site, how):
    await polled(site)
    await subscribe(site)
    await polled(site)
    poll = await ask(site, POLL)
    if how == "eof":
        assert not poll.protocol.eof_received()
    poll.protocol.connection_lost(None)
    await publish(site, "1")
    assert poll.data == b""
    assert await polled(site) == ["1"]
    assert site.failures == []


async def test_another_origin_or_app_is_another_session():
    site = Site(app_config(), app_config(id="b", key="b-key"))
    await stream(site, "Origin: https://page.example")
    for path, *headers in (
        (SEND,),
        (SEND, "Origin: https://other.example"),
        (SEND.replace(KEY, "b-key"), "Origin: https://page.example"),
    ):
        assert Answer((await ask(site, path, "[]", *headers)).data).status == 404
    assert Answer((await ask(site, SEND, "[]", "Origin: https://page.example")).data).status == 200


async def test_client_may_change_its_address(site):
    await stream(site)
    transport = await site.ask(request("POST", SEND, "[]"), ("198.51.100.7", 1))
    assert statuses(transport.data) == [200]


async def test_a_silent_stream_gets_heartbeats(site):
    transport = await subscribed(site)
    site.pass_seconds(HEARTBEAT_SECONDS - 1)
    assert frames_of(transport) == []
    site.pass_seconds(1)
    assert frames_of(transport) == ["h"]
    site.pass_seconds(HEARTBEAT_SECONDS)
    assert frames_of(transport) == ["h"]


async def test_a_heartbeat_ends_a_poll(site):
    await polled(site)
    poll = await ask(site, POLL)
    site.pass_seconds(HEARTBEAT_SECONDS)
    await turns()
    assert events(Answer(poll.data).body) == ["h"]
    assert await send(site) == 200


async def test_heartbeats_are_more_frequent_with_a_short_activity_timeout():
    site = Site(server=ServerConfig(pusher=ProtocolConfig(path="/pusher/", activity_timeout=20)))
    transport = await stream(site)
    frames_of(transport)
    site.pass_seconds(10)
    assert frames_of(transport) == ["h"]


async def test_empty_send_gets_a_heartbeat_only_after_silence(site):
    """pusher-js replies to a heartbeat with a request; an answer to that would make an endless loop."""
    transport = await subscribed(site)
    assert await send(site) == 200
    assert frames_of(transport) == []
    site.pass_seconds(QUIET_SECONDS)
    assert await send(site) == 200
    assert await send(site) == 200
    assert frames_of(transport) == ["h"]


async def test_silent_client_is_disconnected(site):
    transport = await subscribed(site)
    site.pass_seconds(TIMEOUT + PONG_SECONDS - 1)
    assert set(frames_of(transport)) == {"h"}
    site.pass_seconds(1)
    assert frames_of(transport) == ["error", 4201]
    assert site.metrics.cut_offs == {"silent": 1}
    assert not site.world.app.tenant.sessions
    site.pass_seconds(2 * GAP_SECONDS)
    assert site.fallbacks.detached.taken == 0


async def test_client_of_a_busy_stream_is_pinged(site):
    transport = await subscribed(site)
    for n in range(TIMEOUT + PONG_SECONDS):
        await publish(site, str(n))
        site.pass_seconds(1)
    found = frames_of(transport)
    assert found.count("h") == 1
    assert found[-1] == 4201


async def test_client_that_answers_heartbeats_stays_connected(site):
    transport = await subscribed(site)
    for _ in range(40):
        site.pass_seconds(HEARTBEAT_SECONDS)
        assert frames_of(transport) == ["h"]
        await send(site)
    assert not transport.closed


async def test_client_without_a_request_is_disconnected(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    site.pass_seconds(GAP_SECONDS - 1)
    assert len(site.world.app.tenant.channels) == 1
    site.pass_seconds(2)
    assert not site.world.app.tenant.channels
    assert site.metrics.cut_offs == {"gone": 1}
    assert (site.metrics.closed, site.metrics.connection_seconds.sum) == ({("pusher-xhr", 1006): 1}, GAP_SECONDS)
    assert await send(site) == 404
    assert site.fallbacks.detached.taken == 0
    assert await polled(site) == WELCOME


async def test_duration_of_a_session_does_not_depend_on_the_ticks_of_the_sweep(site):
    site.clock.advance(0.4)
    await subscribed(site)
    site.clock.advance(0.603)
    (session,) = site.world.app.tenant.sessions.values()
    session.disconnect(4200, "reconnect")
    assert site.metrics.connection_seconds.sum == pytest.approx(0.603)


async def test_stored_frames_are_bounded():
    site = Site(server=ServerConfig(outbox=1000))
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "x" * 600, "x" * 600)
    assert site.metrics.cut_offs == {"slow": 1}
    assert site.metrics.closed == {("pusher-xhr", 4100): 1}
    assert not site.world.app.tenant.sessions
    assert await polled(site) == ["error", 4100]
    assert await polled(site) == WELCOME


async def test_client_disconnected_between_requests_gets_the_code_with_the_next(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "1")
    session_of(site).disconnect(4009, "Terminated by the app")
    assert await send(site) == 404
    second = await stream(site)
    assert frames_of(second) == ["1", "error", 4009]
    assert second.closed
    assert site.fallbacks.detached.taken == 0


async def test_disconnected_session_without_further_requests_is_removed(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    session_of(site).disconnect(4009, "Terminated by the app")
    site.pass_seconds(GAP_SECONDS + 1)
    assert site.fallbacks.detached.taken == 0
    assert await polled(site) == WELCOME
    assert site.metrics.cut_offs == {}


async def test_pending_poll_gets_the_close_code(site):
    await polled(site)
    poll = await ask(site, POLL)
    session_of(site).disconnect(4009, "Terminated by the app")
    await turns()
    assert events(Answer(poll.data).body) == ["error", 4009]
    assert site.fallbacks.detached.taken == 0


async def test_stopping_server_sends_the_close_code_to_all_sessions(site):
    transport = await subscribed(site)
    poll = await ask(site, POLL.replace("session0", "session1"))
    poll.take()
    poll.protocol.data_received(request("POST", POLL.replace("session0", "session1"), b""))
    await turns()
    site.node.draining = True
    for connection in list(site.context.open):
        connection.leave(4200, "Server is stopping, reconnect")
    await turns()
    assert frames_of(transport) == [4200]
    assert transport.closed
    answer = Answer(poll.data)
    assert events(answer.body) == [4200]
    assert poll.closed
    transport.protocol.connection_lost(None)
    poll.protocol.connection_lost(None)
    assert {type(one) for one in site.context.open} <= {HttpConnection}


async def test_abort_ends_sessions_and_streams(site):
    transport = await subscribed(site)
    for connection in list(site.context.open):
        connection.abort()
    assert transport.aborted
    assert not site.world.app.tenant.sessions


async def test_client_that_must_sign_in_has_time():
    site = Site(app_config(authorized_only=True))
    transport = await stream(site)
    frames_of(transport)
    site.pass_seconds(11)
    assert frames_of(transport)[-2:] == ["error", 4009]
    transport = await stream(site, path=STREAM.replace("session0", "session1"))
    session = session_of(site)
    wanted = {"event": "pusher:subscribe", "data": {"channel": "private-c", "auth": token(session, "private-c")}}
    assert await send(site, wanted, path=SEND.replace("session0", "session1")) == 200
    site.pass_seconds(20)
    assert not transport.closed


steps = st.lists(
    st.tuples(
        st.sampled_from(["stream", "poll", "send", "subscribe", "publish", "lose", "eof", "disconnect", "bound", "seconds"]),
        st.integers(0, 2),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=150)
@given(steps)
def test_counters_stay_correct_and_all_sessions_end(taken):
    """The requests of three clients, in any order and with any end, some seconds apart."""

    async def go():
        site = Site(server=ServerConfig(outbox=2000))
        fallbacks = site.fallbacks
        requests: list[Transport] = []
        for step, n in taken:
            path = PATH.replace("session0", f"session{n}")
            match step:
                case "stream" | "poll":
                    endpoint = "xhr_streaming" if step == "stream" else "xhr"
                    requests.append(await ask(site, f"{path}/{endpoint}?protocol=7"))
                case "send":
                    await send(site, path=path + "/xhr_send")
                case "subscribe":
                    wanted = {"event": "pusher:subscribe", "data": {"channel": "c"}}
                    await send(site, wanted, path=path + "/xhr_send")
                case "publish":
                    await publish(site, *["x" * 150] * (n + 1))
                case "lose" | "eof" if requests:
                    lost = requests.pop(n % len(requests))
                    if step == "eof":
                        lost.protocol.eof_received()
                    lost.protocol.connection_lost(None)
                case "disconnect":
                    for session in list(site.world.app.tenant.sessions.values())[n:]:
                        session.disconnect(4009, "go")  # type: ignore[attr-defined]
                case "bound" if requests:
                    requests[n % len(requests)].bound = 0
                case "seconds":
                    site.pass_seconds((1, GAP_SECONDS, TIMEOUT)[n])
            await turns()
            clients = list(fallbacks._clients.values())
            assert fallbacks.detached.taken == sum(one.current is None for one in clients)
            sessions = sum(not one.closing for one in clients)
            assert len(site.world.app.tenant.sessions) == sessions == site.metrics.connections["pusher-xhr"]
            assert site.failures == []
        for lost in requests:
            lost.protocol.connection_lost(None)
        site.pass_seconds(2 * GAP_SECONDS)
        assert not fallbacks._clients
        assert fallbacks.detached.taken == 0
        assert not site.world.app.tenant.channels

    with patch.object(xhr_stream, "MAX_RESPONSE", 500):
        asyncio.run(go())


async def test_request_that_ends_after_a_standstill_leaves_a_whole_gap(site):
    """The clock of the sweep is late then: the session must not expire before the client had time for its next request."""
    transport = await subscribed(site)
    site.clock.advance(2 * GAP_SECONDS)
    transport.protocol.connection_lost(None)
    await publish(site, "1")
    site.pass_seconds(GAP_SECONDS - 1)
    assert await polled(site) == ["1"]


async def test_poll_is_answered_with_the_frames_before_the_bound_was_passed():
    site = Site(server=ServerConfig(outbox=1000))
    await polled(site)
    await subscribe(site)
    await polled(site)
    poll = await ask(site, POLL)
    session = session_of(site)
    session.write(b'a["{\\"event\\":\\"e\\",\\"data\\":\\"1\\"}"]\n')
    session.write(b'a["{\\"event\\":\\"e\\",\\"data\\":\\"%b\\"}"]\n' % (b"x" * 1000))
    await turns()
    assert events(Answer(poll.data).body) == ["1", "x" * 1000]
    assert await polled(site) == ["error", 4100]


async def test_poll_is_not_answered_with_one_item_over_the_bound():
    site = Site(server=ServerConfig(outbox=1000))
    await polled(site)
    await subscribe(site)
    await polled(site)
    poll = await ask(site, POLL)
    await publish(site, "x" * 1000)
    assert events(Answer(poll.data).body) == ["error", 4100]
    assert site.metrics.cut_offs == {"slow": 1}


# The session of a page


PAGE = "/resume/page-0123456789abcdef"
ENDED = ["error", 4200]


@pytest.fixture
def page_site() -> Site:
    return Site(app_config(history=(HistorySection(),), resume=Resume()))


async def test_repeated_poll_ends_the_session_of_a_page(page_site):
    assert events(Answer((await ask(page_site, f"{PAGE}{POLL}&n=1")).data).body) == WELCOME
    assert events(Answer((await ask(page_site, f"{PAGE}{POLL}&n=1")).data).body) == ENDED
    assert page_site.world.app.tenant.sessions == {}


async def test_poll_that_is_repeated_while_the_first_one_waits_gets_the_end(page_site):
    await ask(page_site, f"{PAGE}{POLL}&n=1")
    first, second = [await ask(page_site, f"{PAGE}{POLL}&n=2") for _ in range(2)]
    assert statuses(first.data) == [409]
    assert events(Answer(second.data).body) == ENDED


async def test_repeated_stream_ends_the_session_of_a_page(page_site):
    assert frames_of(await stream(page_site, path=f"{PAGE}{STREAM}&n=1")) == WELCOME
    again = await stream(page_site, path=f"{PAGE}{STREAM}&n=1")
    assert frames_of(again) == ENDED
    assert again.closed


@pytest.mark.parametrize("way", ["poll", "stream"])
@pytest.mark.parametrize("is_over", [False, True])
async def test_page_that_may_lack_an_event_gets_no_later_event(page_site, monkeypatch, way, is_over):
    """The page recovers all events in order on its next connection."""
    monkeypatch.setattr(xhr_stream, "MAX_RESPONSE", 600)  # the stream is full after the event
    path = f"{PAGE}{POLL if way == 'poll' else STREAM}"
    first = await ask(page_site, f"{path}&n=1")
    wanted = {"event": "pusher:subscribe", "data": {"channel": "c", "auth": ""}}
    assert await send(page_site, wanted, path=f"{PAGE}{SEND}?n=2") == 200
    if way == "poll":
        await ask(page_site, f"{path}&n=3")
        first = await ask(page_site, f"{path}&n=4")
    await publish(page_site, "x" * 600)
    assert b"xxx" in first.data
    await publish(page_site, "2")
    if is_over:
        session_of(page_site).disconnect(4201, "")
    again = await ask(page_site, f"{path}&n={4 if way == 'poll' else 1}")
    assert events(again.data.partition(b"\r\n\r\n")[2]) == ENDED
    assert page_site.world.app.tenant.sessions == {}


async def test_repeated_messages_end_the_session_of_a_page_and_are_not_applied(page_site):
    transport = await stream(page_site, path=f"{PAGE}{STREAM}&n=1")
    pong = {"event": "pusher:pong", "data": {}}
    assert [await send(page_site, pong, path=f"{PAGE}{SEND}?n={n}") for n in (3, 2)] == [200, 200]
    assert frames_of(transport) == WELCOME
    ping = {"event": "pusher:ping", "data": {}}
    assert await send(page_site, ping, path=f"{PAGE}{SEND}?n=3") == 200
    assert frames_of(transport) == ENDED


async def test_session_without_a_page_continues_after_a_repeated_request(site):
    assert await polled(site) == WELCOME
    assert await send(site, {"event": "pusher:ping", "data": {}}, path=f"{SEND}?n=1") == 200
    assert await send(site, {"event": "pusher:ping", "data": {}}, path=f"{SEND}?n=1") == 200
    assert await polled(site) == ["pong", "pong"]


@pytest.mark.parametrize("how", ["lost", "displaced by a stream", "displaced by a poll"])
async def test_session_of_a_page_ends_with_a_stream_that_is_not_full(page_site, how):
    first = await stream(page_site, path=f"{PAGE}{STREAM}&n=1")
    if how == "lost":
        first.protocol.connection_lost(None)
        assert page_site.world.app.tenant.sessions == {}
        assert page_site.metrics.cut_offs["gone"] == 1
    if how == "displaced by a stream":
        second = await stream(page_site, path=f"{PAGE}{STREAM}&n=2")
        assert frames_of(second) == ENDED
        assert second.closed
    else:
        assert events(Answer((await ask(page_site, f"{PAGE}{POLL}&n=2")).data).body) == ENDED
    assert page_site.world.app.tenant.sessions == {}
    page_site.pass_seconds(GAP_SECONDS + 1)
    assert frames_of(await stream(page_site, path=f"{PAGE}{STREAM}&n=3")) == WELCOME


@pytest.mark.parametrize("is_lost", [True, False])
async def test_session_of_a_page_continues_after_a_full_stream(page_site, monkeypatch, is_lost):
    monkeypatch.setattr(xhr_stream, "MAX_RESPONSE", 100)
    first = await stream(page_site, path=f"{PAGE}{STREAM}&n=1")
    assert frames_of(first) == WELCOME
    if is_lost:
        first.protocol.connection_lost(None)
    second = await stream(page_site, path=f"{PAGE}{STREAM}&n=2")
    await send(page_site, {"event": "pusher:ping", "data": {}}, path=f"{PAGE}{SEND}?n=3")
    assert frames_of(second) == ["pong"]
