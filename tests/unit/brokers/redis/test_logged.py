"""Equal log texts of several shards of one broker."""

from push1st.brokers.redis.logged import SECONDS, LogDedup


def test_same_text_of_several_shards_is_logged_once():
    logged = LogDedup()
    assert [logged.should_log("away", tag, 5.0) for tag in "abc"] == [True, False, False]


def test_another_text_is_logged():
    logged = LogDedup()
    assert [logged.should_log(words, "a", 5.0) for words in ("away", "connected")] == [True, True]


def test_repeated_text_of_one_shard_is_logged():
    logged = LogDedup()
    for tag in "ab":
        logged.should_log("connected", tag, 5.0)
    assert [logged.should_log("connected", tag, 5.1) for tag in "ba"] == [True, False]


def test_later_text_of_another_shard_is_logged():
    logged = LogDedup()
    logged.should_log("away", "a", 5.0)
    assert logged.should_log("away", "b", 5.1 + SECONDS)
