"""The limits of an app, and the token bucket that enforces limits per second.

The default limits are Pusher's limits (Pusher protocol, section 8). Push1st adds a limit where Pusher has none but a single
client could overload the server. The default of such a limit is far above the needs of an honest client.
"""

import msgspec


class Limits(msgspec.Struct, frozen=True, rename="kebab"):
    """The limits of one app."""

    connections: int = 0
    """the maximum number of open connections; 0 stands for unlimited"""
    subscriptions: int = 5_000
    """the maximum number of subscriptions of a connection; each subscription needs 1.1 KB of memory; 0 stands for unlimited"""
    members: int = 100
    """the maximum number of users on a presence channel; 0 stands for unlimited"""
    payload: int = 10_240
    """the maximum number of bytes of an event's `data`"""
    channel_name: int = 164
    """the maximum number of characters of a channel name, for Pusher clients and signed API calls"""
    event_name: int = 200
    """the maximum number of characters of an event name"""
    channels_per_event: int = 100
    """the maximum number of channels to which one API call publishes an event"""
    batch: int = 10
    """the maximum number of events in one batch"""
    client_events: int = 10
    """the maximum number of client events a second from one connection; 0 stands for unlimited"""
    publishes: int = 0
    """the maximum number of events that API calls publish in a second; 0 stands for unlimited"""
    reads: int = 0
    """the maximum number of API calls in a second that only read data; 0 stands for unlimited"""


class Bucket:
    """A token bucket: it admits `rate` units a second on average, and at most `rate` units in one moment.

    The callers of `take` pass the time in seconds, on a clock that does not go back.
    """

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._left = float(rate)
        self._at = now

    def take(self, now: float, cost: int = 1) -> bool:
        """Takes `cost` units if the bucket has at least `cost` units; returns whether the units were taken."""
        if now > self._at:
            self._left = min(float(self.rate), self._left + (now - self._at) * self.rate)
            self._at = now
        if self._left < cost:
            return False
        self._left -= cost
        return True

    def charge(self, now: float, cost: float) -> None:
        """Takes `cost` units, also if the bucket has less. Then `take` takes none until the bucket has earned the rest."""
        self.take(now, 0)
        self._left -= cost
