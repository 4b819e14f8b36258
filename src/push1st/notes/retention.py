"""Describes the messages that apps keep as history, and settings that prevent recovery. Pure."""

from collections.abc import Iterator, Sequence

from push1st.brokers.history import MESSAGE_BYTES
from push1st.config.history import HistorySection
from push1st.config.model import AppConfig, Config, ServerConfig, some
from push1st.hooks.formats import matcher
from push1st.limits import Limits
from push1st.printable import readable


def lines(app: AppConfig) -> list[str]:
    """Returns a line for each section of an app's history, and a line about the recovery of pages."""
    if not app.history:
        return []
    seconds = app.resume.seconds
    pages = f"keeps the positions of pages for {seconds} s" if seconds else "does not keep the positions of pages"
    return [*(_line(section, app.limits.payload) for section in app.history), pages]


def _line(section: HistorySection, payload: int) -> str:
    events = "events" if section.client_events else "events without client events"
    most = readable(section.size * (payload + MESSAGE_BYTES))
    return f"keeps {section.size} {events} for {section.ttl} s on {_channels(section)}: at most {most} for each channel"


def _channels(section: HistorySection) -> str:
    return ", ".join(section.filter) or "all channels"


def notes(config: Config) -> Iterator[str]:
    """Yields a line for each section of a history that does not apply, or with which clients often cannot recover.

    Apps with the same sections share their lines.
    """
    alike: dict[str, list[str]] = {}
    for app in config.apps:
        if app.enable:
            for text in _notes(app, config.server.outbox):
                alike.setdefault(text, []).append(app.id)
    for text, ids in alike.items():
        yield f"{some(ids)}: {text}"


def _notes(app: AppConfig, outbox: int) -> Iterator[str]:
    for number, section in enumerate(app.history, 1):
        here = f"history section {number} ({_channels(section)})"
        if covering := _covering(section, app.history[: number - 1]):
            yield f"{here} has no effect, because {covering} already has all its channels: remove it, or put it first"
            continue
        window = app.resume.seconds
        if section.ttl < window:
            yield (
                f"{here} keeps events for {section.ttl} s only, but pages may return after {window} s (resume.seconds), and "
                f"would then miss events: set ttl to {window} or more"
            )
        largest = section.size * (app.limits.payload + MESSAGE_BYTES)
        is_changed = (
            section.size > HistorySection().size or app.limits.payload > Limits().payload or outbox < ServerConfig().outbox
        )
        if is_changed and largest > outbox // 4:  # with the defaults, few events are so large
            yield (
                f"{here} may keep up to {readable(largest)} a channel, but a client that returns gets at most "
                f"{readable(outbox // 4)} of it (a quarter of server.outbox); if it missed more, the server answers "
                "too-large, and it must load its data again: raise server.outbox, or lower limits.payload or the section's size"
            )


def _covering(section: HistorySection, earlier: Sequence[HistorySection]) -> str:
    """Returns the earlier sections that apply to all channels of a section, as text; "" if they do not apply to all its channels.

    To compare two sections, the function passes the text of each filter of the later section (a prefix gets a `*`) to the matcher
    of the earlier section. If this text matches, the earlier section matches every name that the later filter matches.
    """
    fits = [matcher(one.filter) for one in earlier]
    texts = [filter if "*" in filter else filter + "*" for filter in section.filter or ("",)]
    found = [next((number for number, fit in enumerate(fits, 1) if fit(text)), 0) for text in texts]
    return " or ".join(f"section {number}" for number in sorted(set(found))) if all(found) else ""
