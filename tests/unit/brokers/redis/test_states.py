"""The table of a shard's connection: each row on a fake connection, and the rules that all rows obey."""

from collections import deque
from collections.abc import Iterator

import pytest

from push1st.brokers.redis import connection
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.resp import RespConnection
from push1st.brokers.redis.states import (
    PUBLISHING,
    REGISTERED,
    TRANSITIONS,
    ConnectionAction,
    ConnectionEvent,
    ConnectionState,
)
from push1st.config.brokerurl import parse
from tests.support.transport import Transport

S, E, A = ConnectionState, ConnectionEvent, ConnectionAction
ROWS = [(state, event, *row) for (state, event), row in TRANSITIONS.items()]
IDS = [f"{state.name}-{event.name}" for state, event, *_ in ROWS]


class FakeConnection:
    """A connection of a shard without a server: the test applies the events, and reads the effects."""

    def __init__(self) -> None:
        self.suspended = 0
        self.publish_connections: list[RespConnection | None] = []
        self.shard = ShardConnection(
            parse("redis://localhost"),
            "0",
            "node",
            Keys("p", "0", False),
            lambda _: None,
            self._register,
            self._suspend,
            LogDedup(),
            Timings(),
        )
        self.shard.on_publish_connection = self.publish_connections.append
        self.shard._loop = self.loop = Loop()  # type: ignore[assignment]
        self.resp = RespConnection(lambda _: None, self.shard._lost)
        self.transport = Transport()
        self.resp.connection_made(self.transport)

    async def _register(self, resp: RespConnection) -> None:
        raise AssertionError("the test applies the events")

    def _suspend(self) -> None:
        self.suspended += 1

    def apply(self, event: ConnectionEvent) -> None:
        """Applies an event as `ShardConnection` does."""
        if event is E.CONNECTED:
            self.shard.established = self.resp
        if event is E.DISCONNECTED:
            self.resp.connection_lost(None)
        else:
            self.shard._apply(event)

    def reach(self, state: ConnectionState) -> "FakeConnection":
        """Applies the shortest sequence of events that leads to a state."""
        for event in way_to(state):
            self.apply(event)
        assert self.shard.state is state
        return self


class Loop:
    """A loop whose time does not pass."""

    def time(self) -> float:
        return 100.0


def way_to(goal: ConnectionState) -> tuple[ConnectionEvent, ...]:
    """Returns the shortest sequence of events from AWAY to a state."""
    ways: deque[tuple[ConnectionState, tuple[ConnectionEvent, ...]]] = deque([(S.AWAY, ())])
    seen = {S.AWAY}
    while ways:
        state, way = ways.popleft()
        if state is goal:
            return way
        for (start, event), (following, _) in TRANSITIONS.items():
            if start is state and following not in seen:
                seen.add(following)
                ways.append((following, (*way, event)))
    raise AssertionError(f"no way leads to {goal}")


@pytest.mark.parametrize(("state", "event", "following", "actions"), ROWS, ids=IDS)
async def test_row_changes_the_state_and_does_its_actions(
    monkeypatch: pytest.MonkeyPatch,
    state: ConnectionState,
    event: ConnectionEvent,
    following: ConnectionState,
    actions: tuple[ConnectionAction, ...],
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(connection.log, "warning", lambda event, **_: logged.append(event))
    fake = FakeConnection()
    shard = fake.reach(state).shard
    suspended, shard._gate_opens_at = fake.suspended, 0.0
    waits = Waiter()
    shard._waiters.append((200.0, waits))  # type: ignore[arg-type]
    logged.clear()
    fake.apply(event)
    assert shard.state is following
    assert (fake.suspended > suspended) == (A.SUSPEND in actions)
    assert (shard._gate_opens_at > 100) == (A.START_GATE in actions)
    assert waits.is_resumed == (A.RESUME_CALLS in actions)
    assert fake.transport.aborted == (A.ABORT in actions)
    assert ("the broker is away" in logged) == (A.REPORT_AWAY in actions)


@pytest.mark.parametrize(("state", "event"), [(s, e) for s in S for e in E if (s, e) not in TRANSITIONS])
async def test_event_without_a_row_changes_nothing(state: ConnectionState, event: ConnectionEvent) -> None:
    fake = FakeConnection()
    shard = fake.reach(state).shard
    before = shard.registered_on, shard.publish_connection, fake.suspended, fake.transport.aborted
    shard._apply(event)
    assert shard.state is state
    assert (shard.registered_on, shard.publish_connection, fake.suspended, fake.transport.aborted) == before


@pytest.mark.parametrize("state", S)
async def test_commands_and_publishes_use_the_connection_only_in_their_states(state: ConnectionState) -> None:
    fake = FakeConnection()
    shard = fake.reach(state).shard
    assert shard.registered_on is (fake.resp if state in REGISTERED else None)
    assert shard.publish_connection is (fake.resp if state in PUBLISHING else None)
    if fake.publish_connections:
        assert fake.publish_connections[-1] is shard.publish_connection


def rows(*states: ConnectionState) -> Iterator[tuple[ConnectionEvent, ConnectionState, tuple[ConnectionAction, ...]]]:
    return ((event, following, actions) for state, event, following, actions in ROWS if state in states)


def test_publishing_starts_only_after_all_nodes_are_subscribed() -> None:
    starts = {(state, event) for state, event, following, _ in ROWS if following in PUBLISHING and state not in PUBLISHING}
    assert starts == {(S.GATED, E.ALL_SUBSCRIBED)}


def test_gate_starts_on_each_new_connection_and_on_no_old_one() -> None:
    assert [(state, event) for state, event, _, actions in ROWS if A.START_GATE in actions] == [(S.REGISTERING, E.REGISTERED)]


def test_calls_resume_whenever_the_node_is_registered() -> None:
    for state, event, following, actions in ROWS:
        begins = following in REGISTERED and state not in REGISTERED
        assert (A.RESUME_CALLS in actions) == begins, (state, event)


def test_hook_events_are_suspended_whenever_the_lease_may_be_lost() -> None:
    for state, event, following, actions in ROWS:
        ends = state in REGISTERED and following not in REGISTERED and following is not S.CLOSED
        assert (A.SUSPEND in actions) == ends, (state, event)


def test_each_loss_of_a_registered_connection_is_reported() -> None:
    for state, event, following, actions in ROWS:
        lost = following is S.AWAY and state is not S.REGISTERING
        assert (A.REPORT_AWAY in actions) == lost, (state, event)


def test_connection_ends_at_once_unless_it_has_ended_or_the_node_leaves_orderly() -> None:
    for state, event, following, actions in ROWS:
        is_open = state is not S.AWAY and event is not E.DISCONNECTED
        ends = following is S.AWAY or (following is S.CLOSED and state not in REGISTERED)
        assert (A.ABORT in actions) == (is_open and ends), (state, event)


def test_every_state_but_closed_can_close_and_closed_is_the_end() -> None:
    for state in S:
        assert ((state, E.CLOSE) in TRANSITIONS) == (state is not S.CLOSED)
    assert list(rows(S.CLOSED)) == []


class Waiter:
    """A call that waits until the node is registered."""

    is_resumed = False

    def done(self) -> bool:
        return False

    def set_result(self, _: None) -> None:
        self.is_resumed = True
