"""Runs `async def` tests, each in a loop of its own, and the fixtures of all suites."""

import contextlib
import hashlib
from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import uvloop

from tests.support.loop import pytest_pyfunc_call as pytest_pyfunc_call

# On a busy machine, an example may take longer than the 200 ms that Hypothesis allows by default.
hypothesis.settings.register_profile("push1st", deadline=None)
hypothesis.settings.load_profile("push1st")


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A public channel name that no other test uses; a prefix makes a channel of another kind of it."""
    return "c" + hashlib.blake2b(request.node.nodeid.encode(), digest_size=6).hexdigest()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Exits what a test entered, last first, when the test ends."""
    with contextlib.ExitStack() as entered:
        yield entered


@pytest.fixture(params=[new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], AbstractEventLoop]:
    """Makes the loop of an `async def` test; a test that uses this fixture runs on asyncio's loop and on uvloop."""
    factory: Callable[[], AbstractEventLoop] = request.param
    return factory
