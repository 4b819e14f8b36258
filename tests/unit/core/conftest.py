"""Nodes for the tests of the core; a test module may replace them."""

import pytest

from tests.support.node import World


@pytest.fixture
def world() -> World:
    """A node on the memory broker."""
    return World()


@pytest.fixture
def slow() -> World:
    """A node on a broker whose calls a test holds."""
    return World(slow=True)
