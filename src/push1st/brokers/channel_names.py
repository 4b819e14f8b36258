"""The names of an app's channels, in an order that stays valid for pages while channels begin and end. Pure.

The checksum of a name determines its bucket, so a channel is always in the same bucket. A page reads whole buckets in the order
of their numbers. Its cursor is the number of a bucket, and the last name that the page contains of this bucket. So each channel
that exists during all pages is in exactly one page, and no page must search for its beginning.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from zlib import crc32

BUCKETS = 4096
"""the number of buckets of an app; with a million channels, a bucket has about 250 names"""


class ChannelNames:
    """The names of the channels of one app."""

    __slots__ = ("_buckets",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._buckets: dict[int, list[str]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Adds a name, which must be missing."""
        self._buckets.setdefault(_bucket_of(name), []).append(name)

    def remove(self, name: str) -> None:
        """Removes a name, which must exist."""
        number = _bucket_of(name)
        bucket = self._buckets[number]
        bucket.remove(name)
        if not bucket:
            del self._buckets[number]

    def page(
        self, prefix: str, accepts: Callable[[str], bool], after: str, most: int, examine: int
    ) -> tuple[list[str], str, int]:
        """Returns at most `most` accepted names that begin with `prefix`, the cursor of the next page, and the number of names
        that the page has examined.

        after: the cursor of an earlier page; "": from the beginning. Raises ValueError if it is not a cursor.
        examine: the number of examined names after which the page ends; the last bucket may exceed it.
        """
        digits, colon, last = after.partition(":")
        if after and not (colon and digits.isascii() and digits.isdigit() and len(digits) < 5):
            raise ValueError(after)
        begin = int(digits or 0)
        numbers = sorted(self._buckets)
        found: list[str] = []
        examined = 0
        for number in numbers[bisect_left(numbers, begin) :]:
            if examined >= examine or len(found) >= most:
                return found, f"{number}:", examined
            bucket = self._buckets[number]
            examined += len(bucket)
            names = sorted([name for name in bucket if name.startswith(prefix) and accepts(name)])
            if last and number == begin:
                names = [name for name in names if name > last]
            room = most - len(found)
            found += names[:room]
            if len(names) > room:
                return found, f"{number}:{found[-1]}", examined
        return found, "", examined


def _bucket_of(name: str) -> int:
    return crc32(name.encode()) % BUCKETS
