"""The limits of an app, and the token bucket that enforces limits per second.

The defaults are those of Pusher (Pusher protocol, section 8). If Pusher has no limit and one client could exhaust the server,
the default is far above the needs of an honest client. In some fields 0 means unlimited; their docstrings mention it.
"""

import msgspec


class Limits(msgspec.Struct, frozen=True, rename="kebab"):
    """The limits of one app."""

    connections: int = 0
    """open connections; 0: unlimited"""
    subscriptions: int = 5_000
    """subscriptions of one connection, each of which needs 1.1 KB; 0: unlimited"""
    members: int = 100
    """users on a presence channel; 0: unlimited"""
    payload: int = 10_240
    """bytes of an event's `data`"""
    channel_name: int = 164
    """characters of a channel name under Pusher's rule"""
    event_name: int = 200
    """characters of an event name"""
    channels_per_event: int = 100
    """channels in one publish"""
    batch: int = 10
    """events in one batch"""
    client_events: int = 10
    """client events per second and connection; 0: unlimited"""
    publishes: int = 0
    """API events per second; 0: unlimited"""
    reads: int = 0
    """API reads per second; 0: unlimited"""


class Bucket:
    """A token bucket: it admits `rate` units a second, and a burst of as many units.

    `take` gets the time in seconds from its caller, on a clock that does not go back.
    """

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at = now

    def take(self, now: float, cost: int = 1) -> bool:
        """Takes `cost` units, if the bucket has as many; returns whether it has."""
        if now > self._at:
            self._left = min(float(self._rate), self._left + (now - self._at) * self._rate)
            self._at = now
        if self._left < cost:
            return False
        self._left -= cost
        return True
