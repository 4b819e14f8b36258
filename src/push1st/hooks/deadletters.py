"""The file of dead letters: the lines with lost events, and the lines that mark letters as redriven.

A letter is one line of JSON, which never changes. When an operator redrives letters, one more line is appended, with the ids of
these letters: this line is written to the disk before the first of these letters is queued. So a letter is redriven at most
once, even if the process is killed between these two steps, or if several processes redrive the same letter.

The id of a letter is the place of its line in the file, the length and a hash of the line. The id stays valid when the file is
renamed to `.1`. A process remembers the ids of the redriven letters, and reads each byte of the files only once for this purpose.

Several processes use the file. A process appends lines, and renames the file, only while it holds the file's lock. All functions
may wait for the disk, so they run in threads.
"""

import fcntl
import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import msgspec

from push1st.hooks.letters import Dead, Letter, LetterPage

DEAD_LETTERS = "dead-letters.jsonl"
MAX_DEAD_BYTES = 64 << 20
"""the maximum number of bytes in the file of dead letters; a larger file is renamed to `.1`, which replaces the previous `.1`"""
MAX_READ = 1 << 20
"""the number of bytes that one call of `page` reads; longer lines are not read at all"""
MAX_CLAIMED_BYTES = 16 << 20
"""the number of bytes of the letters that one call of `claim` reads"""
MAX_HEAD = 256
"""the number of bytes at the beginning of a file, by which a process recognises it: each letter begins with its time"""
_ID = re.compile(r"([0-9a-f]{1,8})-([0-9a-f]{1,6})-([0-9a-f]{16})\Z")
_PLACE = re.compile(r"([0-9]{1,20}):([0-9]{1,10})\Z")
_MARK = b'{"redriven":'
UNKNOWN, ALREADY, GONE, TOO_LARGE = "unknown", "already redriven", "endpoint gone", "too large together"
"""the reasons for which a letter is not redriven"""


class Redriven(msgspec.Struct, frozen=True):
    """The line that marks letters as redriven. at: the time in seconds since 1970."""

    redriven: tuple[str, ...]
    at: float


Resolve = Callable[[Dead], str | None]
"""returns the fingerprint of the endpoint that gets a letter, "" if the endpoint is gone; None if the letter is not wanted"""


class _Marks:
    """The redriven letters of one file. read: the number of bytes of the file that were read. head: the first of these bytes."""

    __slots__ = ("at", "head", "read")

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.head = b""
        self.read = 0

    def fit(self, file: "_OpenFile") -> bool:
        """Returns whether the file is the one that was read: it may be a new file with the inode of a removed one."""
        return file.size >= self.read and os.pread(file.descriptor, len(self.head), 0) == self.head


class _OpenFile:
    """A file that is open for reading. inode: its number, which it keeps when it is renamed."""

    __slots__ = ("descriptor", "inode", "size")

    def __init__(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self.descriptor = descriptor
        self.inode = found.st_ino
        self.size = found.st_size


class DeadLetters:
    """The dead letters in a folder. Only one thread of the process uses the file at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DEAD_LETTERS
        self._lock = threading.Lock()
        self._marks: dict[int, _Marks] = {}
        """the redriven letters by the inode of their file; a letter may be marked in a newer file than its own"""

    def append(self, lines: bytes) -> None:
        """Appends all lines, or no line at all. Raises OSError."""
        with self._locked() as file:
            self._append(file, lines)

    def page(self, resolve: Resolve, after: str, limit: int) -> LetterPage:
        """Returns the newest letters, at most `limit`. Reads at most `MAX_READ` bytes of one file, so there may be fewer letters.

        after: the cursor of an earlier page; "" for the newest letters. Raises ValueError if it is not a cursor.
        """
        inode, end = _parsed(after)
        with self._lock, self._open() as files:
            marked = self._marked(files)
            at = next((index for index, one in enumerate(files) if not inode or one.inode == inode), None)
            if at is None:  # no letters, or the file was replaced since
                return LetterPage((), "", 0)
            file, older = files[at], files[at + 1 :]
            end = min(end, file.size) if inode else file.size
            begin, letters, examined = max(0, end - MAX_READ), list[Letter](), 0
            left = begin
            for start, line in _backwards(os.pread(file.descriptor, end - begin, begin), begin):
                examined, left = examined + 1, start
                letter = _letter(file.inode, start, line, resolve, marked)
                if letter is not None:
                    letters.append(letter)
                    if len(letters) == limit:
                        break
            else:
                # The part may begin within a line, which the next call reads, unless the line is longer than the part.
                left = left if examined else begin
            following = f"{file.inode}:{left}" if left else f"{older[0].inode}:{older[0].size}" if older else ""
            return LetterPage(tuple(letters), following, examined)

    def claim(self, ids: Sequence[str], resolve: Resolve, at: float) -> tuple[list[Letter], Counter[str]]:
        """Marks letters as redriven. Returns them in the order of their `time_ms`, and the number of the others by the reason.

        No other call, in any process, returns one of these letters again. at: the time in seconds since 1970. Raises OSError;
        then no letter is marked.
        """
        with self._locked() as file, self._open() as files:
            marked = self._marked(files)
            found: list[tuple[int, int, Letter]] = []
            refused: Counter[str] = Counter()
            left = MAX_CLAIMED_BYTES
            for id in dict.fromkeys(ids):
                if id in marked:
                    refused[ALREADY] += 1
                    continue
                _, size = _span(id)
                if size > left:
                    refused[TOO_LARGE] += 1
                    continue
                left -= size
                place = self._find(files, id, resolve, marked)
                if place is None:
                    refused[UNKNOWN] += 1
                elif not place[2].hook:
                    refused[GONE] += 1
                else:
                    found.append(place)
            letters = [letter for *_, letter in sorted(found, key=lambda one: (one[2].dead.original_ms, *one[:2]))]
            if letters:
                mark = Redriven(tuple([letter.id for letter in letters]), at)
                self._append(file, msgspec.json.encode(mark) + b"\n", is_synced=True)
        return letters, refused

    def _find(
        self, files: Sequence[_OpenFile], id: str, resolve: Resolve, marked: dict[str, float]
    ) -> tuple[int, int, Letter] | None:
        """Returns a letter with its age (the older file is first) and its place; None without such a letter."""
        start, size = _span(id)
        for age, file in enumerate(files):
            if size and start + size <= file.size:
                line = os.pread(file.descriptor, size, start)
                if _id(start, line) == id:
                    letter = _letter(file.inode, start, line, resolve, marked)
                    return None if letter is None else (-age, start, letter)
        return None

    @contextmanager
    def _locked(self) -> Iterator[FileIO]:
        """Opens the newest file for appending, with its lock."""
        with self._lock:
            while True:
                with open(self._path, "ab+", buffering=0, opener=private) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not _is_at(self._path, file):  # another process has renamed it before this process got the lock
                        continue
                    yield file
                    return

    @contextmanager
    def _open(self) -> Iterator[list[_OpenFile]]:
        """Opens the files that exist, the newest first."""
        files: list[_OpenFile] = []
        try:
            for path in (self._path, self._older):
                with suppress(FileNotFoundError):
                    files.append(_OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
            if len(files) == 2 and files[0].inode == files[1].inode:  # renamed between the two steps
                os.close(files.pop().descriptor)
            yield files
        finally:
            for one in files:
                os.close(one.descriptor)

    @property
    def _older(self) -> Path:
        return self._path.with_suffix(".jsonl.1")

    def _append(self, file: FileIO, lines: bytes, is_synced: bool = False) -> None:
        """Appends all lines, or no line. `is_synced`: whether the lines must be on the disk at the end. Raises OSError."""
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a killed process has left a part of a line
            lines = b"\n" + lines
        left = memoryview(lines)
        try:
            while left:
                left = left[file.write(left) :]
            if is_synced:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
        if size + len(lines) > MAX_DEAD_BYTES:
            with suppress(OSError):  # the next write tries to rename the file again
                self._path.replace(self._older)

    def _marked(self, files: Sequence[_OpenFile]) -> dict[str, float]:
        """Returns the redriven letters. Reads the parts of the files that were not read before."""
        self._marks = {one.inode: self._marks.get(one.inode) or _Marks() for one in files}
        for file in files:
            marks = self._marks[file.inode]
            if not marks.fit(file):
                marks = self._marks[file.inode] = _Marks()
            while marks.read < file.size:
                data = os.pread(file.descriptor, MAX_READ, marks.read)
                whole = data.rfind(b"\n") + 1
                if not whole and len(data) < MAX_READ:  # the last line is incomplete
                    break
                if not marks.read:
                    marks.head = data[: min(whole or len(data), MAX_HEAD)]
                _add_marks(marks.at, data[:whole])
                marks.read += whole or len(data)
        found: dict[str, float] = {}
        for one in self._marks.values():
            found |= one.at
        return found


def _add_marks(at: dict[str, float], lines: bytes) -> None:
    begin = 0
    while (begin := lines.find(_MARK, begin)) >= 0:
        end = lines.find(b"\n", begin)
        if begin == 0 or lines[begin - 1 : begin] == b"\n":
            with suppress(msgspec.DecodeError):
                mark = msgspec.json.decode(lines[begin:end], type=Redriven)
                at.update(dict.fromkeys(mark.redriven, mark.at))
        begin = end


def _backwards(data: bytes, begin: int) -> Iterator[tuple[int, bytes]]:
    """Yields the complete lines in a part of a file, the last one first, each with its place in the file.

    begin: the place of the part; if it is not 0, the part may begin within a line.
    """
    end = data.rfind(b"\n") + 1
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if start == 0 and begin:
            return
        yield begin + start, data[start : end - 1]
        end = start


def _id(start: int, line: bytes) -> str:
    return f"{start:x}-{len(line):x}-{hashlib.sha256(line).hexdigest()[:16]}"


def _span(id: str) -> tuple[int, int]:
    """Returns the place and the length of a letter's line in its file, as its id names them; (0, 0) if it is no id."""
    match = _ID.match(id)
    start, size = (int(match[1], 16), int(match[2], 16)) if match else (0, 0)
    return (start, size) if size <= MAX_READ else (0, 0)


def _letter(inode: int, start: int, line: bytes, resolve: Resolve, marked: dict[str, float]) -> Letter | None:
    """Returns the letter in a line; None if the line contains no letter that is wanted."""
    try:
        dead = msgspec.json.decode(line, type=Dead)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # a mark, or a line that was not written completely
    hook = resolve(dead)
    if hook is None:
        return None
    id = _id(start, line)
    return Letter(id, f"{inode}:{start}", dead, marked.get(id), hook)


def _parsed(cursor: str) -> tuple[int, int]:
    if not cursor:
        return 0, 0
    match = _PLACE.match(cursor)
    if match is None:
        raise ValueError(cursor)
    return int(match[1]), int(match[2])


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def private(path: str, flags: int) -> int:
    """Opens a file that only the operating system's user of the server can read."""
    return os.open(path, flags, 0o600)
