"""The operations of operators on hooks: show the states of endpoints and the dead letters, and redrive dead letters.

Redriven letters are marked in the file first, and then wait in memory. Their events join the queues of their endpoints slowly,
and only while a queue is less than half full, so that new events find a place. A redrive also retries one waiting delivery of
the endpoint immediately; if the endpoint accepts deliveries, the server retries the others, too. If the process is killed, the
letters in memory are lost: they stay marked, so no process delivers them twice. A stopping process adds all of them to the
queues immediately, and saves them. Redriven events keep the `time_ms` of their first attempt, so a backend can recognize old
events.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from push1st import logs
from push1st.errors import Refused
from push1st.hooks import HookDetails, Redrive
from push1st.hooks.deadletters import Resolve
from push1st.hooks.endpoint import HookEndpoint
from push1st.hooks.letters import Dead, Letter, LetterPage
from push1st.hooks.store import Store

REDRIVEN_A_SECOND = 100
STEP_SECONDS = 0.1
REDRIVEN_A_STEP = int(REDRIVEN_A_SECOND * STEP_SECONDS)
"""the number of letters that join the queue of an endpoint in each step"""
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 64 << 20
"""the maximum number of redriven letters in memory, and the number of bytes above which no further letters are redriven"""
SOURCE = "#redrive"
"""the source of redriven events (see `queue`): if a queue is full, it drops these events, which become dead letters again"""

log = logs.get("push1st.hooks")


class ChannelOfEvent(msgspec.Struct):
    channel: str = ""


class Operations:
    """Implements the interface `HookOperations`.

    store: the folder; None without a folder.
    endpoints, removed: functions that return the endpoints of an app, and those that its configuration does not have any more.
    give_up: a function that writes a dead letter, because its endpoint was removed: app, endpoint, events,
    fingerprint and time.
    """

    def __init__(
        self,
        store: Store | None,
        endpoints: Callable[[str], Sequence[HookEndpoint]],
        removed: Callable[[str], Sequence[HookEndpoint]],
        give_up: Callable[[str, str, tuple[msgspec.Raw, ...], str, int], None],
    ) -> None:
        self._store = store
        self._endpoints = endpoints
        self._removed = removed
        self._give_up = give_up
        self._waiting: dict[tuple[str, str], deque[Letter]] = {}
        """the redriven letters by app and fingerprint of the endpoint"""
        self._count = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._claiming = asyncio.Lock()
        self._closed = False

    @property
    def folder(self) -> str:
        return "" if self._store is None else self._store.place

    def details(self, app: str) -> list[HookDetails]:
        gone = [msgspec.structs.replace(one.details(), removed=True) for one in self._removed(app)]
        return [one.details() for one in self._endpoints(app)] + gone

    async def letters(self, app: str, hook: str, after: str, limit: int) -> LetterPage:
        if self._store is None:
            return LetterPage((), "", 0)
        return await self._store.letters(self._resolve(app, hook), after, limit)

    def _resolve(self, app: str, hook: str) -> Resolve:
        """Returns a function that finds the endpoint of a letter (see `Resolve`). The function may run in a thread."""
        hooks = {one.hook for one in self._endpoints(app)}
        # Several endpoints may have the same name. Letters of earlier versions have the name only, so the first one gets them.
        names = {one.name: one.hook for one in reversed(self._endpoints(app))}

        def resolve(dead: Dead) -> str | None:
            if dead.app != app and not (dead.app == "" and (dead.hook or dead.endpoint) in hooks):
                return None
            found = (dead.hook if dead.hook in hooks else "") if dead.hook else names.get(dead.endpoint, "")
            if not dead.hook and dead.endpoint in hooks:
                found = dead.endpoint
            return found if hook in ("", found, dead.hook) else None

        return resolve

    async def redrive(self, app: str, hook: str, ids: Sequence[str]) -> Redrive:
        async with self._claiming:
            if self._closed:
                raise Refused(503, "the worker stops")
            if self._store is None:
                raise Refused(503, "without hooks.folder, there are no dead letters")
            if self._count + len(ids) > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
                raise Refused(503, "many redriven dead letters still wait: try again in a minute")
            letters, refused = await self._store.claim(ids, self._resolve(app, hook))
            for letter in letters:
                self._waiting.setdefault((app, letter.hook), deque()).append(letter)
                self._count += 1
                self._bytes += _size(letter)
            if self._timer is None:
                self._step()
        hooks = {letter.hook for letter in letters}
        for endpoint in (*self._endpoints(app), *self._removed(app)):
            if endpoint.hook in hooks:
                endpoint.try_now()
        if letters:
            log.info("dead letters are redriven", app=app, letters=len(letters))
        return Redrive(len(letters), dict(refused))

    def _step(self, *, at_once: bool = False) -> None:
        """Adds the next letters to the queues. at_once: adds all letters."""
        self._timer = None
        for (app, hook), letters in list(self._waiting.items()):
            endpoint = next((one for one in self._endpoints(app) if one.hook == hook), None)
            left = len(letters) if at_once else min(REDRIVEN_A_STEP, len(letters))
            while left and (at_once or endpoint is None or endpoint.has_room(len(letters[0].dead.events), _size(letters[0]))):
                left -= 1
                self._queue(app, endpoint, letters.popleft())
            if not letters:
                del self._waiting[app, hook]
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._step)

    def _queue(self, app: str, endpoint: HookEndpoint | None, letter: Letter) -> None:
        self._count -= 1
        self._bytes -= _size(letter)
        dead = letter.dead
        if endpoint is None:  # removed a moment ago
            self._give_up(app, dead.endpoint, dead.events, letter.hook, dead.original_ms)
            return
        for event in map(bytes, dead.events):
            endpoint.put(_channel(event), event, SOURCE, dead.original_ms)

    async def close(self) -> None:
        """Adds all letters to the queues, because the process stops."""
        async with self._claiming:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._step(at_once=True)


def _channel(event: bytes) -> str:
    """Returns the channel of an event; "" if somebody has changed the file, and the event has none."""
    try:
        return msgspec.json.decode(event, type=ChannelOfEvent).channel
    except msgspec.DecodeError:
        return ""


def _size(letter: Letter) -> int:
    return sum(map(len, letter.dead.events))
