"""What every subscriber must read, written down the slow and obvious way: the model the fan-out is checked against."""

import re
from collections.abc import Iterable
from typing import Protocol

FRAME = re.compile(rb"<\d+>")


class Reader(Protocol):
    @property
    def received(self) -> bytes: ...


class Page:
    """One connection's: what it is owed, in order, each frame with its channel ("" for direct replies)."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.on: set[str] = set()
        self.owed: list[tuple[str, bytes]] = []
        self.lost = False
        self.final: bytes | None = None


class Book:
    """Frames are numbered, so that each says where it belongs.

    Order is promised per channel, and between a channel and direct replies, not across channels (invariant 2): so
    what is compared is, for each channel, the sequence of its frames and the direct ones.
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
        """It is gone: what it has read is all it will ever read."""
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
        """What a connection has read is the beginning of what it must read; all of it, if `complete`."""
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
            # A direct frame may be read before another channel's, but what is read of these two is in order.
            assert got == [frame for frame in want if frame in set(got)], f"out of order on {channel!r}: {got}, not {want}"
            missing = [frame for frame in want if frame not in set(got)]
            assert got + missing == want, f"gaps on {channel!r}: {got}, not the beginning of {want}"
        if complete and not page.lost:
            assert len(read) == len(page.owed), f"not all was written: {read} of {[frame for _, frame in page.owed]}"

    def check_all(self, strict_end: bool = False) -> None:
        for reader in self._pages:
            self.check(reader, complete=strict_end)
