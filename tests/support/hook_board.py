"""A dispatcher of hook events whose endpoints are in memory."""

import asyncio
import json
from collections import Counter

from push1st.config.model import Hook, HooksConfig, Webhook
from push1st.hooks import NotDelivered, Status, Target
from push1st.hooks.dispatcher import HookDispatcher, SaveTimings
from push1st.messages import HookEvent, HookEventKind
from push1st.metrics import Histogram
from tests.support.loop import Clock
from tests.support.node import APP, app_config


class HookEndpoint:
    """A `HookTransport` that accepts deliveries, fails, or waits."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.fails = False
        self.future: asyncio.Future[None] | None = None
        self.closed = False

    async def deliver(self, id: str, body: bytes) -> None:
        self.told.append((id, body))
        if self.future is not None:
            await self.future
        if self.fails:
            raise NotDelivered("refused", "answered 500", 500)

    async def request(self, body: bytes) -> bytes:
        return b""

    async def close(self) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [event["name"] for _, body in self.told for event in json.loads(body)["events"]]


class Board:
    """A dispatcher with its endpoints by URL."""

    def __init__(
        self,
        *webhooks: Webhook,
        hook: Hook | None = None,
        config: HooksConfig = HooksConfig(),  # noqa: B008 - frozen
        **timings: float,
    ) -> None:
        self.clock = Clock()
        self.events: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.seconds = Histogram()
        self.at: dict[str, HookEndpoint] = {}
        self.numbers = 0
        self.board = HookDispatcher(
            [app_config(webhooks=webhooks, hook=hook)],
            config,
            "",
            self.clock,
            self._random,
            self.events,
            self.attempts,
            Counter(),
            self.seconds,
            self._open_transport,
            SaveTimings(**timings),
        )

    def _random(self, _: int) -> int:
        self.numbers += 1
        return self.numbers

    def fail(self) -> None:
        """Makes the endpoint `http://a/` fail each delivery."""
        self.at["http://a/"] = HookEndpoint()
        self.at["http://a/"].fails = True

    def hang(self) -> None:
        """Makes the endpoint `http://a/` wait with each delivery."""
        self.at["http://a/"] = HookEndpoint()
        self.at["http://a/"].future = asyncio.get_running_loop().create_future()

    def _open_transport(self, target: Target) -> HookEndpoint:
        return self.at.setdefault(target.url, HookEndpoint())

    def on_event(self, *kinds: HookEventKind, channel: str = "c", app: str = APP) -> None:
        for kind in kinds:
            self.board.on_event(HookEvent(kind, app, channel, 1))

    @property
    def status(self) -> Status:
        return self.board.status(APP)[0]
