"""Machines for tests that leave them as they were, and what every test needs.

`async def` tests run in a loop of their own each, and wait for real servers, each wait with a deadline.
"""

import contextlib
from collections.abc import Iterator

import pytest

from tests.clients.conftest import channel
from tests.clients.process import ServerProcess
from tests.cluster.machine import machine
from tests.unit.fakes import pytest_pyfunc_call as pytest_pyfunc_call

__all__ = ["channel"]


@pytest.fixture(scope="session")
def shared() -> Iterator[ServerProcess]:
    """Two workers that no test harms."""
    with machine() as server:
        yield server


@pytest.fixture
def own() -> Iterator[ServerProcess]:
    """Two workers to harm."""
    with machine() as server:
        yield server


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as entered:
        yield entered
