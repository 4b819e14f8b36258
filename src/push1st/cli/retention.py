"""Describes, for `push1st check`, the messages that apps keep as history, and settings that prevent recovery. Pure."""

from collections.abc import Iterator

from push1st.brokers.history import MESSAGE_BYTES
from push1st.config.history import HistorySection
from push1st.config.model import AppConfig, Config


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
    """Yields a line for each section of a history that does not apply, or with which clients often cannot recover."""
    for app in config.apps:
        if app.enable:
            yield from _notes(app, config.server.outbox)


def _notes(app: AppConfig, outbox: int) -> Iterator[str]:
    covering = ""
    for number, section in enumerate(app.history, 1):
        here = f"{app.id}: history section {number} ({_channels(section)})"
        if covering:
            yield f"{here}: the section does not apply, because {covering} before it applies to all channels"
            continue
        if not section.filter or "*" in section.filter:
            covering = f"section {number}"
        window = app.resume.seconds
        if section.ttl < window:
            yield (
                f"{here}: ttl is {section.ttl} s, but resume.seconds is {window} s: "
                "a page that returns later than the ttl often cannot recover such a channel"
            )
        largest = section.size * (app.limits.payload + MESSAGE_BYTES)
        if largest > outbox // 4:
            yield (
                f"{here}: {section.size} events of the size limits.payload have {readable(largest)}: the server rejects a replay "
                f"above {readable(outbox // 4)}, a quarter of server.outbox, with the reason too-large"
            )


def readable(size: int) -> str:
    """Returns a number of bytes for people, in decimal units."""
    for unit, factor in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
