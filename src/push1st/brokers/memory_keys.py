"""The results of publishes with an idempotency key, in the memory of one worker. Pure: the caller passes the time."""

from collections import OrderedDict
from itertools import islice

import msgspec

from push1st.messages import Message, Published

MAX_KEYS = 100_000
"""the maximum number of stored results for each app; above this number, the oldest results are dropped"""
MAX_EXPIRED = 1000
"""the maximum number of expired results that one call of `tick` drops, for each app"""


class KeyedResults:
    """See the module. `seconds`: how long a result is kept."""

    __slots__ = ("_apps", "_nanoseconds")

    def __init__(self, seconds: int) -> None:
        self._nanoseconds = seconds * 1_000_000_000
        self._apps: dict[str, OrderedDict[tuple[str, str], tuple[int, Published]]] = {}
        """app → channel and key → the time at which the result expires, and the result; the oldest results first"""

    def find(self, message: Message, key: str, now: int) -> Published | None:
        """Returns the result of an earlier publish on the message's channel with the same key; None without such a publish.

        `now`: the wall clock in nanoseconds.
        """
        results = self._apps.get(message.app)
        until, result = (0, None) if results is None else results.get((message.channel, key), (0, None))
        return result if now < until else None

    def store(self, message: Message, key: str, published: Published, now: int) -> None:
        """Stores the result of a publish."""
        results = self._apps.setdefault(message.app, OrderedDict())
        name = message.channel, key
        results[name] = now + self._nanoseconds, msgspec.structs.replace(published, repeats=message.id)
        results.move_to_end(name)
        if len(results) > MAX_KEYS:
            results.popitem(last=False)

    def tick(self, now: int) -> None:
        """Drops expired results. Called once a second."""
        for app, results in list(self._apps.items()):
            for name, (until, _) in list(islice(results.items(), MAX_EXPIRED)):
                if now < until:
                    break
                del results[name]
            if not results:
                del self._apps[app]
