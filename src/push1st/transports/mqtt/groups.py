"""The groups of shared filters on this worker: each message of a group's filter goes to one member (§4.8.2).

The members take turns, in the order in which they subscribed. A member is skipped if it may not read the message's channel. A
message with QoS 1 or 2 goes to the next member whose window has room. If no window has room, the message waits for the next
member.

A group is one subscriber of its filter, also of a filter without wildcards. So a group does not count as a subscription of a
channel, and counts as one receiver of a message.

While no connected member may read a channel, the broker keeps its messages with QoS 1 and 2 for absent sessions
(`brokers/sessions.py`).

If several workers share a broker, the broker gives each message of a group to one worker (`brokers.NodeGroups`). Then a group
is no subscriber of its filter, and each message with QoS 1 and 2 has a number. The worker ends the message when a member has
acknowledged it, or passes the message on to other workers.

If the connection of a member ends, other members get its unacknowledged messages with QoS 1, and its messages that were not sent
yet. If no other member may receive these messages, they stay with the session of the member. If the session ends, other
members get these messages, or the broker keeps them for the absent sessions of the group. A message with QoS 2 whose delivery has
begun stays with its session [MQTT-4.8.2-4, -5].
"""

import asyncio
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import Protocol, cast

import msgspec

from push1st import logs
from push1st.brokers import GroupEntry, NodeGroups
from push1st.brokers.retained import expires
from push1st.brokers.sessions import DueSession, Sessions
from push1st.core.app import App
from push1st.core.filters import FilterRights, rights_of
from push1st.core.hub import Lane, Write
from push1st.core.node import Node
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.outgoing import Outgoing
from push1st.protocols.mqtt.own import OwnFrames, OwnMessage
from push1st.protocols.mqtt.shared import GROUP_WIRE, GroupFrames, GroupMessage, GroupWire, group_message

_number = attrgetter("number")

log = logs.get("push1st.transports")

ALL_RIGHTS = rights_of(None, True)
"""the rights of a group, which gets all messages of its filter; each member has rights of its own"""


LATE = 1_000_000_000
"""the nanoseconds by which a message from another worker may arrive after its expiry: a message with the lifetime 0 still reaches
a member"""
MAX_READERS = 100
"""the maximum number of lists of members by rights that a group keeps"""


GroupItem = tuple[Message, GroupEntry]
"""a message of a group, and its number; 0 if the message has no number"""


class HeldItems(Protocol):
    """The live messages that wait until the session of a member is restored (`sending.HeldMessages`)."""

    messages: deque[OwnMessage]
    on_ended: Callable[[OwnMessage], None] | None


class GroupSender(Protocol):
    """The messages to the client of a member (`sending.MqttSender`)."""

    @property
    def id(self) -> str:
        """The id of the client's session in the core."""

    @property
    def version(self) -> int: ...

    @property
    def room(self) -> int: ...

    @property
    def deliveries(self) -> Outgoing[OwnMessage]: ...

    @property
    def held(self) -> HeldItems | None: ...

    def deliver(self, frames: OwnFrames) -> None: ...

    def withdraw(self, is_withdrawn: Callable[[GroupMessage], bool], with_sent: bool) -> list[GroupMessage]: ...


class GroupOptions(msgspec.Struct, frozen=True, gc=False):
    """The properties of a member's subscription, as those of `MqttOwnWire`."""

    qos: int
    retain_as_published: bool
    subscription_ids: tuple[int, ...]


class GroupMember:
    """A client in a group. rights: its rights to read channels."""

    __slots__ = ("number", "options", "rights", "sender")

    def __init__(self, sender: GroupSender, options: GroupOptions, rights: FilterRights) -> None:
        self.number = 0
        """the place of the member in the order in which the members subscribed"""
        self.sender = sender
        self.options = options
        self.rights = rights


class SharedGroup:
    """The clients that share a filter (`wildcards.FilterSubscriber`).

    name: `$share/GROUP/FILTER`, with FILTER written as a channel name. filter: FILTER.
    remote: the groups of this worker in the shared broker; None if the broker is not shared.
    """

    __slots__ = ("_last", "_number", "_readers", "_rights", "app", "filter", "filters", "leaver", "members", "name", "remote")

    id = ""

    def __init__(self, app: App, name: str, filter: str, remote: NodeGroups | None = None) -> None:
        self.remote = remote
        self.app = app
        self.name = name
        self.filter = filter
        self.filters: dict[str, Lane] | None = None
        self.members: dict[GroupSender, GroupMember] = {}
        """the members, in the order in which they subscribed"""
        self.leaver: GroupMember | None = None
        """the member that leaves now. This member gets the pending messages that no other member may receive: no log has these
        messages."""
        self._number = 0
        """the number of the newest member"""
        self._last = 0
        """the number of the member that had its turn last"""
        self._rights: Counter[FilterRights] = Counter()
        """rights → the number of members with these rights"""
        self._readers: dict[frozenset[FilterRights], list[GroupMember]] = {}
        """rights → the members with one of these rights: so a message costs no search through members that may not read it"""

    @property
    def wire(self) -> GroupWire:
        return GROUP_WIRE

    @property
    def write(self) -> Write:
        return self.deliver

    @property
    def lanes(self) -> Collection[Lane]:
        return (self.filters or {}).values()

    def add(self, member: GroupMember) -> None:
        """Adds a member, or replaces the properties of the member with the same sender."""
        known = self.members.get(member.sender)
        if known is None:
            self._number = member.number = self._number + 1
            self.members[member.sender] = member
        else:
            self._forget(known.rights)
            known.options, known.rights = member.options, member.rights
        self._rights[member.rights] += 1
        self._readers.clear()

    def member(self, sender: GroupSender) -> GroupMember:
        return self.members[sender]

    def remove(self, sender: GroupSender) -> None:
        """Removes a member. The turns of the other members do not change."""
        self._forget(self.members.pop(sender).rights)
        self._readers.clear()

    def _forget(self, rights: FilterRights) -> None:
        self._rights[rights] -= 1
        if not self._rights[rights]:
            del self._rights[rights]

    def deliver(self, frames: GroupFrames) -> None:
        """Gives each message to one member."""
        self.give([(message, 0) for message in frames.messages], frames.now)

    def give(self, messages: Iterable[GroupItem], now: int) -> None:
        """Gives each message to one member. now: the time on the wall clock in nanoseconds."""
        given: dict[GroupMember, list[OwnMessage]] = {}
        for message, entry in messages:
            member = self._choose(message, given)
            if member is not None:
                options, fields = member.options, message.mqtt
                qos = min(options.qos, qos_of(message))
                retain = options.retain_as_published and fields is not None and fields.retain
                version, ids = member.sender.version, options.subscription_ids
                item = group_message(message, self.name, version, qos, retain, ids, now, entry if qos else 0)
                given.setdefault(member, []).append(item)
                if entry and not qos and self.remote is not None:
                    self.remote.end([entry])
            elif entry and self.remote is not None:
                self.remote.pass_on([entry])
        for member, items in given.items():
            member.sender.deliver(OwnFrames(tuple(items), sum([one.size for one in items]), False, now))

    def _choose(self, message: Message, given: dict[GroupMember, list[OwnMessage]]) -> GroupMember | None:
        """Returns the member whose turn it is; None if no member may get the message. given: the messages for each member."""
        readers, qos, chosen = self._readers_of(message.channel), qos_of(message), -1
        excluded = _excluded(message)
        index = bisect_right(readers, self._last, key=_number) - 1
        for _ in readers:
            index = (index + 1) % len(readers)
            member = readers[index]
            if member.sender.id in excluded:
                continue
            if not min(qos, member.options.qos) or member.sender.room > sum([one.qos > 0 for one in given.get(member, ())]):
                chosen = index
                break
            if chosen < 0:
                chosen = index
        if chosen < 0:
            leaver = self.leaver
            if leaver is None or leaver.sender.id in excluded or not self.may_read(leaver, message.channel):
                return None
            return leaver
        self._last = readers[chosen].number
        return readers[chosen]

    def _readers_of(self, channel: str) -> list[GroupMember]:
        """Returns the members that may read a channel, in the order in which they subscribed."""
        filters = self.app.filters
        if filters is None:
            return []
        rights = frozenset([one for one in self._rights if filters.may_read(one, channel)])
        found = self._readers.get(rights)
        if found is None:
            if len(self._readers) >= MAX_READERS:
                self._readers.clear()
            found = self._readers[rights] = [one for one in self.members.values() if one.rights in rights]
        return found

    def has_reader(self, message: Message) -> bool:
        """Returns whether a member may receive a message."""
        readers, excluded = self._readers_of(message.channel), _excluded(message)
        return any(one.sender.id not in excluded for one in readers) if excluded else bool(readers)

    def is_readable(self, channel: str) -> bool:
        """Returns whether a member may read a channel that matches the filter."""
        return bool(self._readers_of(channel))

    def may_read(self, member: GroupMember, channel: str) -> bool:
        """Returns whether a member may read a channel that matches the filter."""
        filters = self.app.filters
        return filters is not None and filters.may_read(member.rights, channel)


def _excluded(message: Message) -> tuple[str, ...]:
    """Returns the ids of the sessions that the publisher of a message has excluded."""
    return (message.exclude, message.target) if message.exclude else ()


def entries_of(sender: GroupSender | None) -> list[GroupEntry]:
    """Returns the numbers of the messages that a client has not acknowledged."""
    if sender is None:
        return []
    state, held = sender.deliveries.save(), () if sender.held is None else sender.held.messages
    items = [*(one for _, one in state.inflight), *state.waiting, *held]
    return [one.entry for one in items if isinstance(one, GroupMessage) and one.entry]


class SharedGroups:
    """The groups of all apps. remote: see `SharedGroup`."""

    __slots__ = ("_arrived", "_groups", "_node", "remote")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._groups: dict[tuple[str, str], SharedGroup] = {}
        self._arrived: dict[SharedGroup, list[GroupItem]] = {}
        """the messages from the shared broker that members get at the end of the turn"""
        self.remote = node.groups
        if self.remote is not None:
            self.remote.receive = self._receive

    def __len__(self) -> int:
        return len(self._groups)

    def is_served(self, message: Message, name: str) -> bool:
        """Returns whether a connected member of a group may receive a message. name: see `SharedGroup`."""
        group = self._groups.get((message.app, name))
        return group is not None and group.has_reader(message)

    def has_receiver(self, app: App, channel: str) -> bool:
        """Returns whether a connected client receives the messages of a channel, if the fan-out has found a subscriber.

        A group is a subscriber of all channels that match its filter, even if no member has the right to read them.
        """
        if not self._groups or app.filters is None or channel in app.tenant.channels:
            return True
        for lane in app.filters.lanes_of_channel(channel):
            if lane.wire is not GROUP_WIRE:
                return True
            if any(cast(SharedGroup, one).is_readable(channel) for one in lane.writes):
                return True
        return False

    def join(self, app: App, name: str, filter: str, member: GroupMember, is_anonymous: bool) -> SharedGroup:
        """Adds a member to a group, or replaces the options of the member. Returns the group. Raises LimitReached.

        name, filter: see `SharedGroup`. is_anonymous: whether the client has proved no identity.
        """
        node, key, remote = self._node, (app.config.id, name), self.remote
        group = self._groups.get(key)
        is_new = group is None
        if group is None:
            group = SharedGroup(app, name, filter, remote)
            if remote is None:
                node.wildcards.subscribe(app, group, filter, GROUP_WIRE, ALL_RIGHTS, is_anonymous, group.deliver)
            else:
                remote.check_room(*key, is_anonymous)
                node.wildcards.hold(app)
            self._groups[key] = group
        node.fanout.flush_lanes([*group.lanes])  # pending messages go to the earlier members
        self._flush()
        group.add(member)
        if remote is not None:
            remote.set_members(*key, len(group.members), is_new)
            member.sender.deliveries.on_ended = self._ended
            if member.sender.held is not None:
                member.sender.held.on_ended = self._ended
        return group

    async def confirmed(self, group: SharedGroup) -> None:
        """Returns when the group gets the messages of all workers. Raises Refused(503)."""
        if self.remote is not None:
            await self.remote.confirmed(group.app.config.id, group.name)

    def _ended(self, item: OwnMessage) -> None:
        """Ends the delivery of a message that a client has acknowledged, or that is dropped."""
        if isinstance(item, GroupMessage) and item.entry and self.remote is not None:
            self.remote.end([item.entry])

    def end_all(self, sender: GroupSender | None) -> None:
        """Ends the messages of a client whose session ends with its connection. Other members have got the rest (`leave`)."""
        if (entries := entries_of(sender)) and self.remote is not None:
            self.remote.end(entries)

    def _receive(self, name: str, entry: GroupEntry, message: Message) -> bool:
        """See `brokers.ReceiveOfGroup`."""
        group = self._groups.get((message.app, name))
        if group is None or not group.has_reader(message):
            return False
        # [MQTT-3.3.2-5]: other workers may have had the message before
        is_expired = 0 < expires(message) <= self._node.clock.wall() - LATE
        if is_expired or not GROUP_WIRE.message(message, 0).messages:  # MQTT clients do not get the message
            self._node.metrics.mqtt_dropped["expired"] += is_expired
            if entry and self.remote is not None:
                self.remote.end([entry])
            return True
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._flush)
        self._arrived.setdefault(group, []).append((message, entry))
        return True

    def _flush(self) -> None:
        """Gives the messages that have arrived to members."""
        arrived, self._arrived = self._arrived, {}
        for group, messages in arrived.items():
            group.app.counts.messages_out += len(messages)
            group.give(messages, self._node.clock.wall())

    def leave(self, group: SharedGroup, sender: GroupSender, is_ended: bool, is_kept: bool = False) -> None:
        """Removes a member, and gives its messages to other members, or else to the absent sessions of the group.

        is_ended: whether the connection of the member has ended; otherwise the client completes the deliveries that have begun.
        The caller has detached the sender of an ended connection, so that pending messages wait.
        is_kept: whether the session of the member outlives the connection. Then the session keeps the messages that no other
        member may receive.
        """
        node, remote, app, name = self._node, self.remote, group.app.config.id, group.name
        self._flush()
        group.leaver = group.member(sender)
        group.remove(sender)
        node.fanout.flush_subscriber(group)
        group.leaver = None
        has_others = remote is not None and remote.has_others(app, name)

        def is_withdrawn(item: GroupMessage) -> bool:
            return item.group == name and (not is_kept or has_others or group.has_reader(item.message))

        items = sender.withdraw(is_withdrawn, is_ended)
        if remote is not None:  # first, so that this worker gets no message back
            remote.set_members(app, name, len(group.members))
        self.give_back(app, [(name, item.message, item.entry) for item in items])
        if not group.members:
            if remote is None:
                node.wildcards.unsubscribe(group.app, group, group.filter)
            else:
                node.wildcards.release(group.app)
            del self._groups[app, name]

    def give_back(self, app: str, messages: Iterable[tuple[str, Message, GroupEntry]]) -> None:
        """Gives messages to other members of their groups, or else to the absent sessions of the groups.

        app: the id of the app. messages: a group's name (`SharedGroup.name`), a message, and its number or 0.
        """
        node, now, remote = self._node, self._node.clock.wall(), self.remote
        of_group: defaultdict[str, list[GroupItem]] = defaultdict(list)
        for name, message, entry in messages:
            if not 0 < expires(message) <= now:
                of_group[name].append((message, entry))
                continue
            node.metrics.mqtt_dropped["expired"] += 1  # [MQTT-3.3.2-5]
            if entry and remote is not None:
                remote.end([entry])
        for name, some in of_group.items():
            group = self._groups.get((app, name))
            received: list[GroupItem] = []
            returned: list[Message] = []
            for message, entry in some:
                if group is not None and group.has_reader(message):
                    received.append((message, entry))
                elif entry and remote is not None:
                    remote.pass_on([entry])
                else:
                    returned.append(message)
            if group is not None:
                group.give(received, now)
            if returned and node.sessions is not None:
                spawn(self._return(node.sessions, app, name, returned))

    async def return_all(self, due: Sequence[DueSession]) -> list[DueSession]:
        """Gives the messages of ended sessions to other members of their groups.

        With a shared broker, the broker has the messages when the method returns. The result is without the sessions whose
        messages the broker does not have. The broker returns these sessions again.
        """
        node, sessions, failed = self._node, self._node.sessions, list[DueSession]()
        if self.remote is None or sessions is None:
            for one in due:
                self.give_back(one.app, [(saved.group, saved.message, 0) for saved in one.returned])
            return [*due]

        async def give(one: DueSession) -> None:
            now, of_group = node.clock.wall(), defaultdict[str, list[Message]](list)
            for saved in one.returned:
                if 0 < expires(saved.message) <= now:
                    node.metrics.mqtt_dropped["expired"] += 1  # [MQTT-3.3.2-5]
                else:
                    of_group[saved.group].append(saved.message)
            try:
                for name, some in of_group.items():
                    await sessions.logs.give_back(one.app, name, some)
            except Refused:
                failed.append(one)

        if returning := [one for one in due if one.returned]:
            await asyncio.gather(*map(give, returning))
        return [one for one in due if one not in failed]

    @staticmethod
    async def _return(sessions: Sessions, app: str, name: str, messages: Sequence[Message]) -> None:
        try:
            await sessions.logs.give_back(app, name, messages)
        except Refused as refused:
            log.warning("messages of a group were dropped", app=app, group=name[:64], reason=refused.text, dropped=len(messages))
