"""Which channels of an app keep a history."""

import pytest

from push1st.config.history import HistorySection
from push1st.core.histories import histories, rewind_of


def test_an_app_without_sections_keeps_no_history():
    assert histories(()) is None


def test_the_first_section_whose_filter_fits_applies():
    chat, rest = HistorySection(filter=("chat-", "*-room")), HistorySection(filter=("private-",))
    find = histories((chat, rest))
    assert find is not None
    assert [find(name) for name in ("chat-1", "private-chat-1", "private-room", "x-room", "other")] == [
        chat,
        rest,
        chat,
        chat,
        None,
    ]


def test_a_section_without_a_filter_fits_all_channels():
    section = HistorySection()
    find = histories((section,))
    assert find is not None
    assert find("#server-to-user-ann") is section


@pytest.mark.parametrize(
    ("channel", "rewind"), [("c", 100), ("cache-c", 100), ("private-c", 0), ("presence-c", 0), ("protected-c", 0)]
)
def test_clients_may_rewind_public_channels_only_unless_the_section_allows_more(channel, rewind):
    assert rewind_of(HistorySection(), channel) == rewind
    assert rewind_of(HistorySection(rewind=7), channel) == 7
    assert rewind_of(HistorySection(rewind=0), channel) == 0
