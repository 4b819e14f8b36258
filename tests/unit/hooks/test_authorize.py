"""Authorize requests to a backend, the meaning of its replies, and the replies that are cached."""

import asyncio
import json
from collections import Counter
from typing import Any

import msgspec
import pytest

from push1st.config.model import Authorize
from push1st.errors import Refused
from push1st.hooks import Attempt, Decision, NotDelivered, Target
from push1st.hooks.authorize import MAX_CACHED, MAX_MESSAGE, UNDECIDED, Authorizer, operations
from push1st.hooks.events import Connecting, Publishing, Question, Subscribing
from tests.support.loop import Clock
from tests.support.node import APP, app_config

CONNECTING = Connecting(APP, "1.2", "::1", "q=1")


class Backend:
    """A `HookTransport` that returns the reply that a test sets."""

    def __init__(self) -> None:
        self.answer: Any = {"allow": True}
        self.asked: list[Any] = []
        self.target: Target | None = None

    def __call__(self, target: Target) -> "Backend":
        self.target = target
        return self

    async def deliver(self, id: str, body: bytes) -> None: ...

    async def request(self, body: bytes) -> bytes:
        self.asked.append(json.loads(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "stall":
            await asyncio.get_running_loop().create_future()
        return self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()

    async def close(self) -> None: ...


class Asking:
    def __init__(self, cache: int = 0, timeout: int = 3) -> None:
        self.clock = Clock()
        self.backend = Backend()
        self.counted: Counter[str] = Counter()
        one = Authorize(url="http://h/", on=frozenset(("connect", "subscribe", "publish")), cache=cache, timeout=timeout)
        self.authority = Authorizer([app_config(authorize=(one,))], "", self.clock, self.counted, self.backend)
        self.decide = self.authority.decide


@pytest.mark.parametrize(
    ("question", "body"),
    [
        (CONNECTING, {"on": "connect", "app": APP, "socket_id": "1.2", "ip": "::1", "query": "q=1"}),
        (Subscribing(APP, "1.2", "::1", "c"), {"on": "subscribe", "app": APP, "socket_id": "1.2", "ip": "::1", "channel": "c"}),
        (
            Publishing(APP, "1.2", "::1", "c", "e", msgspec.Raw(b'{"a":1}'), "7"),
            {
                "on": "publish",
                "app": APP,
                "socket_id": "1.2",
                "ip": "::1",
                "channel": "c",
                "event": "e",
                "data": {"a": 1},
                "user_id": "7",
            },
        ),
    ],
)
async def test_a_question_as_json(question, body):
    asking = Asking()
    assert await asking.decide(question) == Decision()
    assert {name: value for name, value in asking.backend.asked[0].items() if value not in (None, "")} == body


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        ({"allow": True, "user": {"id": 7, "info": {"a": 1}}}, Decision(user_id="7", user_info=b'{"a": 1}')),
        ({"allow": True, "user": {"id": "7"}}, Decision(user_id="7")),
        ({"allow": True, "data": {"b": 2}}, Decision(data=b'{"b": 2}')),
        ({"allow": True, "data": None}, Decision(data=b"null")),
    ],
)
async def test_reply_may_change_user_and_data(answer, decision):
    asking = Asking()
    asking.backend.answer = answer
    assert await asking.decide(CONNECTING) == decision


@pytest.mark.parametrize(
    ("question", "answer", "code", "text"),
    [
        (CONNECTING, {}, 4009, "the app does not allow this client to connect"),
        (CONNECTING, {"code": 4123, "message": "no"}, 4123, "no"),
        (CONNECTING, {"code": 1000}, 4009, "the app does not allow this client to connect"),
        (Subscribing(APP, "1.2", "", "c"), {"message": "no"}, 403, "no"),
        (Subscribing(APP, "1.2", "", "c"), {"code": 404, "message": "x" * 500}, 404, "x" * MAX_MESSAGE),
        (CONNECTING, {"code": 138}, 4009, "the app does not allow this client to connect"),
        (
            msgspec.structs.replace(CONNECTING, protocol="mqtt"),
            {"code": 138},
            138,
            "the app does not allow this client to connect",
        ),
        (Subscribing(APP, "1.2", "", "c"), {"code": 128}, 128, "the app does not allow this client to subscribe"),
        (Subscribing(APP, "1.2", "", "c"), {"code": 163}, 403, "the app does not allow this client to subscribe"),
        (Subscribing(APP, "1.2", "", "c"), {"code": 4009}, 403, "the app does not allow this client to subscribe"),
        (Publishing(APP, "1.2", "", "c", "e", 1), {"code": 4321}, 4321, "the app does not allow this client to publish"),
    ],
)
async def test_rejection_has_code_and_message_of_the_backend_if_they_are_valid(question, answer, code, text):
    asking = Asking()
    asking.backend.answer = {"allow": False, **answer}
    refused = (await asking.decide(question)).refused
    assert refused is not None
    assert (refused.code, refused.text) == (code, text)
    assert asking.counted == {"refused": 1}


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (NotDelivered("refused", "answered 500"), "failed"),
        (NotDelivered("unreachable", "cannot connect"), "unreachable"),
        (b"", "malformed"),
        (b"[]", "malformed"),
        ({}, "malformed"),
        ({"allow": "yes"}, "malformed"),
        ({"allow": True, "user": {}}, "malformed"),
        (b"[" * 100_000, "malformed"),
    ],
)
async def test_invalid_reply_rejects(answer, counted):
    asking = Asking(cache=60)
    asking.backend.answer = answer
    refused = (await asking.decide(CONNECTING)).refused
    assert refused is not None
    assert (refused.code, refused.text) == (503, UNDECIDED)
    assert asking.counted == {counted: 1}
    asking.backend.answer = {"allow": True}
    assert await asking.decide(CONNECTING) == Decision()  # the reply was not cached


async def test_late_reply_rejects():
    asking = Asking(timeout=0)
    asking.backend.answer = "stall"
    refused = (await asking.decide(CONNECTING)).refused
    assert isinstance(refused, Refused)
    assert asking.counted == {"timed-out": 1}


async def test_answers_are_kept_for_the_time_stated():
    asking = Asking(cache=60)
    for seconds, times in ((0, 1), (59, 1), (2, 2)):
        asking.clock.advance(seconds)
        await asking.decide(CONNECTING)
        assert len(asking.backend.asked) == times
    assert asking.counted == {"allowed": 2, "cached": 1}


async def test_refusals_are_kept_too():
    asking = Asking(cache=60)
    asking.backend.answer = {"allow": False}
    for _ in range(2):
        assert (await asking.decide(CONNECTING)).refused is not None
    assert len(asking.backend.asked) == 1


async def test_decision_is_not_cached_without_a_cache_time():
    asking = Asking()
    for _ in range(2):
        await asking.decide(CONNECTING)
    assert len(asking.backend.asked) == 2


@pytest.mark.parametrize(
    ("one", "two", "times"),
    [
        (CONNECTING, Connecting(APP, "3.4", "::1", "q=1"), 1),
        (CONNECTING, Connecting(APP, "3.4", "::1", "q=2"), 2),
        (CONNECTING, Connecting(APP, "3.4", "::1", "q=1", cookie="a=b"), 2),
        (Subscribing(APP, "1.2", "", "c"), Subscribing(APP, "3.4", "", "c"), 2),
        (Subscribing(APP, "1.2", "", "c", "", "7"), Subscribing(APP, "3.4", "", "c", "", "7"), 1),
        (Subscribing(APP, "1.2", "", "c", "", "7"), Subscribing(APP, "3.4", "", "c", "", "8"), 2),
        (Subscribing(APP, "1.2", "", "c", "", "7"), Subscribing(APP, "1.2", "", "d", "", "7"), 2),
        (Publishing(APP, "1.2", "", "c", "e", 1), Publishing(APP, "1.2", "", "c", "e", 2), 2),
    ],
)
async def test_cached_decision_is_reused_only_for_equal_credentials(one, two, times):
    asking = Asking(cache=60)
    await asking.decide(one)
    await asking.decide(two)
    assert len(asking.backend.asked) == times


async def test_answers_that_are_kept_are_bounded():
    asking = Asking(cache=60)
    for number in range(MAX_CACHED + 5):
        asking.authority._cached[asking.authority._endpoints[APP, "connect"], b"%d" % number] = 1e9, Decision()
        if len(asking.authority._cached) > MAX_CACHED:
            break
    await asking.decide(CONNECTING)
    assert len(asking.authority._cached) <= MAX_CACHED + 1


def test_only_configured_events_are_authorized():
    assert operations(app_config()) == {}
    found = operations(
        app_config(authorize=(Authorize(url="http://h/", on=frozenset(("connect", "publish")), filter=("private-",)),))
    )
    assert set(found) == {"connect", "publish"}
    assert found["connect"]("")
    assert [bool(found["publish"](name)) for name in ("private-a", "a")] == [True, False]


async def test_a_changed_endpoint_is_requested_without_cached_replies():
    asking = Asking(cache=60)
    await asking.decide(CONNECTING)
    same = Authorize(url="http://h/", on=frozenset(("connect",)), cache=60, timeout=3)
    asking.authority.configure(app_config(authorize=(same,)))
    await asking.decide(CONNECTING)
    assert (len(asking.backend.asked), asking.counted["cached"]) == (1, 1)
    asking.authority.configure(
        app_config(authorize=(Authorize(url="http://new/", on=frozenset(("connect",)), cache=60, timeout=3),))
    )
    await asking.decide(CONNECTING)
    assert len(asking.backend.asked) == 2
    assert asking.backend.target is not None
    assert asking.backend.target.url == "http://new/"
    assert len(asking.authority._retired) == 1
    await asking.authority.close()


async def test_decision_is_shown_while_an_operator_watches_unless_it_comes_from_the_cache() -> None:
    class Tap:
        def __init__(self) -> None:
            self.asked_: list[tuple[Question, Decision, float]] = []

        def attempted(self, attempt: Attempt) -> None: ...

        def asked(self, question: Question, decision: Decision, seconds: float) -> None:
            self.asked_.append((question, decision, seconds))

    asking = Asking(cache=5)
    asking.authority.tap = tap = Tap()
    for _ in range(2):
        await asking.decide(CONNECTING)
    assert tap.asked_ == [(CONNECTING, Decision(), 0.0)]
