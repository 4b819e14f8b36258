"""Restores the session of an MQTT client: the subscriptions before CONNACK, and the deliveries after CONNACK.

Each subscription is checked again with the rights of the new connection. Live messages are held until the session is restored.
Then the client gets the unacknowledged packets again, and the messages that waited at the end of the last connection. The
messages that were published since then follow, and finally the live messages.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable

import msgspec

from push1st import logs
from push1st.brokers.sessions import SHARE, Claim, Claimed, SavedFlow, SavedMessage, SavedSession, SavedSubscription, Sessions
from push1st.core import decisions, rights
from push1st.errors import Refused
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.own import OwnMessage, own_message
from push1st.protocols.mqtt.packets import MQTT_5, ConnectPacket, FilterOptions
from push1st.protocols.mqtt.shared import GroupMessage, group_message
from push1st.protocols.mqtt.topics import channel_of, filter_of
from push1st.protocols.mqtt.wire import wire_of
from push1st.transports.mqtt import retained, subscribing
from push1st.transports.mqtt.lasting import NOTHING_DECIDED, LastingSession
from push1st.transports.mqtt.overlaps import is_own
from push1st.transports.mqtt.session import MqttSession

log = logs.get("push1st.transports")

TURN_MESSAGES = 1_000
"""the number of messages that a session reads from logs, or compares with a filter, before other connections have a turn"""
MAX_READ = 10_000
"""the maximum number of messages that a session reads from one log, or `server.mqtt.queue` if this setting is greater"""


class MissedMessage:
    """A message of the logs, for all subscriptions of the client that match, except the shared ones. The fields are those of
    `SavedMessage`.
    """

    __slots__ = ("arrived", "message", "offers", "qos", "retain", "subscription_ids")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.arrived = (0, 0)
        """the latest time of the messages up to this one in its logs, and an id; the clocks of workers may differ"""
        self.offers: list[tuple[SavedSubscription, int]] = []
        """the subscriptions with shared filters, and the message's offset in the log of the group; not yet taken"""
        self.qos = 0
        """the QoS of the copy for the client's own subscriptions; 0: the client gets no such copy"""
        self.retain = False
        self.subscription_ids: tuple[int, ...] = ()

    def add(self, subscription: SavedSubscription) -> None:
        fields = self.message.mqtt
        self.qos = max(self.qos, min(subscription.qos, qos_of(self.message)))
        self.retain |= subscription.retain_as_published and fields is not None and fields.retain
        if subscription.subscription_id:  # [MQTT-3.3.4-4]
            self.subscription_ids = tuple(sorted((*self.subscription_ids, subscription.subscription_id)))


def expiry_of(session: MqttSession, packet: ConnectPacket) -> int:
    """Returns the seconds for which the session of a client outlives its connection."""
    if session.client.node.sessions is None:
        return 0
    most = session.clients.settings.session_expiry
    if packet.version == MQTT_5:
        return min(packet.session_expiry or 0, most)
    return 0 if packet.clean else most


async def claim(session: MqttSession, clean: bool, expiry: int) -> None:
    """Gets the session of the client from the broker, as `session.lasting`. Raises Refused.

    clean: whether the client begins a new session. expiry: see `expiry_of`.
    """
    client, sessions = session.client, session.client.node.sessions
    if sessions is None:
        return
    address = session.clients.context.shared_address(client.ip) if session.is_anonymous else ""
    app = client.app.config.id
    wanted = Claim(session.owner, address, clean, expiry, session.will)
    claimed = await sessions.claim(app, session.client_id, wanted)
    session.generation = claimed.generation
    await _begin(session, sessions, claimed, expiry)
    if claimed.ended is not None:  # before the messages of this connection
        await session.clients.end([claimed.ended])
        session.clients.wills.hasten(app, session.client_id)


async def _begin(session: MqttSession, sessions: Sessions, claimed: Claimed, expiry: int) -> None:
    """Creates `session.lasting`, or ends the session if the connection has ended during the request. Raises Refused(503)."""
    client, app = session.client, session.client.app.config.id
    if not expiry and claimed.session is None:
        if client.closed and sessions.shared:
            await sessions.end(app, session.client_id, claimed.generation, ())
        return
    if claimed.session is not None:
        expiry = claimed.session.expiry  # if the client is rejected, its session stays as it was
    lasting = LastingSession(sessions, app, session.client_id, claimed, expiry, session.owner.kind == "anonymous")
    if not client.closed:
        session.lasting = lasting
    elif claimed.session is not None:
        await lasting.leave(claimed.session)
    else:
        await lasting.leave(SavedSession(0))


async def restore(session: MqttSession) -> None:
    """Subscribes to the filters of a session, before CONNACK. `resume` sends the live messages. Raises Refused(503)."""
    client, lasting = session.client, session.lasting
    assert lasting is not None
    assert lasting.resumed is not None
    saved = lasting.resumed
    if saved.flow.inflight or saved.flow.waiting or saved.subscriptions or saved.flow.next_id > 1:
        session.sending().hold()
    kept: list[SavedSubscription] = []
    removed: list[SavedSubscription] = []
    for begin in range(0, len(saved.subscriptions), subscribing.FILTERS_A_TURN):
        some = saved.subscriptions[begin : begin + subscribing.FILTERS_A_TURN]
        if begin:
            await asyncio.sleep(0)
        lasting.decided = await subscribing.decide_all(session, [one.filter for one in some])
        for one in some:
            if client.closed:
                return
            if one.wants_retained:
                retained.prepare(session, _options(one), True)
            is_restored = await _restore(session, one)
            if not is_restored:
                retained.abandon(session, filter_of(one.filter))
            (kept if is_restored else removed).append(one)
    lasting.decided = NOTHING_DECIDED
    if client.closed:
        return
    lasting.resumed = msgspec.structs.replace(saved, subscriptions=tuple(kept))
    for one in removed:
        if one.is_logged:
            await lasting.unwatch(one.filter)
    await lasting.watch_again([one.filter for one in kept if one.is_logged])


async def resume(session: MqttSession) -> bool:
    """Continues the deliveries of a session, after CONNACK. Returns false if a later connection has the client id.

    Raises Refused(503).
    """
    client, lasting = session.client, session.lasting
    assert lasting is not None
    assert lasting.resumed is not None
    saved = lasting.resumed
    async with session.clients.reading:
        missed = [] if client.closed else await MissedMessages(session).read(saved.subscriptions)
    if session.client.closed:  # the session is stored again
        _return(session, missed)
        return True
    try:
        is_valid = await lasting.attach()
    except Refused:
        _return(session, missed)
        raise
    if client.closed or not is_valid:
        _return(session, missed)
        return is_valid
    lasting.resumed = None
    flow = _permitted(session, saved.flow)
    if flow.received:
        session.receiving().restore(flow, lasting.crashed)
    if session.sender is not None and session.sender.held is not None:
        lasting.saved = session.sender.resume(flow, lasting.crashed, session.receive_maximum, missed)
    session.clients.progress.mark(session)
    if lasting.crashed and lasting.needs_copies:  # another crash must not lead to the same packet ids again
        session.clients.progress.store(session)
    for one in saved.subscriptions:
        pages = retained.pages_of(session)
        if pages is not None:
            pages.keep_own(_options(one), one.subscription_id)
        else:
            _move_to_shared(session, _options(one), one.subscription_id)
        if one.wants_retained:
            await retained.want(session, _options(one), one.subscription_id, True)
    retained.begin(session)
    if lasting.needs_copies:
        await lasting.store_changed(session.copy, client.node.clock)  # without the subscriptions that were removed
    return True


def _return(session: MqttSession, missed: Iterable[OwnMessage]) -> None:
    """Gives the group messages of the session to other members, because the connection ended during the resumption."""
    taken = [(one.group, one.message, one.entry) for one in missed if isinstance(one, GroupMessage)]
    session.clients.groups.give_back(session.client.app.config.id, taken)


def _move_to_shared(session: MqttSession, options: FilterOptions, subscription_id: int) -> None:
    """Moves a restored subscription to a wire with shared frames, if it needs no own frames."""
    filter = channel_of(options.filter)
    if session.is_shared(options) and not session.overlaps(filter):
        wire = wire_of(session.version, options.retain_as_published, subscription_id, session.max_size)
        session.move(filter, wire, None)


def _options(saved: SavedSubscription) -> FilterOptions:
    return FilterOptions(filter_of(saved.filter), saved.qos, saved.no_local, saved.retain_as_published)


async def _restore(session: MqttSession, saved: SavedSubscription) -> bool:
    """Subscribes to a filter of the session, if the client still has the right. Raises Refused(503)."""
    options = _options(saved)
    try:
        await subscribing.grant(session, options, saved.subscription_id)
    except Refused as refused:
        if refused.code == 503:
            raise
        client = session.client
        where = {"topic": options.filter, "app": client.app.config.id, "client_id": session.client_id[:64], "ip": client.ip}
        client.node.refusals.log("subscription removed", refused.code, refused.text, **where)
        return False
    return True


def _permitted(session: MqttSession, flow: SavedFlow) -> SavedFlow:
    """Returns the deliveries without the messages that the client may not receive any more. Other members of their groups get
    these messages.

    A message in flight may belong to a subscription that has ended [MQTT-3.10.4-3]. A PUBREL replaces a message in flight with
    QoS 2, because the client may keep its packet id.
    """
    inflight: list[tuple[int, SavedMessage | None]] = []
    for packet_id, one in flow.inflight:
        if one is None or _may_receive(session, one.message.channel):
            inflight.append((packet_id, one))
        elif one.qos == 2:
            inflight.append((packet_id, None))
    waiting = tuple([one for one in flow.waiting if _is_wanted(session, one)])
    permitted = msgspec.structs.replace(flow, inflight=tuple(inflight), waiting=waiting)
    kept = {id(one) for one in permitted.returned}
    returned = [(one.group, one.message, 0) for one in flow.returned if id(one) not in kept]
    session.clients.groups.give_back(session.client.app.config.id, returned)
    return permitted


def _is_wanted(session: MqttSession, waiting: SavedMessage) -> bool:
    """Returns whether a subscription of the client permits a message that was not sent."""
    channel, group = waiting.message.channel, waiting.group
    return subscribing.covers(session, group, channel) if group else subscribing.is_covered(session, channel)


def _may_receive(session: MqttSession, channel: str) -> bool:
    """Returns whether a subscription of the client, or else its token, permits the messages of a channel."""
    client = session.client
    if subscribing.is_covered(session, channel):
        return True
    if decisions.is_decided(client.app, channel):
        return False
    try:
        rights.to_subscribe_topic(client, client.app.config, channel, None)
    except Refused:
        return False
    return True


class MissedMessages:
    """The messages that were published while a client was absent: in order of arrival, each once.

    Only the last `server.mqtt.queue` messages are kept. The connection may end while the logs are read. So the messages of groups
    are taken last: until then, all messages stay in their logs.
    """

    __slots__ = ("_messages", "_read", "_session")

    def __init__(self, session: MqttSession) -> None:
        self._session = session
        self._messages: dict[tuple[int, str], MissedMessage] = {}
        """message id and channel → message; an event of the API on several channels has one id"""
        self._read = 0
        """the number of messages that were read or compared in this turn"""

    async def read(self, subscriptions: Collection[SavedSubscription]) -> list[OwnMessage]:
        """Returns the messages for the subscriptions of the client; none if the connection ends during the request."""
        session = self._session
        early = _live(session)
        for one in subscriptions:
            if one.is_logged:
                await (self._read_shared if one.filter.startswith(SHARE) else self._read_log)(one)
            if session.client.closed:
                return []
        others = [one for one in subscriptions if not one.is_logged]
        for missing in [*self._messages.values()] if others else ():
            for subscription in others:
                if subscribing.covers(session, subscription.filter, missing.message.channel):
                    missing.add(subscription)
            await self._pause(len(others))
            if session.client.closed:
                return []
        for key in _live(session) - early:  # a live message is complete: all subscriptions are restored
            if key in self._messages:
                self._messages[key].qos = 0
        found: list[tuple[MissedMessage, OwnMessage | None]] = [*await self._take()]
        now = session.client.node.clock.wall()
        found += [
            (one, own_message(one.message, session.version, one.qos, one.retain, one.subscription_ids, now))
            for one in self._messages.values()
            if one.qos
        ]
        return [item for _, item in sorted(found, key=lambda pair: pair[0].arrived) if item is not None]

    async def _read_log(self, subscription: SavedSubscription) -> None:
        """Reads the last messages of a log that the client may receive."""
        session, client, queue = self._session, self._session.client, self._session.clients.settings.queue
        sessions, filter, cursor = client.node.sessions, subscription.filter, subscription.cursor
        if sessions is None or cursor is None:
            return
        pages: list[list[Message]] = []
        count, left, before, is_trimmed = 0, max(MAX_READ, queue), None, False
        while count < queue:
            if left <= 0:
                is_trimmed = True
                break
            page = await sessions.logs.read(client.app.config.id, filter, cursor, min(queue, TURN_MESSAGES), before)
            is_trimmed |= page.trimmed
            pages.append([one for one in page.messages if _is_receivable(session, subscription, one)])
            count += len(pages[-1])
            left -= len(page.messages)
            before = page.before
            await self._pause(len(page.messages))
            if client.closed:
                return
            if before is None:
                break
        if is_trimmed:
            session.clients.log_trimmed(client.app.config.id, session.client_id)
        arrived = (0, 0)
        for message in [one for page in reversed(pages) for one in page][-queue:]:
            arrived = max(arrived, (message.received, message.id))
            self._of(message, arrived).add(subscription)
        self._trim()

    async def _read_shared(self, subscription: SavedSubscription) -> None:
        """Reads the oldest messages in the log of a shared group that the client may receive."""
        session, client, queue = self._session, self._session.client, self._session.clients.settings.queue
        sessions, filter, app = client.node.sessions, subscription.filter, client.app.config.id
        if sessions is None:
            return
        found: list[tuple[int, Message]] = []
        after, left = 0, max(MAX_READ, queue)
        while len(found) < queue and left > 0 and not client.closed:
            page = await sessions.logs.read_shared(app, filter, after, min(queue, TURN_MESSAGES))
            if not page:
                break
            after = page[-1][0]
            left -= len(page)
            found += [one for one in page if _is_receivable(session, subscription, one[1])]
            await self._pause(len(page))
        for offset, message in found[:queue]:
            self._of(message, (message.received, message.id)).offers.append((subscription, offset))
        self._trim()

    async def _take(self) -> list[tuple[MissedMessage, GroupMessage]]:
        """Takes the messages of groups out of their logs; another member may have taken some.

        As with live messages, the copy of a group is separate from the copy of the client's own subscriptions.
        """
        client, lasting, sessions = self._session.client, self._session.lasting, self._session.client.node.sessions
        offers: defaultdict[SavedSubscription, dict[int, MissedMessage]] = defaultdict(dict)
        for missing in self._messages.values():
            for subscription, offset in missing.offers:
                offers[subscription][offset] = missing
        taken: list[tuple[MissedMessage, GroupMessage]] = []
        if sessions is None or lasting is None:
            return taken
        version, now = self._session.version, client.node.clock.wall()
        for subscription, offered in offers.items():
            app, client_id, group = client.app.config.id, self._session.client_id, subscription.filter
            try:
                offsets = await sessions.logs.take(app, client_id, lasting.generation, group, offered)
            except Refused:
                _return(self._session, [item for _, item in taken])
                raise
            for offset in offsets:
                copy = MissedMessage(offered[offset].message)
                copy.add(subscription)
                entry = offset if client.node.groups is not None else 0
                item = group_message(copy.message, group, version, copy.qos, copy.retain, copy.subscription_ids, now, entry)
                taken.append((offered[offset], item))
        return taken

    def _of(self, message: Message, arrived: tuple[int, int]) -> MissedMessage:
        """Returns a message, behind the earlier messages of its logs. arrived: see `MissedMessage`."""
        key = message.id, message.channel
        found = self._messages.pop(key, None) or MissedMessage(message)
        found.arrived = max(found.arrived, arrived)
        self._messages[key] = found
        return found

    def _trim(self) -> None:
        """Drops the oldest messages above the maximum."""
        queue = self._session.clients.settings.queue
        if len(self._messages) > queue:
            last = sorted(self._messages.values(), key=_arrived)[-queue:]
            self._messages = {(one.message.id, one.message.channel): one for one in last}

    async def _pause(self, count: int) -> None:
        """Gives other connections a turn after `TURN_MESSAGES` messages. count: the number of read or compared messages."""
        self._read += count
        if self._read >= TURN_MESSAGES:
            self._read = 0
            await asyncio.sleep(0)


def _arrived(missed: MissedMessage) -> tuple[int, int]:
    return missed.arrived


def _live(session: MqttSession) -> set[tuple[int, str]]:
    """Returns the ids and channels of the held live messages for the client's own subscriptions."""
    sender = session.sender
    if sender is None or sender.held is None:
        return set()
    session.client.node.fanout.flush_subscriber(session.client)
    return {(one.message.id, one.message.channel) for one in sender.held.messages if not isinstance(one, GroupMessage)}


def _is_receivable(session: MqttSession, subscription: SavedSubscription, message: Message) -> bool:
    """Returns whether the client receives a message of a log."""
    if not subscribing.covers(session, subscription.filter, message.channel) or session.is_excluded(message):
        return False
    if subscription.no_local and is_own(session.client, message.sender):  # [MQTT-3.8.3-3]
        return False
    fields, node = message.mqtt, session.client.node
    if fields is not None and 0 < fields.expires <= node.clock.wall():  # [MQTT-3.3.2-5]
        node.metrics.mqtt_dropped["expired"] += 1
        return False
    return True
