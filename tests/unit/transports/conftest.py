"""Fixtures of the tests of transports."""

import pytest

from tests.support.transport import Site


@pytest.fixture
def site() -> Site:
    """A worker with the real API; a test module may replace it."""
    return Site()
