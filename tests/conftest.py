"""Runs `async def` tests, each in a loop of its own, and the fixtures of all suites."""

import contextlib
import hashlib
from collections.abc import Iterator

import pytest

from tests.support.loop import pytest_pyfunc_call as pytest_pyfunc_call


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A public channel name that no other test uses; a prefix makes a channel of another kind of it."""
    return "c" + hashlib.blake2b(request.node.nodeid.encode(), digest_size=6).hexdigest()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Exits what a test entered, last first, when the test ends."""
    with contextlib.ExitStack() as entered:
        yield entered
