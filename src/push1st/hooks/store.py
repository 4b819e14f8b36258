"""The folder of hook events: it contains dead letters, and queued events that a stopping process saves for the next process.

A dead letter is a line with lost events (`deadletters`). Administrators can inspect it, and the console reads it and delivers it
again. Events contain users' data, so only the operating system's user that runs the server can read the files.
The folder may be read-only, full or unreachable for a while. A failed write leaves no incomplete file, and the caller retries.
A process uses a file only while it holds the file's lock.

Threads read and write dead letters, so that a slow disk does not stop the event loop. Dead letters have limits in memory and on
disk.
"""

import asyncio
import fcntl
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from push1st import logs
from push1st.hooks.deadletters import DeadLetters, Resolve, private
from push1st.hooks.letters import Dead, Letter, LetterPage
from push1st.messages import HookEvent

MAX_PENDING = 10_000
"""the maximum number of dead letters that wait to be written"""
MAX_LETTER_EVENTS = 100
MAX_LETTER_BYTES = 256 << 10
"""the maximum number of events in a dead letter, and the number of their bytes above which they are divided"""
RETRY_SECONDS = 5.0
"""the time between two attempts to write dead letters"""
SAVED = re.compile(r"(?:\.|\.taken-\d+-)?(saved-\d+-[0-9a-f]+\.jsonl)")
"""Names of saved files. An initial dot marks an incomplete file, or a file that an earlier version of the server was reading."""

log = logs.get("push1st.hooks")


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a saved file: a delivery that has not succeeded, an event that was not sent yet, or a held edge.

    endpoint: the fingerprint of the endpoint to which the delivery or event is addressed.
    id, body: the id and the body of a delivery.
    held: a leaving edge that the process held (see `debounce`).
    source: the source of an event (see `queue`).
    app: the id of the app of the endpoint.
    time_ms: the `time_ms` of the delivery or event (see `queue`).
    Raises ValueError if the line contains neither a delivery nor an event nor an edge.
    """

    endpoint: str = ""
    channels: tuple[str, ...] = ()
    events: tuple[msgspec.Raw, ...] = ()
    id: str = ""
    body: str = ""
    held: HookEvent | None = None
    source: str = ""
    app: str = ""
    time_ms: int = 0

    def __post_init__(self) -> None:
        if self.held is None and not (self.endpoint and self.channels and self.events):
            raise ValueError("an event needs its endpoint and channels")


class Store:
    """Reads and writes the files of a folder. Raises OSError if the process cannot write to the folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", folder)
        found = self._folder.stat()
        self.place = f"{socket.gethostname()}/{found.st_dev:x}/{found.st_ino:x}"
        """a word for the folder, which all processes on a machine with this folder share"""
        self._letters = DeadLetters(self._folder)
        self._pending: list[bytes] = []
        """dead letters that are not written yet; the thread is writing the first `_writing_count` of these letters"""
        self._writing: asyncio.Future[None] | None = None
        self._writing_count = 0
        """the number of letters in `_pending` that the thread is writing"""
        self._retry_at: asyncio.TimerHandle | None = None
        self._failing = False

    # Between two processes

    def save(self, lines: Iterable[Saved]) -> int:
        """Writes all lines to a new file, or writes no file at all; returns the number of lines. Raises OSError."""
        lines = iter(lines)
        first = next(lines, None)
        if first is None:
            return 0
        name = f"saved-{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
        temporary = self._folder / f".{name}"
        count = 0
        try:
            with open(temporary, "wb", opener=private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                for line in chain((first,), lines):
                    file.write(msgspec.json.encode(line) + b"\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return count

    def saved(self) -> Iterator[Saved]:
        """Yields the saved lines, oldest first. Only one process reads a file, and removes the file before yielding its lines.

        If some files cannot be read, yields the lines of all other files, and then raises OSError.
        """
        failed: OSError | None = None
        for name in sorted(filter(SAVED.fullmatch, os.listdir(self._folder)), key=lambda name: name[name.index("saved-") :]):
            try:
                lines = self._taken(self._folder / name)
            except FileNotFoundError:  # another process has read and removed the file
                continue
            except OSError as exc:
                failed = exc
                continue
            for line in lines:
                try:
                    yield msgspec.json.decode(line, type=Saved)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                    log.error("a saved hook event cannot be read", file=name, reason=str(exc))
        if failed is not None:
            raise failed

    def _taken(self, path: Path) -> list[bytes]:
        """Removes a file and returns its lines. Returns no lines if another process holds the file's lock.

        Raises OSError if the file cannot be removed; then the file still exists.
        """
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []
            if not os.fstat(file.fileno()).st_nlink:
                return []
            lines = file.read().splitlines()
            path.unlink()
            return lines

    # Dead letters

    def add_dead_letter(self, dead: Dead) -> int:
        """Writes a dead letter in a thread; divides a large one.

        Returns the number of events that are not written, because too many letters wait.
        """
        left = list(map(bytes, dead.events))
        while left and len(self._pending) < MAX_PENDING:
            some = _first_of(left)
            left = left[len(some) :]
            # Without line breaks, which JSON permits between tokens, a letter is one line.
            raw = tuple([msgspec.Raw(event.replace(b"\n", b" ").replace(b"\r", b" ")) for event in some])
            self._pending.append(msgspec.json.encode(msgspec.structs.replace(dead, events=raw)) + b"\n")
        if self._pending and self._writing is None and self._retry_at is None:
            self._begin()
        return len(left)

    async def letters(self, resolve: Resolve, after: str, limit: int) -> LetterPage:
        """See `DeadLetters.page`."""
        return await asyncio.get_running_loop().run_in_executor(None, self._letters.page, resolve, after, limit)

    async def claim(self, ids: Sequence[str], resolve: Resolve) -> tuple[list[Letter], Counter[str]]:
        """See `DeadLetters.claim`."""
        return await asyncio.get_running_loop().run_in_executor(None, self._letters.claim, ids, resolve, time.time())

    def _begin(self) -> None:
        self._retry_at = None
        self._writing_count = len(self._pending)
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._letters.append, b"".join(self._pending))
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if failure := done.exception():
            if not self._failing:
                log.error("dead letters cannot be written, retrying", reason=str(failure))
            self._failing = True
            self._retry_at = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._begin)
            return
        if self._failing:
            self._failing = False
            log.info("dead letters are written again")
        del self._pending[: self._writing_count]
        if self._pending:
            self._begin()

    async def close(self) -> int:
        """Writes the dead letters that still wait; returns the number of dead letters that cannot be written and are lost."""
        if self._retry_at is not None:
            self._retry_at.cancel()
            self._begin()
        while self._writing is not None:
            await asyncio.wait((self._writing,))
            await asyncio.sleep(0)
        if self._retry_at is not None:
            self._retry_at.cancel()
        return len(self._pending)


def _first_of(events: Sequence[bytes]) -> Sequence[bytes]:
    """Returns the first events, which one dead letter contains."""
    size = 0
    for index, event in enumerate(events[:MAX_LETTER_EVENTS]):
        size += len(event)
        if size > MAX_LETTER_BYTES and index:
            return events[:index]
    return events[:MAX_LETTER_EVENTS]
