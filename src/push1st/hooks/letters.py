"""Dead letters: the events that the server has given up. Pure."""

import msgspec


class Dead(msgspec.Struct, frozen=True):
    """A dead letter.

    app: the id of the app; "" in a letter of an earlier version about an endpoint that was removed.
    endpoint: the URL of the endpoint without its secret parts.
    reason: why the server gave up the events, as in the metric `push1st_hook_events_total`.
    hook: the fingerprint of the endpoint; "" in a letter of an earlier version.
    error: why the endpoint did not accept the events, or other events; "" if no attempt failed.
    """

    at: float
    app: str
    endpoint: str
    reason: str
    events: tuple[msgspec.Raw, ...]
    hook: str = ""
    error: str = ""


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
