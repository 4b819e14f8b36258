"""Machines of two workers: one that all tests share, and one for a test that harms it. A broker for tests that need their own."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster.machine import machine
from tests.support.process import ServerProcess
from tests.support.valkey import Valkey


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
def valkey() -> Iterator[Valkey]:
    """A Valkey that only one test uses."""
    with contextlib.closing(Valkey()) as server:
        yield server
