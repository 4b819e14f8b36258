"""Machines of two workers: one that all tests share, and one for a test that harms it. A broker for tests that need their own."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.machine import machine
from tests.support.mqtt_devices import Fleet, fleet
from tests.support.process import ServerProcess
from tests.support.valkey import Valkey

SITE = """
import time
real = time.time_ns
def shifted():
    with open({file!r}) as file:
        return real() + int(file.read())
time.time_ns = shifted
time.time = lambda: shifted() / 1e9
"""


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


@pytest.fixture
def devices() -> Iterator[Fleet]:
    """MQTT devices that only one test uses."""
    with fleet() as one:
        yield one


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[int], object]]:
    """Makes a function that shifts the wall clock of the servers that start after the call, by a number of seconds."""

    def make(name: str) -> Callable[[int], object]:
        folder = tmp_path / name
        folder.mkdir()
        file, new = folder / "shift", folder / "new"

        def shift(seconds: int) -> None:
            new.write_text(str(seconds * 10**9))
            new.replace(file)  # in one step, because a server that reads an empty file has no shift for a moment

        shift(0)
        (folder / "sitecustomize.py").write_text(SITE.format(file=str(file)))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return shift

    return make
