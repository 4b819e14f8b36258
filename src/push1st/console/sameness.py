"""Compares the apps of all workers.

Each worker sends only a fingerprint of its apps, because the settings contain secrets, and because a worker may have many apps.
This module only compares fingerprints: it cannot determine which worker has the correct settings.
"""

import hashlib
from collections.abc import Callable, Iterable

import msgspec
from msgspec.structs import replace

from push1st.clock import Clock
from push1st.config.model import Config

SETTLED_SECONDS = 5.0
"""the minimum age of each worker's configuration for a comparison, because a reload reaches the workers one after another"""
DIGEST_BYTES = 4
"""the size of a fingerprint; an attacker cannot test guesses of a long secret against so few bytes"""
MAX_NAMED = 8
"""the maximum number of groups, and of names in a group"""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class AppsMark(msgspec.Struct, frozen=True, array_like=True):
    """The apps of a worker.

    fingerprint: workers with the same settings of all apps have the same fingerprint.
    age: the seconds since the worker loaded its current configuration.
    """

    fingerprint: bytes
    age: float


class OwnApps:
    """The mark of this worker. config: a function that returns the current configuration."""

    def __init__(self, config: Callable[[], Config], clock: Clock) -> None:
        self._current = config
        self._clock = clock
        self._config = config()
        self._since = clock.monotonic()
        self._fingerprint = b""

    def look(self) -> None:
        """Checks whether the worker has a new configuration. Called once a second."""
        config = self._current()
        if config is not self._config:
            self._config, self._since, self._fingerprint = config, self._clock.monotonic(), b""

    def mark(self) -> AppsMark:
        self.look()
        if not self._fingerprint:
            # `server.max-request-payload`, which may differ between servers, raises the limit `payload` of each app.
            apps = [replace(app, limits=replace(app.limits, payload=0)) for app in self._config.apps]
            apps.sort(key=lambda app: app.id)
            self._fingerprint = hashlib.blake2b(_encoder.encode(apps), digest_size=DIGEST_BYTES).digest()
        return AppsMark(self._fingerprint, self._clock.monotonic() - self._since)


def groups(marks: Iterable[tuple[str, AppsMark]]) -> list[list[str]]:
    """Returns the names of workers, grouped by their apps, the largest group first.

    The list is empty if all workers have the same apps, or if the configuration of a worker is younger than `SETTLED_SECONDS`.
    marks: each with the name of its worker.
    """
    found: dict[bytes, list[str]] = {}
    for name, mark in marks:
        if mark.age < SETTLED_SECONDS:
            return []
        found.setdefault(mark.fingerprint, []).append(name)
    if len(found) == 1:
        return []
    ordered = sorted(map(sorted, found.values()), key=lambda names: (-len(names), names))[:MAX_NAMED]
    return [names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], "…"] for names in ordered]
