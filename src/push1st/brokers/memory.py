"""The broker, roster, users and hook events of a single worker. No method needs another process, and no method waits."""

from collections.abc import Callable, Sequence

from push1st.brokers import (
    CACHE_TTL_SECONDS,
    KEY_SECONDS,
    CachedEvent,
    Joined,
    Occupancy,
    OnEvent,
    OnRequest,
    Peers,
    Receive,
    Recount,
    is_cached,
)
from push1st.brokers.history import ReplayRequest
from push1st.brokers.local_lists import LocalLists
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_keys import KeyedResults
from push1st.brokers.memory_pages import MemoryPages
from push1st.brokers.memory_retained import MemoryRetained
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.retained import Retain, without_position
from push1st.brokers.sessions import Sessions
from push1st.channels import kind_of
from push1st.config.history import HistorySection
from push1st.errors import LimitReached
from push1st.messages import (
    HookEvent,
    HookEventKind,
    KeptMessage,
    Member,
    Message,
    Published,
    member_added,
    member_removed,
    status_changed,
)

SECOND = 1_000_000_000


class Memory:
    """Implements all ports of `brokers` for a single worker.

    stamp: a function that returns an id and a wall-clock time in nanoseconds, for a message that this broker creates.
    history: the kept messages of all channels.
    sessions: the sessions of MQTT clients.
    """

    shared = False
    filters = None
    groups = None

    def __init__(
        self,
        stamp: Callable[[], tuple[int, int]],
        local_roster: LocalRoster,
        history: MemoryHistory,
        sessions: MemorySessions,
    ) -> None:
        self._stamp = stamp
        self._local_roster = local_roster
        self.history = history
        history.is_subscribed = lambda app, channel: local_roster.channel(app, channel) is not None
        self.channel_lists = LocalLists(local_roster)
        self.pages = MemoryPages(lambda: stamp()[1])
        self.sessions: Sessions = sessions
        self._logs = sessions.logs
        self._logged = sessions.logs.apps
        self._results = KeyedResults(KEY_SECONDS)
        self.retained = MemoryRetained(lambda: stamp()[1], CACHE_TTL_SECONDS * SECOND)
        history.on_tick = self._tick
        self._users: dict[str, dict[str, set[str]]] = {}
        self._receive: Receive = lambda _: 0
        self._on_event: OnEvent = lambda _: None
        self._on_request: OnRequest = lambda *_: b""
        self._claims: dict[tuple[str, str], int] = {}
        self._connections: dict[str, int] = {}

    async def open(self, receive: Receive, on_event: OnEvent, on_request: OnRequest, recount: Recount) -> None:
        self._receive, self._on_event, self._on_request = receive, on_event, on_request

    def report(self, event: HookEvent) -> None:
        self._on_event(event)

    def _edge(self, kind: HookEventKind, app: str, channel: str, socket_id: str, member: Member | None = None) -> None:
        user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
        self._on_event(HookEvent(kind, app, channel, self._stamp()[1], socket_id, user_id, info))

    async def close(self) -> None:
        self._local_roster.clear()
        self._users.clear()
        self.retained.clear()

    def peers(self) -> Peers:
        return Peers()

    async def subscribe(self, app: str, channel: str) -> None:
        pass

    async def unsubscribe(self, app: str, channel: str) -> None:
        pass

    def _tick(self, now: int) -> None:
        self._results.tick(now)
        self.retained.tick(now)
        self._logs.tick(now)

    def publish(
        self, message: Message, section: HistorySection | None = None, key: str = "", retain: Retain | None = None
    ) -> Published:
        if key:
            return self._publish_once(message, section, key)
        if retain is not None:
            self.retained.retain(message, retain)
        elif "cache-" in message.channel and is_cached(message):
            self.retained.cache(message)
        if section is None:
            if self._logged:
                logs = self._logs.append(message)
                return Published(self._receive(message), logs=logs)
            return Published(self._receive(message))
        kept: KeptMessage = message  # type: ignore[assignment]  # a section is given only with a message to keep
        self.history.append(kept, section)
        logs = self._logs.append(kept) if self._logged else 0
        return Published(self._receive(kept), kept.offset, kept.epoch, logs=logs)

    def _publish_once(self, message: Message, section: HistorySection | None, key: str) -> Published:
        """Publishes a message, unless a message with the same key was published before. Returns the first result."""
        result = self._results.find(message, key, self._stamp()[1])
        if result is None:
            result = self.publish(message, section)
            self._results.store(message, key, result, self._stamp()[1])
        return result

    async def cached(self, app: str, channel: str) -> CachedEvent | None:
        found = self.retained.find(app, channel) if kind_of(channel).cache else None
        if found is None:
            return None
        message, left = found
        return CachedEvent(without_position(message), -(-left // SECOND) if left else CACHE_TTL_SECONDS)  # rounded up

    async def request(self, app: str, channel: str, request: bytes) -> Sequence[bytes]:
        return (self._on_request(app, channel, request),)

    async def join(
        self, app: str, channel: str, socket_id: str, member: Member | None, limit: int, request: ReplayRequest | None = None
    ) -> Joined:
        local_roster = self._local_roster
        entry = local_roster.channel(app, channel)
        is_new = member is not None and (entry is None or member.user_id not in entry.members)
        if is_new and entry is not None and limit and len(entry.members) >= limit:
            raise LimitReached(403, f"{channel} has {limit} members, which is this app's limit")
        if entry is None:
            self._edge("occupied", app, channel, socket_id)
        if is_new and member is not None:
            self._receive(member_added(app, channel, member, *self._stamp(), exclude=socket_id))
            self._edge("member-added", app, channel, socket_id, member)
        local_roster.join(app, channel, socket_id, member)
        local_roster.confirm(app, channel, None if member is None else member.user_id)
        members = await self.members(app, channel) if kind_of(channel).presence else None
        replay = None if request is None else self.history.replay((app, channel), request)
        return Joined(members, await self._cached_of(app, channel), replay)

    async def _cached_of(self, app: str, channel: str) -> CachedEvent | None:
        return await self.cached(app, channel) if "cache-" in channel else None

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        departure = self._local_roster.leave(app, channel, socket_id, user_id)
        if departure is None:
            return
        if departure.member is not None:
            self._receive(member_removed(app, channel, departure.member.user_id, *self._stamp(), exclude=socket_id))
            self._edge("member-removed", app, channel, socket_id, departure.member)
        if departure.vacated:
            self._claims.pop((app, channel), None)
            self._edge("vacated", app, channel, socket_id)

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        return [
            Occupancy(name, entry.subscriptions, len(entry.members))
            for name, entry in sorted(self._local_roster.channels(app).items())
            if name.startswith(prefix)
        ]

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        entry = self._local_roster.channel(app, channel)
        return None if entry is None else Occupancy(channel, entry.subscriptions, len(entry.members))

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        return tuple(self._local_roster.members(app, channel).values())

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        key, now = (app, channel), self._stamp()[1]
        if now < self._claims.get(key, 0):
            return False
        self._claims[key] = now + seconds * SECOND
        return True

    async def connect(self, app: str, limit: int) -> bool:
        count = self._connections.get(app, 0)
        if limit and count >= limit:
            return False
        self._connections[app] = count + 1
        return True

    async def disconnect(self, app: str) -> None:
        self._connections[app] -= 1

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        sockets = self._users.setdefault(app, {}).setdefault(user_id, set())
        if not sockets:
            self._receive(status_changed(app, user_id, True, *self._stamp(), exclude=socket_id))
        sockets.add(socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        users = self._users.get(app, {})
        sockets = users.get(user_id)
        if sockets is None or socket_id not in sockets:
            return
        sockets.remove(socket_id)
        if not sockets:
            del users[user_id]
            self._receive(status_changed(app, user_id, False, *self._stamp(), exclude=socket_id))

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        users = self._users.get(app, {})
        return frozenset(user_id for user_id in user_ids if user_id in users)
