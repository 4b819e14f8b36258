"""The groups of shared filters over several workers: each message of a group goes to one member on one node.

A message of a group always has exactly one owner, which is the only one that may deliver it:

    publisher ──▶ entry of a node ──▶ nothing: a member has acknowledged the message, or a session of the node has stored it
                    │    ▲   ▲ │
     pass on, evict │    └───┘ │ pass on, evict: no node has members that may receive the message
                    │   take   ▼
                    └───▶ log of the group ──▶ nothing: the log ends with the last session that watches it, or is too long

*Registration.* A node registers a group with the number of its connected members (`interest.py`). `set_filter` in
`lua/helpers.lua` also stores these numbers for each group, so scripts pick a node without a search. SUBACK comes after the
registration.

*Publish.* The step that publishes a message with QoS 1 or 2 picks a node for each matching group. The nodes take turns, and a
node has one turn for each of its members. The step stores an entry for the node in `BASE:ge:NODE`. It also sends the message,
with the id of the entry, to the inbox of the node. If no node has a member, the log of the group keeps the message, if a session
watches the log.
A message with QoS 0 has no entry, and its publisher picks the node from its own copy of the registrations.

*Delivery.* The node gives the message to the next local member that may receive the message. If there is no such member, the
node passes the message on. One step removes the entry of the node, and picks a node that was not tried yet, or else the log.

*Acknowledgement.* The node removes the entry when the member has acknowledged the message (PUBACK, PUBREC). It also removes the
entry when the message has expired, when the member's full queue has dropped the message, and when the member's session is stored
with the message. One command removes the entries of 250 ms.

*Logs.* A member that returns, or subscribes, reads the log of its group, and takes the messages that it may read. One step
moves a message from the log to an entry of the node, with the same id. The owner is the node, so the step needs no generation:
if the connection of the member ends while the step runs, the node passes the message on.

What happens if a part fails:

- The publisher ends before the step: the message is not acknowledged. After the step: the entry exists, and the message
  arrives.
- The publisher does not know a new group yet: the registration of the group arrives before the reply to the publish. The
  publisher then gives the message to the group with another command, before it acknowledges the message (decision 0025).
- A message to an inbox is lost with the connection of the node: after each registration, the node reads its entries. It
  delivers those that have not arrived, and those that a lost command should have passed on or taken.
- The node ends, or is cut off for longer than its lease: the eviction gives its entries to other nodes, or to the logs. A
  message that was sent to a client, but whose entry was not removed yet, may arrive twice.
- A node returns after its eviction: it has no entries, so its acknowledgements remove nothing, and its commands pass nothing on.
- The node ends after it has stored a session with a message, and before it removes the entry: the message may arrive twice.
- The server loses its state: the messages that nodes have received are delivered; the others are lost with the state. The ids
  of entries begin with the time on the server's clock, so an id never names two messages.

The entries of an app have a bound for bytes. Above this bound, the message is sent without an entry, as with QoS 0, and counts
as trimmed.
"""

import asyncio
from collections.abc import Iterable
from functools import partial

from push1st.brokers import GroupEntry, ReceiveOfGroup
from push1st.brokers.redis.interest import RedisFilters
from push1st.brokers.redis.keys import FilterKey
from push1st.brokers.redis.shards import Shards
from push1st.messages import Message


class RedisGroups:
    """The groups with members on this node, and their messages in all shards (`brokers.NodeGroups`)."""

    def __init__(self, shards: Shards, filters: RedisFilters) -> None:
        self._shards = shards.all
        self._filters = filters
        self.receive: ReceiveOfGroup = lambda *_: False
        self._changed: dict[FilterKey, int] = {}
        """the numbers of members that are registered at the end of this turn"""
        for index, shard in enumerate(self._shards):
            shard.groups.receive = partial(self._receive, index)

    def _receive(self, index: int, name: str, id: int, message: Message) -> bool:
        return self.receive(name, self._entry(index, id) if id else 0, message)

    def _entry(self, index: int, id: int) -> GroupEntry:
        return id * len(self._shards) + index

    # Members

    def check_room(self, app: str, name: str, is_anonymous: bool) -> None:
        self._filters.check_room(app, name, is_anonymous)

    def set_members(self, app: str, name: str, count: int, is_first: bool = False) -> None:
        for shard in self._shards if is_first else ():
            shard.groups.is_used = True
        if is_first or not count:
            self._changed.pop((app, name), None)
            self._filters.set(app, name, count)
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._register)
        self._changed[app, name] = count

    def _register(self) -> None:
        changed, self._changed = self._changed, {}
        for (app, name), count in changed.items():
            self._filters.set(app, name, count)

    async def confirmed(self, app: str, name: str) -> None:
        await self._filters.confirmed(app, name)

    def has_others(self, app: str, name: str) -> bool:
        return self._shards[0].groups.has_others(app, name)

    # Messages

    def end(self, entries: Iterable[GroupEntry]) -> None:
        for index, ids in self._by_shard(entries).items():
            self._shards[index].groups.end(ids)

    def pass_on(self, entries: Iterable[GroupEntry]) -> None:
        for index, ids in self._by_shard(entries).items():
            self._shards[index].groups.pass_on(ids)

    def _by_shard(self, entries: Iterable[GroupEntry]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for one in entries:
            id, index = divmod(one, len(self._shards))
            found.setdefault(index, []).append(id)
        return found
