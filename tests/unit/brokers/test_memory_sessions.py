"""Tests of the bounds of sessions and logs in memory."""

from itertools import count
from typing import Any

import pytest

from push1st.brokers import memory_logs, memory_sessions
from push1st.brokers.memory_logs import size_of
from push1st.brokers.memory_sessions import OBJECT_BYTES, MemorySessions, size_of_session
from push1st.brokers.sessions import Claim, Owner, SavedFlow, SavedMessage, SavedSession, SavedSubscription, SavedWill
from push1st.config.mqtt import Mqtt
from push1st.errors import LimitReached
from push1st.messages import INTERNAL, Message, MqttFields, MqttMessage
from push1st.metrics import Metrics
from push1st.positions import Position
from tests.support.loop import done

APP, SECOND = "app-a", 1_000_000_000
START = 1_700_000_000 * SECOND
USER, ANYBODY = Owner("user", "ada"), Owner("anonymous")


class Site:
    """Sessions in memory, with a clock that the test sets."""

    def __init__(self, **settings: Any) -> None:
        self.now = START
        self.metrics = Metrics()
        numbers = count(1)
        self.ids = count(1)
        self.sessions = MemorySessions(lambda: self.now, lambda _: next(numbers), self.metrics, Mqtt(**settings))
        self.logs = self.sessions.logs

    def absent(self, client: str, *filters: str, owner: Owner = USER, address: str = "", **session: Any) -> None:
        claimed = done(self.sessions.claim(APP, client, Claim(owner, address, expiry=60)))
        subscriptions = tuple(SavedSubscription(one, 1) for one in filters)
        done(self.sessions.save(APP, client, claimed.generation, SavedSession(60, subscriptions, **session)))

    def publish(self, channel: str, size: int = 1) -> MqttMessage:
        message = MqttMessage(APP, channel, "e", b"1" * size, next(self.ids), self.now, "1.1", mqtt=MqttFields(1))
        self.logs.append(message)
        return message

    def read(self, filter: str, cursor: int = 0) -> tuple[int, bool]:
        """Returns the number of messages in a log, and whether the log has dropped messages after the cursor."""
        epoch = self.logs.apps[APP].logs[filter].end[0].epoch  # type: ignore[union-attr]
        page = done(self.logs.read(APP, filter, (Position(epoch, cursor),), 100_000))
        return len(page.messages), page.trimmed

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self.metrics.mqtt_dropped)

    def connect(self, client: str, owner: Owner = USER, address: str = "") -> SavedSession | None:
        session: SavedSession | None = done(self.sessions.claim(APP, client, Claim(owner, address, expiry=60))).session
        return session


def test_full_log_drops_its_oldest_messages_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_logs, "MIN_LOG_MESSAGES", 5)
    site = Site(queue=0)
    site.absent("one", "a")
    for _ in range(7):
        site.publish("a")
    assert site.read("a") == (5, True)
    assert site.read("a", 2) == (5, False)
    assert site.dropped == {"trimmed": 2}


def test_log_has_ten_times_the_queue_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_logs, "MIN_LOG_MESSAGES", 5)
    site = Site(queue=2)
    site.absent("one", "a")
    for _ in range(30):
        site.publish("a")
    assert site.read("a") == (20, True)


def test_log_has_a_bound_for_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.absent("one", "a", "$share/g/a")
    size = size_of(site.publish("a", 1000))
    monkeypatch.setattr(memory_logs, "MAX_LOG_BYTES", 3 * size)
    for _ in range(4):
        site.publish("a", 1000)
    assert site.read("a") == (3, True)
    assert len(done(site.logs.read_shared(APP, "$share/g/a", 0, 10))) == 3


def test_all_logs_of_an_app_have_a_bound_for_bytes_and_the_oldest_message_is_dropped() -> None:
    site = Site()
    site.absent("one", "a", "b.#", "$share/g/c")
    size = size_of(site.publish("a"))
    site.logs.apps[APP].identified.limit = 4 * size
    for channel in ("b.1", "c", "b.2", "c", "a"):
        site.now += 1
        site.publish(channel)
    assert site.read("a") == (1, True)
    assert site.read("b.#") == (1, True)
    assert len(done(site.logs.read_shared(APP, "$share/g/c", 0, 10))) == 2
    assert site.dropped == {"trimmed": 2}
    assert site.logs.apps[APP].identified.bytes == 4 * size


def test_logs_of_anonymous_clients_have_a_bound_of_their_own() -> None:
    site = Site()
    site.absent("one", "a")
    site.absent("two", "b", owner=ANYBODY)
    logs = site.logs.apps[APP]
    assert logs.anonymous.limit * 10 <= logs.identified.limit
    size = size_of(site.publish("a"))
    logs.anonymous.limit = 2 * size
    for _ in range(5):
        site.publish("b")
    assert site.read("a") == (1, False)
    assert site.read("b") == (2, True)


def test_log_moves_to_the_bound_of_its_absent_sessions() -> None:
    site = Site()
    site.absent("one", "a", owner=ANYBODY)
    size = size_of(site.publish("a"))
    logs = site.logs.apps[APP]
    assert (logs.anonymous.bytes, logs.identified.bytes) == (size, 0)
    site.absent("two", "a")
    assert (logs.anonymous.bytes, logs.identified.bytes) == (0, size)
    logs.identified.limit = size
    site.publish("a")
    assert site.read("a") == (1, True)
    generation = done(site.sessions.claim(APP, "two", Claim(USER))).generation
    done(site.sessions.attach(APP, "two", generation))
    assert (logs.anonymous.bytes, logs.identified.bytes) == (size, 0)
    logs.anonymous.limit = size
    site.publish("a")
    assert site.read("a", 1) == (1, True)


def test_messages_older_than_the_longest_expiry_leave_the_log() -> None:
    site = Site(session_expiry=100)
    site.absent("one", "a", "b.+")
    site.publish("a")
    site.now += 50 * SECOND
    site.publish("a")
    site.publish("b.1")
    site.logs.tick(START + 100 * SECOND)
    assert site.read("a") == (1, True)
    site.logs.tick(START + 150 * SECOND)
    assert site.read("a", 2) == (0, False)
    assert site.dropped == {"expired": 3}
    site.now += 50 * SECOND
    site.publish("a")
    assert site.read("a", 2) == (1, False)
    site.logs.tick(START + 150 * SECOND)
    assert site.read("a", 2) == (1, False)


def test_taken_messages_count_no_more() -> None:
    site = Site()
    site.absent("one", "$share/g/a")
    site.publish("a")
    generation = done(site.sessions.claim(APP, "one", Claim(USER))).generation
    done(site.logs.take(APP, "one", generation, "$share/g/a", [1]))
    assert site.logs.apps[APP].identified.bytes == 0


def test_log_trims_messages_that_its_group_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.absent("one", "$share/g/a")
    message = MqttMessage(APP, "a", "e", b"1", 1, START, "1.1", mqtt=MqttFields(1))
    monkeypatch.setattr(memory_logs, "MAX_LOG_BYTES", 3 * size_of(message))
    done(site.logs.give_back(APP, "$share/g/a", [message] * 5))
    assert len(done(site.logs.read_shared(APP, "$share/g/a", 0, 10))) == 3
    assert site.logs.apps[APP].identified.bytes == 3 * size_of(message)
    assert site.dropped == {"trimmed": 2}


def test_served_group_keeps_no_messages() -> None:
    site = Site()
    site.absent("one", "$share/g/a", "a")
    site.logs.is_served = lambda message, filter: (message.channel, filter) == ("a", "$share/g/a")
    site.publish("a")
    assert not done(site.logs.read_shared(APP, "$share/g/a", 0, 10))
    assert site.read("a") == (1, False)


def test_app_rejects_new_sessions_above_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_ABSENT", 20)
    site = Site()
    site.absent("old")
    for number in range(2):
        site.absent(str(number), owner=ANYBODY)
    with pytest.raises(LimitReached):
        site.connect("new", ANYBODY)
    for number in range(17):
        site.absent(f"ada-{number}")
    with pytest.raises(LimitReached):
        site.connect("new")
    assert site.connect("old") is not None
    assert site.connect("new") is None


def test_longest_absent_session_ends_if_too_many_clients_become_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_ADDRESS_ABSENT", 2)
    site = Site()
    generations = [
        done(site.sessions.claim(APP, str(number), Claim(ANYBODY, "192.0.2.1", expiry=60))).generation for number in range(3)
    ]
    will = SavedWill("t", b"")
    for number, generation in enumerate(generations):
        session = SavedSession(60, (SavedSubscription(str(number), 1),), will=will)
        done(site.sessions.save(APP, str(number), generation, session))
    (ended,) = done(site.sessions.due(site.now))[:1]
    assert (ended.client_id, ended.will, ended.ended) == ("0", will, True)
    assert len(site.sessions) == 2
    assert site.connect("1", ANYBODY) is not None
    assert sorted(site.logs.apps[APP].logs) == ["1", "2"]


def test_session_that_ends_early_returns_the_messages_of_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_ABSENT", 1)
    site = Site()
    message = MqttMessage(APP, "a", "e", b"1", 1, START, "1.1", mqtt=MqttFields(1))
    own, of_group = SavedMessage(message, 1), SavedMessage(message, 1, group="$share/g/a")
    first, second = [done(site.sessions.claim(APP, one, Claim(USER, expiry=60))).generation for one in ("first", "second")]
    done(site.sessions.save(APP, "first", first, SavedSession(60, flow=SavedFlow(waiting=(own, of_group)))))
    done(site.sessions.save(APP, "second", second, SavedSession(60)))
    (ended,) = done(site.sessions.due(site.now))
    assert (ended.is_early, ended.returned, site.dropped) == (True, (of_group,), {"over-limit": 1})


def test_messages_of_absent_sessions_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    message = MqttMessage(APP, "a", "e", b"1", 1, START, "1.1", mqtt=MqttFields(1))
    one = SavedMessage(message, 1)
    flow = SavedFlow(5, ((3, one), (4, None)), (one,), ((1, 2),))
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 4 * size_of(message) + 3 * OBJECT_BYTES)
    for client in ("one", "two", "three"):
        site.absent(client, flow=flow)
    for client in ("one", "two"):
        session = site.connect(client)
        assert session is not None
        assert session.flow == flow
    session = site.connect("three")
    assert session is not None
    assert session.flow == SavedFlow(5, ((4, None),), (), ((1, 2),))
    assert site.dropped == {"over-limit": 2}
    site.absent("three", flow=flow)
    session = site.connect("three")
    assert session is not None
    assert session.flow == flow


def test_anonymous_clients_have_a_tenth_of_the_bound_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    message = MqttMessage(APP, "a", "e", b"1", 1, START, "1.1", mqtt=MqttFields(1))
    flow = SavedFlow(waiting=(SavedMessage(message, 1),))
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 10 * (size_of(message) + 2 * OBJECT_BYTES))
    for client in ("one", "two"):
        site.absent(client, owner=ANYBODY, flow=flow)
    site.absent("ada", flow=flow)
    assert [site.connect(client, ANYBODY).flow.waiting for client in ("one", "two")] == [flow.waiting, ()]  # type: ignore[union-attr]


def test_reconnecting_client_leaves_nothing_behind() -> None:
    site, generation = Site(), 0
    for _ in range(5000):
        site.absent("one", "a", "b.+", "$share/g/a", owner=ANYBODY, address="192.0.2.1", will=SavedWill("t", b"", delay=5))
        site.publish("a")
        generation = done(site.sessions.claim(APP, "one", Claim(ANYBODY, expiry=60))).generation
        done(site.sessions.attach(APP, "one", generation))
        site.now += SECOND
    assert not site.logs.apps
    assert len(site.sessions._heap) <= 1100
    site.now += 3600 * SECOND
    assert not done(site.sessions.due(site.now))
    assert not site.sessions._heap
    done(site.sessions.end(APP, "one", generation, ()))
    assert not site.sessions._apps


def test_stopping_worker_gets_all_wills() -> None:
    site = Site()
    will = SavedWill("t", b"", delay=50)
    site.absent("one", "a", will=will)
    site.absent("two")
    found = done(site.sessions.due(1 << 62))
    assert [(one.client_id, one.will, one.ended) for one in found] == [("one", will, True), ("two", None, True)]
    assert not site.logs.apps


def test_log_of_another_app_gets_nothing() -> None:
    site = Site()
    site.absent("one", "a")
    assert not site.logs.append(Message("app-b", "a", "e", b"1", 1, START))


def test_name_with_wildcards_is_in_the_logs_of_its_exact_filters_only() -> None:
    site = Site()
    channels = ("a.+", "+", ".".join("+" * 17), "#server-to-user-ada")
    site.absent("one", ".".join("+" * 16), "+.#", "#", "#server-to-user-ada")
    assert [site.logs.append(Message(APP, one, "e", b"1", 1, START)) for one in channels] == [0, 0, 0, 1]
    assert not any(site.logs.apps[APP]._cached)


def test_message_that_no_log_takes_is_compared_with_no_filter() -> None:
    site = Site()
    site.absent("one", "#")
    site.logs.append(Message(APP, "a", f"{INTERNAL}member_added", b"1", 1, START))
    site.logs.append(MqttMessage(APP, "b", "e", b"1", 2, START, "1.1", mqtt=MqttFields(0)))
    site.logs.append(Message(APP, "c", "e", b"1", 3, START, delivery="unicast"))
    assert not site.logs.apps[APP]._cached


def test_subscriptions_and_wills_of_absent_sessions_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    long = [f"{number}{'x' * 1000}" for number in range(3)]
    will = SavedWill("t", b"1" * 1000)
    size = size_of_session(SavedSession(60, tuple(SavedSubscription(one) for one in long), will=will))
    assert size > 4000
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 2 * size)
    message = MqttMessage(APP, "a", "e", b"1", 1, START, "1.1", mqtt=MqttFields(1))
    flow = SavedFlow(waiting=(SavedMessage(message, 1),))
    for client in ("one", "two", "three"):
        site.absent(client, *long, will=will, flow=flow)
    assert site.dropped == {"over-limit": 3}
    (ended,) = (one for one in done(site.sessions.due(site.now)) if one.ended)
    assert (ended.client_id, ended.will, ended.ended, ended.is_early) == ("one", will, True, True)
    three = site.connect("three")
    assert three is not None
    assert not three.flow.waiting
    assert len(site.sessions) == 1


def test_anonymous_session_ends_no_session_of_an_identified_client(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    size = size_of_session(SavedSession(60, (SavedSubscription("a"),)))
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 30 * size)
    for number in range(29):
        site.absent(f"ada-{number}", "a")
    for number in range(4):
        site.absent(f"any-{number}", "a", owner=ANYBODY)
    assert [one.client_id for one in done(site.sessions.due(site.now))] == ["any-0", "any-1", "any-2"]
    site.absent("ada-29", "a")
    assert [one.client_id for one in done(site.sessions.due(site.now))] == ["ada-0"]


def test_large_session_ends_instead_of_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_END_WORK", 3)
    site = Site()
    for number in range(10):
        site.absent(f"small-{number}")
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 10 * OBJECT_BYTES)
    will = SavedWill("t", b"x" * 2 * OBJECT_BYTES)
    site.absent("large", will=will)
    assert [(one.client_id, one.will, one.is_early) for one in done(site.sessions.due(site.now))] == [("large", will, True)]
    assert len(site.sessions) == 10
    site.absent("larger", "a")  # three of the small sessions make room
    assert [one.client_id for one in done(site.sessions.due(site.now))] == ["small-0", "small-1", "small-2"]
    assert len(site.sessions) == 8


def test_sessions_with_many_subscriptions_end_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "DUE_WORK", 20)
    site = Site()
    for client in ("one", "two", "three"):
        site.absent(client, *(str(number) for number in range(10)))
    assert [len(done(site.sessions.due(1 << 62))) for _ in range(3)] == [2, 1, 0]


def test_sessions_with_many_messages_of_groups_end_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "DUE_WORK", 20)
    site = Site()
    for client in ("one", "two", "three"):
        waiting = tuple(SavedMessage(site.publish("a"), 1, group="$share/g/a") for _ in range(10))
        site.absent(client, flow=SavedFlow(waiting=waiting))
    assert [len(done(site.sessions.due(1 << 62))) for _ in range(3)] == [2, 1, 0]


def test_log_that_moves_between_bounds_leaves_nothing_behind() -> None:
    site = Site()
    site.absent("any", "a", owner=ANYBODY)
    site.publish("a")
    logs = site.logs.apps[APP]
    for _ in range(3000):
        site.absent("ada", "a")
        generation = done(site.sessions.claim(APP, "ada", Claim(USER, expiry=60))).generation
        done(site.sessions.attach(APP, "ada", generation))
    for budget in (logs.identified, logs.anonymous):
        assert len(budget._heap) <= 1100
    oldest = logs.anonymous.oldest()
    assert oldest is not None
    assert oldest.filter == "a"
    assert logs.identified.oldest() is None
