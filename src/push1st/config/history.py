"""The settings of an app's history and of the recovery of its clients, as typed, frozen structs."""

import msgspec


class HistorySection(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages of an app's channels the broker keeps. The first section whose filter fits a channel applies.

    filter: prefixes or patterns of channel names, as for `webhooks.filter`. An empty filter means all channels.
    size: the number of messages that the broker keeps for each channel. If there are more messages, the broker drops the oldest.
    ttl: the number of seconds for which the broker keeps the messages of a channel after the last publish on this channel.
    client_events: whether the broker also keeps client events. If it does not, clients do not recover the client events that they
    missed.
    rewind: the maximum number of messages from before its subscription that a raw WebSocket client or an event stream may
    request. The default is 100 for public channels, and 0 for all other channels.
    """

    filter: tuple[str, ...] = ()
    size: int = 100
    ttl: int = 300
    client_events: bool = True
    rewind: int | None = None


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """How long the server keeps the positions of Pusher clients whose URL names a page.

    seconds: the number of seconds for which the broker keeps the positions of a page after the last sign of the page. 0 turns the
    recovery of pages off.
    acknowledge: the number of seconds between two acknowledgements that the server requests from a page whose channels have new
    events. After a subscription that was not recovered, the server requests one within about a second. The number is at most a
    third of `resume.seconds`.
    pages: the maximum number of pages of the app whose positions the broker keeps at the same time. At most a tenth of these
    pages may belong to one client address.
    """

    seconds: int = 300
    acknowledge: int = 10
    pages: int = 100_000


class HistoryBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of all histories in the memory broker, for all apps together.

    bytes: the maximum number of bytes of all kept messages. A message counts as the bytes of its data and 450 more bytes. Above
    this number, the broker drops the history of the channel whose last publish is the oldest.
    channels: the maximum number of channels with a history. Above this number, the broker drops the
    history of the channel whose last publish is the oldest.
    """

    bytes: int = 268_435_456
    channels: int = 100_000
