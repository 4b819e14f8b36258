"""The states of a shard's connection as a table: state and event → next state and actions. Pure.

During a failover, the state changes from READY to AWAY, REGISTERING, GATED and READY again. While the state is GATED, the node
does not publish, because other living nodes may not be subscribed to their topics on the new server. An event that is published
in this state would be acknowledged, but would not reach the clients of these nodes.

If the server only lost the node's lease, or its own state, the node stays connected and subscribed. So a node that was READY
still publishes while it registers again.

`connection.py` applies the table. A `ConnectionEvent` without a row for the current state changes nothing. For example, the
server may reject several commands because the same lease has expired. Only the first of these error replies changes the state.
"""

from enum import Enum


class ConnectionState(Enum):
    """The states of a shard's connection. A state determines the commands that the node may send."""

    AWAY = "no connection"
    REGISTERING = "connected: the node registers, subscribes to its topics, and compares its entries"
    GATED = "registered: commands are sent, publishes wait until all other living nodes are subscribed to their topics"
    READY = "registered: commands and publishes are sent"
    GATED_NO_LEASE = "the lease or the state is lost: the node registers again on the same connection"
    READY_NO_LEASE = "the lease or the state is lost: the node registers again, and publishes are still sent"
    CLOSED = "the node stops"


class ConnectionEvent(Enum):
    """The events that may change the state of a shard's connection."""

    CONNECTED = "a server accepted the connection and has the scripts"
    REGISTERED = "the server has the node's lease and its entries are compared"
    REJECTED = "registration failed by an error reply that another connection would receive as well"
    FAILED = "connecting or registering failed for another reason"
    ALL_SUBSCRIBED = "no other living node is missing, or the longest wait for them is over"
    LEASE_LOST = "an error reply: the lease has expired, or the server lost its state"
    FAULT = "an error reply, or silence, after which the server must be looked up again"
    DISCONNECTED = "the connection ended"
    CLOSE = "the node stops"


class ConnectionAction(Enum):
    """The actions of a transition, in addition to the change of the state."""

    START_GATE = "sets the time at which this node publishes although other nodes are missing"
    RESUME_CALLS = "resumes calls that wait until the node is registered"
    SUSPEND = "stops the consumer of hook events, because another node may become the consumer"
    ABORT = "ends the connection at once"
    REPORT_AWAY = "logs that the broker is away"


S, E, A = ConnectionState, ConnectionEvent, ConnectionAction

REGISTERED = frozenset({S.GATED, S.READY})
"""the states in which the server has the node's lease, so commands are sent"""
PUBLISHING = frozenset({S.READY, S.READY_NO_LEASE})
"""the states in which publishes are sent"""

TRANSITIONS: dict[tuple[ConnectionState, ConnectionEvent], tuple[ConnectionState, tuple[ConnectionAction, ...]]] = {
    (S.AWAY, E.CONNECTED): (S.REGISTERING, ()),
    (S.AWAY, E.CLOSE): (S.CLOSED, ()),
    #
    (S.REGISTERING, E.REGISTERED): (S.GATED, (A.START_GATE, A.RESUME_CALLS)),
    (S.REGISTERING, E.REJECTED): (S.AWAY, (A.ABORT,)),
    (S.REGISTERING, E.FAILED): (S.AWAY, (A.ABORT,)),
    (S.REGISTERING, E.FAULT): (S.AWAY, (A.ABORT,)),
    (S.REGISTERING, E.DISCONNECTED): (S.AWAY, ()),
    (S.REGISTERING, E.CLOSE): (S.CLOSED, (A.ABORT,)),
    #
    (S.GATED, E.ALL_SUBSCRIBED): (S.READY, ()),
    (S.GATED, E.LEASE_LOST): (S.GATED_NO_LEASE, (A.SUSPEND,)),
    (S.GATED, E.FAULT): (S.AWAY, (A.SUSPEND, A.ABORT, A.REPORT_AWAY)),
    (S.GATED, E.DISCONNECTED): (S.AWAY, (A.SUSPEND, A.REPORT_AWAY)),
    (S.GATED, E.CLOSE): (S.CLOSED, ()),
    #
    (S.READY, E.LEASE_LOST): (S.READY_NO_LEASE, (A.SUSPEND,)),
    (S.READY, E.FAULT): (S.AWAY, (A.SUSPEND, A.ABORT, A.REPORT_AWAY)),
    (S.READY, E.DISCONNECTED): (S.AWAY, (A.SUSPEND, A.REPORT_AWAY)),
    (S.READY, E.CLOSE): (S.CLOSED, ()),
    #
    (S.GATED_NO_LEASE, E.REGISTERED): (S.GATED, (A.RESUME_CALLS,)),
    (S.GATED_NO_LEASE, E.REJECTED): (S.AWAY, (A.ABORT, A.REPORT_AWAY)),
    (S.GATED_NO_LEASE, E.FAILED): (S.AWAY, (A.ABORT, A.REPORT_AWAY)),
    (S.GATED_NO_LEASE, E.FAULT): (S.AWAY, (A.ABORT, A.REPORT_AWAY)),
    (S.GATED_NO_LEASE, E.DISCONNECTED): (S.AWAY, (A.REPORT_AWAY,)),
    (S.GATED_NO_LEASE, E.CLOSE): (S.CLOSED, (A.ABORT,)),
    #
    (S.READY_NO_LEASE, E.REGISTERED): (S.READY, (A.RESUME_CALLS,)),
    (S.READY_NO_LEASE, E.REJECTED): (S.READY_NO_LEASE, ()),  # after MISCONF, Redis rejects writes but still runs PUBLISH
    (S.READY_NO_LEASE, E.FAILED): (S.AWAY, (A.ABORT, A.REPORT_AWAY)),
    (S.READY_NO_LEASE, E.FAULT): (S.AWAY, (A.ABORT, A.REPORT_AWAY)),
    (S.READY_NO_LEASE, E.DISCONNECTED): (S.AWAY, (A.REPORT_AWAY,)),
    (S.READY_NO_LEASE, E.CLOSE): (S.CLOSED, (A.ABORT,)),
}
"""the rows of the table: state and event → next state and actions"""
