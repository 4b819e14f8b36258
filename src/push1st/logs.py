"""Logging: events with fields, as text for people, or as one JSON object on each line for machines.

One list of processors handles the events of Push1st's loggers and of libraries such as asyncio, and writes the events to one
stream. The processors mask secrets that a caller logs by accident (invariant 10). `mask_secrets` masks fields whose names end
with a word such as `secret`, and texts such as `token=…` within any value. Some secrets are not found, so callers must
not log secrets.

    log = logs.get(__name__)
    log.info("listening", address="127.0.0.1:6001")
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal, TextIO

from push1st.imports import without
from push1st.printable import printable, printable_lines

# structlog imports rich where that is installed, only for traces that Push1st does not show.
with without("rich"):
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
messages: Counter[str] = Counter()
"""the number of lines that this process has written, by level"""
MASK: Final = "***"
"""the text that replaces a secret"""
DEPTH: Final = 8
"""the number of levels of nested values that an event shows; deeper values are masked"""

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
    """Configures the log. Text on a terminal has colours. A second call changes the configuration.

    `level`: debug, info, warning, error or critical; events below this level are dropped.
    `stream`: the file to which all events are written.
    `worker`: the number of this worker, which is added to each event; None for a process that is not a worker.
    Raises ValueError if `level` is not one of these levels.
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _count, mask_secrets, *render],
        )
    )
    logging.captureWarnings(True)
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(number)


def get(name: str) -> FilteringBoundLogger:
    """Returns the logger of a module: `log.info("event", field=value)`; `log.exception("event")` adds the trace."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


class Seldom:
    """Limits the log lines of a repeated event: the first event gets a line, and later events get at most one line in `seconds`.

    if times := seldom.times(now): log.warning("this happens", times=times)
    """

    __slots__ = ("_at", "_seconds", "_times")

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._at = -math.inf
        self._times = 0

    def times(self, now: float) -> int:
        """Counts one event. Returns 0 if the caller must not log a line now.

        Otherwise returns the number of events since the previous line, including this event.

        `now`: the time in seconds, on a clock that never goes back.
        """
        self._times += 1
        if now - self._at < self._seconds:
            return 0
        self._at = now
        times, self._times = self._times, 0
        return times


def _count(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    messages[event["level"]] += 1
    return event


def _add_worker(number: int, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["worker"] = number
    return event


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor that makes every value of an event representable in JSON, and masks the secrets in the event."""
    return _masked_items(event, DEPTH)


def escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor for logs as text: escapes control characters, so that a client's text cannot forge a line or move the cursor.

    The line ends within a trace are not escaped.
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
