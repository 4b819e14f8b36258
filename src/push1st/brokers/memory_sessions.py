"""The sessions of MQTT clients in the memory of one worker, within bounds. No method waits."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from push1st.brokers.listing import chosen
from push1st.brokers.memory_logs import MemoryLogs, size_of
from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import (
    MAX_ABSENT,
    MAX_ADDRESS_ABSENT,
    MAX_APP_BYTES,
    MAX_LISTED_FILTERS,
    AbsentPage,
    AbsentSession,
    Claim,
    Claimed,
    DueSession,
    Owner,
    Progress,
    SavedFlow,
    SavedMessage,
    SavedSession,
    SavedSubscription,
    SavedWill,
    ignore_takeover,
    no_copy,
)
from push1st.config.mqtt import Mqtt
from push1st.errors import LimitReached, Refused
from push1st.metrics import Metrics

DUE_WORK = 5000
"""the work after which a call of `due` returns: a session, its subscriptions, and the messages of its groups count one each"""
MAX_END_WORK = 1000
"""the maximum number of sessions and their subscriptions that end together because another session has become absent"""
OBJECT_BYTES = 500
"""the number of bytes that count for a session, for each of its subscriptions with the log, and for its will"""
SECOND = 1_000_000_000


def size_of_session(session: SavedSession) -> int:
    """Returns the number of bytes that count for a session without its messages."""
    size = OBJECT_BYTES + sum(OBJECT_BYTES + len(one.filter) for one in session.subscriptions)
    will = session.will
    if will is not None:
        size += OBJECT_BYTES + len(will.topic) + len(will.payload) + len(will.properties) + sum(map(len, will.patterns or ()))
    return size


def _messages(flow: SavedFlow) -> list[SavedMessage]:
    """Returns the messages of a session that its client has not acknowledged."""
    return [*(one for _, one in flow.inflight if one is not None), *flow.waiting]


def _listed(entry: "ClientEntry") -> AbsentSession:
    session = entry.session
    assert session is not None
    subscriptions = session.subscriptions
    return AbsentSession(
        entry.client_id,
        entry.owner,
        entry.until / SECOND - session.expiry,
        entry.until / SECOND,
        session.expiry,
        tuple([(one.filter, one.qos) for one in subscriptions[:MAX_LISTED_FILTERS]]),
        len(subscriptions),
        len(_messages(session.flow)),
    )


class ClientEntry:
    """A session that outlives its connections.

    session: the session while the client is absent, and until the next connection calls `attach`; else None.
    bytes: the size of the session with its messages.
    until: when the absent session ends, in nanoseconds on the wall clock; 0 while the client is connected.
    will_at: when the will of the absent session is due.
    """

    __slots__ = ("address", "app", "bytes", "client_id", "generation", "owner", "session", "until", "will_at")

    def __init__(self, app: "AppSessions", client_id: str, claim: Claim) -> None:
        self.app = app
        self.client_id = client_id
        self.owner = claim.owner
        self.address = claim.address
        self.generation = 0
        self.session: SavedSession | None = None
        self.bytes = 0
        self.until = self.will_at = 0

    @property
    def is_anonymous(self) -> bool:
        return self.owner.kind == "anonymous"


class AbsentShare:
    """The absent sessions that have a common bound: those of an app, of its anonymous clients, or of an address."""

    __slots__ = ("bytes", "entries")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, ClientEntry] = OrderedDict()
        """client id → session, in the order in which the sessions became absent"""
        self.bytes = 0


class AppSessions:
    """The sessions of one app. entries: client id → session."""

    __slots__ = ("absent", "addresses", "anonymous", "entries", "id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.entries: dict[str, ClientEntry] = {}
        self.absent = AbsentShare()
        self.anonymous = AbsentShare()
        self.addresses: dict[str, AbsentShare] = {}

    def shares(self, owner: Owner, address: str) -> list[tuple[AbsentShare, int]]:
        """Returns the shares to which a client's absent session belongs, each with the maximum number of sessions."""
        found = [(self.absent, MAX_ABSENT)]
        if owner.kind == "anonymous":
            found.append((self.anonymous, MAX_ABSENT // ANONYMOUS_PART))
            if address:
                found.append((self.addresses.setdefault(address, AbsentShare()), MAX_ADDRESS_ABSENT))
        return found

    def has_room(self, owner: Owner, address: str) -> bool:
        """Whether one more session may become absent. If not, the app rejects new sessions."""
        if len(self.absent.entries) >= MAX_ABSENT:
            return False
        if owner.kind != "anonymous":
            return True
        of_address = self.addresses.get(address)
        is_crowded = of_address is not None and len(of_address.entries) >= MAX_ADDRESS_ABSENT
        return not is_crowded and len(self.anonymous.entries) < MAX_ABSENT // ANONYMOUS_PART


class MemorySessions:
    """Implements the port `Sessions`.

    wall: a function that returns the time on the wall clock in nanoseconds.
    random: a function that takes a number of bits, and returns an unpredictable integer of this length.
    """

    __slots__ = ("_apps", "_ended", "_generation", "_heap", "_metrics", "_wall", "copy_of", "logs", "on_taken_over", "shared")

    def __init__(self, wall: Callable[[], int], random: Callable[[int], int], metrics: Metrics, settings: Mqtt) -> None:
        self._wall = wall
        self._metrics = metrics
        self.shared = False
        self.on_taken_over: Callable[[str, str, int], Awaitable[None]] = ignore_takeover
        self.copy_of: Callable[[str, str, int], SavedSession | None] = no_copy
        self.logs = MemoryLogs(random, metrics, settings, self._is_valid)
        self._apps: dict[str, AppSessions] = {}
        self._generation = 0
        """the generation of the last claim of any client"""
        self._ended: list[DueSession] = []
        """the sessions that have ended since the last call of `due`"""
        self._heap: list[tuple[int, int, ClientEntry]] = []
        """the times at which wills are due and sessions end, each with the generation and the session"""

    def __len__(self) -> int:
        """The number of absent sessions."""
        return sum(len(app.absent.entries) for app in self._apps.values())

    def _find(self, app: str, client_id: str, generation: int) -> ClientEntry | None:
        """Returns the session of a connection; None if a later connection has the client id."""
        sessions = self._apps.get(app)
        entry = None if sessions is None else sessions.entries.get(client_id)
        return entry if entry is not None and entry.generation == generation else None

    def _is_valid(self, app: str, client_id: str, generation: int) -> bool:
        return self._find(app, client_id, generation) is not None

    async def claim(self, app: str, client_id: str, claim: Claim) -> Claimed:
        sessions = self._apps.get(app)
        if sessions is None:
            sessions = AppSessions(app)
        entry, before = sessions.entries.get(client_id), len(self._ended)
        if entry is not None and 0 < entry.until <= self._wall():
            self._end_absent(entry)
            entry = None
        if entry is not None and not claim.owner.may_end(entry.owner):
            raise Refused(403, "the client id has a session of another owner")
        self._generation += 1
        if entry is not None and (claim.clean or entry.session is None or entry.owner != claim.owner):
            self._end_absent(entry)
            entry = None
        if entry is not None:
            self._leave(entry)
            entry.generation = self._generation
            session = entry.session
            assert session is not None
            entry.session = msgspec.structs.replace(session, will=None)
            return Claimed(self._generation, session)
        if claim.expiry:
            if not sessions.has_room(claim.owner, claim.address):
                raise LimitReached(403, "the maximum number of sessions of absent clients is reached")
            entry = sessions.entries[client_id] = ClientEntry(sessions, client_id, claim)
            entry.generation = self._generation
            self._apps[app] = sessions
        ended = self._ended.pop() if len(self._ended) > before else None
        return Claimed(self._generation, ended=ended)

    async def attach(self, app: str, client_id: str, generation: int) -> bool:
        entry = self._find(app, client_id, generation)
        if entry is None:
            return False
        if entry.session is not None:
            self._release(entry, entry.session)
            entry.session = None
        return True

    async def store(self, app: str, client_id: str, generation: int, session: SavedSession) -> bool:
        return self._is_valid(app, client_id, generation)

    def store_progress(self, changed: Sequence[Progress]) -> None:
        """Does nothing: the memory of the worker has the sessions."""

    async def confirm(self, due: Collection[DueSession]) -> None:
        """Does nothing: no other worker would take over the sessions."""

    async def save(self, app: str, client_id: str, generation: int, session: SavedSession, will: SavedWill | None = None) -> int:
        entry = self._find(app, client_id, generation)
        if entry is None:
            return 0
        if entry.until:
            self._leave(entry)
        earlier = entry.session
        subscriptions = tuple(self._hold(entry, one) for one in session.subscriptions)
        if earlier is not None:
            self._release(entry, earlier)
        flow = self._bounded(entry, session)
        entry.session = msgspec.structs.replace(session, subscriptions=subscriptions, flow=flow)
        now = self._wall()
        entry.until = now + session.expiry * SECOND
        self._push(entry.until, entry)
        if session.will is not None and session.will.delay < session.expiry:
            entry.will_at = now + session.will.delay * SECOND
            self._push(entry.will_at, entry)
        shares = entry.app.shares(entry.owner, entry.address)
        for share, _ in shares:
            share.entries[client_id] = entry
            share.bytes += entry.bytes
        for share, limit in shares:  # many clients may become absent at once
            self._end_oldest(share, limit, entry)
        return generation

    def _end_oldest(self, share: AbsentShare, limit: int, entry: ClientEntry) -> None:
        """Ends the sessions that have been absent for the longest time, until the number and the size of a share are within its
        bounds.

        limit: the maximum number of sessions. entry: the session that has become absent. A session of an anonymous client ends no
        session of an identified client.
        """
        app = entry.app
        victims = app.anonymous if entry.is_anonymous and share is app.absent else share
        most = MAX_APP_BYTES // ANONYMOUS_PART if share is app.anonymous else MAX_APP_BYTES
        count, size, work = len(share.entries), share.bytes, 0
        found: list[ClientEntry] = []
        for oldest in victims.entries.values():
            if count <= limit and size <= most:
                break
            work += 1 if oldest.session is None else 1 + len(oldest.session.subscriptions)
            if found and work > MAX_END_WORK:
                found = [entry]
                break
            found.append(oldest)
            count -= 1
            size -= oldest.bytes
        for one in found:
            if one.session is not None:
                flow = one.session.flow
                self._metrics.mqtt_dropped["over-limit"] += len(_messages(flow)) - len(flow.returned)
            self._end_absent(one, is_early=True)

    def _hold(self, entry: ClientEntry, subscription: SavedSubscription) -> SavedSubscription:
        """Keeps the messages of a subscription. Returns the subscription with its cursor."""
        if not subscription.is_logged:
            return subscription
        end = self.logs.hold(entry.app.id, subscription.filter, entry.is_anonymous)
        return subscription if subscription.cursor is not None else msgspec.structs.replace(subscription, cursor=end)

    def _release(self, entry: ClientEntry, session: SavedSession) -> None:
        for one in session.subscriptions:
            if one.is_logged:
                self.logs.release(entry.app.id, one.filter, entry.is_anonymous)

    def _bounded(self, entry: ClientEntry, session: SavedSession) -> SavedFlow:
        """Returns the deliveries of a session, but without their messages if these messages would exceed a bound for bytes."""
        size, messages = size_of_session(session), _messages(session.flow)
        entry.bytes = size + sum(size_of(one.message) for one in messages)
        shares = [(entry.app.absent, MAX_APP_BYTES)]
        if entry.is_anonymous:
            shares.append((entry.app.anonymous, MAX_APP_BYTES // ANONYMOUS_PART))
        if not messages or all(share.bytes + entry.bytes <= limit for share, limit in shares):
            return session.flow
        entry.bytes = size
        self._metrics.mqtt_dropped["over-limit"] += len(messages)
        released = tuple(one for one in session.flow.inflight if one[1] is None)
        return msgspec.structs.replace(session.flow, inflight=released, waiting=())

    def _push(self, at: int, entry: ClientEntry) -> None:
        heap = self._heap
        if len(heap) > 4 * len(self) + 1000:
            heap[:] = [one for one in heap if one[2].until and one[2].generation == one[1]]
            heapify(heap)
        heappush(heap, (at, entry.generation, entry))

    def _leave(self, entry: ClientEntry) -> None:
        """Removes a session from the absent sessions. The logs of the session still keep messages."""
        if not entry.until:
            return
        entry.until = 0
        for share, _ in entry.app.shares(entry.owner, entry.address):
            del share.entries[entry.client_id]
            share.bytes -= entry.bytes
            if not share.entries and entry.address:
                entry.app.addresses.pop(entry.address, None)

    def _end_absent(self, entry: ClientEntry, is_early: bool = False) -> None:
        """Ends an absent session, or a claimed session before the connection has called `attach`. is_early: see `DueSession`."""
        session, app = entry.session, entry.app
        self._leave(entry)
        self._drop(entry)
        if session is not None:
            for one in session.subscriptions:
                if one.is_logged:
                    self.logs.unwatch_ended(app.id, one.filter, entry.is_anonymous)
            returned = session.flow.returned
            self._ended.append(DueSession(app.id, entry.client_id, entry.owner, session.will, True, is_early, returned=returned))

    def _drop(self, entry: ClientEntry) -> None:
        app = entry.app
        if entry.session is not None:
            self._release(entry, entry.session)
            entry.session = None
        del app.entries[entry.client_id]
        if not app.entries:
            self._apps.pop(app.id, None)

    async def absent(self, app: str, prefix: str, after: str, most: int) -> AbsentPage:
        sessions = self._apps.get(app)
        entries = {} if sessions is None else sessions.absent.entries
        found, following, examined = chosen(list(entries), prefix, after, most)
        now = self._wall()
        listed = tuple([_listed(entries[name]) for name, _ in found if entries[name].until > now])
        return AbsentPage(listed, following, examined)

    async def end(
        self, app: str, client_id: str, generation: int, filters: Collection[str], will: SavedWill | None = None
    ) -> int:
        entry = self._find(app, client_id, generation)
        if entry is None:
            return 0
        if entry.session is not None and (returned := entry.session.flow.returned):
            self._ended.append(DueSession(app, client_id, entry.owner, None, True, returned=returned))
        self._leave(entry)
        self._drop(entry)
        for filter in filters:
            self.logs.unwatch_ended(app, filter, entry.is_anonymous)
        return generation

    async def due(self, now: int) -> list[DueSession]:
        heap = self._heap
        found, self._ended, work = self._ended, [], 0
        while heap and heap[0][0] <= now and work < DUE_WORK:
            _, generation, entry = heappop(heap)
            session = entry.session
            if generation != entry.generation or not entry.until or session is None:
                continue
            work += 1
            if entry.until <= now:
                work += len(session.subscriptions) + len(session.flow.returned)
                self._end_absent(entry)
            elif session.will is not None and entry.will_at <= now:
                found.append(DueSession(entry.app.id, entry.client_id, entry.owner, session.will, False))
                entry.session = msgspec.structs.replace(session, will=None)
        ended, self._ended = self._ended, []
        return found + ended
