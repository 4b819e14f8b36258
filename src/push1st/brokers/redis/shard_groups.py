"""The messages of groups in a shard. `groups.py` describes the protocol.

`lua/append.lua` gives the messages of a publish with QoS 1 and 2 to the matching groups, in the step that publishes them. It
picks a node, stores an entry for this node, and sends the message to the inbox of the node. A message with QoS 0 has no entry.
So its publisher picks the node, and sends the message with PUBLISH.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import hiredis
import msgspec

from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.known_filters import KnownFilter, KnownFilters
from push1st.brokers.redis.publishing import Batch, Copies
from push1st.brokers.redis.resp import Argument, ConnectionLost, OnReply, RespConnection, pack
from push1st.brokers.redis.scripts import END_ENTRIES, GIVE_TO_GROUP, PASS_ENTRIES, TAKE_ENTRIES
from push1st.brokers.redis.shard_logs import encode_logged, is_logged, log_bounds
from push1st.brokers.redis.wire import GroupDelivery, decode_group_delivery, encode_group_delivery
from push1st.eager import spawn
from push1st.messages import INTERNAL, Message, MqttMessage, qos_of

END_SECONDS = 0.25
"""the seconds for which acknowledged entries wait, so that one command removes several entries"""
MAX_STEP = 500
"""the maximum number of entries that one command reads, removes, passes on or adds. If a batch has more messages for one group,
one longer command adds them."""
NOWHERE = "/"
"""the value of `GroupDelivery.tried` for a message that no node has rejected"""

GroupReceive = Callable[[str, int, Message], bool]
"""a function that takes the name of a group, the id of an entry or 0, and a message. It returns whether a member on this node
gets the message."""

_decode = msgspec.msgpack.Decoder(list[MqttMessage]).decode


def is_shared(message: Message) -> bool:
    """Returns whether a message belongs to groups."""
    return message.delivery == "broadcast" and not message.event.startswith(INTERNAL)


class ShardGroups:
    """See the module.

    known: the filters and groups of all nodes. part: the shard may use 1 / part of the bounds for bytes.
    """

    def __init__(self, keys: Keys, connection: ShardConnection, known: KnownFilters, context: NodeContext, part: int) -> None:
        self._keys = keys
        self._connection = connection
        self._known = known
        self._node = context.node
        self._metrics = context.metrics
        self._part = part
        self.bounds = " ".join(map(str, log_bounds(context.mqtt, part)))
        """`bounds` of `give_to_group` in `lua/helpers.lua`, as a text"""
        self.receive: GroupReceive = lambda *_: False
        self.is_used = False
        """whether this node had a member of a group since its start"""
        self._entries: dict[int, str] = {}
        """id → APP/GROUP, for the entries of this node whose messages have arrived, and that are not removed yet"""
        self._ended: list[int] = []
        """the entries that the next command removes"""
        self._timer: asyncio.TimerHandle | None = None
        self._reading = 0
        """the number of calls of `_read_entries` that are running"""
        self._passed: list[tuple[str, str]] = []
        """the entries that are passed on at the end of this turn, and the nodes that were tried"""

    # Publishes

    def send(self, resp: RespConnection, batch: Batch, copies: Copies) -> tuple[Argument, ...]:
        """Sends the messages of a batch with QoS 0 to its groups; returns the arguments of `give_to_groups` for the others.

        One command does not block the server for long: with many groups, other commands give the messages to further groups.
        """
        logged = [one for one in batch.messages if is_logged(one)]
        if len(logged) < len(batch.messages):
            if batch.is_single:  # see `PublishBatcher._complete`
                copies.late_groups = copies.groups
            else:
                for group in copies.groups:
                    self._send_unlogged(resp, batch, group, batch.published)
        names, most = [one.name for one in copies.groups], max(1, MAX_STEP // (len(logged) or 1))
        if logged and batch.is_single:
            copies.late_groups = copies.groups[most:]
        elif logged:
            for at in range(most, len(names), most):
                self._connection.send(
                    resp, GIVE_TO_GROUP, batch.copied, batch.app, *self._arguments(logged, names[at : at + most])
                )
                copies.unconfirmed += 1
        return self._arguments(logged, names[:most])

    def _arguments(self, messages: Iterable[Message], names: Collection[str]) -> tuple[Argument, ...]:
        data = [encode_logged([one]) for one in messages]
        return (self.bounds, len(names), *names, *data) if data else ()

    def _send_unlogged(self, resp: RespConnection, batch: Batch, group: KnownFilter, on_reply: OnReply) -> int:
        """Sends the messages of a batch with QoS 0 to nodes of a group. Returns the number of messages."""
        count = 0
        for one in batch.messages:
            if is_shared(one) and not qos_of(one) and (node := group.pick()):
                self._send_to(resp, node, GroupDelivery(batch.app, group.name, 0, NOWHERE, encode_logged([one])), on_reply)
                count += 1
        return count

    def _send_to(self, resp: RespConnection, node: str, delivery: GroupDelivery, on_reply: OnReply) -> None:
        resp.send(pack((self._keys.publish, self._keys.topic("", node), encode_group_delivery(delivery))), on_reply)

    def send_late(self, resp: RespConnection, batch: Batch, group: KnownFilter) -> int:
        """Gives a batch to a group that was not known when the batch was sent. Returns the number of commands."""
        count = self._send_unlogged(resp, batch, group, batch.copied)
        if arguments := self._arguments(filter(is_logged, batch.messages), [group.name]):
            self._connection.send(resp, GIVE_TO_GROUP, batch.copied, batch.app, *arguments)
            count += 1
        return count

    async def give(self, app: str, name: str, messages: Sequence[Message]) -> None:
        """Gives messages to a group. Raises Refused(503)."""
        arguments = self._arguments(messages, [name])
        self._count(await self._connection.call(*self._keys.command(GIVE_TO_GROUP, app, *arguments)))

    def _count(self, reply: Any) -> None:
        """Counts the messages that were dropped to keep bounds."""
        if isinstance(reply, Exception):
            self._connection.check(reply)
        else:
            self._metrics.mqtt_dropped["trimmed"] += reply

    # Messages for this node

    def arrived(self, data: bytes) -> None:
        """Handles a message of a group from the inbox of this node."""
        self._deliver(decode_group_delivery(data))

    def _deliver(self, delivery: GroupDelivery) -> None:
        app, name, id, tried, data = delivery
        (message,) = _decode(data)
        if id:
            if id in self._entries:
                return
            self._entries[id] = f"{app}/{name}"
        if self.receive(name, id, message):
            return
        if id:
            self.pass_on([id], tried)
        else:
            self.forward(app, name, message, tried)

    def forward(self, app: str, name: str, message: Message, tried: str = NOWHERE) -> None:
        """Sends a message without an entry to another node; drops it if no node is left."""
        group, resp, tried = self._known.find(app, name), self._connection.registered_on, f"{tried}{self._node}/"
        node = "" if group is None else group.pick(tried.split("/"))
        if node and resp is not None:
            delivery = GroupDelivery(app, name, 0, tried, encode_logged([message]))
            self._send_to(resp, node, delivery, self._connection.check)

    def pass_on(self, ids: Iterable[int], tried: str = NOWHERE) -> None:
        """Gives the messages of entries to other nodes at the end of the turn, or else to the logs of their groups.

        If the command is lost or rejected, `repair` delivers the messages to this node again.
        """
        if not self._passed:
            asyncio.get_running_loop().call_soon(self._pass_on)
        for id in ids:
            if (name := self._entries.pop(id, None)) is not None:
                self._passed.append((f"{name}\n{id}", f"{tried}{self._node}/"))

    def _pass_on(self) -> None:
        passed, self._passed = self._passed, []
        resp = self._connection.registered_on
        if resp is not None:
            for at in range(0, len(passed), MAX_STEP):
                arguments = [one for entry in passed[at : at + MAX_STEP] for one in entry]
                self._connection.send(resp, PASS_ENTRIES, self._count, self._node, self.bounds, *arguments)

    def end(self, ids: Iterable[int]) -> None:
        """Removes entries soon: their messages are acknowledged, or stored with a session."""
        self._ended += ids
        if self._timer is None and self._ended:
            self._timer = asyncio.get_running_loop().call_later(END_SECONDS, self._end)

    def _end(self) -> None:
        self._timer = None
        if self._reading:  # a reply that has not arrived yet may still contain the entries
            self.end(())
        else:
            self._send_ended()

    def _send_ended(self) -> None:
        resp = self._connection.registered_on
        if resp is None:
            return  # the next registration ends the entries
        ended, self._ended = self._ended, []
        for at in range(0, len(ended), MAX_STEP):
            some = {id: name for id in ended[at : at + MAX_STEP] if (name := self._entries.pop(id, None)) is not None}
            if some:
                self._send_end(resp, some)

    def _send_end(self, resp: RespConnection, entries: dict[int, str]) -> None:
        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):  # the next registration, or the next end of an entry, sends the command again
                self._connection.check(reply)
                self._entries.update(entries)
                self._ended += entries

        fields = [f"{name}\n{id}" for id, name in entries.items()]
        self._connection.send(resp, END_ENTRIES, on_reply, self._node, *fields)

    def flush(self) -> None:
        """Sends the pending commands now, because this node ends: afterwards its entries go to other nodes."""
        self._send_ended()
        self._pass_on()

    def repair(self, resp: RespConnection) -> None:
        """Delivers the messages of this node's entries that have not arrived, or whose command the server has rejected."""
        if self.is_used:
            self._end()
            spawn(self._read_entries(resp))

    async def _read_entries(self, resp: RespConnection) -> None:
        key, cursor = self._keys.key("ge", self._node), b""
        self._reading += 1
        try:
            while cursor != b"0":
                # The reply is ordered: each message that was sent before has arrived.
                cursor, found = await resp.call("HSCAN", key, cursor or b"0", "COUNT", MAX_STEP, ordered=True)
                for field, data in zip(*[iter(found)] * 2, strict=True):
                    name, _, id = field.decode().rpartition("\n")
                    app, _, group = name.partition("/")
                    self._deliver(GroupDelivery(app, group, int(id), NOWHERE, data))
        except (ConnectionLost, hiredis.ReplyError) as exc:
            self._connection.check(exc)
        finally:
            self._reading -= 1

    # Messages in logs

    async def read(self, app: str, name: str, after: int, limit: int) -> list[tuple[int, Message]]:
        """Returns the oldest messages in the log of a group, with their ids. Raises Refused(503)."""
        start = f"({after}-1" if after else "-"
        found = await self._connection.call("XRANGE", self._keys.key("l", f"{app}/{name}"), start, "+", "COUNT", limit)
        return [(int(id.partition(b"-")[0]), _decode(fields[1])[0]) for id, fields in found]

    async def take(self, app: str, name: str, ids: Collection[int]) -> list[int]:
        """Takes messages out of the log of a group: they become entries of this node. Returns their ids. Raises Refused(503)."""
        command = self._keys.command(TAKE_ENTRIES, self._node, app, name, self._part, *ids)
        reply = await self._connection.call(*command, ordered=True)
        taken = [id for id in map(int, reply) if id not in self._entries]
        self._entries.update(dict.fromkeys(taken, f"{app}/{name}"))
        return taken

    def has_others(self, app: str, name: str) -> bool:
        """Returns whether other nodes have members of a group."""
        group = self._known.find(app, name)
        return group is not None and any(node not in ("", self._node) for node in group.nodes)
