"""The number of an app's connections."""

import pytest

from push1st.messages import Subscribe
from tests.support.node import app_config


@pytest.mark.parametrize("key", [False, True])
def test_connections_with_and_without_subscriptions_are_counted(caller, key):
    assert caller.get("connections", key=key) == (200, {"connections": 0})
    one, _ = caller.world.session()
    two, _ = caller.world.session()
    one.handle(Subscribe("c"))
    assert caller.get("connections", key=key) == (200, {"connections": 2})
    two.expire()
    assert caller.get("connections", key=key) == (200, {"connections": 1})


def test_untrusted_caller_must_sign(caller):
    caller.trusted = False
    assert caller.get("connections")[0] == 401
    assert caller.get("connections", key=True)[0] == 200


def test_calls_count_towards_the_limit_of_reads(calling):
    caller = calling(app_config({"reads": 2}))
    assert [caller.get("connections")[0] for _ in range(3)] == [200, 200, 429]
