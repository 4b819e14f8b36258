"""The server of a shard: what a node reports if it cannot connect to one."""

import pytest

from push1st.brokers.redis.servers import Unusable, connect
from push1st.config.brokerurl import parse


@pytest.mark.parametrize("url", ["redis://a..b:1", "redis+sentinel://a..b:1/m", "redis+cluster://a..b:1"])
async def test_host_name_that_cannot_be_looked_up_is_unusable(url: str) -> None:
    """The node retries after `Unusable`, and its log and its error show the reason."""
    with pytest.raises(Unusable, match=r"'a\.\.b' is not a host name: .*label empty or too long"):
        await connect(parse(url), "0", "node", lambda _: None, lambda: None)
