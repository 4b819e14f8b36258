"""Places of a worker: the shares of an app and of an address."""

from hypothesis import given
from hypothesis import strategies as st

from push1st.transports.places import Places


def test_an_address_may_take_half_of_the_places_and_an_app_three_quarters():
    places = Places(8)
    for _ in range(4):
        assert places.full("a", "x") is None
        places.take("a", "x")
    assert places.full("a", "x") == ("address", 4)
    assert places.full("b", "x") == ("address", 4)
    for address in ("y", "z"):
        assert places.full("a", address) is None
        places.take("a", address)
    assert places.full("a", "w") == ("app", 6)
    for _ in range(2):
        assert places.full("b", "") is None
        places.take("b", "")
    assert places.full("b", "") == places.full("b", "w") == ("worker", 8)
    places.leave("a", "x")
    assert places.full("b", "x") is None


@given(
    st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.sampled_from(("", "x", "y"))), max_size=60)
)
def test_counts_match_the_used_places(bound, steps):
    places = Places(bound)
    taken = []
    for comes, *place in steps:
        if comes and places.full(*place) is None:
            places.take(*place)
            taken.append(place)
        elif not comes and place in taken:
            places.leave(*place)
            taken.remove(place)
        assert places.taken == len(taken) <= bound
        assert sum(places._apps.values()) == len(taken)
        assert set(places._apps) == {app for app, _ in taken}
        assert set(places._addresses) == {address for _, address in taken if address}
        assert all(2 * count <= bound + 1 for count in places._addresses.values())
