"""Nodes of a cluster within one process, and their clients. Each node has its own connection to a real server.

A client records all events that it receives, and fails at once if they contradict each other: a member that is added twice, or
removed without having been added; a message that arrives twice, or without a subscription.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec

from push1st import auth
from push1st.apps.files import Files
from push1st.brokers.redis import Redis
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.shard import Shard
from push1st.config.history import HistorySection
from push1st.config.model import HooksConfig, Webhook
from push1st.core.fanout import Fanout
from push1st.core.node import Node
from push1st.core.session import Session
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.hooks.dispatcher import HookDispatcher
from push1st.messages import (
    MEMBER_ADDED,
    MEMBER_REMOVED,
    RESUMED,
    SUBSCRIPTION_COUNT,
    WATCHLIST_EVENTS,
    CacheMissed,
    ClientRequest,
    HookEvent,
    Message,
    Replayed,
    SignedIn,
    SignIn,
    Subscribe,
    Subscribed,
    Unsubscribe,
    WatchlistStatus,
)
from push1st.metrics import Histogram, Metrics
from push1st.process.system import SystemClock
from tests.support.node import KEY, SECRET, Hooks, app_config
from tests.support.valkey import Valkey

ROOM = "presence-c"

SETTLED_SECONDS = 15
EDGES = Webhook(url="http://localhost/", events=("channel_occupied", "channel_vacated", "member_added", "member_removed"))
_names = count(1)


class Wire:
    name = "lines"

    def message(self, message: Message, now: int) -> bytes:
        return json.dumps([message.channel, message.event, message.data.decode(), message.id]).encode() + b"\n"


WIRE = Wire()


FAST = Timings(renew=0.05, recovery=0.5, backoff=0.1, hold=0, read=0.05)
"""The lease keeps its length: tests expire it themselves. `backoff` is shorter than `recovery`, as in production, so that each
node reconnects while the other nodes wait for it."""


def fast(**changes: float) -> Timings:
    """Returns the timings of these tests with changes."""
    return msgspec.structs.replace(FAST, **changes)


async def until(true: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Waits until a condition is true; fails after `SETTLED_SECONDS`."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while not true():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.005)


class Backend:
    """A backend with webhooks: derives occupied channels and members from the edges of all nodes."""

    def __init__(self) -> None:
        self.there: set[tuple[str, str | None]] = set()
        self.contradictions: list[str] = []
        """edges that did not alternate"""

    def webhook(self, kind: str, channel: str, user_id: str | None) -> None:
        key = channel, user_id
        if (kind in ("occupied", "member-added")) == (key in self.there):
            self.contradictions.append(f"{kind} {channel} {user_id}, again")
        self.there ^= {key}


class Place:
    """A node with its broker."""

    def __init__(self, url: str, timings: Timings = FAST, history: tuple[HistorySection, ...] = (), **limits: int) -> None:
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.failures: list[str] = []
        self.name = f"node{next(_names)}"
        fanout = Fanout(loop, SystemClock(), lambda: self.failures.append(repr(sys.exception())))
        self.config = app_config({"members": 0, **limits}, subscription_count=bool(limits), history=history)
        self.node = Node(Files([self.config]), fanout, self.metrics, SystemClock(), random.getrandbits)
        self.hooks = Hooks()
        self.hook_events = self.hooks.hook_events
        self.dead = False

        def numbered(number: int) -> None:
            self.node.worker = number

        self.hooked = {self.config.id: "s"}
        self.broker = Redis(
            url, self.node.stamp, self.name, self.metrics, self.node.local_roster, lambda: self.hooked, numbered, timings
        )
        self.app = self.node.app(self.config)
        self.clients: list[Client] = []
        self.frozen = False

    def send_edges_to(self, backend: Backend) -> "Place":
        """Sends the edges of this node to a backend, like webhooks."""
        config = app_config(webhooks=(EDGES,))
        board = HookDispatcher(
            [config], HooksConfig(), "", SystemClock(), random.getrandbits, Counter(), Counter(), Counter(), Histogram()
        )

        def queue(format: str, hook_event: HookEvent) -> None:
            if format == "pusher" and not self.dead:
                backend.webhook(hook_event.kind, hook_event.channel, hook_event.user_id)

        board._queue = queue  # type: ignore[method-assign]  # what an endpoint's queue takes
        self.hooks.on_event = board.on_event  # type: ignore[method-assign]
        return self

    async def open(self) -> "Place":
        await self.node.open(self.broker, self.broker, self.broker, self.broker, self.broker, self.hooks)
        return self

    @property
    def shards(self) -> list[Shard]:
        return self.broker._shards.all

    @property
    def epoch(self) -> bytes:
        """The epoch at its last registration in its first shard."""
        return self.shards[0].lease.epoch.encode()

    @property
    def connected(self) -> bool:
        return all(one.connection.registered_on is not None for one in self.shards)

    @property
    def reads(self) -> bool:
        """Whether the node reads hook events and has the ledger of its first shard."""
        return self.shards[0].hook_events.ledger.there is not None

    @property
    def publishes(self) -> bool:
        """Whether the node may publish."""
        return all(one.connection.publish_connection is not None for one in self.shards)

    def client(self) -> "Client":
        client = Client(self)
        self.clients.append(client)
        return client

    def publish(self, channel: str, data: bytes, **more: Any) -> Any:
        return self.node.publish(self.app, channel, "e", data, self.node.stamp(), **more)

    def drop(self) -> None:
        """Ends the connections of the node to the broker."""
        for one in self.shards:
            if one.connection.registered_on is not None:
                one.connection.registered_on.abort()

    def freeze(self, valkey: Valkey) -> None:
        """Stops the node until `thaw`; its lease expires."""
        self.frozen = True
        for one in self.shards:
            assert one.connection.registered_on is not None
            one.connection.registered_on._transport.pause_reading()
            one.tick = lambda now: None  # type: ignore[method-assign]  # noqa: ARG005 - called by position
            valkey.ask("DEL", one.keys.key("lease", self.name))

    def thaw(self) -> None:
        """Resumes the node; the loop runs its timers first."""
        if not self.frozen:
            return
        self.frozen = False
        now = asyncio.get_running_loop().time()
        for one in self.shards:
            del one.tick
            one.lease.recovered_at = None if one.lease.recovered_at is None else now
            one.lease.renews_at = now
            one.tick(now)
            if one.connection.established is not None:
                one.connection.established._transport.resume_reading()

    def watch_own(self) -> None:
        """Makes the node fail if its clients receive the removal of members or users that never left."""
        receive = self.broker._views.receive

        def watched(message: Message) -> int:
            (one,) = self.shards
            if message.event == MEMBER_REMOVED:
                user = json.loads(message.data)["user_id"]
                if self.node.local_roster.has_member(message.app, message.channel, user):
                    self.failures.append(f"{user} is on {message.channel} here, and is told to have left")
            elif message.event == WATCHLIST_EVENTS:
                for event in json.loads(message.data)["events"]:
                    for user in event["user_ids"]:
                        if event["name"] == "offline" and one.roster.entries.is_signed_in((message.app, user)):
                            self.failures.append(f"{user} is signed in here, and is told to be offline")
            return receive(message)

        self.broker._views.receive = watched

    def crash(self) -> None:
        """Ends the node without deregistering it."""
        self.dead = True
        for client in self.clients:
            client.dead = True
        for one in self.shards:
            if one.connection._task is not None:
                one.connection._task.cancel()
            if one.hook_events.consumer is not None:
                one.hook_events.consumer._task.cancel()
        self.drop()
        if self.broker._shards._timer is not None:
            self.broker._shards._timer.cancel()

    async def close(self) -> None:
        await self.node.close()


class Client:
    """The outlet of a session; records events. user: the user on the presence channels that the client joins.

    gaps: the reported gaps by channel: the reason, the position, and the number of messages that the client had received before.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.dead = False
        self.members: dict[str, set[str]] = {}
        self.online: set[str] = set()
        self.messages: dict[str, list[str]] = {}
        self._received: set[tuple[str, str]] = set()
        self.gaps: dict[str, list[tuple[str, str, int]]] = {}
        self.counts: list[int] = []
        self.replies: list[Any] = []
        self.closes: list[int] = []
        self.entered = False
        self.session = Session(place.node, place.app, self, WIRE, self.write, "192.0.2.1")
        self.session.connect(ClientRequest(), self.enter)

    # Events

    def enter(self) -> None:
        self.entered = True

    def write(self, data: bytes) -> None:
        assert not self.dead, "a client of a node that crashed is written to"
        for line in data.splitlines():
            what, *rest = json.loads(line)
            if what == "reply":
                self._reply(*rest)
            else:
                self._message(what, *rest)

    def has_room(self, size: int) -> bool:
        return True

    def send(self, reply: Any) -> None:
        if self.session.closed:
            return
        self.replies.append(reply)
        match reply:
            case Subscribed(channel, members):
                told = ["reply", "subscribed", channel, None if members is None else [one.user_id for one in members]]
            case WatchlistStatus(online, _):
                told = ["reply", "watched", "", list(online)]
            case Replayed(message, _):
                told = ["reply", "replayed", message.channel, message.data.decode()]
            case _:
                return
        self.place.node.fanout.direct(self.session, json.dumps(told).encode() + b"\n")

    def _reply(self, kind: str, channel: str, value: Any) -> None:
        if kind == "subscribed":
            self.messages.setdefault(channel, [])
            if value is not None:
                assert len(set(value)) == len(value)
                self.members[channel] = set(value)
        elif kind == "watched":
            self.online = set(value)
        else:
            self._received.add((channel, value))
            self.messages[channel].append(value)

    def _message(self, channel: str, event: str, data: str, id: int) -> None:
        if event == WATCHLIST_EVENTS:
            for one in json.loads(data)["events"]:
                for user in one["user_ids"]:
                    assert (user in self.online) == (one["name"] == "offline"), f"{user} is {one['name']} twice"
                    (self.online.add if one["name"] == "online" else self.online.discard)(user)
            return
        if event == MEMBER_ADDED:
            user = json.loads(data)["user_id"]
            if channel in self.members:
                assert user not in self.members[channel], f"{user} joins {channel} twice"
                self.members[channel].add(user)
        elif event == MEMBER_REMOVED:
            user = json.loads(data)["user_id"]
            if channel in self.members:
                assert user in self.members[channel], f"{user} leaves {channel} twice"
                self.members[channel].discard(user)
        elif event == SUBSCRIPTION_COUNT:
            self.counts.append(json.loads(data)["subscription_count"])
        elif event == RESUMED:
            told = json.loads(data)
            self.gaps.setdefault(channel, []).append((told["reason"], told["position"], len(self.messages[channel])))
        elif event == "e":
            assert (channel, data) not in self._received, f"{data} comes twice on {channel}"
            self._received.add((channel, data))
            self.messages[channel].append(data)

    def close(self, code: int, reason: str) -> None:
        self.closes.append(code)
        self.session.expire()

    def fail(self) -> None:
        self.place.failures.append(repr(sys.exception()))

    # Commands

    @property
    def on(self) -> set[str]:
        return set() if self.session.closed else set(self.session.subscriptions)

    @property
    def joined_as(self) -> dict[str, str]:
        """The presence channels that the client is on → the user as which it is a member."""
        subscriptions = self.session.subscriptions.items()
        return {name: one.member.user_id for name, one in subscriptions if one.member is not None}

    def join(self, channel: str, user: str = "") -> None:
        data = json.dumps({"user_id": user}) if user else ""
        token = f"{KEY}:{auth.channel_signature(SECRET, self.session.id, channel, data)}"
        self.session.handle(Subscribe(channel, token, data))

    def sign_in(self, user: str, *watchlist: str) -> None:
        data = json.dumps({"id": user, "watchlist": watchlist})
        self.session.handle(SignIn(f"{KEY}:{auth.user_signature(SECRET, self.session.id, data)}", data))

    def leave(self, channel: str) -> None:
        self.members.pop(channel, None)
        self.session.handle(Unsubscribe(channel))

    def lose(self) -> None:
        """Ends the connection of the client."""
        self.session.expire()

    def has(self, kind: type) -> bool:
        return any(isinstance(one, kind) for one in self.replies)


__all__ = ["CacheMissed", "Client", "Place", "SignedIn", "fast", "spawn", "until"]


@asynccontextmanager
async def nodes(timings: Timings = FAST, **limits: int) -> AsyncIterator[tuple[Valkey, Place, Place]]:
    """Starts a server and two nodes."""
    valkey = Valkey()
    try:
        one, two = [await Place(valkey.url, timings, (), **limits).open() for _ in range(2)]
        try:
            yield valkey, one, two
            assert one.failures == two.failures == []
        finally:
            valkey.go_on()
            await one.close()
            await two.close()
            await asyncio.sleep(0.01)
    finally:
        valkey.close()


async def on(place: Place, channel: str, user: str = "") -> Client:
    """Subscribes a new client to a channel."""
    client = place.client()
    client.join(channel, user)
    await until(lambda: channel in client.messages)
    return client


async def status(publishing: Any) -> int:
    """Returns the status that the API would answer."""
    try:
        await publishing
    except Refused as refused:
        return refused.code
    return 200
