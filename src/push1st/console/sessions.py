"""The sessions of the console: values of cookies that every worker can check without shared state.

A value is `ENDS.EXPIRES.NONCE.HMAC`. The key of the HMAC is derived from the hash of the password, so a new password ends all
sessions. A session expires after `IDLE_SECONDS` without a request, and ends after `LONGEST_SECONDS`. This module knows no clock.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping

import msgspec

from push1st import auth

IDLE_SECONDS = 30 * 60
REISSUE_SECONDS = 5 * 60
"""the age of a cookie from which an answer contains a new cookie"""
LONGEST_SECONDS = 12 * 3600
MAX_ENDED = 10_000
"""the maximum number of ended sessions that a worker remembers until they would have expired"""
_VALUE = re.compile(r"([0-9]{1,12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{16,64})\.([A-Za-z0-9_-]{43})\Z")


class OperatorSession(msgspec.Struct, frozen=True):
    """A session of an operator.

    expires: the time at which the session expires without a further request, in seconds since 1970.
    ends: the time at which the session ends in any case.
    """

    nonce: str
    expires: int
    ends: int


class OperatorSessions:
    """The sessions of a console. `key`: the key that signs the cookies; it is the same on all workers and machines."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._ended: dict[str, int] = {}
        """the nonces of sessions that ended early, each with the time at which it would have ended"""

    @property
    def ended(self) -> Mapping[str, int]:
        """The nonces of the sessions that ended before their time, each with the time at which it would have ended."""
        return self._ended

    def begin(self, nonce: str, now: float) -> OperatorSession:
        return OperatorSession(nonce, int(now) + IDLE_SECONDS, int(now) + LONGEST_SECONDS)

    def value(self, session: OperatorSession) -> str:
        """Returns the value of a session's cookie."""
        text = f"{session.ends}.{session.expires}.{session.nonce}"
        return f"{text}.{self._mac(text)}"

    def find(self, value: str, now: float) -> OperatorSession | None:
        """Returns the session of a cookie; None if the cookie is forged, or its session has expired or ended."""
        found = _VALUE.match(value)
        if found is None or not auth.equal(self._mac(value.rpartition(".")[0]), found[4]):
            return None
        session = OperatorSession(found[3], int(found[2]), int(found[1]))
        if now >= min(session.expires, session.ends) or session.nonce in self._ended:
            return None
        return session

    def renewed(self, session: OperatorSession, now: float) -> OperatorSession | None:
        """Returns the session with a later time of expiry; None if its cookie is not old enough."""
        expires = min(int(now) + IDLE_SECONDS, session.ends)
        if expires - session.expires < REISSUE_SECONDS:
            return None
        return msgspec.structs.replace(session, expires=expires)

    def end(self, nonce: str, ends: int, now: float) -> bool:
        """Ends a session on this worker. Returns whether the worker did not know yet that the session has ended.

        If the bound is reached, the session that expires first is forgotten, and is not accepted from another worker again.

        ends: the time at which the session would end in any case.
        """
        if ends <= now or nonce in self._ended:
            return False
        if len(self._ended) >= MAX_ENDED:
            self._ended = {one: until for one, until in self._ended.items() if until > now}
        if len(self._ended) >= MAX_ENDED:
            until, first = min((until, one) for one, until in self._ended.items())
            if (ends, nonce) < (until, first):
                return False
            del self._ended[first]
        self._ended[nonce] = ends
        return True

    def _mac(self, text: str) -> str:
        digest = hmac.digest(self._key, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
