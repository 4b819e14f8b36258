"""A slow and simple model of the frames that each subscriber must read; tests compare the fan-out with it."""

import re
from collections.abc import Iterable
from typing import Protocol

FRAME = re.compile(rb"<\d+>")


class Reader(Protocol):
    @property
    def received(self) -> bytes: ...


class Page:
    """The frames that one connection must read, in order, each with its channel ("" for direct replies)."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.on: set[str] = set()
        self.owed: list[tuple[str, bytes]] = []
        self.lost = False
        self.final: bytes | None = None


class Book:
    """The model of all connections. Frames are numbered, so that each frame identifies itself.

    Order is guaranteed within a channel, and between a channel and direct replies, and not across channels (invariant 2). So
    the model compares, for each channel, the sequence of its frames and of direct replies.
    """

    def __init__(self) -> None:
        self._pages: dict[Reader, Page] = {}
        self._number = 0

    def frame(self) -> bytes:
        self._number += 1
        return b"<%d>" % self._number

    def connect(self, reader: Reader, prefix: str = "") -> None:
        self._pages[reader] = Page(prefix)

    def join(self, reader: Reader, channel: str) -> None:
        self._pages[reader].on.add(channel)

    def leave(self, reader: Reader, channel: str) -> None:
        self._pages[reader].on.discard(channel)

    def lose(self, reader: Reader) -> None:
        """Marks a connection as lost: it must read nothing more."""
        page = self._pages[reader]
        page.lost = True
        page.on.clear()
        page.final = reader.received

    def publish(self, channel: str, frame: bytes, exclude: Reader | None = None) -> int:
        return self._owe(channel, frame, (reader for reader in self._pages if reader is not exclude))

    def unicast(self, channel: str, frame: bytes, to: Reader) -> int:
        return self._owe(channel, frame, (to,))

    def multicast(self, channel: str, frame: bytes, prefix: str) -> int:
        return self._owe(
            channel, frame, (reader for reader, page in self._pages.items() if f"{page.prefix}.".startswith(f"{prefix}."))
        )

    def direct(self, reader: Reader, frame: bytes) -> None:
        self._pages[reader].owed.append(("", frame))

    def _owe(self, channel: str, frame: bytes, readers: Iterable[Reader]) -> int:
        count = 0
        for reader in readers:
            page = self._pages[reader]
            if channel in page.on:
                page.owed.append((channel, frame))
                count += 1
        return count

    def check(self, reader: Reader, complete: bool = False) -> None:
        """Checks that a connection has read the beginning of its frames, or all of them if `complete`."""
        page = self._pages[reader]
        received = reader.received
        if page.final is not None:
            assert received == page.final, "something was written to a connection that is gone"
        read = FRAME.findall(received)
        assert b"".join(read) == received, f"frames are broken up: {received!r}"
        kinds = {frame: channel for channel, frame in page.owed}
        for frame in read:
            assert frame in kinds, f"{frame!r} was not for it"
        for channel in {channel for channel, _ in page.owed} | {""}:
            want = [frame for of, frame in page.owed if of in ("", channel)]
            got = [frame for frame in read if kinds[frame] in ("", channel)]
            # A direct reply may precede frames of another channel, but within this channel and the replies the order is fixed.
            assert got == [frame for frame in want if frame in set(got)], f"out of order on {channel!r}: {got}, not {want}"
            missing = [frame for frame in want if frame not in set(got)]
            assert got + missing == want, f"gaps on {channel!r}: {got}, not the beginning of {want}"
        if complete and not page.lost:
            assert len(read) == len(page.owed), f"not all was written: {read} of {[frame for _, frame in page.owed]}"

    def check_all(self, strict_end: bool = False) -> None:
        for reader in self._pages:
            self.check(reader, complete=strict_end)
