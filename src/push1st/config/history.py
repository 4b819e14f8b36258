"""The settings of an app's history and of the recovery of its clients, as typed, frozen structs."""

import msgspec


class HistorySection(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages of an app's channels the broker keeps. The first section whose filter fits a channel applies.

    filter: prefixes or patterns of channel names, as for a webhook. An empty filter means all channels.
    size: the number of messages that the broker keeps for a channel.
    ttl: the seconds for which the broker keeps the messages, after the last publish on the channel.
    client_events: whether the broker also keeps client events.
    rewind: the maximum number of messages before its subscription that a client may request. The default is 100 for public
    channels, and 0 for all other channels.
    """

    filter: tuple[str, ...] = ()
    size: int = 100
    ttl: int = 300
    client_events: bool = True
    rewind: int | None = None


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """How long the server keeps the positions of Pusher clients whose URL names a page.

    seconds: how long the positions are kept after the last sign of the page; 0 turns the recovery of pages off.
    acknowledge: the seconds between two acknowledgements that the server requests from a page.
    pages: the maximum number of pages of the app whose positions the broker keeps.
    """

    seconds: int = 300
    acknowledge: int = 10
    pages: int = 100_000


class HistoryBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of all histories in the memory broker, for all apps together.

    bytes: the maximum number of bytes of the kept messages.
    channels: the maximum number of channels with kept messages.
    """

    bytes: int = 268_435_456
    channels: int = 100_000
