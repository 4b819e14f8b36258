"""The debouncing of edges: edges wait, cancel each other, and alternate."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from push1st.hooks.debounce import MAX_ABSENT, Debounce
from push1st.messages import ENTERING, HOLD_SECONDS, HookEvent, HookEventKind


def event(kind: HookEventKind, channel: str = "c", user_id: str | None = None) -> HookEvent:
    return HookEvent(kind, "a", channel, 0, user_id=user_id)


def kinds(events: Iterable[HookEvent]) -> list[str]:
    return [one.kind for one in events]


def test_channel_occupied_passes_at_once():
    assert kinds(Debounce().feed(event("occupied"), 0)) == ["occupied"]


def test_channel_vacated_passes_after_three_seconds():
    debounce = Debounce()
    debounce.feed(event("occupied"), 0)
    assert debounce.feed(event("vacated"), 10) == []
    assert debounce.due(12.9) == []
    assert kinds(debounce.due(13)) == ["vacated"]
    assert debounce.due(20) == []


def test_client_that_returns_in_time_causes_no_event():
    debounce = Debounce()
    debounce.feed(event("occupied"), 0)
    debounce.feed(event("vacated"), 10)
    assert debounce.feed(event("occupied"), 12.9) == []
    assert debounce.due(100) == []


def test_client_that_returns_late_causes_a_leave_and_a_join():
    debounce = Debounce()
    debounce.feed(event("occupied"), 0)
    debounce.feed(event("vacated"), 10)
    assert kinds(debounce.feed(event("occupied"), 13)) == ["vacated", "occupied"]


def test_members_are_debounced_separately():
    debounce = Debounce()
    for user in ("1", "2"):
        debounce.feed(event("member-added", user_id=user), 0)
    debounce.feed(event("member-removed", user_id="1"), 1)
    debounce.feed(event("member-removed", user_id="2"), 2)
    debounce.feed(event("member-added", user_id="2"), 3)
    assert [(one.kind, one.user_id) for one in debounce.due(10)] == [("member-removed", "1")]


def test_first_edges_pass_after_a_time_without_edges():
    debounce = Debounce()
    debounce.feed(event("occupied"), 0)
    debounce.feed(event("member-added", user_id="1"), 0)
    debounce.feed(event("vacated"), 1)
    debounce.feed(event("vacated", "gone"), 1)
    debounce.due(4)
    debounce.feed(event("member-removed", user_id="1"), 5)
    debounce.forget("another", ())
    debounce.forget("a", ("occupied", "vacated"))
    assert debounce.due(10) == []
    assert debounce.feed(event("vacated"), 10) == []
    assert kinds(debounce.feed(event("member-added", user_id="1"), 10)) == ["member-added"]
    assert not debounce.is_holding
    debounce.forget("a", ())
    debounce.feed(event("vacated", "gone"), 20)
    assert kinds(debounce.due(23)) == ["vacated"]


def test_a_channel_of_an_earlier_process_may_be_vacated():
    debounce = Debounce()
    debounce.feed(event("vacated"), 0)
    assert kinds(debounce.due(3)) == ["vacated"]


def test_repeated_edge_passes_once():
    debounce = Debounce()
    assert kinds(debounce.feed(event("occupied"), 0)) == ["occupied"]
    assert debounce.feed(event("occupied"), 0) == []
    debounce.feed(event("vacated"), 1)
    debounce.feed(event("vacated"), 2)
    assert kinds(debounce.due(4)) == ["vacated"]
    debounce.feed(event("vacated"), 5)
    assert debounce.due(10) == []


def test_events_other_than_edges_pass_at_once():
    assert kinds(Debounce().feed(event("client-event"), 0)) == ["client-event"]


def test_of_a_cache_channel_missed_by_many_one_hook_event_passes_at_a_time():
    debounce = Debounce()
    told = [len(debounce.feed(event("cache-missed"), at)) for at in (0, 0.1, 2.9, 3, 3.1)]
    assert told == [1, 0, 0, 1, 0]
    assert kinds(debounce.feed(event("cache-missed", "other"), 3.2)) == ["cache-missed"]


def test_held_edges_can_be_given_to_the_next_process():
    first, second = Debounce(), Debounce()
    first.feed(event("occupied"), 0)
    first.feed(event("vacated"), 1)
    held = first.held()
    assert (kinds(held), first.is_holding) == (["vacated"], False)
    second.hold(held, 100)
    assert second.feed(event("occupied"), 101) == []
    assert second.due(200) == []


def test_next_process_sends_held_edges_of_clients_that_did_not_return():
    debounce = Debounce()
    debounce.hold([event("vacated")], 100)
    assert kinds(debounce.due(103)) == ["vacated"]


def test_held_edges_of_an_earlier_process_are_dropped_after_newer_edges():
    debounce = Debounce()
    assert kinds(debounce.feed(event("occupied"), 90)) == ["occupied"]
    debounce.hold([event("vacated")], 100)
    assert debounce.due(103) == []
    debounce.feed(event("vacated"), 110)
    debounce.hold([event("vacated")], 112)
    assert kinds(debounce.due(113)) == ["vacated"]
    debounce.hold([event("vacated")], 120)
    assert debounce.due(130) == []


def test_debounce_remembers_a_bounded_number_of_removed_clients():
    debounce = Debounce()
    for number in range(MAX_ABSENT + 10):
        debounce.feed(event("occupied", str(number)), 0)
        debounce.feed(event("vacated", str(number)), 0)
    debounce.due(10)
    assert len(debounce._absent) == MAX_ABSENT
    assert debounce._present == set()


CHANNELS, USERS = ("presence-1", "presence-2"), ("u", "v")
steps = st.lists(
    st.tuples(st.sampled_from(CHANNELS), st.sampled_from(USERS), st.booleans(), st.floats(0, 5), st.integers(1, 3)), max_size=60
)


@given(steps)
def test_joins_and_leaves_alternate_for_each_channel_and_member(steps):
    """Edges as a roster causes them; some are repeated, as from a stream that is read again."""
    debounce = Debounce()
    present: dict[str, set[str]] = {channel: set() for channel in CHANNELS}
    told: list[HookEvent] = []
    now = 0.0
    for channel, user, joins, pause, times in steps:
        now += pause
        there = present[channel]
        edges: list[HookEvent] = []
        if joins and user not in there:
            edges = [event("occupied", channel)] if not there else []
            edges.append(event("member-added", channel, user))
            there.add(user)
        elif not joins and user in there:
            there.discard(user)
            edges = [event("member-removed", channel, user)]
            edges += [event("vacated", channel)] if not there else []
        for edge in edges:
            for _ in range(times):
                told += debounce.feed(edge, now)
    told += debounce.due(now + HOLD_SECONDS)
    for channel in CHANNELS:
        for user in (None, *USERS):
            entering = [one.kind in ENTERING for one in told if (one.channel, one.user_id) == (channel, user)]
            assert entering == [number % 2 == 0 for number in range(len(entering))]
            assert bool(entering and entering[-1]) == (user in present[channel] if user else bool(present[channel]))
