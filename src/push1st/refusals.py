"""Logs rejections: the text of the error, and the client or API caller that received the error.

Rejections are logged only at `log.level: debug`, so that strangers cannot fill the log of a working server. At other levels,
`Refusals.log` returns at once. At most `MAX_LINES` lines are logged a second; the next logged line contains the number
of omitted lines. If a client sends a secret in place of a key, the error contains the secret, and the log masks the secret.

While an operator watches rejections (`core/tap.py`), the tap gets all of them, also at other levels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from push1st import logs
from push1st.limits import Bucket
from push1st.messages import Response

MAX_LINES = 20
"""the maximum number of lines a second; further lines are omitted and counted"""
SHOWN_KEY = 64
"""if an error shortens a long key or id, at least this number of characters stays; so the log also masks such parts of secrets"""

MAX_START = 8
"""the maximum number of characters by which a secret is found in a text"""

log = logs.get("push1st.refusals")


class RefusalTap(Protocol):
    """Shows rejections to operators."""

    def refused(self, event: str, code: int, reason: str, where: Mapping[str, Any], mask: Callable[[Any], Any]) -> None:
        """Shows a rejection.

        event, code, reason, where: the arguments of `Refusals.log`. They may contain secrets.
        mask: a function that removes secrets from a value.
        """


class Secrets:
    """The secrets that are masked in texts. A text is compared only with secrets that begin with the same characters."""

    __slots__ = ("_known", "_size", "_starts")

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._size = MAX_START
        self._starts: dict[str, list[int]] = {}
        """the lengths of the secrets by their first `_size` characters, the greatest first"""

    def add(self, secrets: Iterable[str]) -> None:
        new = {secret[:length] for secret in secrets if secret for length in (None, SHOWN_KEY)} - self._known
        self._known |= new
        shortest = min(map(len, new), default=self._size)
        if shortest < self._size:
            self._size, self._starts, new = shortest, {}, self._known
        for secret in new:
            lengths = self._starts.setdefault(secret[: self._size], [])
            if len(secret) not in lengths:
                lengths.append(len(secret))
                lengths.sort(reverse=True)

    def mask(self, value: Any) -> Any:
        """Returns a text without the secrets; returns other values unchanged."""
        if not self._known or not isinstance(value, str):
            return value
        size, starts = self._size, self._starts
        parts, done = [], 0
        for at in [at for at in range(len(value) - size + 1) if value[at : at + size] in starts]:
            for length in starts[value[at : at + size]] if at >= done else ():
                if value[at : at + length] in self._known:
                    parts += [value[done:at], logs.MASK]
                    done = at + length
                    break
        return "".join((*parts, value[done:])) if parts else value


class Refusals:
    """Logs the rejections of one worker, but logs nothing before `enable` is called."""

    __slots__ = ("_bucket", "_clock", "_left_out", "_secrets", "enabled", "tap")

    def __init__(self) -> None:
        self.enabled = False
        self.tap: RefusalTap | None = None
        self._secrets: Secrets | None = None
        """the secrets of all apps; None until something is logged or watched"""

    def enable(self, clock: Callable[[], float], secrets: Iterable[str]) -> None:
        """Begins to log rejections.

        `clock`: a function that returns seconds on a clock that does not go back.
        `secrets`: the secrets of all apps.
        """
        self.enabled = True
        self._clock = clock
        self._bucket = Bucket(MAX_LINES, clock())
        self._left_out = 0
        self._hide(secrets)

    def watch(self, tap: RefusalTap | None, secrets: Iterable[str]) -> None:
        """Begins to pass the rejections to a tap, or ends this. `secrets`: the secrets of all apps."""
        self.tap = tap
        if tap is not None:
            self._hide(secrets)

    def _hide(self, secrets: Iterable[str]) -> None:
        if self._secrets is None:
            self._secrets = Secrets()
        self._secrets.add(secrets)

    def mask(self, *secrets: str) -> None:
        """Masks further secrets in the log. Earlier secrets stay masked, because clients may still send earlier secrets."""
        if self._secrets is not None:
            self._secrets.add(secrets)

    def log(self, event: str, code: int, reason: str, **where: object) -> None:
        """Logs a rejection.

        `code`, `reason`: the code and the text of the error.
        `where`: further fields of the line; fields without a value are omitted.
        """
        if self.tap is not None:
            assert self._secrets is not None
            self.tap.refused(event, code, reason, where, self._secrets.mask)
        if not self.enabled:
            return
        assert self._secrets is not None
        if not self._bucket.take(self._clock()):
            self._left_out += 1
            return
        if self._left_out:
            where["left_out"], self._left_out = self._left_out, 0
        fields = {name: self._secrets.mask(value) for name, value in where.items() if value}
        log.debug(event, code=int(code), reason=self._secrets.mask(reason), **fields)

    def log_answer(self, event: str, response: Response, **where: object) -> None:
        """Writes a log line about a rejected request. The JSON body of `response` contains the reason."""
        if self.enabled or self.tap is not None:
            self.log(event, int(response.status), msgspec.json.decode(response.body)["error"], **where)
