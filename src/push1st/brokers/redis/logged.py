"""What the shards of one broker have said in the log, so that a cluster's sixteen say the same thing once.

It knows no shards but by their tags, and writes no log itself.
"""

SECONDS = 1.0
"""within which shards say the same for the same cause"""


class LogDedup:
    def __init__(self) -> None:
        self._logged: dict[str, tuple[float, set[str]]] = {}

    def should_log(self, words: str, tag: str, now: float) -> bool:
        """Whether no other shard has just said it. What a shard says again is new."""
        self._logged = {said: since for said, since in self._logged.items() if now - since[0] <= SECONDS}
        tags = self._logged[words][1] if words in self._logged else {tag}
        if tag in tags:
            self._logged[words] = now, {tag}
            return True
        tags.add(tag)
        return False
