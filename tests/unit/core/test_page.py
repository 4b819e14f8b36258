"""The state of one connection of a page: from where it resumes, and what it has acknowledged. A model checks the promise."""

from collections.abc import Iterator
from itertools import count
from math import inf
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.brokers.pages import PageRecord
from push1st.core.page import INHERITED_SECONDS, MAX_PINGS, MAX_SOCKETS, PageState, inherit
from push1st.positions import Position

NOW = 1000.0
_times = count(1)


class At:
    """A channel with a position."""

    def __init__(self, offset: int, epoch: str = "e") -> None:
        self.position = Position(epoch, offset) if epoch else None


def pos(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset)


def record(positions: dict[str, Position | None], **more: Any) -> PageRecord:
    return PageRecord(next(_times), "worker", positions, **more)


def state(*records: PageRecord, now: float = NOW) -> PageState:
    return PageState(inherit({f"{number}.0": one for number, one in enumerate(records)}), now)


# What a new connection takes over


def test_page_without_records_has_no_position() -> None:
    page = state()
    assert page.since("a", NOW) is None
    assert page.reason("a", "unknown", NOW) == "unknown"


def test_channel_is_resumed_from_the_smallest_position_of_all_records() -> None:
    assert state(record({"a": pos(7)}), record({"a": pos(3)}), record({"a": pos(5)})).since("a", NOW) == pos(3)


def test_records_of_other_channels_do_not_matter() -> None:
    page = state(record({"a": pos(7)}), record({"b": pos(3)}))
    assert (page.since("a", NOW), page.since("b", NOW)) == (pos(7), pos(3))


def test_positions_of_two_epochs_are_state_lost() -> None:
    page = state(record({"a": pos(7)}), record({"a": pos(1, "f")}), record({"a": pos(9)}))
    assert page.since("a", NOW) is None
    assert page.reason("a", "unknown", NOW) == "state-lost"


def test_channel_without_an_acknowledged_position_is_unknown() -> None:
    page = state(record({"a": None}))
    assert page.since("a", NOW) is None
    assert page.reason("a", "unknown", NOW) == "unknown"


def test_position_of_one_connection_counts_if_another_connection_has_none() -> None:
    assert state(record({"a": None}), record({"a": pos(4)})).since("a", NOW) == pos(4)


def test_reason_of_the_broker_is_the_reason_for_a_known_position() -> None:
    page = state(record({"a": pos(4)}))
    assert page.reason("a", "trimmed", NOW) == "trimmed"
    assert page.reason("a", None, NOW) is None


def test_closed_records_are_merged() -> None:
    found = inherit({"1.1": record({}, is_closed=True), "2.2": record({})})
    assert found.closed == ("1.1",)


def test_former_connections_are_the_latest_eight_of_all_records() -> None:
    old = record({}, sockets=tuple(f"{number}.1" for number in range(8)))
    new = record({}, sockets=("3.1",))
    sockets = inherit({"10.0": old, "11.0": new}).sockets
    assert sockets == ("2.1", "4.1", "5.1", "6.1", "7.1", "10.0", "3.1", "11.0")
    assert len(sockets) == MAX_SOCKETS


def test_old_connection_that_ends_late_does_not_displace_the_latest_connections() -> None:
    new = record({}, sockets=("6.1", "7.1", "10.0", "9.1"))
    old = record({}, sockets=tuple(f"{number}.1" for number in range(8)), is_closed=True)
    assert inherit({"11.0": new, "10.0": old}).sockets[-4:] == ("7.1", "10.0", "9.1", "11.0")


def test_inherited_position_counts_for_thirty_seconds() -> None:
    page = state(record({"a": pos(4)}))
    assert page.expires == NOW + INHERITED_SECONDS
    assert page.since("a", NOW + INHERITED_SECONDS - 1) == pos(4)
    assert page.since("a", NOW + INHERITED_SECONDS) is None
    assert page.reason("a", "unknown", NOW + INHERITED_SECONDS) == "unknown"
    assert page.expires == inf


def test_expiry_is_reported_once() -> None:
    page = state(record({"a": pos(4)}))
    assert not page.expire(NOW)
    assert page.expire(NOW + INHERITED_SECONDS)
    assert not page.expire(NOW + INHERITED_SECONDS)


# Subscriptions


def test_resumed_subscription_keeps_the_position_from_which_it_was_resumed() -> None:
    page = state(record({"a": pos(4)}))
    page.subscribed("a", pos(4))
    assert page.record(NOW, 1, "w").positions == {"a": pos(4)}


def test_subscription_that_was_not_resumed_has_no_position() -> None:
    page = state()
    page.subscribed("a", None)
    assert page.record(NOW, 1, "w").positions == {"a": None}


def test_channel_that_is_not_subscribed_yet_stays_in_the_record() -> None:
    page = state(record({"a": pos(4), "b": pos(5)}))
    page.subscribed("a", pos(4))
    assert page.record(NOW, 1, "w").positions == {"a": pos(4), "b": pos(5)}
    assert page.record(NOW + INHERITED_SECONDS, 1, "w").positions == {"a": pos(4)}


def test_channel_that_the_client_has_left_is_not_in_the_record() -> None:
    page = state(record({"a": pos(4)}))
    page.subscribed("a", pos(4))
    page.unsubscribed("a")
    assert page.record(NOW, 1, "w").positions == {}
    assert page.since("a", NOW) is None


def test_channel_that_the_client_left_before_it_subscribed_again_is_not_in_the_record() -> None:
    page = state(record({"a": pos(4)}))
    page.unsubscribed("a")
    assert page.record(NOW, 1, "w").positions == {}


# Acknowledgements


def test_pong_acknowledges_the_positions_at_the_time_of_the_ping() -> None:
    page = state()
    page.subscribed("a", None)
    channels = {"a": At(7)}
    page.pinged(NOW, page.moved(channels))
    channels["a"] = At(9)
    assert page.record(NOW, 1, "w").positions == {"a": None}
    page.ponged()
    assert page.record(NOW, 1, "w").positions == {"a": pos(7)}


def test_first_pong_answers_the_first_ping() -> None:
    page = state()
    page.subscribed("a", None)
    page.pinged(NOW)
    page.pinged(NOW, {"a": pos(7)})
    page.ponged()
    assert page.positions == {"a": None}
    page.ponged()
    assert page.positions == {"a": pos(7)}


def test_pong_without_a_ping_acknowledges_nothing() -> None:
    page = state()
    page.subscribed("a", None)
    assert page.ponged() is None
    page.pinged(NOW, {"a": pos(7)})
    assert page.positions == {"a": None}


def test_channels_that_have_not_moved_need_no_acknowledgement() -> None:
    page = state()
    for name in ("a", "b", "c", "d"):
        page.subscribed(name, pos(7))
    assert page.moved({"a": At(7), "b": At(8), "c": At(7, "f"), "d": At(0, "")}) == {"b": pos(8), "c": pos(7, "f")}


def test_acknowledgement_is_awaited_until_its_pong() -> None:
    page = state()
    page.subscribed("a", None)
    page.pinged(NOW)
    waiting = [page.is_waiting]
    page.pinged(NOW, {"a": pos(7)})
    waiting.append(page.is_waiting)
    page.ponged()
    page.ponged()
    assert [*waiting, page.is_waiting] == [False, True, False]


def test_pong_does_not_acknowledge_a_channel_that_the_client_left_after_the_ping() -> None:
    page = state()
    page.subscribed("a", None)
    page.pinged(NOW, {"a": pos(7)})
    page.unsubscribed("a")
    page.subscribed("a", None)
    page.ponged()
    assert page.positions == {"a": None}


def test_client_that_answers_no_ping_acknowledges_nothing() -> None:
    page = state()
    page.subscribed("a", None)
    for _ in range(MAX_PINGS):
        page.pinged(NOW)
    mute = [page.is_mute]
    page.pinged(NOW, {"a": pos(7)})
    assert [*mute, page.is_mute] == [False, True]
    for _ in range(2 * MAX_PINGS):
        assert page.ponged() is None
    assert page.positions == {"a": None}


# Requests of other workers


def test_pong_answers_the_request_of_a_newer_connection() -> None:
    page = state()
    page.pinged(NOW)
    assert page.probed(NOW, "other", 5)
    first, second = page.ponged(), page.ponged()
    assert first is not None
    assert second is not None
    assert (first.probes, second.probes) == ((), (("other", 5),))


def test_later_requests_share_a_ping_while_many_pings_are_unanswered() -> None:
    page = state()
    assert [page.probed(NOW, "other", number, 2) for number in range(4)] == [True, True, False, False]
    assert page.unanswered() == [("other", 0), ("other", 1), ("other", 2), ("other", 3)]
    page.ponged()
    assert page.unanswered() == [("other", 1), ("other", 2), ("other", 3)]


# Shared names


def test_shared_page_resumes_nothing() -> None:
    page = state(record({"a": pos(4)}))
    page.share()
    assert page.since("a", NOW) is None
    assert page.reason("a", None, NOW) == "shared"
    page.subscribed("a", None)
    assert page.record(NOW, 1, "w") == PageRecord(1, "w", {}, ("0.0",), is_shared=True)


def test_page_stays_shared_for_later_connections() -> None:
    assert state(record({"a": pos(4)}, is_shared=True), record({"a": pos(9)})).is_shared


# Repeats


def closing(page: PageState, *, exact: bool = True) -> PageRecord:
    return page.record(NOW, next(_times), "w", closed=True, exact=exact)


def test_replay_after_an_exact_record_has_no_repeats() -> None:
    page = state()
    page.subscribed("a", None)
    page.acknowledge({"a": pos(7)})
    assert not state(closing(page)).subscribed("a", pos(7))


def test_replay_after_a_lost_connection_may_have_repeats() -> None:
    page = state()
    page.subscribed("a", pos(7))
    assert state(page.record(NOW, 1, "w")).subscribed("a", pos(7))
    assert state(closing(page, exact=False)).subscribed("a", pos(7))


def test_replay_may_have_repeats_if_two_connections_had_the_channel() -> None:
    exact = record({"a": pos(7)}, is_closed=True, is_exact=True)
    assert state(exact, record({"a": pos(9)}, is_closed=True, is_exact=True)).subscribed("a", pos(7))
    assert state(exact, record({"a": None}, is_closed=True, is_exact=True)).subscribed("a", pos(7))
    assert state(exact, record({"a": pos(7)})).subscribed("a", pos(7))
    assert not state(exact, record({"b": pos(7)})).subscribed("a", pos(7))


def test_record_is_not_exact_if_an_inherited_position_is_not_exact() -> None:
    page = state(record({"a": pos(4), "b": pos(4)}))
    page.subscribed("a", pos(4))
    assert not closing(page).is_exact
    page.subscribed("b", pos(4))
    assert closing(page).is_exact


# The promise, against a model


class Model:
    """A channel, a page with several connections, and what the page has seen.

    A connection sends frames in order; the page reads some of them; the rest is lost with the connection. `seen` are the offsets
    that the page has seen since it was last notified that it may have missed messages.
    """

    def __init__(self) -> None:
        self.records: dict[str, PageRecord] = {}
        self.epoch, self.last = "e0", 0
        self.kept: list[int] = []
        self.open: list[Line] = []
        self.line: Line | None = None
        self.reached = -1
        """the position that the page has reached: it has seen everything up to this offset of `reached_epoch`"""
        self.reached_epoch = ""
        self.gaps = 0

    def live(self) -> Iterator["Line"]:
        return (one for one in self.open if one.is_open)

    def publish(self) -> None:
        self.last += 1
        self.kept.append(self.last)
        for line in self.live():
            line.send("message", self.epoch, self.last)

    def trim(self) -> None:
        del self.kept[: len(self.kept) // 2]

    def lose_state(self) -> None:
        """The broker loses the history; all live subscribers are notified. The offsets begin again."""
        self.epoch = f"e{int(self.epoch[1:]) + 1}"
        self.last, self.kept = 0, []
        for line in self.live():
            line.send("reset", self.epoch, 0)

    def connect(self) -> None:
        """The page gives up its connection, which the server may not notice, and opens a new one."""
        if self.line is not None:
            self.line.frames.clear()
            self.line.is_read = False
        self.line = Line(self)

    def read(self, number: int) -> None:
        """The page reads some frames."""
        line = self.line
        if line is None or not line.is_read:
            return
        for _ in range(min(number, len(line.frames))):
            kind, epoch, offset = line.frames.pop(0)
            if kind == "message":
                if epoch != self.reached_epoch or offset > self.reached + 1:
                    self.gaps += 1
                else:
                    self.reached = max(self.reached, offset)
            elif kind == "reset":
                self.reached_epoch, self.reached = epoch, offset
            elif kind == "ping":
                line.pongs += 1
            elif kind == "close":
                line.echoed = True
                line.is_read = False


class Line:
    """One connection of the page."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.id = f"{next(_times)}.0"
        self.frames: list[tuple[str, str, int]] = []
        self.is_open = True
        self.is_read = True
        self.is_closing = False
        self.pongs = 0
        self.echoed = False
        self.state = PageState(inherit(model.records), NOW)
        self.merged = [one for one, record in model.records.items() if record.is_closed]
        since = self.state.since("a", NOW)
        reason = self.state.reason("a", None if since else "unknown", NOW)
        if reason is None and since is not None:
            oldest = model.kept[0] if model.kept else model.last + 1
            if since.epoch != model.epoch or since.offset > model.last or since.offset + 1 < oldest:
                reason = "trimmed"
        if reason is None and since is not None:
            for offset in range(since.offset + 1, model.last + 1):
                self.send("message", model.epoch, offset)
            self.state.subscribed("a", since)
        else:
            self.send("reset", model.epoch, model.last)
            self.state.subscribed("a", None)
        model.open.append(self)

    def send(self, kind: str, epoch: str = "", offset: int = 0) -> None:
        self.frames.append((kind, epoch, offset))

    def channels(self) -> dict[str, At]:
        return {"a": At(self.model.last, self.model.epoch)}

    def ping(self, keepalive: bool) -> None:
        self.state.pinged(NOW, None if keepalive else self.state.moved(self.channels()))
        self.send("ping")

    def ponged(self) -> None:
        if self.pongs:
            self.pongs -= 1
            self.state.ponged()

    def write(self) -> None:
        self.model.records[self.id] = self.state.record(NOW, next(_times), "w")
        for one in self.merged:
            self.model.records.pop(one, None)
        while len(self.model.records) > 4:
            oldest = min((one for one in self.model.records if one != self.id), key=lambda one: self.model.records[one].written)
            del self.model.records[oldest]

    def close(self) -> None:
        """The server begins the end of the connection."""
        self.final = self.state.moved(self.channels())
        self.send("close")
        self.is_open, self.is_closing = False, True

    def end(self) -> None:
        """The connection ends; its worker may have died before."""
        if self.is_closing and self.echoed:
            self.state.acknowledge(self.final)
        if self.id in self.model.records:
            exact = self.is_closing and self.echoed
            self.model.records[self.id] = self.state.record(NOW, next(_times), "w", closed=True, exact=exact)
        self.is_open, self.is_read = False, False


STEPS = st.one_of(
    st.sampled_from(["publish", "publish", "connect", "ping", "ping", "keepalive", "pong", "pong", "write", "write"]),
    st.sampled_from(["close", "end", "kill", "lose_state", "trim", "forget"]),
    st.integers(1, 6),
)


@given(st.lists(st.tuples(STEPS, st.integers(0, 5)), max_size=60))
@settings(max_examples=150)
def test_page_never_has_a_gap_without_a_notification(steps: list[tuple[str | int, int]]) -> None:
    model = Model()
    model.connect()
    for step, which in steps:
        if isinstance(step, int):
            model.read(step)
            continue
        if step in ("publish", "connect", "lose_state", "trim"):
            getattr(model, step)()
            continue
        line = model.open[-1 - which % len(model.open)]
        match step:
            case "ping" | "keepalive" if line.is_open:
                line.ping(step == "keepalive")
            case "pong" if line.is_open:
                line.ponged()
            case "write" if line.is_open:
                line.write()
            case "close" if line.is_open:
                line.close()
            case "end":
                line.end()
            case "kill":
                line.is_open = line.is_read = False
            case "forget" if line is not model.line:
                model.records.pop(line.id, None)
                line.is_open = False
    model.connect()
    model.read(1000)
    assert model.gaps == 0
    assert (model.reached_epoch, model.reached) == (model.epoch, model.last)


def test_model_notices_positions_that_are_too_new() -> None:
    """Checks the model itself: a server that acknowledges what it has sent causes a gap."""
    model = Model()
    model.connect()
    assert model.line is not None
    model.read(1)
    model.publish()
    model.line.state.acknowledge(model.line.state.moved(model.line.channels()))
    model.line.write()
    model.connect()
    model.publish()
    model.read(10)
    assert model.gaps == 1
