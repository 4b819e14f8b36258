"""Dead letters: the events that the server has given up. Pure."""

import msgspec

MAX_AT = 1e11
"""the maximum time that is accepted from a letter, in seconds; a changed file may contain any number"""


class Dead(msgspec.Struct, frozen=True):
    """A dead letter.

    app: the id of the app; "" in a letter of an earlier version about an endpoint that was removed.
    endpoint: the URL of the endpoint without its secret parts.
    reason: the reason why the server gave up the events, as in the metric `push1st_hook_events_total`.
    hook: the fingerprint of the endpoint; "" in a letter of an earlier version.
    error: the last error of the endpoint; "" if its last attempt succeeded, or if the server made no attempt.
    time_ms: the original time of the events, in milliseconds since 1970. This is the time of the first attempt to deliver the
        events. If there was no attempt, it is the time at which the server queued the events, or, for events that a stopping
        server saved, the time of the stop. A redrive does not change this time. It is 0 in a letter of an earlier version.
    """

    at: float
    app: str
    endpoint: str
    reason: str
    events: tuple[msgspec.Raw, ...]
    hook: str = ""
    error: str = ""
    time_ms: int = 0

    @property
    def original_ms(self) -> int:
        """The original time of the events; for a letter of an earlier version, the time at which it was written."""
        return self.time_ms or int(max(0.0, min(self.at, MAX_AT)) * 1000)


class Letter(msgspec.Struct, frozen=True):
    """A dead letter in the file.

    place: the cursor with which `page` continues before this letter.
    redriven: when the letter was redriven; None if it was not.
    hook: the fingerprint of the endpoint that gets the letter if it is redriven; "" if there is none.
    """

    id: str
    place: str
    dead: Dead
    redriven: float | None
    hook: str


class LetterPage(msgspec.Struct, frozen=True):
    """Letters, newest first.

    next: the cursor with which the next call continues; "" after the oldest letter.
    examined: the number of lines that were examined.
    """

    letters: tuple[Letter, ...]
    next: str
    examined: int
