"""Durations and sizes that several parts of a shard share."""

import msgspec

from push1st.messages import HOLD_SECONDS

MAX_UNSENT_BYTES = 64 << 20
"""bytes queued for a slow server, after which its connection counts as lost; leaves are queued even if publishes are not"""
MAX_EVICTED = 500
"""entries of a dead node, or deferred leaves, that one call of a script handles"""
MAX_UNREPORTED = 10_000
"""hook events that wait for the broker; more push out the oldest"""
MAX_TOPICS = 500
"""topics in one SUBSCRIBE command"""


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds. No option sets them: a cluster works only if they agree, and tests shorten them.

    lease: time after a node's last renewal until other nodes may evict its entries.
    renew: time between two renewals of a lease; each renewal also looks for nodes without a lease.
    recovery: time for all nodes to register their entries again after the server lost them; leaves are published after it.
    last_node: time for the last node of a cluster to deliver the remaining hook events when the node stops.
    patience: time for which a call waits until the broker can be used; then the call is rejected.
    silent: time without a reply after which the connection counts as lost.
    backoff: longest pause between two attempts to connect.
    moving: pause between two attempts of a command while a cluster moves its slot.
    hold: time for which a leaving edge is held back from hooks.
    read: time for which one read waits for hook events; shorter than the time that makes a server silent.
    read_silent: time without a reply after which the consumer of hook events ends its connection. It is shorter than the lease,
    so that a consumer ends before another node takes over.
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
