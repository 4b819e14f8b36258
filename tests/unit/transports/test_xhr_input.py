"""Messages that a fallback session receives: their form, their order and their slices."""

import json

import pytest

from push1st.core.session import MAX_WAITING_COMMANDS
from push1st.transports.turn import MAX_WAITING
from push1st.transports.xhr_input import MAX_MESSAGES_A_SLICE
from push1st.transports.xhr_session import (
    MAX_MESSAGES,
)
from tests.support.http import Answer, request, statuses
from tests.support.loop import turns
from tests.support.transport import Site
from tests.support.xhr import PROTOCOL_PING, SEND, ask, frames_of, send, session_of, stream, subscribe, subscribed


async def test_messages_of_a_request_are_applied_in_slices(site):
    transport = await stream(site)
    transport.take()
    connection, sending = site.connect()
    body = json.dumps([json.dumps(PROTOCOL_PING)] * MAX_MESSAGES)
    connection.data_received(request("POST", SEND, body) + request("POST", SEND, body))
    site.context.turn.catch_up()
    assert frames_of(transport) == ["pong"] * MAX_MESSAGES_A_SLICE
    assert sending.data == b""
    await turns(20)
    assert statuses(sending.data) == [200, 200]
    assert len(frames_of(transport)) == 2 * MAX_MESSAGES - MAX_MESSAGES_A_SLICE


async def test_requests_wait_while_commands_wait():
    site = Site(slow=True)
    transport = await stream(site)
    site.world.broker.held = {"subscribe"}
    wanted = [{"event": "pusher:subscribe", "data": {"channel": f"c{number}"}} for number in range(3 * MAX_MESSAGES)]
    assert await send(site, *wanted[:MAX_MESSAGES]) == 200
    connection, sending = site.connect()
    for at in (MAX_MESSAGES, 2 * MAX_MESSAGES):
        body = json.dumps([json.dumps(one) for one in wanted[at : at + MAX_MESSAGES]])
        connection.data_received(request("POST", SEND, body))
    await turns(10)
    assert sending.data == b""
    assert len(session_of(site).waiting) == MAX_WAITING
    await site.world.broker.let_all()
    await turns(30)
    assert statuses(sending.data) == [200, 200]
    await site.world.broker.let_all()
    await turns(30)
    assert len(session_of(site).subscriptions) == len(wanted)
    assert not transport.closed


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_requests_that_wait_are_answered_when_their_session_ends(how):
    site = Site(slow=True)
    await stream(site)
    site.world.broker.held = {"subscribe"}
    wanted = [json.dumps({"event": "pusher:subscribe", "data": {"channel": f"c{n}"}}) for n in range(MAX_MESSAGES)]
    connection, sending = site.connect()
    connection.data_received(request("POST", SEND, json.dumps(wanted)) + request("POST", SEND, json.dumps(wanted)))
    await turns(20)
    assert statuses(sending.data) == [200]
    (client,) = site.fallbacks._clients.values()
    client.close(4009, "bye") if how == "close" else client.abort()
    await turns(5)
    assert statuses(sending.data) == [200, 200]
    await site.world.broker.let_all()
    assert site.failures == []


async def test_session_with_too_many_messages_that_wait_is_ended():
    site = Site(slow=True)
    transport = await stream(site)
    site.world.broker.held = {"subscribe"}
    (client,) = site.fallbacks._clients.values()
    body = json.dumps([json.dumps(PROTOCOL_PING)] * MAX_MESSAGES).encode()
    await subscribe(site)
    for _ in range(MAX_WAITING_COMMANDS // MAX_MESSAGES + 3):
        client.receive(body)
    await turns(5)
    assert frames_of(transport)[-1] == 4100
    assert site.metrics.cut_offs == {"queue-full": 1}
    await site.world.broker.let_all()


@pytest.mark.parametrize("body", ["", "{}", "[1]", '["a', '"a"', "[null]"])
async def test_body_that_is_not_an_array_of_strings_is_rejected(site, body):
    transport = await subscribed(site)
    answer = Answer((await ask(site, SEND, body)).data)
    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == "*"
    assert not transport.closed


async def test_messages_are_applied_in_order_and_bad_ones_answered(site):
    transport = await stream(site)
    frames_of(transport)
    wanted = {"event": "pusher:subscribe", "data": {"channel": "c"}}
    assert await send(site, wanted, "no JSON", {"event": "pusher:ping", "data": {}}) == 200
    assert frames_of(transport) == ["subscription_succeeded", "error", "pong"]


async def test_message_may_have_the_size_of_a_websocket_message(site):
    await stream(site)
    most = site.context.max_message(site.config.server.pusher, site.world.app.config.limits)
    assert await send(site, "x" * (most + 1)) == 413
    assert await send(site, "x" * most) == 200


async def test_client_that_sends_only_errors_is_disconnected(site):
    transport = await stream(site)
    for _ in range(2):
        assert await send(site, *["?"] * MAX_MESSAGES) == 200
    assert frames_of(transport)[-1] == 1008
    assert transport.closed
    assert await send(site, "?") == 404


async def test_a_request_has_a_bounded_number_of_messages(site):
    await stream(site)
    assert await send(site, *["?"] * (MAX_MESSAGES + 1)) == 413


async def test_failed_command_ends_only_its_session(site, monkeypatch):
    transport = await stream(site)
    monkeypatch.setattr(session_of(site).node, "subscribe", None)
    await subscribe(site)
    assert frames_of(transport)[-1] == 1011
    assert len(site.failures) == 1
