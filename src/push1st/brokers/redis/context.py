"""The objects that all shards of a node share, such as the node's name, the clock, and the functions that take hook events."""

from collections.abc import Callable, Mapping

import msgspec

from push1st.brokers import OnEvent, Receive, Recount
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.entries import OwnFilters
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.views import Views
from push1st.config.mqtt import Mqtt
from push1st.metrics import Metrics


class NodeContext(msgspec.Struct, frozen=True):
    """See the module.

    node: the name of this node; each start of a worker makes a new name.
    stamp: a function that returns the id of a new message, and the wall clock's time in nanoseconds.
    hooked: a function that returns a mapping: app with hooks → the edges that these hooks receive, as letters (`scripts.py`).
    on_event: a function that takes hook events.
    recount: a function that takes an app and a channel whose subscription count may have changed. The reason is the eviction of a
    dead node, or a repair of the broker's copy of this node's entries.
    receive: a function that delivers a message to the subscribers on this worker.
    local_roster: the local roster of this worker.
    filters: the filters of this node.
    views: the members and watched users, as reported to the clients on this node.
    mqtt: the settings of MQTT.
    timings: the durations of leases, waits and retries.
    log_dedup: drops a log line if another shard has just written the same line.
    """

    node: str
    stamp: Callable[[], tuple[int, int]]
    hooked: Callable[[], Mapping[str, str]]
    on_event: OnEvent
    recount: Recount
    receive: Receive
    local_roster: LocalRoster
    filters: OwnFilters
    views: Views
    metrics: Metrics
    mqtt: Mqtt
    log_dedup: LogDedup
    timings: Timings = Timings()

    def hook_edges(self, app: str) -> str:
        """Returns which edges an app's hooks receive, as letters (`scripts.py`); an empty string if there are no hooks."""
        return self.hooked().get(app, "")
