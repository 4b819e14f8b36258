"""Subscribes clients to filters with wildcards, and ends these subscriptions.

Pending frames of a filter's lanes are written before the subscribers of these lanes change (invariant 2). These subscriptions
name no channel: they do not count as subscriptions of channels, and make no client a member.

With a shared broker, a filter is registered while it has subscribers on this worker, so that all workers send matching messages.
"""

from collections.abc import Mapping
from typing import Protocol

from push1st.brokers import ALL_CHANNELS, PUBLIC_CHANNELS, NodeFilters
from push1st.core.app import App
from push1st.core.fanout import Fanout
from push1st.core.filters import FilterRights, SeenMessages
from push1st.core.hub import Lane, Subscriber, Wire, Write
from push1st.messages import Message


class FilterSubscriber(Subscriber, Protocol):
    """A client, or a group of clients that share a filter."""

    @property
    def filters(self) -> dict[str, Lane] | None:
        """The lanes of the subscriber's filters, by filter; None if the subscriber never had a filter."""

    @filters.setter
    def filters(self, lanes: dict[str, Lane] | None) -> None: ...


class Wildcards:
    """The part of the node for filters with wildcards. `live`: the apps of this worker by id."""

    __slots__ = ("_fanout", "_live", "_registered", "_seen")

    def __init__(self, fanout: Fanout, live: Mapping[str, App]) -> None:
        self._fanout = fanout
        self._live = live
        self._registered: NodeFilters | None = None
        """the filters that are registered in the broker; None if the broker is not shared"""
        self._seen: SeenMessages | None = None

    def open(self, filters: NodeFilters | None) -> None:
        """`filters`: see `Broker.filters`."""
        if filters is not None:
            self._registered, self._seen = filters, SeenMessages()
            filters.receive = self.receive

    def receive(self, message: Message) -> int:
        """Delivers a message that this worker receives because of its filters. Returns the number of subscribers."""
        app = self._live.get(message.app)
        return 0 if app is None or app.copies is None else self._fanout.receive(app.copies, message)

    def subscribe(
        self,
        app: App,
        client: FilterSubscriber,
        filter: str,
        wire: Wire,
        rights: FilterRights,
        is_anonymous: bool,
        deliver: Write | None = None,
    ) -> None:
        """Subscribes a client to a filter, or replaces the wire and the rights of its subscription. Raises LimitReached.

        `filter`: a filter whose levels are separated by dots. `is_anonymous`: whether the client has proved no identity.
        `deliver`: see `Tenant.subscribe`.
        """
        mine = client.filters
        if mine is None:
            mine = client.filters = {}
        filters = app.open_filters(self._seen)
        try:
            if filter not in mine:
                self.check_room(app, filter, is_anonymous)
            self._fanout.flush_lanes(filters.lanes_of(filter))
            old = mine.get(filter)
            if old is not None:
                self._fanout.flush_subscriber(client)
                filters.remove(client, filter, old)
            mine[filter] = filters.add(client, filter, wire, rights, deliver)
            if self._registered is not None:
                self._register(app, filter)
        finally:
            app.close_unused_filters()

    def check_room(self, app: App, filter: str, is_anonymous: bool) -> None:
        """Raises LimitReached if the app may not have a further filter or group, on this worker or on all workers together."""
        if app.filters is not None:
            app.filters.check_room(filter, is_anonymous)
        if self._registered is not None:
            self._registered.check_room(app.config.id, filter, is_anonymous)

    def hold(self, app: App) -> None:
        """Keeps the decisions about rights for a group, whose messages do not come through its filter."""
        app.open_filters(self._seen)
        app.groups += 1

    def release(self, app: App) -> None:
        """Reverses a call of `hold`."""
        app.groups -= 1
        app.close_unused_filters()

    def _register(self, app: App, filter: str) -> None:
        """Registers a filter with the rights that its subscribers need, or ends the registration without subscribers."""
        assert self._registered is not None
        rights = () if app.filters is None else app.filters.all_rights(filter)
        more = any(one.claims is not None or one.is_granted for one in rights)
        self._registered.set(app.config.id, filter, 0 if not rights else ALL_CHANNELS if more else PUBLIC_CHANNELS)

    async def confirmed(self, app: App, filter: str) -> None:
        """Returns when all later messages for a filter reach this worker. Raises Refused(503)."""
        if self._registered is not None:
            await self._registered.confirmed(app.config.id, filter)

    def move(self, app: App, client: FilterSubscriber, filter: str, wire: Wire, deliver: Write | None = None) -> None:
        """Moves a subscription of a client to another wire; its rights stay. See `Fanout.move`."""
        assert client.filters is not None
        assert app.filters is not None
        rights = app.filters.rights_of(filter, client.filters[filter])
        self.subscribe(app, client, filter, wire, rights, False, deliver)

    def unsubscribe(self, app: App, client: FilterSubscriber, filter: str) -> bool:
        """Ends a subscription after the client's pending frames are written; returns false without such a subscription."""
        lane = None if client.filters is None else client.filters.get(filter)
        if lane is None:
            return False
        self._fanout.flush_lanes([lane])
        self._fanout.flush_subscriber(client)
        assert client.filters is not None
        del client.filters[filter]
        self.end(app, client, {filter: lane})
        return True

    def end(self, app: App, client: Subscriber, left: Mapping[str, Lane]) -> None:
        """Removes a session that has ended from the lanes of its filters. `left`: these lanes, by filter."""
        if app.filters is not None:
            for filter, lane in left.items():
                app.filters.remove(client, filter, lane)
                if self._registered is not None:
                    self._register(app, filter)
            app.close_unused_filters()
