"""A server for all tests of this folder, and clients that are closed when their test ends."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.clients import browser as browsers
from tests.clients.apps import APPS
from tests.clients.browser import Browser
from tests.support.nodejs import NodeProcess, node_program
from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import PusherSocket, pusher_socket


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """Runs the server that most tests share. Each test uses channels of its own."""
    with running(apps=APPS) as process:
        yield process


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of one file; these tests are skipped if the machine has none."""
    node_program()
    program = browsers.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browsers.NAMES)} is on PATH")
    with browsers.browsing(program) as running_browser:
        yield running_browser


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
