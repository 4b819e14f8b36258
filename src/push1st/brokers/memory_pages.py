"""The records of all pages in the memory of one worker, within bounds."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection

from push1st.brokers.pages import FORGOTTEN_SECONDS, PageBounds, PageRecord, decode_record, encode_record, surplus

MAX_FORGOTTEN = 16
"""the maximum number of connections of a page that cannot store a record again, because their records were deleted"""
MAX_BYTES = 256 << 20
"""the maximum number of bytes of all pages; above this number, the broker stores no new page, and no record that is larger than
the earlier record of its connection"""
PAGE_BYTES = 1024
"""the number of bytes that are added to the size of a page's records, for its other data"""
SECOND = 1_000_000_000


class StoredPage:
    """The records of one page.

    address: the address or network of the client that made the page.
    socket_id, record: one connection of the page, and its encoded record; "" and b"" if all records were deleted.
    others: for each other connection, the encoded record; None if the page has at most one record, to save memory.
    forgotten: for each connection whose record was deleted, the time until which the connection cannot store a record again; None
    if there are no such connections.
    until: when the page expires, in nanoseconds on the wall clock.
    """

    __slots__ = ("address", "forgotten", "others", "record", "socket_id", "until")

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket_id, self.record = "", b""
        self.others: dict[str, bytes] | None = None
        self.forgotten: dict[str, int] | None = None
        self.until = 0

    @property
    def records(self) -> dict[str, bytes]:
        """A copy of all records."""
        others = {} if self.others is None else self.others.copy()
        if self.socket_id:
            others[self.socket_id] = self.record
        return others

    def store(self, records: dict[str, bytes]) -> None:
        """Replaces all records."""
        self.socket_id, self.record = records.popitem() if records else ("", b"")
        self.others = records or None

    def is_forgotten(self, socket_id: str, now: int) -> bool:
        return self.forgotten is not None and now < self.forgotten.get(socket_id, 0)

    @property
    def size(self) -> int:
        return PAGE_BYTES + sum(map(len, self.records.values()))


class MemoryPages:
    """Implements the port `Pages`. `wall`: a function that returns the time on the wall clock in nanoseconds."""

    __slots__ = ("_addresses", "_apps", "_wall", "bytes")

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._apps: dict[str, OrderedDict[str, StoredPage]] = {}
        """app → page name → page, in the order of the latest writes of the pages, oldest first"""
        self._addresses: Counter[tuple[str, str]] = Counter()
        """the number of pages for each pair of an app and an address"""
        self.bytes = 0
        """the number of bytes of all pages"""

    def __len__(self) -> int:
        """The number of pages."""
        return sum(map(len, self._apps.values()))

    async def remember(
        self, app: str, page: str, socket_id: str, record: PageRecord, bounds: PageBounds, merged: Collection[str] = ()
    ) -> bool:
        now = self._wall()
        pages = self._apps.get(app)
        if pages is None:
            pages = self._apps[app] = OrderedDict()
        self._expire(app, pages, now)
        stored = self._find(app, page, now)
        data = bytes(memoryview(encode_record(record)))  # a copy, because the encoder's result has unused memory at its end
        if stored is None:
            if record.is_closed or not self._has_room(app, pages, bounds):
                return False
            stored = pages[page] = StoredPage(bounds.address)
            self._addresses[app, bounds.address] += 1
            self.bytes += stored.size + len(data)
            records = {}
        else:
            records = stored.records
            if stored.is_forgotten(socket_id, now) or (record.is_closed and socket_id not in records):
                return False
            growth = len(data) - len(records.get(socket_id, b""))
            if growth > 0 and self.bytes + growth > MAX_BYTES:  # the earlier records stay, and their positions cause only repeats
                return False
            self.bytes += growth
        records[socket_id] = data
        for one in merged:
            self.bytes -= len(records.pop(one, b""))
        if len(records) > 1:
            for one in surplus({one: (decode_record(data).written, len(data)) for one, data in records.items()}, socket_id):
                self.bytes -= len(records.pop(one))
        stored.store(records)
        stored.until = now + bounds.seconds * SECOND
        pages.move_to_end(page)
        return True

    def _has_room(self, app: str, pages: OrderedDict[str, StoredPage], bounds: PageBounds) -> bool:
        is_crowded = bool(bounds.address) and self._addresses[app, bounds.address] >= bounds.of_address
        return len(pages) < bounds.pages and not is_crowded and self.bytes < MAX_BYTES

    def _expire(self, app: str, pages: OrderedDict[str, StoredPage], now: int) -> None:
        """Drops up to two expired pages, so that as many pages expire as are written."""
        for _ in range(2):
            name = next(iter(pages), None)
            if name is None or pages[name].until > now:
                break
            self._drop(app, name)

    def _find(self, app: str, page: str, now: int) -> StoredPage | None:
        pages = self._apps.get(app)
        stored = None if pages is None else pages.get(page)
        if stored is not None and stored.until <= now:
            self._drop(app, page)
            return None
        return stored

    def _drop(self, app: str, page: str) -> None:
        stored = self._apps[app].pop(page)
        self.bytes -= stored.size
        key = app, stored.address
        self._addresses[key] -= 1
        if not self._addresses[key]:
            del self._addresses[key]

    async def recall(self, app: str, page: str) -> dict[str, PageRecord]:
        stored = self._find(app, page, self._wall())
        return {} if stored is None else {one: decode_record(data) for one, data in stored.records.items()}

    async def forget(self, app: str, page: str, socket_ids: Collection[str]) -> None:
        now = self._wall()
        stored = self._find(app, page, now)
        if stored is None:
            return
        records = stored.records
        forgotten = {} if stored.forgotten is None else stored.forgotten
        for one in socket_ids:
            self.bytes -= len(records.pop(one, b""))
            forgotten[one] = now + FORGOTTEN_SECONDS * SECOND
        while len(forgotten) > MAX_FORGOTTEN:
            del forgotten[next(iter(forgotten))]
        stored.forgotten = forgotten
        stored.store(records)
