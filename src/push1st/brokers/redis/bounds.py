"""Durations and sizes that several modules of a shard use."""

import msgspec

from push1st.messages import HOLD_SECONDS

MAX_UNSENT_BYTES = 64 << 20
"""the maximum number of bytes that may wait for a slow server; with more bytes, the node ends the connection"""
MAX_EVICTED = 500
"""the maximum number of entries of a dead node that one script call removes;
also the maximum number of deferred leaves that one script call publishes"""
MAX_UNREPORTED = 10_000
"""the maximum number of hook events that a node keeps while the broker is away; each further event replaces the oldest event"""
MAX_TOPICS = 500
"""the maximum number of topics in one SUBSCRIBE command"""


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds. All nodes of a cluster must use the same durations, so no option sets them; only tests shorten them.

    lease: the time for which a node's lease is valid after a renewal; after this time, other nodes may evict the node.
    renew: the time between two renewals of a lease; with each renewal, a node also checks the leases of the other nodes.
    recovery: the time that nodes have to register their entries again, after the Redis or Valkey server has lost its state.
    last_node: the longest time for which a node that stops delivers the remaining hook events, if no other node is alive.
    patience: the longest time for which a call waits for the broker; after this time, the call is rejected.
    silent: the longest time that the Redis server may take for a reply; after this time, the node ends the connection.
    backoff: the longest pause between two attempts to connect.
    moving: the pause before a node repeats a rejected command. The Redis cluster rejects a command while it moves the command's
    keys to another server.
    hold: the time for which the hook event of a leave is held back, because most clients return at once.
    read: the longest time for which one read waits for new hook events; shorter than `read_silent`.
    read_silent: the longest time that a server may take for a reply to the consumer of hook events. This time is shorter than
    `lease`, so that the consumer on one node ends before another node becomes the consumer.
    """

    lease: float = 10.0
    renew: float = 3.0
    recovery: float = 10.0
    last_node: float = 3.0
    patience: float = 5.0
    silent: float = 5.0
    backoff: float = 2.0
    moving: float = 0.1
    hold: float = HOLD_SECONDS
    read: float = 1.0
    read_silent: float = 5.0
