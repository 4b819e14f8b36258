"""Remembers recent log lines of the shards of one broker, so that the sixteen shards of a cluster log one cause once.

It identifies shards by their tags, and writes no log itself.
"""

SECONDS = 1.0
"""time within which equal lines of several shards have the same cause"""


class LogDedup:
    def __init__(self) -> None:
        self._logged: dict[str, tuple[float, set[str]]] = {}

    def should_log(self, words: str, tag: str, now: float) -> bool:
        """Returns whether no other shard has just logged these words. A shard that repeats its own words logs them again."""
        self._logged = {known: since for known, since in self._logged.items() if now - since[0] <= SECONDS}
        tags = self._logged[words][1] if words in self._logged else {tag}
        if tag in tags:
            self._logged[words] = now, {tag}
            return True
        tags.add(tag)
        return False
