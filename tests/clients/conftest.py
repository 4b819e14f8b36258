"""A server for all tests of this folder, and clients that are closed when their test ends."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.clients.apps import APPS
from tests.support.nodejs import NodeProcess
from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import PusherSocket, pusher_socket


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """Runs the server that most tests share. Each test uses channels of its own."""
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def connect(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[..., PusherSocket]:
    """Makes Pusher connections to the shared server."""
    return lambda key="app-key", **options: stack.enter_context(pusher_socket(server, key, **options))


@pytest.fixture
def node(stack: contextlib.ExitStack) -> Callable[..., NodeProcess]:
    """Makes processes of Node.js. flags: options of Node.js itself."""

    def start(script: str, *, flags: Sequence[str] = (), **options: Any) -> NodeProcess:
        process = NodeProcess(script, options, flags)
        stack.callback(process.close)
        return process

    return start
