"""Signed-in users on this worker (Pusher protocol, section 5): their topics, their watchlists, and the events held for them.

`held.py` explains why events are held between a sign-in and the subscription to the user's channel.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from push1st.brokers import Users
from push1st.clock import Clock
from push1st.core.app import App, Client
from push1st.core.fanout import Fanout
from push1st.core.held import Held
from push1st.core.hub import Lane, Subscriber
from push1st.core.topics import ClientTopics
from push1st.eager import spawn
from push1st.errors import LimitReached, Refused
from push1st.messages import SignedInUser, WatchlistStatus, session_topic, watch_topic
from push1st.positions import Position

if TYPE_CHECKING:
    from push1st.core.tap import Tap


class SignIns:
    """Signs clients in and out, and holds events for clients that are about to subscribe."""

    __slots__ = ("_clock", "_fanout", "_topics", "_users", "tap")

    def __init__(self, topics: ClientTopics, fanout: Fanout, clock: Clock) -> None:
        self._topics = topics
        self._fanout = fanout
        self._clock = clock
        self._users: Users
        self.tap: Tap | None = None

    def open(self, users: Users) -> None:
        self._users = users

    async def sign_in(
        self, app: App, client: Client, user: SignedInUser, held: str = ""
    ) -> tuple[dict[str, Lane], WatchlistStatus]:
        """Signs a client in as a user; returns the lanes of the user's topics, and the online users of the watchlist.

        `held`: the channel whose events are held until the client subscribes to the channel; "" if no events are held.
        """
        id = app.config.id
        topics = (session_topic(user.id), *map(watch_topic, user.watchlist))
        wanted = (*topics, held) if held else topics
        for name in wanted:
            self._topics.want(app, name)
        signed_in = False
        try:
            for name in wanted:
                if not self._topics.is_received(app, name):
                    await self._topics.subscribe(app, name)
            if held:
                self._hold(app, client, held)
            await self._users.sign_in(id, user.id, client.id)
            online = await self._users.online(id, user.watchlist)
            if client.closed:
                raise LimitReached(403, "the connection is closed")
            lanes = {name: self._fanout.subscribe(app.tenant, client, name) for name in topics}
            signed_in = True
            if self.tap is not None:
                self.tap.signed_in(app, client, user.id)
        finally:
            if not signed_in:
                if self.drop_held(app, client):
                    await self.end_hold(app, held)
                with suppress(Refused):
                    await self._users.sign_out(id, user.id, client.id)
            for name in wanted:
                if self._topics.unwant(app, name):
                    await self._topics.release(app, name)
        return lanes, WatchlistStatus(
            tuple(one for one in user.watchlist if one in online), tuple(one for one in user.watchlist if one not in online)
        )

    async def sign_out(self, app: App, client: Client, user: SignedInUser) -> None:
        """Signs out the user of a connection that has ended.

        If the broker is away, the user stays online until this worker's node registers with the broker again.
        """
        with suppress(Refused):
            await self._users.sign_out(app.config.id, user.id, client.id)

    async def hold(self, app: App, client: Client, channel: str) -> None:
        """Holds the events of a channel for a client that has signed in, until the client subscribes. Raises Refused(503)."""
        self._topics.want(app, channel)
        try:
            if not self._topics.is_received(app, channel):
                await self._topics.subscribe(app, channel)
            if not client.closed:
                self._hold(app, client, channel)
        finally:
            if self._topics.unwant(app, channel):
                await self._topics.release(app, channel)

    def _hold(self, app: App, client: Client, channel: str) -> None:
        if app.held is None:
            app.held = Held(self._send_held)
        app.held.add(client, channel, self._clock.monotonic(), client.resumption is not None)

    def _send_held(self, client: Subscriber, frame: bytes) -> None:
        client.app.counts.messages_out += 1
        self._fanout.direct(client, frame)

    def deliver_held(self, app: App, client: Client, replayed: Position | None = None) -> None:
        """Delivers the frames held for a client that has just subscribed. `replayed`: see `Held.deliver`."""
        if app.held is not None and (channel := app.held.deliver(client, replayed)):
            spawn(self.end_hold(app, channel))

    def drop_held(self, app: App, client: Client) -> str:
        """Drops the frames held for a client. Returns the channel for `end_hold`, or "" if nothing was held."""
        return "" if app.held is None else app.held.drop(client)

    async def end_hold(self, app: App, channel: str) -> None:
        """Releases the topic of a channel after a client's hold on the channel has ended."""
        if not app.held:
            app.held = None
        await self._topics.release(app, channel)

    def tick(self, app: App, now: float) -> None:
        """Delivers the frames held for clients that did not subscribe in time. Called once a second."""
        held = app.held
        if held is not None:
            for client in held.due(now):
                spawn(self.end_hold(app, held.deliver(client)))
