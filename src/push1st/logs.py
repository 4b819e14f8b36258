"""Logging: events with fields, as text for people or as JSON, one object a line, for machines.

It must not know who logs what. Our own loggers and those of libraries (asyncio, warnings, …) go one way: through one list
of processors into one stream. What is rendered holds no secret, so that no caller has to remember to take them out
(invariant 10): fields named like one are masked, and so are `token=…`, `auth=…` and the like within any text, be it a
logged URL or a traceback. Best effort against accidents, no licence to log secrets.

    log = logs.get(__name__)
    log.info("listening", address="127.0.0.1:6001")
"""

import logging
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from push1st.printable import printable, printable_lines

MASK: Final = "***"
"""what stands in place of a secret"""
DEPTH: Final = 8
"""levels of nested values that are shown"""

_SECRET_NAMES: Final = ("secret", "token", "auth", "authorization", "password", "signature")
_SECRET_TEXT = re.compile(
    r"""
    ((?: secret | token | auth | auth_signature | authorization | password ) [\\"']* \s* [=:] \s*)  # of a query, JSON, a header
    (?: "(?: [^"\\] | \\. )*"?
      | '(?: [^'\\] | \\. )*'?
      | (?P<quote> \\+["'] ) .*? (?: (?P=quote) | \Z )                                              # JSON within JSON
      | (?: (?: bearer | basic ) \s+ )? [^\s&"'<>]+
    )
    | ( :// [^/\s:@]* : ) [^/\s@]+ (?= @ )                                                          # redis://user:password@host
    | (?<! [A-Za-z0-9_-] ) eyJ [A-Za-z0-9_-]+ \. [A-Za-z0-9_-]+ \. [A-Za-z0-9_-]*                   # a JWT
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def setup(format: Literal["text", "json"], level: str, stream: TextIO, worker: int | None = None) -> None:
    """From here on everything that is logged goes to `stream`, in colour if that is a terminal and `format` is text.

    level: debug, info, warning, error or critical, in any case; what is below it is dropped. Raises ValueError for another.
    worker: a number that stands in each event. May be called again.
    """
    try:
        number = logging.getLevelNamesMapping()[level.upper()]
    except KeyError:
        raise ValueError(f"log level {level!r} is none of debug, info, warning, error, critical") from None
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    if worker is not None:
        shared.append(partial(_add_worker, worker))
    render: list[Processor] = [structlog.processors.JSONRenderer()]
    if format == "text":
        console = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        render = [escape_controls, console]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, mask_secrets, *render],
        )
    )
    logging.captureWarnings(True)
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(number)


def get(name: str) -> FilteringBoundLogger:
    """The logger of a module: `log.info("event", field=value)`; `log.exception("event")` adds the trace."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


class Seldom:
    """Limits the log lines of a repeated event: the first one is logged at once, later ones at most once in `seconds`.

    if times := seldom.times(now): log.warning("this happens", times=times)
    """

    __slots__ = ("_at", "_seconds", "_times")

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._at = -math.inf
        self._times = 0

    def times(self, now: float) -> int:
        """Counts one event; returns the number of events since the last line if a new line is due, else 0.

        now: seconds that never go back.
        """
        self._times += 1
        if now - self._at < self._seconds:
            return 0
        self._at = now
        times, self._times = self._times, 0
        return times


def _add_worker(number: int, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["worker"] = number
    return event


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: every value becomes something JSON can hold, without the secrets in it."""
    return _masked_items(event, DEPTH)


def escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor for text: what a client sent can neither begin a new line in the log nor move a terminal's cursor.

    Traces keep their lines.
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable_lines(value) if name in ("exception", "stack") else printable(value)
    return event


def _masked_items(items: Mapping[str, object], depth: int) -> dict[str, object]:
    return {
        str(name): MASK if str(name).lower().endswith(_SECRET_NAMES) else _masked(value, depth - 1)
        for name, value in items.items()
    }  # fmt: skip


def _masked(value: object, depth: int) -> object:
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth <= 0:
            return MASK
        return _masked_items(value, depth) if isinstance(value, Mapping) else [_masked(item, depth - 1) for item in value]
    return _SECRET_TEXT.sub(_mask, value if isinstance(value, str) else repr(value))


def _mask(found: re.Match[str]) -> str:
    return f"{found[1] or found[3] or ''}{MASK}"
