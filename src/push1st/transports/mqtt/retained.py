"""Sends retained messages to the new subscriptions of an MQTT client, in pages.

A page has at most `MAX_PAGE_BYTES` bytes. The next page follows when the socket has taken all earlier output, and the client's
window has room. So a client that reads slowly needs no memory for pages, and retained messages never fill its queue.

A channel is *pending* until its retained message is sent. Live messages of pending channels are held, and follow the retained
message. So the subscriptions have `MqttOwnWire`s while channels are pending, and the sender passes their messages to `hold`.

With a shared broker, a subscription begins before its retained messages are read, so that no message is missed. Messages that
arrive during this read are held, like the messages of pending channels (`prepare`). The first page is read before SUBACK
(`read_first`). So a message that a retained message of this page has replaced was published before SUBACK, and `late_copies`
drops its late copy.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain, islice

import msgspec

from push1st.brokers.retained import expires
from push1st.core.filters import FilterRights
from push1st.core.hub import Wire
from push1st.core.session import Session
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.filters import has_wildcard, matches
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.own import OwnMessage, own_message, own_wire
from push1st.protocols.mqtt.packets import FilterOptions
from push1st.protocols.mqtt.topics import SHARE, SYS, channel_of
from push1st.protocols.mqtt.wire import wire_of
from push1st.transports.mqtt.late_copies import LATE_SECONDS, LateCopies, live_copies
from push1st.transports.mqtt.overlaps import is_own
from push1st.transports.mqtt.sending import MqttSender
from push1st.transports.mqtt.session import MqttSession

MAX_PAGE_BYTES = 65_536
MAX_PAGE_CHANNELS = 256
"""the maximum size of a page, and the maximum number of channels that are read for it"""
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.5
"""minimum and maximum seconds until the server checks again whether the socket has taken all output; the time doubles"""
MATCHED_A_TURN = 1000
"""the number of channels that are compared with a filter before other connections get their turn"""
REPEAT_SECONDS = 1
"""the seconds after which a client gets the retained messages for the same filter again"""
MAX_RECENT = 1000
"""the maximum number of filters for which a client gets retained messages in `REPEAT_SECONDS`"""


class RetainedTarget(msgspec.Struct, frozen=True, gc=False):
    """A subscription that gets retained messages. `qos`: the granted QoS. `no_local`: see `FilterOptions`."""

    filter: str
    qos: int
    no_local: bool
    subscription_id: int


class RetainedPages:
    """The retained messages that the server has not sent to the client of a session yet (`sending.PendingRetained`)."""

    __slots__ = (
        "_ended",
        "_first",
        "_first_page",
        "_held_bytes",
        "_is_blocked",
        "_is_reading",
        "_is_scheduled",
        "_late",
        "_pending",
        "_poll",
        "_sender",
        "_session",
        "_shared",
        "_unmatched",
        "held",
    )

    def __init__(self, session: MqttSession) -> None:
        self._session = session
        self._sender: MqttSender = session.sending()
        self._pending: dict[str, tuple[RetainedTarget, ...]] = {}
        """the pending channels, in the order of the ids of their messages, and the subscriptions that get these messages"""
        self._first: dict[str, None] = {}
        """the pending channels with held messages, which come first"""
        self.held: list[OwnMessage] = []
        self._held_bytes = 0
        self._shared: dict[str, Wire] = {}
        """filter → the wire to which the subscription returns when no channel is pending"""
        self._unmatched: list[str] = []
        """the filters that are not compared with all channels yet, so that all messages are held"""
        self._is_scheduled = False
        """whether the next page is sent in a later turn"""
        self._is_reading = False
        """whether a page is read from the broker"""
        self._is_blocked = False
        """whether the next page waits for acknowledgements of the client"""
        self._poll = MIN_POLL_SECONDS
        self._late = LateCopies(session)
        self._ended = 0
        """how many times the last pending channel was removed from `_pending`"""
        self._first_page: tuple[Sequence[str], Sequence[Message | None]] | None = None
        """the channels and messages of a page that was read before SUBACK"""

    def prepare(self, filter: str) -> None:
        """Holds all messages until `prepared` is called for the filter, because its retained messages are not read yet."""
        self._unmatched.append(filter)

    def prepared(self, filter: str) -> None:
        """Ends `prepare`. Held messages of channels that are not pending are sent now, before the next live messages."""
        if filter in self._unmatched:
            self._unmatched.remove(filter)
            if self._sender.pages is self:  # otherwise the connection has ended
                self._send(())

    def want(self, channels: Sequence[str], wanted: RetainedTarget) -> None:
        """Adds channels whose retained messages a subscription gets. Live messages of these channels are held from now on."""
        mine = (wanted,)
        for channel in channels:
            others = self._pending.get(channel)
            self._pending[channel] = mine if others is None else others + mine

    async def match(self, names: Sequence[str], wanted: RetainedTarget) -> None:
        """Adds the channels that match a filter. All messages are held until all channels are compared with the filter."""
        session = self._session
        self._unmatched.append(wanted.filter)
        try:
            for begin in range(0, len(names), MATCHED_A_TURN):
                if begin:
                    await asyncio.sleep(0)
                if session.client.closed:
                    return
                filter, may_read = channel_of(wanted.filter), reader_of(session, wanted.filter)
                some = names[begin : begin + MATCHED_A_TURN]
                self.want([name for name in some if matches(filter, name) and may_read(name)], wanted)
        finally:
            self.prepared(wanted.filter)

    @property
    def filters(self) -> frozenset[str]:
        """See `sending.PendingRetained`."""
        return frozenset((*self._unmatched, *(one.filter for wanted in self._pending.values() for one in wanted)))

    def keep_own(self, options: FilterOptions, subscription_id: int) -> None:
        """Gives a subscription an `MqttOwnWire` until no channel is pending."""
        session = self._session
        if not session.is_shared(options) or session.overlaps(channel_of(options.filter)):
            self._shared.pop(options.filter, None)
            return
        as_published, size = options.retain_as_published, session.max_size
        self._shared[options.filter] = wire_of(session.version, as_published, subscription_id, size)
        wire = own_wire(session.version, 0, False, as_published, subscription_id, size)
        session.move(channel_of(options.filter), wire, self._sender.deliver)

    def hold(self, messages: Sequence[OwnMessage]) -> Sequence[OwnMessage]:
        """See `sending.PendingRetained`."""
        passed: list[OwnMessage] = []
        for one in messages:
            channel = one.message.channel
            if self._late and self._late.has(one):
                continue
            if self._unmatched or channel in self._pending:
                if channel in self._pending:
                    self._first[channel] = None
                self.held.append(one)
                self._held_bytes += one.size
            else:
                passed.append(one)
        client, outbox = self._session.client, self._session.clients.context.config.server.outbox
        if self._held_bytes > outbox and not client.closed:
            client.node.fanout.call_soon(partial(cut_off, client))
        return passed

    def unsubscribed(self, filter: str) -> None:
        """Ends the sending of retained messages for a subscription [MQTT-3.10.4-2]."""
        self._shared.pop(filter, None)
        for channel in list(self._pending) if has_wildcard(filter) else (channel_of(filter),):
            rest = tuple([one for one in self._pending.get(channel, ()) if one.filter != filter])
            if rest:
                self._pending[channel] = rest
            else:
                self._pass(channel)
        self._send(())
        self._end_if_passed()

    # Pages

    async def read_first(self) -> None:
        """Reads the next page before SUBACK. `begin` sends it."""
        if self._pending and not (self._is_scheduled or self._is_reading or self._is_blocked) and has_room(self._session):
            self._first_page = await self._read()

    def begin(self, new: Collection[str]) -> None:
        """Sends the next page, after SUBACK. new: the filters that this SUBACK grants and that the client did not have before."""
        page, self._first_page = self._first_page, None
        if page is not None:
            self._send_page(*page, new)
        elif not (self._is_scheduled or self._is_reading or self._is_blocked):
            self._turn()

    def go_on(self) -> None:
        """See `sending.PendingRetained`."""
        if self._is_blocked:
            self._is_blocked = False
            self._schedule()

    def _schedule(self, seconds: float = 0) -> None:
        """Sends the next page in a later turn of the event loop, after this number of seconds."""
        if not self._is_scheduled:
            self._is_scheduled = True
            fanout = self._session.client.node.fanout
            if seconds:
                fanout.call_later(seconds, self._turn)
            else:
                fanout.call_soon(self._turn)

    def _turn(self) -> None:
        """Sends the next page if the socket has taken all output; otherwise checks again later."""
        self._is_scheduled = False
        if self._session.client.closed or self._sender.pages is not self or self._is_reading:
            return
        if has_room(self._session):
            self._poll = MIN_POLL_SECONDS
            spawn(self._page())
        else:
            self._schedule(self._poll)
            self._poll = min(2 * self._poll, MAX_POLL_SECONDS)

    async def _page(self) -> None:
        """Reads a page, and sends it."""
        page = await self._read()
        if page is not None:
            self._send_page(*page)

    async def _read(self) -> tuple[Sequence[str], Sequence[Message | None]] | None:
        """Reads the channels and messages of the next page. Returns None if the broker is away: then the page is read later."""
        client, channels = self._session.client, self._next_channels()
        self._is_reading = True
        try:
            return channels, (await client.node.retained.read(client.app.config.id, channels, MAX_PAGE_BYTES) if channels else ())
        except Refused:
            self._schedule(MAX_POLL_SECONDS)
            return None
        finally:
            self._is_reading = False

    def _send_page(self, channels: Sequence[str], messages: Sequence[Message | None], new: Collection[str] = ()) -> None:
        """Sends a page. new: see `begin`; no filters if the page was read after SUBACK."""
        client = self._session.client
        if client.closed or self._sender.pages is not self:
            return
        client.node.fanout.flush_subscriber(client)  # holds the live messages that arrived before the reply of a shared broker
        self._send(self._items(channels, messages, new))
        if self._pending and not self._is_blocked:
            self._schedule()
        self._end_if_passed()

    def _end_if_passed(self) -> None:
        """Ends the pages if no channel is pending: immediately, or when no late copy can arrive any more."""
        if not (self._pending or self._unmatched):
            if self._late:
                self._ended += 1
                self._session.client.node.fanout.call_later(LATE_SECONDS, partial(self._end_later, self._ended))
            else:
                self._end()

    def _end_later(self, ended: int) -> None:
        """Ends the pages unless another page has followed, because no copy of a retained message can arrive any more.

        ended: the value of `_ended` when this call was scheduled.
        """
        is_last = ended == self._ended and not (self._pending or self._unmatched)
        if is_last and not self._session.client.closed and self._sender.pages is self:
            self._end()

    def _next_channels(self) -> list[str]:
        """Returns the channels of the next page: with QoS 1 or 2, at most as many as the window has room."""
        later = (channel for channel in self._pending if channel not in self._first)
        channels = list(islice(chain(self._first, later), MAX_PAGE_CHANNELS))
        if channels and any(one.qos for one in self._pending[channels[0]]):
            del channels[max(1, self._sender.room) :]
        return channels

    def _items(self, channels: Sequence[str], messages: Sequence[Message | None], new: Collection[str]) -> list[OwnMessage]:
        """Returns the messages of a page. The channels of these messages are not pending any more. new: see `_send_page`."""
        now = self._session.client.node.clock.wall()
        room, is_shared = self._sender.room, self._session.client.node.controller.shared
        live = live_copies(self.held)
        found: list[OwnMessage] = []
        for channel, message in zip(channels, messages, strict=False):
            wanted = self._pending.get(channel)
            if wanted is None:
                continue
            item = None
            if message is not None and message.id not in live.get(channel, ()) and not 0 < expires(message) <= now:
                item = self._item(message, wanted, now)
            if item is not None and item.qos:
                if room <= 0:
                    self._is_blocked = True
                    break
                room -= 1
            if message is not None and is_shared and any(has_wildcard(one.filter) for one in wanted):
                self._late.sent(message, new)
                if channel in live:
                    self.held = self._late.removed(self.held, message)
                    self._held_bytes = sum([one.size for one in self.held])
            self._pass(channel)
            if item is not None:
                found.append(item)
                if is_shared:
                    for one in wanted:
                        note(self._session, one.filter)
        return found

    def _item(self, message: Message, wanted: tuple[RetainedTarget, ...], now: int) -> OwnMessage | None:
        """Returns the packet of a retained message; None if the client does not get the message."""
        session = self._session
        if is_own(session.client, message.sender):
            wanted = tuple([one for one in wanted if not one.no_local])  # [MQTT-3.8.3-3]
        wanted = tuple([one for one in wanted if reader_of(session, one.filter)(message.channel)])
        if not wanted:
            return None
        qos = min(qos_of(message), max([one.qos for one in wanted]))
        ids = tuple(dict.fromkeys([one.subscription_id for one in wanted if one.subscription_id]))
        return own_message(message, session.version, qos, True, ids, now)  # [MQTT3-3.3.1-8]

    def _pass(self, channel: str) -> None:
        """Marks that a channel is not pending any more."""
        self._pending.pop(channel, None)
        self._first.pop(channel, None)

    def _send(self, items: Sequence[OwnMessage]) -> None:
        """Sends retained messages, and then the held messages whose channels are not pending any more."""
        held, pending = self.held, self._pending
        released = [] if self._unmatched else [one for one in held if one.message.channel not in pending]
        if released:
            self.held = [one for one in held if one.message.channel in pending]
            self._held_bytes = sum([one.size for one in self.held])
        if items or released:
            self._session.client.app.counts.messages_out += len(items)
            self._sender.send([*items, *released])

    def _end(self) -> None:
        """Ends the pages, because no channel is pending."""
        self._sender.pages = None
        for filter, wire in self._shared.items():
            if not self._session.overlaps(channel_of(filter)):
                self._session.move(channel_of(filter), wire, None)


def has_room(session: MqttSession) -> bool:
    """Returns whether the socket of a client has taken all output."""
    session.client.node.fanout.flush_subscriber(session.client)
    return session.client.outlet.has_room(session.clients.context.config.server.outbox)


def cut_off(client: Session) -> None:
    """Disconnects a client that does not read its messages."""
    if not client.closed:
        client.node.metrics.cut_offs["slow"] += 1
        client.outlet.close(4100, "this client does not read its messages")


def prepare(session: MqttSession, options: FilterOptions, is_new: bool) -> None:
    """Holds live messages before a subscription, if its retained messages are read from a shared broker. Then `want` or `abandon`
    is called.

    is_new: whether the client had no subscription with this filter.
    """
    if session.client.node.controller.shared and _is_wanted(options, is_new) and not options.filter.startswith((SHARE, SYS)):
        pages = pages_of(session)
        if pages is None:
            pages = session.sending().pages = RetainedPages(session)
        pages.prepare(options.filter)


def abandon(session: MqttSession, filter: str) -> None:
    """Ends `prepare`: the channels of the subscription are pending, or the subscription has failed."""
    pages = pages_of(session)
    if pages is not None:
        pages.prepared(filter)


async def want(session: MqttSession, options: FilterOptions, subscription_id: int, is_new: bool) -> None:
    """Prepares the sending of retained messages to a granted subscription. They are sent when SUBACK is sent (`begin`).

    is_new: whether the client had no subscription with this filter. Raises Refused(503).
    """
    client, filter = session.client, options.filter
    retained, pages, app, channel = client.node.retained, pages_of(session), client.app.config.id, channel_of(filter)
    if is_unknown(session, filter):  # nothing is ever sent for the filter
        abandon(session, filter)
        return
    if pages is not None:
        pages.keep_own(options, subscription_id)
    names: Sequence[str] = ()
    if _is_wanted(options, is_new):
        if has_wildcard(filter):
            names = await retained.names(app)
        elif client.node.controller.shared or any(await retained.read(app, (channel,), 1)):
            names = (channel,)
    if names and pages is None:
        pages = session.sending().pages = RetainedPages(session)
        pages.keep_own(options, subscription_id)
    if names and pages is not None:
        wanted = RetainedTarget(filter, options.qos, options.no_local, subscription_id)
        if has_wildcard(filter):
            note(session, filter)
            await pages.match(names, wanted)
        else:
            if not client.node.controller.shared:
                note(session, filter)
            pages.want(names, wanted)
    abandon(session, filter)


def is_unknown(session: MqttSession, filter: str) -> bool:
    """Returns whether the client has no subscription with a filter."""
    client, channel = session.client, channel_of(filter)
    return channel not in client.subscriptions and channel not in (client.filters or ())


def filter_rights(session: MqttSession, filter: str) -> FilterRights | None:
    """Returns the rights of the client's subscription with a filter; None if the client has no such filter with wildcards."""
    client, channel = session.client, channel_of(filter)
    lane = None if client.filters is None else client.filters.get(channel)
    return None if lane is None or client.app.filters is None else client.app.filters.rights_of(channel, lane)


def reader_of(session: MqttSession, filter: str) -> Callable[[str], bool]:
    """Returns a predicate: whether a subscription may receive the messages of a channel whose name matches the filter."""
    if not has_wildcard(filter):
        return lambda _: True
    rights, filters = filter_rights(session, filter), session.client.app.filters
    if rights is None or filters is None:
        return lambda _: False
    return lambda name: name[:1] != "#" and not has_wildcard(name) and filters.may_read(rights, name)


def _is_wanted(options: FilterOptions, is_new: bool) -> bool:
    """Returns whether a subscription gets retained messages [MQTT-3.3.1-9, -10, -11]."""
    return not options.retain_handling or (options.retain_handling == 1 and is_new)


async def pace(session: MqttSession, options: FilterOptions, is_new: bool) -> None:
    """Waits before a subscription, if the client had retained messages for the same filter in the last `REPEAT_SECONDS`."""
    recent = session.retained_at
    if recent is None or not _is_wanted(options, is_new):
        return
    now = session.client.node.clock.monotonic()
    until = next(iter(recent.values())) if len(recent) >= MAX_RECENT else recent.get(options.filter)
    if until is not None and until > now:
        await asyncio.sleep(until - now)


def note(session: MqttSession, filter: str) -> None:
    """Stores that the client gets the retained messages for a filter now."""
    now = session.client.node.clock.monotonic()
    recent = session.retained_at
    if recent is None:
        recent = session.retained_at = {}
    recent.pop(filter, None)
    recent[filter] = now + REPEAT_SECONDS
    for one, until in list(islice(recent.items(), 2)):
        if until <= now or len(recent) > MAX_RECENT:
            del recent[one]


async def read_first(session: MqttSession) -> None:
    """Reads the first retained messages for new subscriptions from a shared broker, before SUBACK."""
    pages = pages_of(session)
    if pages is not None and session.client.node.controller.shared:
        await pages.read_first()


def begin(session: MqttSession, new: Collection[str] = ()) -> None:
    """Sends the retained messages for subscriptions, after SUBACK. new: see `RetainedPages.begin`."""
    pages = pages_of(session)
    if pages is not None:
        pages.begin(new)


def unsubscribed(session: MqttSession, filter: str) -> None:
    """Ends the sending of retained messages for a filter."""
    pages = pages_of(session)
    if pages is not None:
        pages.unsubscribed(filter)


def pages_of(session: MqttSession) -> RetainedPages | None:
    """Returns the retained messages that the server has not sent to the client yet; None if there are none."""
    pages = None if session.sender is None else session.sender.pages
    assert pages is None or isinstance(pages, RetainedPages)
    return pages
