"""What all shards of a node share: the node's name, its clock and ids, and the components that take what the shards produce."""

from collections.abc import Callable, Mapping

import msgspec

from push1st.brokers import OnEvent, Recount
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.views import Views
from push1st.metrics import Metrics


class NodeContext(msgspec.Struct, frozen=True):
    """See the module.

    node: the name of this node, another one after each start.
    stamp: returns the id and the time (wall clock, nanoseconds) of a new message.
    hooked: returns the apps that have hooks → the edges that their hooks want (`scripts.py`).
    on_event: takes hook events.
    recount: takes an app and a channel whose subscription count may have changed without an edge.
    local_roster: of this worker.
    views: what clients on this node know of members and watched users.
    timings: durations of leases, waits and retries.
    log_dedup: drops log lines that another shard has just written.
    """

    node: str
    stamp: Callable[[], tuple[int, int]]
    hooked: Callable[[], Mapping[str, str]]
    on_event: OnEvent
    recount: Recount
    local_roster: LocalRoster
    views: Views
    metrics: Metrics
    log_dedup: LogDedup
    timings: Timings = Timings()

    def hook_edges(self, app: str) -> str:
        """Returns the edges that an app's hooks want: `a` at once, `s` settled, both or none."""
        return self.hooked().get(app, "")
