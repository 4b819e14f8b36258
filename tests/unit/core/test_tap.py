"""The tap of a worker: its events, its filters, its rates and its leases."""

from typing import Any, get_args

import msgspec
import pytest

from push1st.core.session import Session
from push1st.core.tap import (
    MAX_BATCH,
    MAX_DATA,
    MAX_RATE,
    MAX_REASON,
    MAX_WATCHES,
    TICK_SECONDS,
    WATCH_SECONDS,
    Answered,
    Tap,
    TapKind,
    Watch,
    read_filter,
)
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.hooks import Attempt, Decision
from push1st.hooks.events import Connecting, Subscribing
from push1st.logs import MASK
from push1st.messages import API, Publish, SignedInUser, Subscribe, Unsubscribe
from push1st.protocols.mqtt.packets import MQTT_5
from push1st.protocols.mqtt.wire import wire_of
from tests.support.loop import done
from tests.support.node import APP, World, app_config

OTHER = app_config(id="app-other", key="other-key")


class Tapped:
    """A node with a tap; the batches of its watches are collected."""

    def __init__(self) -> None:
        self.world = World(app_config(), OTHER)
        self.node = self.world.node
        self.other = self.node.app(OTHER)
        self.batches: list[dict[str, Any]] = []
        self.tap = Tap("node-1", self.world.clock, self.node.used, self.answered, self.send)
        self.node.refusals.watch(self.tap, ["the-secret-of-an-app"])
        self.node.tap = self.node.signins.tap = self.node.hooks.tap = self.tap

    def answered(self, protocol: str, event: str, code: int, message: str) -> Answered:
        return Answered(code + 1, "do this", f"docs/errors.md#{protocol}")

    def send(self, watch: Watch) -> None:
        self.batches.append(msgspec.json.decode(watch.batch()))

    def watch(self, id: str = "1", **filter: Any) -> Watch:
        self.tap.watch(id, read_filter(filter))
        return self.tap.watches[-1]

    def events(self) -> list[dict[str, Any]]:
        """Returns the events since the last call."""
        self.tap.tick()
        found = [event for batch in self.batches for event in batch["events"]]
        self.batches.clear()
        return found

    def publish(self, channel: str = "news", data: bytes = b'"x"', count: int = 1, **more: Any) -> None:
        for _ in range(count):
            app = more.get("app", self.world.app)
            done(resolve(self.node.publish(app, channel, "e", data, self.node.stamp(), more.get("sender", API))))

    def counts_only(self) -> bool:
        return self.tap.counts_only

    def session(self) -> Session:
        session, _ = self.world.session()
        return session


@pytest.fixture
def tapped() -> Tapped:
    return Tapped()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["what"] for event in events]


# Events


def test_commands_of_a_client_are_shown(tapped: Tapped) -> None:
    tapped.watch(app=APP)
    session = tapped.session()
    session.handle(Subscribe("news"))
    session.handle(Unsubscribe("news"))
    subscribed, unsubscribed = tapped.events()
    at = tapped.world.clock.wall() / 1e9
    where = {"at": at, "worker": "node-1", "app": APP, "socket": session.id, "ip": "192.0.2.1", "protocol": "pusher"}
    assert subscribed == {**where, "what": "subscribed", "channel": "news"}
    assert unsubscribed == {**where, "what": "unsubscribed", "channel": "news"}


def test_begin_and_end_of_a_connection_are_shown(tapped: Tapped) -> None:
    tapped.watch()
    session = tapped.session()
    tapped.tap.connected(session.app, session)
    tapped.tap.disconnected(session.app, session, 4009, 1.23456)
    connected, disconnected = tapped.events()
    assert (connected["what"], connected["socket"], "code" in connected) == ("connected", session.id, False)
    assert (disconnected["what"], disconnected["code"], disconnected["ms"]) == ("disconnected", 4009, 1234.6)


def test_sign_in_is_shown(tapped: Tapped) -> None:
    tapped.watch()
    session = tapped.session()
    done(tapped.node.signins.sign_in(session.app, session, SignedInUser("ann")))
    (event,) = tapped.events()
    assert (event["what"], event["user"]) == ("signed-in", "ann")


def test_event_of_the_api_is_shown_once_and_without_data(tapped: Tapped) -> None:
    tapped.watch()
    for _ in range(3):
        tapped.session().handle(Subscribe("news"))
    tapped.events()
    tapped.publish(data=b'{"a":1}')
    (event,) = tapped.events()
    assert (event["what"], event["channel"], event["event"], event["size"]) == ("published", "news", "e", 7)
    assert not {"data", "socket", "ip"} & event.keys()


def test_event_of_a_client_is_shown_with_its_socket_user_and_address(tapped: Tapped) -> None:
    tapped.watch(what=["client-event"], data=True)
    session = tapped.session()
    session.user = SignedInUser("ann")
    session.authorized = True
    done(resolve(tapped.node.publish(session.app, "private-a", "client-e", b'"\\u00e9"', tapped.node.stamp(), session.id)))
    (event,) = tapped.events()
    assert event["what"] == "client-event"
    assert (event["socket"], event["user"], event["ip"], event["data"]) == (session.id, "ann", "192.0.2.1", "é")


def test_rejection_is_shown_as_the_client_got_it(tapped: Tapped) -> None:
    tapped.watch(app=APP)
    session = tapped.session()
    session.handle(Publish("news", "client-e", b"1"))
    (event,) = tapped.events()
    assert (event["what"], event["event"], event["code"]) == ("refused", "command refused", 404)
    assert event["reason"] == "client events are for private and presence channels"
    assert (event["remedy"], event["link"], event["socket"]) == ("do this", "docs/errors.md#pusher", session.id)


def test_secret_in_a_rejection_is_masked(tapped: Tapped) -> None:
    tapped.watch()
    secret = "the-secret-of-an-app"
    tapped.node.refusals.log("handshake refused", 4001, f"no app {secret}", path=f"/app/{secret}", channel=secret)
    (event,) = tapped.events()
    assert secret not in str(event)
    assert event["reason"] == f"no app {MASK}"


def test_secret_that_the_bound_of_a_text_divides_is_masked(tapped: Tapped) -> None:
    tapped.watch()
    start = "x" * (MAX_REASON - 5)
    tapped.node.refusals.log("handshake refused", 4001, f"{start}the-secret-of-an-app", path=f"/{start}the-secret-of-an-app")
    (event,) = tapped.events()
    assert "the-s" not in str(event)
    assert len(event["reason"]) <= MAX_REASON


@pytest.mark.parametrize("first", range(20))
def test_text_full_of_secrets_shows_no_part_of_a_secret(tapped: Tapped, first: int) -> None:
    tapped.watch()
    tapped.node.refusals.log("handshake refused", 4001, "x" * first + "the-secret-of-an-app" * MAX_REASON)
    (event,) = tapped.events()
    assert not set(event.get("reason", "")) - set(f"x{MASK}")


def test_connection_that_the_worker_ends_is_shown(tapped: Tapped) -> None:
    tapped.watch(what=["cut-off"])
    session = tapped.session()
    session.log_end(4201, "no pong")
    session.refuse(Refused(400, "wrong"))
    (event,) = tapped.events()
    assert (event["code"], event["reason"], event["socket"]) == (4202, "no pong", session.id)


def test_deliveries_of_hooks_are_shown(tapped: Tapped) -> None:
    tapped.watch()
    attempt = Attempt(APP, "https://h/x", ("news", "other"), 3, 2, 400, 0.0123, "answered 500")
    tapped.tap.attempted(attempt)
    tapped.tap.attempted(msgspec.structs.replace(attempt, error="", channels=("news",)))
    failed, delivered = tapped.events()
    assert (failed["what"], failed["reason"], failed["attempt"]) == ("webhook-failed", "answered 500", 2)
    assert (delivered["what"], delivered["events"], delivered["size"], delivered["ms"]) == ("webhook-delivered", 3, 400, 12.3)
    assert (delivered["endpoint"], delivered["channel"], "channel" in failed) == ("https://h/x", "news", False)


def test_delivery_for_a_channel_is_found_by_this_channel(tapped: Tapped) -> None:
    tapped.watch(channel="other")
    tapped.tap.attempted(Attempt(APP, "https://h/x", ("news", "other"), 3, 1, 400, 0.01, ""))
    tapped.tap.attempted(Attempt(APP, "https://h/x", ("news",), 3, 1, 400, 0.01, ""))
    assert kinds(tapped.events()) == ["webhook-delivered"]


def test_decision_is_shown_without_password_headers_and_data(tapped: Tapped) -> None:
    tapped.watch(data=True)
    hidden = Connecting(
        APP, "1.2", "192.0.2.9", "token=hidden", cookie="hidden", authorization="hidden", username="u", password="hidden"
    )
    tapped.tap.asked(hidden, Decision(Refused(4009, "no")), 0.5)
    tapped.tap.asked(Subscribing(APP, "1.2", "192.0.2.9", "private-a", "hidden", "ann"), Decision(), 0.001)
    connect, subscribe = tapped.events()
    assert "hidden" not in str(connect) + str(subscribe)
    assert (connect["what"], connect["event"], connect["code"], connect["reason"]) == ("asked", "connect", 4009, "no")
    assert (connect["ms"], connect["ip"], connect["socket"]) == (500.0, "192.0.2.9", "1.2")
    assert (subscribe["event"], subscribe["channel"], subscribe["user"]) == ("subscribe", "private-a", "ann")
    assert "code" not in subscribe


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b'"a\\nb"', {"data": "a\nb"}),
        (b'{"a":[1]}', {"data": '{"a":[1]}'}),
        (b'{"base64":"AP8="}', {"data": "AP8=", "encoding": "base64"}),
        (b'"' + b"x" * 3000 + b'"', {"data": "x" * MAX_DATA, "cut": True}),
        (b'"' + b"x" * 9000 + b'"', {"data": '"' + "x" * (MAX_DATA - 1), "cut": True}),
        ('"' + "x" * (MAX_DATA - 1) + 'é"', {"data": "x" * (MAX_DATA - 1), "cut": True}),
        (b'{"base64":"' + b"AAAA" * 1000 + b'"}', {"data": "AAAA" * 682, "encoding": "base64", "cut": True}),
        (b'"\\ud800"', {"data": "\ufffd"}),
    ],
    ids=["string", "object", "binary", "long string", "very long string", "cut letter", "long binary", "lone surrogate"],
)
def test_data_is_text_of_two_kilobytes(tapped: Tapped, data: bytes | str, shown: dict[str, Any]) -> None:
    tapped.watch(data=True)
    tapped.publish(data=data if isinstance(data, bytes) else data.encode())
    (event,) = tapped.events()
    assert {name: event[name] for name in ("data", "encoding", "cut") if name in event} == shown


# Filters


@pytest.mark.parametrize(
    ("channel", "found"),
    [
        ("order", ["orders", "orders-1", "orders.1-x"]),
        ("orders-*", ["orders-1"]),
        ("*-1", ["orders-1"]),
        ("o*s*1*", ["orders-1", "orders.1-x"]),
        ("orders.", ["orders.1-x"]),
        ("*" * 500, ["news", "orders", "orders-1", "orders.1-x"]),
        ("*o" * 200 + "x", []),
    ],
)
def test_channel_is_a_beginning_or_a_pattern(tapped: Tapped, channel: str, found: list[str]) -> None:
    tapped.watch(channel=channel)
    for name in ("news", "orders", "orders-1", "orders.1-x"):
        tapped.publish(name)
    assert [event["channel"] for event in tapped.events()] == found


def test_pattern_with_many_stars_takes_linear_time(tapped: Tapped) -> None:
    tapped.watch(channel="*o" * 100 + "*x")
    tapped.publish("o" * 200)
    assert tapped.events() == []


def test_each_filter_selects(tapped: Tapped) -> None:
    session, second = tapped.session(), tapped.session()
    session.user = SignedInUser("ann")
    wanted: tuple[dict[str, Any], ...] = (
        {"app": APP},
        {"what": ["connected", "asked"]},
        {"socket": session.id},
        {"user": "ann"},
        {"ip": "192.0.2.1", "user": "ann"},
    )
    others: tuple[dict[str, Any], ...] = (
        {"app": OTHER.id},
        {"what": ["asked"]},
        {"socket": second.id},
        {"user": "an"},
        {"ip": "192.0.2.2"},
        {"channel": "n"},
    )
    for number, filter in enumerate((*wanted, *others)):
        tapped.watch(str(number), **filter)
        tapped.tap.connected(session.app, session)
        assert kinds(tapped.events()) == ["connected"] * (number < len(wanted)), filter
        tapped.tap.unwatch(str(number))


@pytest.mark.parametrize(("wanted", "found"), [("dev1", 3), ("dev1.2", 0), ("dev", 0), ("1.2", 0)])
def test_filter_finds_a_client_by_its_client_id(tapped: Tapped, wanted: str, found: int) -> None:
    tapped.watch(socket=wanted)
    session, _ = tapped.world.session(wire_of(MQTT_5), prefix="dev1")
    tapped.tap.connected(session.app, session)
    done(resolve(tapped.node.publish(session.app, "news", "e", b"1", tapped.node.stamp(), session.id)))
    tapped.node.refusals.log("connection refused", 0x87, "wrong", app=APP, client_id="dev1")
    events = tapped.events()
    assert [event["client_id"] for event in events] == ["dev1"] * found
    assert [event.get("socket", "") for event in events] == [session.id, session.id, ""][:found]


def test_rejection_without_an_app_is_shown_for_each_app(tapped: Tapped) -> None:
    tapped.watch(app=OTHER.id)
    tapped.node.refusals.log("handshake refused", 4001, "no such app", path="/app/nothing")
    tapped.node.refusals.log("request refused", 401, "wrong", method="POST", path=f"/apps/{APP}/events")
    tapped.node.refusals.log("request refused", 404, "wrong", method="POST", path=f"/apps/{OTHER.id}/events")
    one, two = tapped.events()
    assert (one["reason"], two["request"], two["app"]) == ("no such app", f"POST /apps/{OTHER.id}/events", OTHER.id)


@pytest.mark.parametrize(
    "filter", [{"what": ["nothing"]}, {"channel": 1}, {"chan": "x"}, {"socket": "x" * 1025}, [], "app", {"data": "yes"}]
)
def test_filter_that_is_not_valid_is_rejected(filter: object) -> None:
    with pytest.raises(Refused) as refused:
        read_filter(filter)
    assert refused.value.code == 400


# Rates


def test_events_above_the_rate_are_counted(tapped: Tapped) -> None:
    tapped.watch()
    tapped.publish(count=MAX_RATE + 1)
    tapped.tap.tick()
    assert [len(batch["events"]) for batch in tapped.batches] == [MAX_BATCH] * (MAX_RATE // MAX_BATCH) + [0]
    assert tapped.batches[-1]["dropped"] == {"published": 1}


def test_events_that_the_node_counts_itself_are_counted_for_the_watches_that_want_them(tapped: Tapped) -> None:
    for id, kinds in (("1", []), ("2", ["published"]), ("3", ["refused"])):
        tapped.watch(id, what=kinds)
    tapped.publish(count=MAX_RATE)
    assert not tapped.counts_only()
    tapped.publish(count=5)
    tapped.publish(count=3, sender="1.1")
    assert tapped.counts_only()
    late = tapped.watch("4")
    tapped.publish()
    assert (len(late.events), late.dropped_published, tapped.counts_only()) == (1, 0, False)
    tapped.tap.unwatch("4")
    tapped.publish(count=2)
    assert tapped.counts_only()
    tapped.tap.tick()
    assert not tapped.counts_only()
    counts = [batch["dropped"] for batch in tapped.batches if batch["dropped"]]
    assert counts == [{"published": 8, "client-event": 3}, {"published": 8}]


def test_events_that_the_node_counts_itself_are_counted_for_the_watches_of_their_app(tapped: Tapped) -> None:
    tapped.watch("1", app=tapped.world.app.config.id)
    tapped.watch("2")
    tapped.publish(count=MAX_RATE + 2)
    tapped.publish(app=tapped.other, count=3)
    assert tapped.counts_only()
    tapped.tap.tick()
    assert [batch["dropped"] for batch in tapped.batches if batch["dropped"]] == [{"published": 2}, {"published": 5}]


def test_node_does_not_count_itself_while_a_watch_has_a_filter_of_events(tapped: Tapped) -> None:
    tapped.watch("1")
    tapped.watch("2", channel="quiet")
    tapped.publish(count=MAX_RATE + 7)
    tapped.publish("quiet")
    assert not tapped.counts_only()
    assert [event["channel"] for event in tapped.events()][-1] == "quiet"


def test_watch_takes_its_rate_again_in_the_next_second(tapped: Tapped) -> None:
    watch = tapped.watch()
    tapped.publish(count=MAX_RATE + 5)
    for _ in range(8):
        tapped.tap.tick()
    tapped.batches.clear()
    tapped.publish(count=10)
    assert (len(tapped.events()), watch.room) == (10, MAX_RATE)


def test_sustained_flood_shows_a_part_in_each_batch(tapped: Tapped) -> None:
    tapped.watch()
    tapped.publish(count=MAX_RATE)
    tapped.tap.tick()
    tapped.batches.clear()
    for _ in range(3):
        tapped.publish(count=1000)
        tapped.tap.tick()
    taken = int(MAX_RATE * TICK_SECONDS)
    assert sum(len(batch["events"]) for batch in tapped.batches) == 3 * taken
    assert sum(batch["dropped"].get("published", 0) for batch in tapped.batches) == 3 * (1000 - taken)


def test_rates_of_watches_are_separate(tapped: Tapped) -> None:
    tapped.watch("1", channel="loud")
    tapped.watch("2", channel="quiet")
    tapped.publish("loud", count=MAX_RATE + 7)
    tapped.publish("quiet")
    assert {event["channel"] for event in tapped.events()} == {"loud", "quiet"}


def test_much_data_is_sent_in_several_batches(tapped: Tapped) -> None:
    watch = tapped.watch(data=True)
    tapped.publish(data=b'"' + b"x" * 5000 + b'"', count=200)
    assert len(tapped.batches) == 1
    assert watch.size < 200_000


# Leases


def test_watch_ends_without_a_renewal(tapped: Tapped) -> None:
    tapped.watch("1")
    tapped.watch("2")
    tapped.world.clock.advance(WATCH_SECONDS - 1)
    tapped.tap.tick()
    tapped.tap.watch("1", read_filter({}))
    tapped.world.clock.advance(2)
    tapped.tap.tick()
    assert [one.id for one in tapped.tap.watches] == ["1"]
    tapped.tap.unwatch("1")
    assert tapped.tap.watches == ()


def test_worker_has_four_watches_at_most(tapped: Tapped) -> None:
    for number in range(MAX_WATCHES):
        tapped.watch(str(number))
    tapped.tap.watch("0", read_filter({}))
    with pytest.raises(Refused) as refused:
        tapped.watch("more")
    assert refused.value.code == 429


def test_kinds_of_the_filter_are_those_of_the_events() -> None:
    for kind in get_args(TapKind):
        assert read_filter({"what": [kind]}).what == (kind,)
