"""A memory broker whose calls wait like calls over a network."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from push1st import brokers
from push1st.brokers.memory import Memory
from push1st.messages import HookEvent, Message, Published
from tests.support.loop import turns


class SlowBroker:
    """The memory broker with the delays of a network: calls wait while a test holds them, and the node receives only messages of
    topics that it has subscribed to. Changes of one topic keep their order, as on one connection to a broker.

    held: names of calls that wait. calls: all calls in their order. fail: exceptions to raise, by the names of the calls.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.held: set[str] = set()
        self.fail: dict[str, Exception] = {}
        self.calls: list[tuple[str, str]] = []
        self.topics: Counter[tuple[str, str]] = Counter()
        self._orders: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    async def _step(self, name: str, channel: str) -> None:
        self.calls.append((name, channel))
        if name in self.held:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((name, future))
            await future
        if name in self.fail:
            raise self.fail[name]

    @property
    def waiting(self) -> list[str]:
        return [name for name, _ in self._waiting]

    async def let(self, *names: str) -> None:
        """Resumes the oldest waiting call of each of these names, one after another."""
        for name in names:
            at = self.waiting.index(name)
            self._waiting.pop(at)[1].set_result(None)
            await turns()

    async def let_newest(self) -> None:
        """Resumes the newest waiting call."""
        self._waiting.pop()[1].set_result(None)
        await turns()

    async def let_all(self) -> None:
        """Resumes all waiting calls, and holds no later ones."""
        self.held.clear()
        while self._waiting:
            await self.let(self._waiting[0][0])

    async def open(
        self,
        receive: Callable[[Message], int],
        on_event: Callable[[HookEvent], None],
        on_request: brokers.OnRequest,
        recount: brokers.Recount,
    ) -> None:
        def heard(message: Message) -> int:
            return receive(message) if self.topics[message.app, message.channel] else 0

        await self._memory.open(heard, on_event, on_request, recount)

    def report(self, event: HookEvent) -> None:
        self._memory.report(event)

    async def subscribe(self, app: str, channel: str) -> None:
        async with self._orders[channel]:
            await self._step("subscribe", channel)
            self.topics[app, channel] = 1

    async def unsubscribe(self, app: str, channel: str) -> None:
        async with self._orders[channel]:
            await self._step("unsubscribe", channel)
            self.topics[app, channel] = 0

    async def publish(self, message: Message, *rest: Any) -> Published:
        await self._step("publish", message.channel)
        return self._memory.publish(message, *rest)

    async def join(self, app: str, channel: str, *rest: Any) -> Any:
        await self._step("join", channel)
        return await self._memory.join(app, channel, *rest)

    async def leave(self, app: str, channel: str, *rest: Any) -> None:
        await self._step("leave", channel)
        await self._memory.leave(app, channel, *rest)

    async def channels(self, app: str, prefix: str = "") -> Any:
        await self._step("channels", prefix)
        return await self._memory.channels(app, prefix)

    async def channel(self, app: str, channel: str) -> Any:
        await self._step("channel", channel)
        return await self._memory.channel(app, channel)

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> Any:
        await self._step("members", channel)
        return await self._memory.members(app, channel, local_view=local_view)

    async def cached(self, app: str, channel: str) -> Any:
        await self._step("cached", channel)
        return await self._memory.cached(app, channel)

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        await self._step("sign_in", user_id)
        await self._memory.sign_in(app, user_id, socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        await self._step("sign_out", user_id)
        await self._memory.sign_out(app, user_id, socket_id)

    async def online(self, app: str, user_ids: Any) -> Any:
        await self._step("online", "")
        return await self._memory.online(app, user_ids)
