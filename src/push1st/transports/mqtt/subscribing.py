"""Subscribes an MQTT client to filters, and ends its subscriptions.

The coroutines wait for the broker or for the app's backend. The connection reads no further packet until its coroutine ends.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import lru_cache, partial

from push1st.core import decisions, resuming, rights
from push1st.core.filters import rights_of
from push1st.errors import LimitReached, Refused
from push1st.filters import MAX_PLUSES, has_wildcard, matches
from push1st.hooks import Decision
from push1st.messages import Member, Subscribe
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import (
    FilterOptions,
    ReasonCode,
    SubackPacket,
    SubscribePacket,
    UnsubackPacket,
    UnsubscribePacket,
)
from push1st.protocols.mqtt.topics import SHARE, SYS, USER, channel_of, exchange, filter_of, name_of, share_of
from push1st.transports.mqtt import reasons, retained
from push1st.transports.mqtt.groups import GroupMember, GroupOptions
from push1st.transports.mqtt.overlaps import Overlaps, overlapping, own_wire_of
from push1st.transports.mqtt.session import MqttSession

MAX_FILTERS = 1000
"""the maximum number of subscriptions of a connection, if `limits.subscriptions` is not lower"""
MAX_WILDCARDS = 100
MAX_ANONYMOUS_WILDCARDS = 10
"""the maximum number of filters with wildcards or `$share` of a connection; the second number is for anonymous clients"""
LOGGED_A_TURN = 100
"""the number of messages of a group's log that are delivered before other connections get their turn"""
FILTERS_A_TURN = 32
"""the number of filters of one packet that are handled before other connections get their turn"""


async def subscribe(session: MqttSession, packet: SubscribePacket) -> None:
    """Subscribes to filters, and answers with SUBACK [MQTT-3.8.4-1, -6]."""
    granted: list[int] = []
    new: set[str] = set()
    for number, options in enumerate(packet.filters, 1):
        if session.client.closed:
            return
        is_new = retained.is_unknown(session, options.filter)
        if is_new:
            new.add(channel_of(options.filter))
        try:
            await retained.pace(session, options, is_new)
            retained.prepare(session, options, is_new)
            code = await _subscribe(session, options, packet.subscription_id)
            await retained.want(session, options, packet.subscription_id, is_new)
            granted.append(code)
        except Refused as refused:
            retained.abandon(session, options.filter)
            if is_new and not retained.is_unknown(session, options.filter):  # the retained messages cannot be read
                with contextlib.suppress(Refused):
                    await _end(session, options.filter)
            reason = reasons.of_refused(refused, reasons.SUBACK_CODES)
            session.count("subscription refused", reason, refused.text, options.filter)
            session.client.charge()
            granted.append(reason)
        if number % FILTERS_A_TURN == 0:
            await asyncio.sleep(0)
    if not await _store(session):
        granted = [ReasonCode.UNSPECIFIED_ERROR] * len(granted)
    await retained.read_first(session)
    session.send(encode.suback(SubackPacket(packet.packet_id, tuple(granted)), session.version))
    retained.begin(session, new)
    for one in packet.filters if session.shared else ():
        await _take_logged(session, one.filter)


async def _subscribe(session: MqttSession, options: FilterOptions, subscription_id: int) -> int:
    """Subscribes to one filter; returns the granted QoS. Raises Refused."""
    _check_filter(options.filter)
    lasting = session.lasting
    if lasting is None or is_silent(options.filter):
        return await grant(session, options, subscription_id)
    filter = name_of(options.filter)
    before, after = session.is_logged(filter), options.qos > 0
    if after and not before:
        _check(session, options.filter)  # a filter that is rejected needs no log, whose changes all workers get
        await lasting.watch(filter)
    is_granted = False
    try:
        code = await grant(session, options, subscription_id)
        is_granted = code < ReasonCode.UNSPECIFIED_ERROR
    finally:
        if (before and not after) if is_granted else (after and not before):
            await lasting.unwatch(filter)
    return code


def _check(session: MqttSession, filter: str) -> None:
    """Raises Refused for a filter that `grant` would reject without a request to the app's backend."""
    client, app = session.client, session.client.app
    name = name_of(filter)
    is_shared = filter.startswith(SHARE)
    if is_shared or has_wildcard(filter):
        if name not in (client.filters or ()) and filter not in (session.shared or ()):
            _check_room(session)
            _check_searched(session)
            client.node.wildcards.check_room(app, name, session.is_anonymous)
    elif name not in client.subscriptions:
        rights.to_subscribe_topic(client, app.config, name, app.backend_decides.get("subscribe"))
        _check_room(session)


async def grant(session: MqttSession, options: FilterOptions, subscription_id: int) -> int:
    """Subscribes to a valid filter; returns the granted QoS. Raises Refused."""
    client = session.client
    app, node = client.app, client.node
    if is_silent(options.filter):
        if session.silent is None:
            session.silent = set()
        _add_silent(session, options.filter)
        return ReasonCode.SUCCESS
    if options.filter.startswith(SHARE):
        return await _subscribe_shared(session, options, subscription_id)
    if has_wildcard(options.filter):
        return await _subscribe_wildcard(session, options, subscription_id)
    channel = channel_of(options.filter)
    kind = rights.to_subscribe_topic(client, app.config, channel, app.backend_decides.get("subscribe"))
    own = client.subscriptions.get(channel)
    if own is not None:  # [MQTT-3.8.4-3]
        client.charge()
        wire, deliver = session.wire(options, subscription_id, session.overlaps(channel))
        if own.lane.wire is not wire:
            session.move(channel, wire, deliver)
            _changed(session)
        return options.qos
    _check_room(session)
    decision = None
    if decisions.is_decided(app, channel):
        decision = await _decide(session, channel)
    member = None
    if kind.presence:
        if decision is not None and decision.user_id is not None:
            member = Member(decision.user_id, decision.user_info)
        elif client.user is not None:
            member = Member(client.user.id, client.user.info)
    request = await resuming.replay_request(client, Subscribe(channel))
    overlaps = _separate(session, channel)
    wire, deliver = session.wire(options, subscription_id, overlaps)
    client.subscriptions[channel], joined = await node.subscribe(app, client, channel, member, request, wire, deliver)
    if kind.cache and joined.cached is None:
        node.replay(app, client, channel, None)  # the hooks get `cache-missed`; the client gets nothing
    _changed(session, channel if overlaps else "")
    if app.config.subscription_count:
        await node.counts.send(app, channel)
    return options.qos


async def _subscribe_wildcard(session: MqttSession, options: FilterOptions, subscription_id: int) -> int:
    """Subscribes to a filter with wildcards; returns the granted QoS. Raises Refused.

    The client may subscribe to every filter, and receives only channels that it may read.
    """
    client = session.client
    app, filter = client.app, exchange(options.filter)
    if client.filters is not None and filter in client.filters:  # [MQTT-3.8.4-3]
        client.charge()
    else:
        _check_room(session)
        _check_searched(session)
    granted = await _is_granted(session, filter)
    if client.closed:
        return ReasonCode.UNSPECIFIED_ERROR
    is_new = client.filters is None or filter not in client.filters
    overlaps = _separate(session, filter) if is_new else session.overlaps(filter)
    wire, deliver = session.wire(options, subscription_id, overlaps)
    mine, is_anonymous = rights_of(client.claims, granted), session.is_anonymous
    wildcards = client.node.wildcards
    wildcards.subscribe(app, client, filter, wire, mine, is_anonymous, deliver)
    if is_new and client.node.tap is not None:
        client.node.tap.subscribed(app, client, filter)
    _changed(session, filter if overlaps else "")
    try:
        await wildcards.confirmed(app, filter)
    except Refused:
        if is_new and wildcards.unsubscribe(app, client, filter):
            _changed(session, ended=filter)
        raise
    if client.filters is None:
        raise LimitReached(403, "the connection is closed")
    return options.qos


async def _subscribe_shared(session: MqttSession, options: FilterOptions, subscription_id: int) -> int:
    """Adds the client to the group of a shared filter; returns the granted QoS. Raises Refused."""
    client = session.client
    app, shared = client.app, share_of(options.filter)
    if shared is None:
        raise Refused(ReasonCode.TOPIC_FILTER_INVALID, f"a shared filter is {SHARE}GROUP/FILTER, and the group has no wildcard")
    name, topic = shared
    if topic.startswith(USER):
        raise Refused(403, "a group cannot receive the events to one user")
    if session.shared is None:
        session.shared = {}
    if options.filter in session.shared:  # the options are replaced, as for other filters
        client.charge()
    else:
        _check_room(session)
        _check_searched(session)
    filter = exchange(topic)
    if has_wildcard(filter):
        granted = await _is_granted(session, filter)
    else:
        rights.to_subscribe_topic(client, app.config, filter, app.backend_decides.get("subscribe"))
        if decisions.is_decided(app, filter):
            await _decide(session, filter)
        granted = True
    if client.closed:
        return ReasonCode.UNSPECIFIED_ERROR
    ids = (subscription_id,) if subscription_id else ()
    properties = GroupOptions(options.qos, options.retain_as_published, ids)
    member = GroupMember(session.sending(), properties, rights_of(client.claims, granted))
    groups, is_new = session.clients.groups, options.filter not in session.shared
    group_name = f"{SHARE}{name}/{filter}"
    group = groups.join(app, group_name, filter, member, session.is_anonymous)
    session.shared[options.filter] = group
    if is_new and client.node.tap is not None:
        client.node.tap.subscribed(app, client, group_name)
    try:
        await groups.confirmed(group)
    except Refused:
        if is_new and group.members.get(session.sending()) is member:
            del session.shared[options.filter]
            groups.leave(group, session.sending(), is_ended=False)
        raise
    return options.qos


async def _take_logged(session: MqttSession, filter: str) -> None:
    """Gives the members of a group the messages that no connected member could receive.

    A call takes at most `server.mqtt.queue` messages, because the queues of the members are bounded.
    """
    client, lasting, left = session.client, session.lasting, session.clients.settings.queue
    group, sessions = (session.shared or {}).get(filter), client.node.sessions
    if group is None or lasting is None or sessions is None:
        return
    client.node.fanout.flush_subscriber(client)  # SUBACK comes first
    app, after, logs = client.app.config.id, 0, sessions.logs
    while left and (page := await logs.read_shared(app, group.name, after, min(left, LOGGED_A_TURN))):
        messages = {offset: message for offset, message in page if group.has_reader(message)}
        taken = await logs.take(app, session.client_id, lasting.generation, group.name, messages)
        is_remote = session.clients.groups.remote is not None
        items = [(group.name, messages[offset], offset if is_remote else 0) for offset in sorted(taken)]
        session.clients.groups.give_back(app, items)
        after, left = page[-1][0], left - len(taken)
        await asyncio.sleep(0)
        if client.closed:
            return


async def _is_granted(session: MqttSession, filter: str) -> bool:
    """Returns whether the backend permits all channels that match a filter. Raises Refused if the backend does not answer.

    filter: the MQTT filter, written as a channel name.
    """
    client = session.client
    if not rights.may_grant(client.app.config, filter) or not decisions.is_decided(client.app, filter):
        return False
    try:
        await _decide(session, filter)
    except Refused as refused:
        if refused.code == 503:
            raise
        return False
    return True


async def _decide(session: MqttSession, name: str) -> Decision:
    """Returns the backend's decision that lets the client subscribe to a channel or filter, or raises Refused.

    name: the name of the channel; for a filter, the filter written as a channel name.
    """
    client, lasting = session.client, session.lasting
    known = None if lasting is None else lasting.decided.get(name)
    if known is None:
        return await decisions.subscribe(client.node.hooks, client.app, client, Subscribe(name), client.user)
    if isinstance(known, Refused):
        raise known
    return known


async def decide_all(session: MqttSession, filters: Sequence[str]) -> dict[str, Decision | Refused]:
    """Requests the backend's decisions about several filters at once, so that a session with many filters waits for one reply.

    filters: as in `SavedSubscription.filter`.
    """
    app = session.client.app
    names: dict[str, None] = {}
    for filter in filters:
        name = filter.partition("/")[2].partition("/")[2] if filter.startswith(SHARE) else filter
        if decisions.is_decided(app, name) and (not has_wildcard(name) or rights.may_grant(app.config, name)):
            names[name] = None
    if len(names) < 2:
        return {}
    found = await asyncio.gather(*[_decide(session, name) for name in names], return_exceptions=True)
    return {name: one for name, one in zip(names, found, strict=True) if isinstance(one, Decision | Refused)}


def _check_searched(session: MqttSession) -> None:
    """Raises LimitReached if the client may not have another filter that each new channel is compared with."""
    most = MAX_ANONYMOUS_WILDCARDS if session.is_anonymous else MAX_WILDCARDS
    if len(session.client.filters or ()) + len(session.shared or ()) >= most:
        raise LimitReached(403, f"a connection of this client may have at most {most} filters with wildcards or $share")


def _separate(session: MqttSession, filter: str) -> bool:
    """Moves the filters that overlap a new filter to `MqttOwnWire`s. Returns whether there are such filters.

    filter: the new MQTT filter, written as a channel name.
    """
    client = session.client
    found = overlapping(client, filter)
    if not found:
        return False
    sender = session.sending()
    overlaps = sender.overlaps
    if overlaps is None:
        overlaps = sender.overlaps = Overlaps(client)
    for one in found:
        if one not in overlaps.filters:
            lane = client.subscriptions[one].lane if one in client.subscriptions else (client.filters or {})[one]
            session.move(one, own_wire_of(lane.wire), sender.deliver_merged)
            overlaps.filters.add(one)
    _changed(session)
    return True


def _changed(session: MqttSession, overlapping: str = "", ended: str = "") -> None:
    """Handles a change of the client's filters. overlapping, ended: a filter that overlaps others; a filter that has ended."""
    overlaps = None if session.sender is None else session.sender.overlaps
    if overlaps is None:
        return
    if overlapping:
        overlaps.filters.add(overlapping)
    overlaps.filters.discard(ended)
    session.client.node.fanout.flush_subscriber(session.client)  # the copies that are pending
    overlaps.forget()


def _check_room(session: MqttSession) -> None:
    """Raises LimitReached if the client may not have another subscription."""
    client = session.client
    limit = client.app.config.limits.subscriptions
    most = min(limit, MAX_FILTERS) if limit else MAX_FILTERS
    if len(client.subscriptions) + len(client.filters or ()) + len(session.shared or ()) + len(session.silent or ()) >= most:
        raise LimitReached(403, f"a connection may have {most} subscriptions")


def _add_silent(session: MqttSession, filter: str) -> None:
    assert session.silent is not None
    if filter in session.silent:
        session.client.charge()
        return
    _check_room(session)
    session.silent.add(filter)


async def unsubscribe(session: MqttSession, packet: UnsubscribePacket) -> None:
    """Ends subscriptions, and answers with UNSUBACK [MQTT-3.10.4-4, -5]."""
    found: list[int] = []
    client = session.client
    for number, filter in enumerate(packet.filters, 1):
        if client.closed:
            return
        client.charge()
        is_found = await _end(session, filter)
        found.append(ReasonCode.SUCCESS if is_found else ReasonCode.NO_SUBSCRIPTION_EXISTED)
        if number % FILTERS_A_TURN == 0:
            await asyncio.sleep(0)
    if session.sender is not None and ReasonCode.SUCCESS in found:  # [MQTT-3.10.4-2]
        covered = lru_cache(maxsize=None)(partial(is_covered, session))  # many of the waiting messages have the same channel
        session.sender.discard(lambda channel: not covered(channel))
    if not await _store(session):
        found = [ReasonCode.UNSPECIFIED_ERROR] * len(found)
    session.send(encode.unsuback(UnsubackPacket(packet.packet_id, tuple(found)), session.version))


async def _store(session: MqttSession) -> bool:
    """Stores a copy of the session with the changed subscriptions. Returns false if the broker is unreachable."""
    lasting = session.lasting
    if lasting is not None and lasting.needs_copies and not session.client.closed:
        try:
            await lasting.store_changed(session.copy, session.client.node.clock)
        except Refused:
            return False
    return True


async def _end(session: MqttSession, filter: str) -> bool:
    """Ends a subscription; returns whether there was one."""
    client = session.client
    is_logged = session.lasting is not None and session.is_logged(name_of(filter))
    channel = "" if is_silent(filter) else channel_of(filter)
    if channel in client.subscriptions or channel in (client.filters or ()):
        retained.unsubscribed(session, filter)
    is_found, is_channel = True, channel in client.subscriptions
    if is_channel:
        await client.node.unsubscribe(client.app, client, channel, client.subscriptions)
        _changed(session, ended=channel)
    elif client.node.wildcards.unsubscribe(client.app, client, channel):
        _changed(session, ended=channel)
    elif session.shared and filter in session.shared:
        session.clients.groups.leave(session.shared.pop(filter), session.sending(), is_ended=False)
    elif session.silent and filter in session.silent:
        session.silent.discard(filter)
    else:
        is_found = False
    if is_found and client.node.tap is not None and not is_channel:
        client.node.tap.unsubscribed(client.app, client, name_of(filter))
    if is_logged and session.lasting is not None:
        await session.lasting.unwatch(name_of(filter))
    return is_found


def is_covered(session: MqttSession, channel: str) -> bool:
    """Returns whether the client receives the messages of a channel through any subscription."""
    client = session.client
    if channel in client.subscriptions:
        return True
    names = (*(client.filters or ()), *map(name_of, session.shared or ()))
    return any(covers(session, name, channel) for name in names)


def covers(session: MqttSession, filter: str, channel: str) -> bool:
    """Returns whether a filter of the client matches a channel that the client may read.

    filter: the MQTT filter, written as a channel name.
    """
    client = session.client
    if filter in client.subscriptions:
        return filter == channel
    if filter.startswith(SHARE):
        group = None if session.shared is None else session.shared.get(filter_of(filter))
        return group is not None and matches(group.filter, channel) and group.may_read(group.member(session.sending()), channel)
    filters, lane = client.app.filters, None if client.filters is None else client.filters.get(filter)
    if lane is None or filters is None or has_wildcard(channel) or not matches(filter, channel):
        return False
    return filters.may_read(filters.rights_of(filter, lane), channel)


def is_silent(filter: str) -> bool:
    """Whether nothing is ever sent for a filter: the server publishes nothing below `$SYS/`, and `$user/` belongs to one user."""
    if filter.startswith(SHARE):
        shared = share_of(filter)
        return shared is not None and shared[1].startswith(SYS)
    return filter.startswith(SYS) or (filter.startswith(USER) and has_wildcard(filter))


def _check_filter(filter: str) -> None:
    """Raises LimitReached for a filter with too many wildcards."""
    if has_wildcard(filter) and filter.count("+") > MAX_PLUSES:
        raise LimitReached(403, f"a filter may have at most {MAX_PLUSES} +")
