"""The state of hooks on several workers, merged into one answer."""

from push1st.api.hooks import merged
from push1st.hooks import Status


def state(endpoint: str, number: int, error_at: int | None = None) -> Status:
    error = None if error_at is None else f"error {error_at}"
    return Status(endpoint, "pusher", number, number * 10, number * 100, number * 1000, error, error_at)


def test_counts_of_workers_are_added_and_the_last_error_of_all_is_shown():
    one, two, three = ([state("a", number, at)] for number, at in ((1, 5), (2, 9), (3, None)))
    assert merged(one, [two, three]) == [state("a", 6, 9)]


def test_equal_endpoints_are_distinguished_by_their_order():
    assert merged([state("a", 1), state("a", 2)], [[state("a", 3), state("a", 4)]]) == [state("a", 4), state("a", 6)]


def test_endpoint_that_only_another_worker_has_is_listed_last():
    assert merged([state("a", 1)], [[state("b", 2)]]) == [state("a", 1), state("b", 2)]
