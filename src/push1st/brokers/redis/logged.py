"""Remembers the recent log lines of all shards, so that the shards of one Redis cluster log the same cause only once.

This module identifies shards by their hash tags, and writes no log itself.
"""

SECONDS = 1.0
"""the seconds within which equal log lines of several shards count as one line"""


class LogDedup:
    def __init__(self) -> None:
        self._logged: dict[str, tuple[float, set[str]]] = {}

    def should_log(self, words: str, tag: str, now: float) -> bool:
        """Returns False if another shard has just logged the same text. If a shard repeats its own text, returns True."""
        self._logged = {known: since for known, since in self._logged.items() if now - since[0] <= SECONDS}
        tags = self._logged[words][1] if words in self._logged else {tag}
        if tag in tags:
            self._logged[words] = now, {tag}
            return True
        tags.add(tag)
        return False
