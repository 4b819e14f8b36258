"""Logs rejections: the text of the error, and the client or API caller that received the error.

Rejections are logged only at `log.level: debug`, so that strangers cannot fill the log of a working server. At other levels,
`Refusals.log` returns at once. At most `MAX_LINES` lines are logged a second; the next logged line contains the number
of omitted lines. If a client sends a secret in place of a key, the error contains the secret, and the log masks the secret.
"""

import re
from collections.abc import Callable, Iterable

import msgspec

from push1st import logs
from push1st.limits import Bucket
from push1st.messages import Response

MAX_LINES = 20
"""the maximum number of lines a second; further lines are omitted and counted"""
SHOWN_KEY = 64
"""if an error shortens a long key or id, at least this number of characters stays; so the log also masks such parts of secrets"""

log = logs.get("push1st.refusals")


class Refusals:
    """Logs the rejections of one worker, but logs nothing before `enable` is called."""

    __slots__ = ("_bucket", "_clock", "_known", "_left_out", "_secrets", "enabled")

    def __init__(self) -> None:
        self.enabled = False

    def enable(self, clock: Callable[[], float], secrets: Iterable[str]) -> None:
        """Begins to log rejections.

        `clock`: a function that returns seconds on a clock that does not go back.
        `secrets`: the secrets of all apps.
        """
        self.enabled = True
        self._clock = clock
        self._bucket = Bucket(MAX_LINES, clock())
        self._left_out = 0
        self._known: set[str] = set()
        self._secrets: re.Pattern[str] | None = None
        # The pattern of all known secrets; None if it is outdated. The next line of the log renews it, so that a reload that
        # changes thousands of apps does not renew it for each app.
        self.mask(*secrets)

    def mask(self, *secrets: str) -> None:
        """Masks further secrets in the log. Earlier secrets stay masked, because clients may still send earlier secrets."""
        if self.enabled:
            new = {secret[:length] for secret in secrets if secret for length in (None, SHOWN_KEY)} - self._known
            if new:
                self._known |= new
                self._secrets = None

    def log(self, event: str, code: int, reason: str, **where: object) -> None:
        """Logs a rejection.

        `code`, `reason`: the code and the text of the error.
        `where`: further fields of the line; fields without a value are omitted.
        """
        if not self.enabled:
            return
        if not self._bucket.take(self._clock()):
            self._left_out += 1
            return
        if self._left_out:
            where["left_out"], self._left_out = self._left_out, 0
        fields = {name: self._without_secrets(value) for name, value in where.items() if value}
        log.debug(event, code=int(code), reason=self._without_secrets(reason), **fields)

    def log_answer(self, event: str, response: Response, **where: object) -> None:
        """Writes a log line about a rejected request. The JSON body of `response` contains the reason."""
        if self.enabled:
            self.log(event, int(response.status), msgspec.json.decode(response.body)["error"], **where)

    def _without_secrets(self, value: object) -> object:
        if not self._known or not isinstance(value, str):
            return value
        if self._secrets is None:
            self._secrets = re.compile("|".join(map(re.escape, sorted(self._known, key=len, reverse=True))))
        return self._secrets.sub(logs.MASK, value)
