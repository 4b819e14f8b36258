"""Durations and sizes that several parts of a shard share."""

LEASE_SECONDS = 10.0
"""time after a node's last renewal until other nodes may evict its entries"""
RENEW_SECONDS = 3.0
"""time between two renewals of a lease; each renewal also looks for nodes without a lease"""
RECOVERY_SECONDS = 10.0
"""time for all nodes to register their entries again after the server lost them; leaves are published after this time"""
LAST_NODE_SECONDS = 3
"""time for the last node of a cluster to deliver the remaining hook events when the node stops"""
PATIENCE_SECONDS = 5
"""time for which a call waits until the broker can be used; then the call is rejected"""
SILENT_SECONDS = 5
"""time without a reply after which the connection counts as lost"""
BACKOFF_SECONDS = 2
"""longest pause between two attempts to connect"""
MOVING_SECONDS = 0.1
"""pause between two attempts of a command while a cluster moves its slot"""
MAX_UNSENT_BYTES = 64 << 20
"""bytes queued for a slow server, after which its connection counts as lost; leaves are queued even if publishes are not"""
MAX_EVICTED = 500
"""entries of a dead node, or deferred leaves, that one call of a script handles"""
MAX_UNREPORTED = 10_000
"""hook events that wait for the broker; more push out the oldest"""
MAX_TOPICS = 500
"""topics in one SUBSCRIBE command"""
