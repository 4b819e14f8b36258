"""The channels with a history that have subscribers on this node, and the renewal of the counters of these channels.

A channel without messages has a counter that expires soon. A client that lost its connection could not resume such a channel. So
the nodes with subscribers of a channel renew the channel's counter.
"""

from collections.abc import Iterator

from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.keys import ChannelKey
from push1st.brokers.redis.resp import Argument
from push1st.brokers.redis.scripts import RENEW_COUNTERS
from push1st.positions import Position

MIN_CHECKED = 500
"""the minimum number of channels whose counters one call of `tick` checks, if there are so many"""
ROUND_CALLS = 20
"""the number of calls of `tick` in which the counters of all channels are checked"""


class FollowedChannel:
    """A channel with a history and with subscribers on this node.

    epoch, last: the position of the last message that this node has received.
    counter_seconds: the seconds for which the broker keeps the counter of the channel without messages.
    renews_at: the time (loop's clock) from which the counter is renewed.
    """

    __slots__ = ("counter_seconds", "epoch", "last", "renews_at")

    def __init__(self, position: Position, counter_seconds: int) -> None:
        self.epoch = position.epoch
        self.last = position.offset
        self.counter_seconds = counter_seconds
        self.renews_at = 0.0


class Following:
    """See the module."""

    def __init__(self, connection: ShardConnection) -> None:
        self._connection = connection
        self.channels: dict[ChannelKey, FollowedChannel] = {}
        self._unchecked: Iterator[ChannelKey] = iter(())
        """the channels that `tick` has not checked yet in its current round"""

    def begin(self, key: ChannelKey, position: Position, counter_seconds: int) -> None:
        """Follows a channel from the position at which a subscriber joined. Repeating the call changes nothing."""
        followed = self.channels.get(key)
        if followed is None:
            self.channels[key] = FollowedChannel(position, counter_seconds)

    def end(self, key: ChannelKey) -> None:
        """Ends the following of a channel that has no more subscribers here."""
        self.channels.pop(key, None)

    def tick(self, now: float) -> None:
        """Renews the counters that are due, of some of the channels. Called once a second. `now`: the loop's clock."""
        resp = self._connection.registered_on
        if resp is None or not self.channels:
            return
        arguments: list[Argument] = []
        for _ in range(max(MIN_CHECKED, len(self.channels) // ROUND_CALLS + 1)):
            key = next(self._unchecked, None)
            if key is None:
                self._unchecked = iter(tuple(self.channels))
                break
            followed = self.channels.get(key)
            if followed is not None and followed.renews_at <= now:
                followed.renews_at = now + followed.counter_seconds / 4
                arguments += *key, followed.counter_seconds * 1000
        for at in range(0, len(arguments), 3 * MIN_CHECKED):
            self._connection.send(resp, RENEW_COUNTERS, self._connection.check, *arguments[at : at + 3 * MIN_CHECKED])
