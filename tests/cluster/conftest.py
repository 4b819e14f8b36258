"""Machines of two workers: one that all tests share, and one for a test that harms it."""

from collections.abc import Iterator

import pytest

from tests.cluster.machine import machine
from tests.support.process import ServerProcess


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
