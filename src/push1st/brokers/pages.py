"""The records of pages: what the broker stores about the Pusher clients whose URL names a page. Pure.

A *page* is one instance of a client, such as one `new Pusher(…)` in a browser. The page makes a random name, and keeps the name
when it reconnects. Each connection of a page has a record: for each channel, the position up to which the connection has received
the messages. A new connection of the page reads the records of all earlier connections (`core/page.py`).
"""

from collections.abc import Mapping

import msgspec

from push1st.positions import Position

MAX_RECORDS = 4
"""the maximum number of records of a page; above this number, the broker drops the oldest records"""
MAX_PAGE_BYTES = 16_384
"""the maximum number of bytes of all records of a page; above this number, the broker drops the oldest records"""
MAX_CHANNELS = 200
"""the maximum number of channels in a record"""
MAX_CHANNELS_BYTES = MAX_PAGE_BYTES - 1024
"""the maximum number of bytes of the channels in a record; the other fields of a record have less than 1024 bytes"""
CHANNEL_BYTES = 32
"""the maximum number of bytes of a channel in a record, without the channel's name"""
FORGOTTEN_SECONDS = 60
"""the seconds after the deletion of a connection's record in which the connection cannot store a record again"""
ADDRESS_PART = 10
"""one address may have at most 1 / `ADDRESS_PART` of an app's maximum number of pages"""


class PageRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The data that the broker stores about one connection of a page.

    written: the time of the record, in milliseconds on the wall clock.
    worker: the topic on which the connection's worker receives requests about its pages.
    positions: for each channel, the position up to which the connection has certainly received the messages; None if the client
    subscribed without a position and has acknowledged nothing yet.
    sockets: the ids of earlier connections of the page.
    is_closed: whether the connection has ended.
    is_exact: whether the connection has received no message after these positions.
    is_shared: whether two instances of a client use the name of the page at the same time.
    """

    written: int
    worker: str
    positions: dict[str, Position | None]
    sockets: tuple[str, ...] = ()
    is_closed: bool = False
    is_exact: bool = False
    is_shared: bool = False


class PageBounds(msgspec.Struct, frozen=True, gc=False):
    """The bounds for the pages of an app.

    seconds: how long the broker keeps a page after the latest write of a record.
    pages: the maximum number of pages of the app.
    address: the address of the page's client, or its network, for which the broker counts the pages; "" if they are not counted.
    """

    seconds: int
    pages: int
    address: str

    @property
    def of_address(self) -> int:
        """The maximum number of pages of one address."""
        return max(1, self.pages // ADDRESS_PART)


decode_record = msgspec.msgpack.Decoder(PageRecord).decode
encode_record = msgspec.msgpack.Encoder().encode


def bounded(positions: dict[str, Position | None]) -> dict[str, Position | None]:
    """Returns the first channels with their positions, as many as a record may contain."""
    count = len(positions)
    # A character has at most 4 bytes in UTF-8. So this fast test accepts most records that are within the bounds; they keep all
    # their channels.
    if count <= MAX_CHANNELS and 4 * sum(map(len, positions)) + CHANNEL_BYTES * count <= MAX_CHANNELS_BYTES:
        return positions
    found: dict[str, Position | None] = {}
    left = MAX_CHANNELS_BYTES
    for channel, position in positions.items():
        left -= len(channel.encode()) + CHANNEL_BYTES
        if left < 0 or len(found) == MAX_CHANNELS:
            break
        found[channel] = position
    return found


def surplus(records: Mapping[str, tuple[int, int]], written: str) -> list[str]:
    """Returns the connections whose records exceed the bounds of a page: the oldest first.

    records: for each connection of the page, the time of its record, and the size of the record in bytes.
    written: the connection whose record was just written. This record is never dropped.
    """
    size, count = sum(size for _, size in records.values()), len(records)
    dropped: list[str] = []
    for connection in sorted(records, key=lambda one: records[one][0]):
        if count <= MAX_RECORDS and size <= MAX_PAGE_BYTES:
            break
        if connection != written:
            dropped.append(connection)
            count -= 1
            size -= records[connection][1]
    return dropped
