"""A server for all tests of this folder, and clients that are gone when their test is."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged, running
from tests.support.pusher_socket import PusherSocket, pusher_socket

APPS: dict[str, Any] = {
    # The Python library takes no app id but digits.
    "1234": merged(APP, {"key": "sdk-key"}),
    "app-quiet": merged(APP, {"key": "quiet-key", "options": {"client-messages": False}}),
    "app-off": merged(APP, {"key": "off-key", "enable": False}),
    "app-quota": merged(APP, {"key": "quota-key", "limits": {"connections": 1}}),
    "app-origins": merged(APP, {"key": "origins-key", "origins": ["https://good.example"]}),
    "app-private": merged(APP, {"key": "private-key", "channels": ["private"]}),
    "app-small": merged(
        APP,
        {
            "key": "small-key",
            "limits": {
                "subscriptions": 3,
                "members": 2,
                "payload": 100,
                "channel-name": 20,
                "event-name": 10,
                "channels-per-event": 2,
                "client-events": 2,
            },
        },
    ),
    "app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}}),
}
"""apps for what one app cannot show; all have the secret `secret`"""


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """The server that most tests share. Each test uses channels of its own."""
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def connect(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[..., PusherSocket]:
    """Pusher connections to the shared server, as many as called for."""
    return lambda key="app-key", **options: stack.enter_context(pusher_socket(server, key, **options))


@pytest.fixture
def node(stack: contextlib.ExitStack) -> Callable[..., NodeProcess]:
    """Node processes, as many as called for."""

    def start(script: str, **options: Any) -> NodeProcess:
        process = NodeProcess(script, options)
        stack.callback(process.close)
        return process

    return start
