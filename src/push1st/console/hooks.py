"""The endpoints for hooks: the states of an app's hook endpoints, and their dead letters, which operators deliver again.

The workers of a machine share a folder with dead letters. The worker with the most events in its queues reads the folder and
redrives letters, so redriven letters are queued after the events that wait. The id of a letter begins with a word for its folder.
"""

import asyncio
import hashlib
import heapq
import socket
from collections import Counter
from collections.abc import Sequence

import msgspec

from push1st.api.hooks import merged
from push1st.console.cursors import MAX_CURSOR, MAX_DATA, NO_CURSOR, cursor_of, places_of, shown_data
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.console.wire import Replies
from push1st.errors import Refused
from push1st.hooks import HookDetails, Redrive
from push1st.hooks.formats import STATES
from push1st.hooks.letters import Letter, LetterPage

MAX_LIMIT = 200
MAX_IDS = 1000
MAX_EVENTS = 20
"""the maximum number of events of a letter whose names are shown"""
REDRIVE_SECONDS = 10.0
"""the seconds for which the console waits for a worker that redrives letters"""
_HOOK_LENGTH = 32


class WorkerHooks(msgspec.Struct, array_like=True):
    """The hooks of an app on a worker. folder: `HookOperations.folder`. machine: the name of the machine."""

    details: list[HookDetails]
    folder: str
    machine: str

    @property
    def activity(self) -> tuple[int, int]:
        """The numbers of queued and of other events: the worker that reads the hook events has the most."""
        states = [one.status for one in self.details]
        return sum(one.queued for one in states), sum(one.sent + one.failed for one in states)


class LettersRequest(msgspec.Struct, array_like=True):
    """A request for dead letters. Fields: see `HookOperations.letters`."""

    app: str
    hook: str
    after: str
    limit: int


class RedriveRequest(msgspec.Struct, array_like=True):
    """A request to redrive dead letters. Fields: see `HookOperations.redrive`."""

    app: str
    hook: str
    ids: list[str]


class Outcome(msgspec.Struct, array_like=True):
    """A reply to one of these requests. code, text: the error if there is no result; code 0 with a result."""

    code: int = 0
    text: str = ""
    page: LetterPage | None = None
    queued: int = 0
    refused: dict[str, int] = {}


class Selected(msgspec.Struct):
    """The body of `POST …/dead-letters/redrive`."""

    ids: list[str]
    endpoint: str = ""


class _Folder(msgspec.Struct):
    """A folder with dead letters. node, machine: the worker that reads it. word: the beginning of the ids of its letters."""

    word: str
    node: str
    machine: str


class EventNames(msgspec.Struct):
    """The fields of a hook event in both formats; `user_id` in Pusher's format only."""

    channel: str = ""
    user_id: str = ""
    name: str = ""
    event: str = ""


_worker_hooks = msgspec.json.Decoder(WorkerHooks).decode
_letters_request = msgspec.json.Decoder(LettersRequest).decode
_redrive_request = msgspec.json.Decoder(RedriveRequest).decode
# JSON, because the events of letters are JSON texts.
_outcome = msgspec.json.Decoder(Outcome).decode
_selected = msgspec.json.Decoder(Selected).decode
_event = msgspec.json.Decoder(EventNames).decode
_encode = msgspec.json.encode


class HookList:
    """The hooks of an app, with the dead letters of all machines."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._node = context.node
        self.endpoints = (
            ConsoleEndpoint("GET", r"apps/([^/]+)/hooks", self._hooks),
            ConsoleEndpoint("GET", r"apps/([^/]+)/dead-letters", self._letters),
            ConsoleEndpoint("POST", r"apps/([^/]+)/dead-letters/redrive", self._redrive),
        )
        context.wire.serve("hooks", self._own_hooks)
        context.wire.serve("dead-letters", self._own_letters)
        context.wire.serve("redrive", self._own_redrive)

    # This worker

    def _own_hooks(self, data: bytes) -> bytes:
        operations = self._node.hooks.operations
        return _encode(WorkerHooks(operations.details(data.decode()), operations.folder, socket.gethostname()))

    async def _own_letters(self, data: bytes) -> bytes:
        request = _letters_request(data)
        try:
            return _encode(Outcome(page=await self._read(request)))
        except Refused as refused:
            return _encode(Outcome(refused.code, refused.text))

    async def _read(self, request: LettersRequest) -> LetterPage:
        try:
            return await self._node.hooks.operations.letters(request.app, request.hook, request.after, request.limit)
        except ValueError:
            raise Refused(400, NO_CURSOR) from None
        except OSError as exc:
            raise Refused(503, f"the folder of hooks cannot be read: {exc.strerror or exc}") from None

    async def _own_redrive(self, data: bytes) -> bytes:
        request = _redrive_request(data)
        try:
            result = await self._claim(request)
        except Refused as refused:
            return _encode(Outcome(refused.code, refused.text))
        return _encode(Outcome(queued=result.queued, refused=result.refused))

    async def _claim(self, request: RedriveRequest) -> Redrive:
        try:
            return await self._node.hooks.operations.redrive(request.app, request.hook, request.ids)
        except OSError as exc:
            raise Refused(503, f"the folder of hooks cannot be written: {exc.strerror or exc}") from None

    # All workers

    def _app(self, call: ConsoleCall) -> str:
        app = call.args[0]
        if self._node.apps.by_id(app) is None:
            raise Refused(404, f"there is no app {app[:64]!r}")
        return app

    async def _all(self, app: str) -> tuple[Replies, list[tuple[str, WorkerHooks]]]:
        replies = await self._context.wire.request("hooks", app.encode())
        return replies, replies.decoded(_worker_hooks)

    async def _hooks(self, call: ConsoleCall) -> object:
        replies, found = await self._all(self._app(call))
        lists = [one.details for _, one in found]
        own = [node for node, _ in found].index(self._context.name) if found else 0
        lists.insert(0, lists.pop(own))
        return {
            "hooks": _merged(lists),
            "folder": any(one.folder for _, one in found),
            "missing": replies.missing,
            "away": replies.away,
        }

    async def _folders(self, app: str) -> tuple[Replies, dict[str, _Folder]]:
        """Returns the folders by their words, each with the worker that reads it."""
        replies, found = await self._all(app)
        chosen: dict[str, tuple[tuple[tuple[int, int], str], _Folder]] = {}
        for node, one in found:
            if one.folder:
                word = hashlib.sha256(one.folder.encode()).hexdigest()[:8]
                rank = one.activity, node
                if word not in chosen or rank > chosen[word][0]:
                    chosen[word] = rank, _Folder(word, node, one.machine)
        return replies, {word: folder for word, (_, folder) in chosen.items()}

    async def _letters(self, call: ConsoleCall) -> object:
        app, limit, after = self._app(call), max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after", MAX_CURSOR)
        hook = call.text("endpoint", _HOOK_LENGTH)
        replies, folders = await self._folders(app)
        places = places_of(after) if after else dict.fromkeys(folders, "")
        wanted = [(folder, places[word]) for word, folder in folders.items() if word in places]
        outcomes = await asyncio.gather(*(self._page(one, LettersRequest(app, hook, place, limit)) for one, place in wanted))
        missing, following, examined = set(replies.missing), dict[str, str](), 0
        failed: list[tuple[_Folder, Outcome]] = []
        lists: list[list[tuple[_Folder, Letter]]] = []
        for (folder, place), outcome in zip(wanted, outcomes, strict=True):
            if outcome is None:
                missing.add(folder.node)
                following[folder.word] = place
            elif outcome.page is None:
                failed.append((folder, outcome))
                following[folder.word] = place
            else:
                examined += outcome.page.examined
                lists.append([(folder, letter) for letter in outcome.page.letters])
                if outcome.page.next:
                    following[folder.word] = outcome.page.next
        if failed and (len(failed) == len(wanted) or failed[0][1].code == 400):
            raise Refused(failed[0][1].code, failed[0][1].text)
        letters = list(heapq.merge(*lists, key=lambda one: -one[1].dead.at))
        shown, left = letters[:limit], {folder.word for folder, _ in letters[limit:]}
        if left:  # the next page continues before the last letters of this one
            following |= {word: places[word] for word in left}
            following |= {folder.word: letter.place for folder, letter in shown if folder.word in left}
        return {
            "letters": [_shown(folder, letter) for folder, letter in shown],
            "next": cursor_of(following),
            "complete": not following or len(shown) == limit,
            "examined": examined,
            "folder": bool(folders),
            "missing": sorted(missing),
            "failed": [{"machine": folder.machine, "reason": outcome.text} for folder, outcome in failed],
            "away": replies.away,
        }

    async def _page(self, folder: _Folder, request: LettersRequest) -> Outcome | None:
        """Requests a page of the letters in a folder; returns None if the worker does not answer."""
        replies = await self._context.wire.request("dead-letters", _encode(request), node=folder.node, seconds=2)
        return next((outcome for _, outcome in replies.decoded(_outcome)), None)

    async def _redrive(self, call: ConsoleCall) -> object:
        app = self._app(call)
        try:
            selected = _selected(call.body)
        except msgspec.DecodeError as exc:
            raise Refused(400, f"the body is not a list of dead letters: {exc}") from None
        if len(selected.ids) > MAX_IDS:
            raise Refused(400, f"ids must have at most {MAX_IDS} ids")
        _, folders = await self._folders(app)
        groups: dict[str, list[str]] = {}
        refused: Counter[str] = Counter()
        for id in dict.fromkeys(selected.ids):
            word, _, rest = id.partition(".")
            if word in folders:
                groups.setdefault(word, []).append(rest)
            else:
                refused["unknown"] += 1
        queued, unanswered, failed = 0, 0, list[Outcome]()
        for word, ids in groups.items():
            data = _encode(RedriveRequest(app, selected.endpoint, ids))
            replies = await self._context.wire.request("redrive", data, node=folders[word].node, seconds=REDRIVE_SECONDS)
            outcome = next((one for _, one in replies.decoded(_outcome)), None)
            if outcome is None:
                unanswered += len(ids)
                continue
            if outcome.code:
                failed.append(outcome)
                refused[outcome.text] += len(ids)
            queued += outcome.queued
            refused.update(outcome.refused)
        done = f"{queued} dead letters" + (f", {unanswered} without an answer of their worker" if unanswered else "")
        self._context.action(call, "redrive", app, done)
        if failed and len(failed) == len(groups):
            raise Refused(failed[0].code, failed[0].text)
        return {"queued": queued, "refused": refused.total(), "refusals": refused, "unanswered": unanswered}


def _merged(lists: Sequence[Sequence[HookDetails]]) -> list[dict[str, object]]:
    """Returns the states of the endpoints, with sums over all workers, in the order of the first worker."""
    groups: dict[tuple[str, bool, int], list[HookDetails]] = {}
    for details in lists:
        seen: Counter[tuple[str, bool]] = Counter()
        for one in details:  # an app may have two equal endpoints
            key = one.hook, one.removed
            seen[key] += 1
            groups.setdefault((*key, seen[key]), []).append(one)
    found = []
    for (hook, removed, _), group in groups.items():
        (status,) = merged([group[0].status], [[one.status] for one in group[1:]])
        last = max(group, key=lambda one: one.status.last_error_at or 0)
        found.append(
            {
                **msgspec.to_builtins(status),
                "hook": hook,
                "oldest_seconds": max((one.oldest for one in group if one.oldest is not None), default=None),
                "next_try_in": min((one.next_try for one in group if one.next_try is not None), default=None),
                "last_status": last.last_status,
                "removed": removed,
                "failing": max(group, key=lambda one: one.tried_at).failing,
            }
        )
    return found


def _shown(folder: _Folder, letter: Letter) -> dict[str, object]:
    dead = letter.dead
    events = [bytes(event) for event in dead.events]
    names, state = [], ""
    for event in events:
        try:
            found = _event(event)
        except msgspec.DecodeError:  # somebody has changed the file
            found = EventNames()
        name = found.name or found.event
        names.append({"name": name, "channel": found.channel, "user": found.user_id, "bytes": len(event)})
        state = state or (name if name in STATES else "")
    why_not = "already redriven" if letter.redriven is not None else "" if letter.hook else "endpoint gone"
    return {
        "id": f"{folder.word}.{letter.id}",
        "node": folder.node,
        "machine": folder.machine,
        "at": dead.at,
        "endpoint": dead.endpoint,
        "hook": letter.hook,
        "reason": dead.reason,
        "error": dead.error,
        "time_ms": dead.original_ms,
        "event": names[0]["name"] if names else "",
        "events": names[:MAX_EVENTS],
        "state": state,
        "event_count": len(events),
        "bytes": sum(map(len, events)),
        **shown_data(b"\n".join(events), MAX_DATA),
        "redriven": None if letter.redriven is None else {"at": letter.redriven, "result": "queued"},
        "redrivable": not why_not,
        "why_not": why_not,
    }
