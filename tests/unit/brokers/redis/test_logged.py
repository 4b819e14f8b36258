"""Shards of one broker that say the same in the log."""

from push1st.brokers.redis.logged import SECONDS, LogDedup


def test_what_several_shards_say_at_once_is_new_once():
    logged = LogDedup()
    assert [logged.should_log("away", tag, 5.0) for tag in "abc"] == [True, False, False]


def test_other_words_are_new():
    logged = LogDedup()
    assert [logged.should_log(words, "a", 5.0) for words in ("away", "connected")] == [True, True]


def test_what_a_shard_says_again_is_new():
    logged = LogDedup()
    for tag in "ab":
        logged.should_log("connected", tag, 5.0)
    assert [logged.should_log("connected", tag, 5.1) for tag in "ba"] == [True, False]


def test_what_another_shard_says_later_is_new():
    logged = LogDedup()
    logged.should_log("away", "a", 5.0)
    assert logged.should_log("away", "b", 5.1 + SECONDS)
