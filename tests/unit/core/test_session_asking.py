"""Clients of an app whose backend authorizes: its requests, the effect of its replies, and the commands that wait for a reply."""

import asyncio

import pytest

from push1st.config.model import Authorize
from push1st.core.rights import may_subscribe
from push1st.core.session import MAX_WAITING_COMMANDS, Session
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.hooks.events import Connecting, Publishing, Subscribing
from push1st.messages import (
    ClientRequest,
    Established,
    Failure,
    Member,
    Ping,
    Pong,
    Publish,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
)
from tests.support.loop import turns
from tests.support.node import APP, RAW, World, app_config, token

VISITOR = ClientRequest("protocol=7", "https://shop.example", "session=1", "Bearer x")


def permits(session: Session, channel: str) -> bool:
    """Returns whether the client may subscribe to a channel of its token."""
    return may_subscribe(session, session.app.config, channel, session.app.backend_decides.get("subscribe"))


def asking(*on: str, **more) -> World:
    return World(app_config(authorize=(Authorize(url="http://h/", on=frozenset(on), **more),)))


@pytest.fixture
def world():
    return asking("connect", "subscribe", "publish")


def entering(world, **more):
    """Makes a Pusher client that is about to connect."""
    session, outlet = world.session(**more)
    session.connect(VISITOR, lambda: outlet.send(Established(session.id, 120)))
    return session, outlet


async def held(world) -> None:
    """Makes the backend wait with its replies."""
    world.hooks.waits = asyncio.get_running_loop().create_future()


async def decided(world, decision: Decision = Decision()) -> None:  # noqa: B008 - frozen
    waits, world.hooks.waits = world.hooks.waits, None
    world.hooks.decision = decision
    waits.set_result(None)
    await turns()


def test_connection_is_accepted_at_once_without_authorize():
    world = World()
    session, outlet = entering(world)
    assert outlet.replies == [Established(session.id, 120)]
    assert world.hooks.asked == []


def test_connect_request_to_the_backend_has_the_credentials_of_the_client(world):
    session, outlet = entering(world)
    (question,) = world.hooks.asked
    assert question == Connecting(APP, session.id, session.ip, "protocol=7", "https://shop.example", "session=1", "Bearer x")
    assert outlet.replies == [Established(session.id, 120)]


async def test_the_greeting_waits_for_the_answer_and_so_do_commands(world):
    await held(world)
    session, outlet = entering(world)
    session.handle(Ping())
    session.handle(Subscribe("c"))
    await turns()
    assert outlet.replies == []
    await decided(world)
    assert outlet.replies == [Established(session.id, 120), Pong(), Subscribed("c")]


async def test_rejected_client_is_closed_with_the_text_of_the_backend(world):
    await held(world)
    session, outlet = entering(world)
    session.handle(Ping())
    await decided(world, Decision(Refused(4321, "not today")))
    assert outlet.closes == [((4321, "not today"))]
    assert outlet.replies == []
    assert world.metrics.cut_offs["refused-by-app"] == 1


def test_backend_without_reply_closes_the_connection_with_4100(world):
    """After 4100 the client reconnects after a pause. After 4009 it would never reconnect, even with a working backend."""
    world.hooks.decision = Decision(Refused(503, "no answer"))
    assert entering(world)[1].closes == [(4100, "no answer")]


@pytest.mark.parametrize(("code", "sent"), [(4000, 4000), (4199, 4199), (4200, 4100), (4299, 4100), (4300, 4300), (403, 4009)])
def test_a_handshake_is_not_rejected_with_a_code_after_which_clients_return_at_once(world, code, sent):
    world.hooks.decision = Decision(Refused(code, "not now"))
    assert entering(world)[1].closes == [(sent, "not now")]


def test_a_user_the_backend_names_is_signed_in(world):
    world.hooks.decision = Decision(user_id="7", user_info=b'{"a":1}')
    session, _ = entering(world)
    assert session.user is not None
    assert (session.user.id, session.user.info, session.authorized) == ("7", b'{"a":1}', True)
    world.hooks.decision = Decision()
    session.handle(Subscribe("#server-to-user-7"))
    assert "#server-to-user-7" in session.subscriptions


async def test_client_that_ends_while_its_backend_decides_leaves_no_state(world):
    await held(world)
    session, outlet = entering(world)
    session.expire()
    await decided(world, Decision(user_id="7"))
    assert (session.user, outlet.replies) == (None, [])
    assert await world.memory.online(APP, ["7"]) == frozenset()


async def test_client_that_ends_while_its_user_is_signed_in_does_not_count_as_rejected():
    world = World(app_config(authorize=(Authorize(url="http://h/", on=frozenset({"connect"})),)), slow=True)
    world.hooks.decision = Decision(user_id="7")
    world.broker.held.add("sign_in")
    session, outlet = entering(world)
    session.expire()
    await world.broker.let_all()
    assert (outlet.closes, world.metrics.cut_offs) == ([], {})
    assert await world.memory.online(APP, ["7"]) == frozenset()


async def test_commands_that_wait_are_bounded(world):
    await held(world)
    session, outlet = entering(world)
    for _ in range(MAX_WAITING_COMMANDS + 1):
        session.handle(Ping())
    assert outlet.closes == [((4100, f"more than {MAX_WAITING_COMMANDS} commands are waiting"))]
    await decided(world)


async def test_other_clients_are_not_delayed(world):
    other, others = entering(world)
    await held(world)
    session, _ = entering(world)
    session.handle(Subscribe("c"))
    other.handle(Ping())
    assert others.last == Pong()
    await decided(world)


# Subscribing


@pytest.fixture
def inside():
    """Makes a client of an app whose backend authorizes subscriptions and events."""
    world = asking("subscribe", "publish")
    return world, *world.session()


@pytest.mark.parametrize("name", ["c", "private-c", "protected-c", "private-encrypted-c"])
def test_the_backend_decides_instead_of_a_signature(inside, name):
    world, session, outlet = inside
    session.handle(Subscribe(name, "", "text"))
    assert world.hooks.asked == [Subscribing(APP, session.id, session.ip, name, "text")]
    assert outlet.last == Subscribed(name)


def test_a_signature_does_not_help_against_the_backend(inside):
    world, session, outlet = inside
    world.hooks.decision = Decision(Refused(403, "no"))
    session.handle(Subscribe("private-c", token(session, "private-c")))
    assert outlet.last == SubscriptionRefused("private-c", "Forbidden", "no", 403)
    assert session.subscriptions == {}


def test_member_is_the_user_that_the_backend_returns(inside):
    world, session, outlet = inside
    world.hooks.decision = Decision(user_id="7", user_info=b'{"a":1}')
    session.handle(Subscribe("presence-c", "", '{"user_id":"admin"}'))
    assert outlet.last == Subscribed("presence-c", (Member("7", b'{"a":1}'),))


def test_backend_reply_without_a_user_keeps_the_channel_data(inside):
    _, session, outlet = inside
    session.handle(Subscribe("presence-c", "", '{"user_id":"8"}'))
    assert outlet.last == Subscribed("presence-c", (Member("8"),))


def test_a_member_that_breaks_the_rules_is_refused(inside):
    world, session, outlet = inside
    world.hooks.decision = Decision(user_id="a\nb")
    session.handle(Subscribe("presence-c"))
    assert outlet.last.status == 500


def test_channels_outside_the_filter_need_their_signature():
    world = asking("subscribe", filter=("presence-",))
    session, outlet = world.session()
    session.handle(Subscribe("private-c"))
    assert outlet.last.status == 401
    session.handle(Subscribe("c"))
    assert outlet.last == Subscribed("c")
    assert world.hooks.asked == []


def test_repeated_subscription_makes_no_second_authorize_request(inside):
    world, session, outlet = inside
    for _ in range(2):
        session.handle(Subscribe("presence-c", "", '{"user_id":"8"}'))
    assert len(world.hooks.asked) == 1
    assert outlet.last == Subscribed("presence-c", (Member("8"),))


def test_channel_name_is_checked_before_the_authorize_request(inside):
    world, session, outlet = inside
    for name in ("", "a b", "#server-to-user-7"):
        session.handle(Subscribe(name))
        assert isinstance(outlet.last, SubscriptionRefused)
    assert world.hooks.asked == []


async def test_unsubscribe_during_an_authorize_request_is_applied_after_it(inside):
    world, session, outlet = inside
    await held(world)
    session.handle(Subscribe("c"))
    session.handle(Unsubscribe("c"))
    await decided(world)
    assert (outlet.replies, session.subscriptions) == ([Subscribed("c")], {})


def test_a_raw_client_needs_no_token_where_the_backend_decides(inside):
    world, *_ = inside
    session, _ = world.session(RAW, push=frozenset(("private",)))
    assert permits(session, "private-c")
    session.handle(Subscribe("private-c"))
    assert "private-c" in session.subscriptions


def test_a_raw_client_that_was_allowed_nothing_is_closed(inside):
    world, *_ = inside
    world.hooks.decision = Decision(Refused(403, "no"))
    session, outlet = world.session(RAW, push=frozenset(("private",)))
    session.handle(Subscribe("private-c"))
    assert outlet.closes
    assert outlet.closes[0][0] == 1008


# Publishing


@pytest.fixture
def speaker(inside):
    world, session, outlet = inside
    session.handle(Subscribe("private-c"))
    other, _ = world.session()
    other.handle(Subscribe("private-c"))
    world.hooks.asked.clear()
    return world, session, outlet, other


def _frames(world) -> list[bytes]:
    (lane,) = world.app.tenant.channels["private-c"].lanes
    return [frame for frames in (lane.frames, *lane.overrides.values()) for frame in frames]


def test_an_event_is_shown_to_the_backend_and_passes(speaker):
    world, session, *_ = speaker
    session.handle(Publish("private-c", "client-e", b'{"a":1}'))
    (question,) = world.hooks.asked
    assert isinstance(question, Publishing)
    assert (question.channel, question.event, bytes(question.data), question.user_id) == (
        "private-c",
        "client-e",
        b'{"a":1}',
        None,
    )
    assert any(b'{\\"a\\":1}' in frame or b'{"a":1}' in frame for frame in _frames(world))


def test_backend_may_change_the_data_of_a_client_event(speaker):
    world, session, *_ = speaker
    world.hooks.decision = Decision(data=b'"decent"')
    session.handle(Publish("private-c", "client-e", b'"indecent"'))
    text = b"".join(_frames(world))
    assert b"decent" in text
    assert b"indecent" not in text


def test_the_backend_may_forbid_it(speaker):
    world, session, outlet, _ = speaker
    world.hooks.decision = Decision(Refused(4444, "shh"))
    session.handle(Publish("private-c", "client-e", b'"x"'))
    assert outlet.last == Failure(4444, "shh", "private-c")
    assert _frames(world) == []


def test_data_changed_by_the_backend_has_the_limit_of_the_app(speaker):
    world, session, outlet, _ = speaker
    world.hooks.decision = Decision(data=b'"' + b"x" * 20_000 + b'"')
    session.handle(Publish("private-c", "client-e", b'"x"'))
    assert outlet.last.code == 413


def test_disallowed_client_event_makes_no_authorize_request(speaker):
    world, session, *_ = speaker
    session.handle(Publish("elsewhere", "client-e", b'"x"'))
    session.handle(Publish("private-elsewhere", "client-e", b'"x"'))
    assert world.hooks.asked == []


async def test_client_events_keep_their_order_while_one_waits(speaker):
    world, session, *_ = speaker
    await held(world)
    for number in range(3):
        session.handle(Publish("private-c", "client-e", b"%d" % number))
    assert len(world.hooks.asked) == 1
    await decided(world)
    assert [bytes(question.data) for question in world.hooks.asked] == [b"0", b"1", b"2"]
