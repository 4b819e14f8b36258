"""The folder where a queue's rest is kept between two processes, and what was given up for people to look at.

Files are for their owner only: events hold what users said. Writing goes through a thread, so that a slow disk does not
stop the loop; what is waiting to be written is bounded, and so is the file of dead letters.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from push1st import logs
from push1st.messages import Fact

DEAD_LETTERS = "dead-letters.jsonl"
MOST_DEAD = 64 << 20
"""bytes of dead letters; then the file is put aside, as `.1`, in place of the one before"""
MOST_PENDING = 10_000
"""dead letters that wait to be written"""
SAVED = "saved-*.jsonl"

log = logs.get("push1st.hooks")


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line. endpoint: its fingerprint. Of a delivery that was tried: id, body, channels. Or an edge that was held back.

    Raises ValueError for a line that is none of these.
    """

    endpoint: str = ""
    channels: tuple[str, ...] = ()
    events: tuple[msgspec.Raw, ...] = ()
    id: str = ""
    body: str = ""
    held: Fact | None = None

    def __post_init__(self) -> None:
        if self.held is None and not (self.endpoint and self.channels and self.events):
            raise ValueError("an event needs its endpoint and channels")


class Dead(msgspec.Struct, frozen=True):
    """A dead letter."""

    at: float
    app: str
    endpoint: str
    reason: str
    events: tuple[msgspec.Raw, ...]


class Store:
    def __init__(self, folder: str) -> None:
        """Raises OSError when the folder cannot be written to."""
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", folder)
        self._pending: list[bytes] = []
        self._writing: asyncio.Future[None] | None = None

    # Between two processes

    def save(self, lines: Iterable[Saved]) -> int:
        """Writes them to a file of its own, whole or not at all; returns how many there were."""
        name = f"saved-{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
        temporary = self._folder / f".{name}"
        count = 0
        with open(temporary, "wb", opener=_private) as file:
            for line in lines:
                file.write(msgspec.json.encode(line) + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if count:
            temporary.rename(self._folder / name)
        else:
            temporary.unlink()
        return count

    def saved(self) -> Iterator[Saved]:
        """What was saved, the oldest first; each file belongs to the process that gets to rename it."""
        for file in sorted(self._folder.glob(SAVED)):
            taken = file.with_name(f".taken-{os.getpid()}-{file.name}")
            try:
                file.rename(taken)
            except FileNotFoundError:
                continue
            with open(taken, "rb") as lines:
                for line in lines:
                    try:
                        yield msgspec.json.decode(line, type=Saved)
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
                        log.error("a saved hook event cannot be read", file=file.name, reason=str(wrong))
            taken.unlink()

    # Dead letters

    def bury(self, app: str, endpoint: str, reason: str, events: Sequence[bytes]) -> bool:
        """Whether there was room to have them written."""
        if len(self._pending) >= MOST_PENDING:
            return False
        letter = Dead(time.time(), app, endpoint, reason, tuple(map(msgspec.Raw, events)))
        self._pending.append(msgspec.json.encode(letter) + b"\n")
        if self._writing is None:
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, self._write, self._take())
            self._writing.add_done_callback(self._written)
        return True

    def _take(self) -> bytes:
        pending, self._pending = self._pending, []
        return b"".join(pending)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if failure := done.exception():
            log.error("dead letters cannot be written", reason=str(failure))
        if self._pending:
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, self._take())
            self._writing.add_done_callback(self._written)

    def _write(self, lines: bytes) -> None:
        path = self._folder / DEAD_LETTERS
        with open(path, "ab", opener=_private) as file:
            file.write(lines)
            full = file.tell() > MOST_DEAD
        if full:
            path.replace(path.with_suffix(".jsonl.1"))

    async def close(self) -> None:
        """Returns when all is written."""
        while self._writing is not None:
            await asyncio.wait((self._writing,))
            await asyncio.sleep(0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
