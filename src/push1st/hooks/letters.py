"""Dead letters: the events that the server has given up. Pure."""

import msgspec

MAX_AT = 1e11
"""the greatest time in a letter, in seconds: somebody may have changed the file"""


class Dead(msgspec.Struct, frozen=True):
    """A dead letter.

    app: the id of the app; "" in a letter of an earlier version about an endpoint that was removed.
    endpoint: the URL of the endpoint without its secret parts.
    reason: why the server gave up the events, as in the metric `push1st_hook_events_total`.
    hook: the fingerprint of the endpoint; "" in a letter of an earlier version.
    error: why the endpoint did not accept the events, or other events; "" if no attempt failed.
    time_ms: when the server first tried to deliver the events, or else when it queued them, in milliseconds since 1970.
    A redrive does not change this time. It is 0 in a letter of an earlier version.
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
        """The time of the events; for a letter of an earlier version, when the server gave the events up."""
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
