"""Logs refusals: the text of the answer, and the client or caller that received it.

Refusals are logged only at `log.level: debug`, so that strangers cannot fill the log of a working server; at other levels a call
is one comparison. At most `MAX_LINES` are logged a second, and the next line has the number of lines left out. If a client sent
a secret in place of a key, the answer contains the secret; the log masks it.
"""

import re
from collections.abc import Callable, Iterable

import msgspec

from push1st import logs
from push1st.limits import Bucket
from push1st.messages import Response

MAX_LINES = 20
"""lines a second; further lines are left out and counted"""
SHOWN_KEY = 64
"""characters; an answer that repeats a part of a long key or id repeats at least this many"""

log = logs.get("push1st.refusals")


class Refusals:
    """The refusals of one worker; not logged until `enable`."""

    __slots__ = ("_bucket", "_clock", "_known", "_left_out", "_secrets", "enabled")

    def __init__(self) -> None:
        self.enabled = False

    def enable(self, clock: Callable[[], float], secrets: Iterable[str]) -> None:
        """Begins to log refusals.

        clock: in seconds, which do not go back. secrets: of all apps.
        """
        self.enabled = True
        self._clock = clock
        self._bucket = Bucket(MAX_LINES, clock())
        self._left_out = 0
        self._known: set[str] = set()
        self._secrets: re.Pattern[str] | None = None
        self.mask(*secrets)

    def mask(self, *secrets: str) -> None:
        """Masks further secrets in the log. Earlier secrets stay masked, because clients may still use them."""
        if self.enabled:
            self._known.update(secret[:length] for secret in secrets if secret for length in (None, SHOWN_KEY))
            longest_first = sorted(self._known, key=len, reverse=True)
            self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def log(self, event: str, code: int, reason: str, **where: object) -> None:
        """Logs a refusal. code and reason: the answer. where: fields of the line; those without a value are left out."""
        if not self.enabled:
            return
        if not self._bucket.take(self._clock()):
            self._left_out += 1
            return
        if self._left_out:
            where["left_out"], self._left_out = self._left_out, 0
        fields = {name: self._without_secrets(value) for name, value in where.items() if value}
        log.debug(event, code=code, reason=self._without_secrets(reason), **fields)

    def log_answer(self, event: str, response: Response, **where: object) -> None:
        """Logs a refusal from the HTTP answer, whose JSON body has the reason."""
        if self.enabled:
            self.log(event, int(response.status), msgspec.json.decode(response.body)["error"], **where)

    def _without_secrets(self, value: object) -> object:
        return self._secrets.sub(logs.MASK, value) if self._secrets is not None and isinstance(value, str) else value
