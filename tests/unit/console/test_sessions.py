"""The sessions of operators: cookies, their expiry, and sessions that end before their time."""

import pytest

from push1st.console import sessions
from push1st.console.sessions import IDLE_SECONDS, LONGEST_SECONDS, REISSUE_SECONDS, OperatorSessions

NONCE = "0123456789abcdefABCDEF"
NOW = 1_800_000_000.5


@pytest.fixture
def mine() -> OperatorSessions:
    return OperatorSessions(b"k" * 32)


def test_session_is_found_by_every_worker_with_the_same_key(mine):
    session = mine.begin(NONCE, NOW)
    assert OperatorSessions(b"k" * 32).find(mine.value(session), NOW) == session
    assert OperatorSessions(b"K" * 32).find(mine.value(session), NOW) is None


def test_session_expires_without_requests(mine):
    value = mine.value(mine.begin(NONCE, NOW))
    assert mine.find(value, NOW + IDLE_SECONDS - 1)
    assert mine.find(value, NOW + IDLE_SECONDS) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda value: value + "A",
        lambda value: value[:-1],
        lambda value: value.replace(".", "..", 1),
        lambda value: str(int(value.partition(".")[0]) + 1) + "." + value.partition(".")[2],
        lambda value: "9" * 5000 + value,
        lambda value: value.replace("0123", "0124"),
        lambda value: value + "\n",
        lambda value: "\u0661" + value,
        lambda value: value.rpartition(".")[0] + ".",
    ],
)
def test_changed_cookie_is_rejected(mine, change):
    value = mine.value(mine.begin(NONCE, NOW))
    assert mine.find(change(value), NOW) is None


def test_cookie_is_renewed_only_if_it_is_old_enough(mine):
    session = mine.begin(NONCE, NOW)
    assert mine.renewed(session, NOW + REISSUE_SECONDS - 1) is None
    renewed = mine.renewed(session, NOW + REISSUE_SECONDS)
    assert renewed is not None
    assert renewed.nonce == session.nonce
    assert renewed.ends == session.ends
    assert mine.find(mine.value(renewed), NOW + IDLE_SECONDS + 1) == renewed


def test_session_that_is_always_renewed_ends_in_the_end(mine):
    session, now = mine.begin(NONCE, NOW), NOW
    while mine.find(mine.value(session), now):
        now += REISSUE_SECONDS
        session = mine.renewed(session, now) or session
    assert LONGEST_SECONDS <= now - NOW <= LONGEST_SECONDS + REISSUE_SECONDS


def test_ended_session_and_its_renewed_cookies_are_rejected(mine):
    session = mine.begin(NONCE, NOW)
    renewed = mine.renewed(session, NOW + REISSUE_SECONDS)
    mine.end(session.nonce, session.ends, NOW)
    for one in (session, renewed):
        assert mine.find(mine.value(one), NOW + 1) is None
    assert mine.ended == {NONCE: session.ends}


def test_end_of_a_session_is_new_only_once(mine):
    ends = int(NOW) + 100
    assert mine.end(NONCE, ends, NOW)
    assert not mine.end(NONCE, ends, NOW)
    assert not mine.end("too late", int(NOW), NOW)


def test_workers_with_too_many_ended_sessions_forget_the_same_ones(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_ENDED", 3)
    one, other = OperatorSessions(b"k" * 32), OperatorSessions(b"k" * 32)
    for number in range(4):
        one.end(f"one-{number}", int(NOW) + 100, NOW)
        other.end(f"other-{number}", int(NOW) + 100 + number % 2, NOW)
    for mine, others in ((one, other), (other, one)):
        for nonce, ends in others.ended.items():
            mine.end(nonce, ends, NOW)
    assert one.ended == other.ended
    assert not any(one.end(nonce, int(NOW) + 100, NOW) for nonce in (*one.ended, "one-0", "other-0"))


def test_ended_sessions_have_a_bound_and_those_that_expire_first_are_forgotten(mine, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_ENDED", 3)
    for number in range(3):
        mine.end(f"nonce-{number}", int(NOW) + 100 - number, NOW)
    mine.end("later", int(NOW) + 200, NOW)
    assert mine.ended.keys() == {"nonce-0", "nonce-1", "later"}
    mine.end("over", int(NOW), NOW)
    assert "over" not in mine.ended
    mine.end("last", int(NOW) + 400, NOW + 150)
    assert mine.ended.keys() == {"later", "last"}, "sessions that would have ended need no place"
