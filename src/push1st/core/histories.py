"""Which of an app's channels keep a history. Pure."""

from collections.abc import Callable
from functools import lru_cache

from push1st.channels import kind_of
from push1st.config.history import HistorySection
from push1st.hooks.formats import matcher

MAX_NAMES = 10_000
"""the number of channel names for which the result is stored, because a publish must not match filters each time"""
PUBLIC_REWIND = 100
"""the default of `history.rewind` for public channels; the default for all other channels is 0"""


def histories(sections: tuple[HistorySection, ...]) -> Callable[[str], HistorySection | None] | None:
    """Returns a function that takes a channel's name and returns the settings of the channel's history, or None.

    Returns None in place of the function if the app keeps no history at all.
    """
    if not sections:
        return None
    matchers = [(matcher(section.filter), section) for section in sections]

    def find(channel: str) -> HistorySection | None:
        return next((section for fits, section in matchers if fits(channel)), None)

    return lru_cache(MAX_NAMES)(find)


def rewind_of(section: HistorySection, channel: str) -> int:
    """Returns the maximum number of messages before its subscription that a client may request (`history.rewind`)."""
    if section.rewind is not None:
        return section.rewind
    return PUBLIC_REWIND if kind_of(channel).type == "public" else 0
