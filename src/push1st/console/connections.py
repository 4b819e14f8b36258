"""The endpoints for connections: the sessions of all protocols on all workers, in pages, and the end of sessions and users.

A worker examines at most `MAX_EXAMINED` sessions for a page, in slices. Its cursor is the place in its list after the last
examined session (`cursors.py`), because a session that ends between two pages moves the later ones forward.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Protocol, cast

import msgspec

from push1st.brokers.listing import index_of, is_place, place_at
from push1st.console.cursors import BEGIN, BEGUN, MAX_CURSOR, NO_CURSOR, cursor_of, joined_page, places_of, places_to_read
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.core.agents import ClientAgents
from push1st.core.app import App, client_id_of, prefix_of, user_of
from push1st.core.node import OPERATOR
from push1st.core.session import Session
from push1st.errors import Refused

MAX_LIMIT = 100
MAX_ID = 600
MAX_EXAMINED = 10_000
"""the maximum number of sessions that a worker examines for a page"""
SLICE = 1000
"""the maximum number of sessions that a worker examines in one turn of the event loop"""
SLICE_SECONDS = 0.002
MAX_CHANNELS = 50
"""the maximum number of channels that the row of a session shows"""
SECONDS = 2.0
"""the seconds for which a request waits for the replies of other workers"""
PROTOCOLS = ("pusher", "pusher-xhr", "websocket", "sse", "mqtt")


class ConnectionFilter(msgspec.Struct, array_like=True):
    """The sessions that a list shows; "" shows all. behind: only sessions with unsent output.

    id: a socket id, the client id of an MQTT client, or a session prefix.
    """

    id: str
    user: str
    ip: str
    channel: str
    protocol: str
    behind: bool


class ConnectionsRequest(msgspec.Struct, array_like=True):
    """A request for sessions. places: the places of the nodes; a node without one replies with an empty page."""

    app: str
    filter: ConnectionFilter
    places: dict[str, str]
    limit: int


class ListedConnection(msgspec.Struct, array_like=True):
    """The row of a session. after: the cursor of the sessions after this one. Other fields: see docs/console.md."""

    after: str
    id: str
    ip: str
    user_agent: str
    origin: str
    protocol: str
    since: float
    user: str
    channels: list[str]
    channel_count: int
    behind: int
    client_id: str = ""


class ConnectionPage(msgspec.Struct, array_like=True):
    """The sessions of a worker. next: the cursor of the next page; "" after the last one."""

    connections: list[ListedConnection] = []
    next: str = ""
    examined: int = 0


class TerminateRequest(msgspec.Struct, array_like=True):
    """A request to end a session. reconnects: whether the client may reconnect immediately."""

    app: str
    id: str
    reconnects: bool


class TerminateBody(msgspec.Struct):
    """The body of `POST …/connections/{id}/terminate`."""

    reconnect: bool = True


class ListedOutlet(Protocol):
    """The properties that all outlets of sessions have.

    began: the time at which the connection was established, on `Clock.monotonic`; 0 before this time.
    unsent: the number of bytes that wait for the client.
    """

    @property
    def began(self) -> float: ...
    @property
    def unsent(self) -> int: ...


_request = msgspec.msgpack.Decoder(ConnectionsRequest).decode
_page = msgspec.msgpack.Decoder(ConnectionPage).decode
_terminate = msgspec.msgpack.Decoder(TerminateRequest).decode
_body = msgspec.json.Decoder(TerminateBody).decode
_encode = msgspec.msgpack.encode


class ConnectionList:
    """The connections of an app."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._node = context.node
        self._node.agents = ClientAgents()
        self.endpoints = (
            ConsoleEndpoint("GET", r"apps/([^/]+)/connections", self._listing),
            ConsoleEndpoint("POST", r"apps/([^/]+)/connections/([^/]+)/terminate", self._end_one),
            ConsoleEndpoint("POST", r"apps/([^/]+)/users/([^/]+)/terminate", self._end_user),
        )
        context.wire.serve("connections", self._own)
        context.wire.serve("terminate", self._end_own)

    # This worker

    async def _own(self, data: bytes) -> bytes:
        request = _request(data)
        place = request.places.get(self._context.name, "")
        app = self._node.used.get(request.app)
        if app is None or not place:
            return _encode(ConnectionPage())
        return _encode(await self._examine(app, request.filter, place, request.limit))

    async def _examine(self, app: App, wanted: ConnectionFilter, place: str, limit: int) -> ConnectionPage:
        """Returns the next sessions that pass the filter. place: a valid cursor."""
        sessions = _candidates(app, wanted)
        begin = index = index_of(sessions, place, _id)
        end = min(len(sessions), begin + MAX_EXAMINED)
        found: list[ListedConnection] = []
        await asyncio.sleep(0)
        until = time.monotonic() + SLICE_SECONDS
        while index < end and len(found) < limit:
            session = sessions[index]
            index += 1
            if not session.closed and _passes(session, wanted):
                found.append(self._listed(session, place_at(sessions, index, _id)))
            if not index % SLICE or time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_SECONDS
        following = place_at(sessions, index, _id) if index < len(sessions) else ""
        return ConnectionPage(found, following, index - begin)

    def _listed(self, session: Session, after: str) -> ListedConnection:
        outlet, agent = cast(ListedOutlet, session.outlet), session.agent
        age = self._node.clock.monotonic() - outlet.began if outlet.began else 0.0
        return ListedConnection(
            after,
            session.id,
            session.ip,
            "" if agent is None else agent.user_agent,
            "" if agent is None else agent.origin,
            session.wire.name,
            self._node.clock.wall() / 1e9 - age,
            user_of(session),
            list(islice(_channels(session), MAX_CHANNELS)),
            len(session.subscriptions) + len(session.filters or ()),
            outlet.unsent,
            client_id_of(session),
        )

    def _end_own(self, data: bytes) -> bytes:
        request = _terminate(data)
        app = self._node.used.get(request.app)
        session = None if app is None else app.tenant.sessions.get(request.id)
        if session is None:
            return b""
        client = cast(Session, session)
        # A Pusher client reconnects immediately after 4200, and does not reconnect after 4009.
        if request.reconnects:
            client.disconnect(4200, "Terminated by an operator: reconnect")
        else:
            client.disconnect(4009, "Terminated by an operator")
        return b"1"

    # All workers

    def _app(self, call: ConsoleCall) -> App:
        id = call.args[0]
        config = self._node.apps.by_id(id)
        if config is None:
            raise Refused(404, f"there is no app {id[:64]!r}")
        return self._node.app(config)

    async def _listing(self, call: ConsoleCall) -> object:
        app, limit, after = self._app(call), max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after", MAX_CURSOR)
        wanted = ConnectionFilter(
            call.text("id", MAX_ID),
            call.text("user", MAX_ID),
            call.text("ip"),
            call.text("channel", MAX_ID),
            call.text("protocol"),
            call.flag("behind"),
        )
        if wanted.protocol and wanted.protocol not in PROTOCOLS:
            raise Refused(400, f"protocol must be one of {', '.join(PROTOCOLS)}")
        cursor = places_of(after) if after else BEGIN
        if not all(key == BEGUN or is_place(place) for key, place in cursor.items()):
            raise Refused(400, NO_CURSOR)
        wire = self._context.wire
        places = places_to_read(cursor, (self._context.name, *wire.consoles()))
        request = ConnectionsRequest(app.config.id, wanted, places, limit)
        replies = await wire.request("connections", _encode(request), seconds=SECONDS)
        pages = dict(replies.decoded(_page))
        listed = {node: (page.connections, page.next) for node, page in pages.items()}
        rows, following = joined_page(cursor, places, listed, replies.missing, limit)
        return {
            "connections": [_row(one, node) for node, one in rows],
            "next": cursor_of(following),
            "complete": not following or len(rows) >= limit,
            "examined": sum(page.examined for page in pages.values()),
            "missing": replies.missing,
            "away": replies.away,
        }

    async def _end_one(self, call: ConsoleCall) -> object:
        app, id = self._app(call).config.id, call.args[1]
        try:
            body = _body(call.body or b"{}")
        except msgspec.DecodeError as exc:
            raise Refused(400, f'the body must be {{"reconnect": true}} or {{"reconnect": false}}: {exc}') from None
        request = TerminateRequest(app, id, body.reconnect)
        replies = await self._context.wire.request("terminate", _encode(request), seconds=SECONDS)
        found = sum(bool(data) for _, data in replies.found)
        if not found and replies.away:
            raise Refused(503, f"the broker is away, and this worker has no connection {id[:64]!r}: try again")
        if not found and not replies.missing:
            raise Refused(404, f"there is no connection {id[:64]!r}")
        self._context.action(call, "terminate", app, id)
        return {"found": found, "delivered": len(replies.found), "missing": replies.missing, "away": replies.away}

    async def _end_user(self, call: ConsoleCall) -> object:
        app, user = self._app(call), call.args[1]
        await self._node.terminate(app, user, by=OPERATOR)
        self._context.action(call, "terminate user", app.config.id, user)
        return {"delivered": len(self._context.wire.peers().nodes) + 1}


def _candidates(app: App, wanted: ConnectionFilter) -> Sequence[Session]:
    """Returns the sessions to examine for a filter, in the order in which they began or subscribed to its channel."""
    sessions = app.tenant.sessions
    if wanted.id in sessions:
        return [cast(Session, sessions[wanted.id])]
    if wanted.id:
        found = [one for one in app.tenant.with_prefix(wanted.id) if prefix_of(one.id) == wanted.id]
        if len(found) > 1:  # a multicast needs no order, but a cursor does
            among = set(found)
            found = [one for one in sessions.values() if one in among]
        return cast(Sequence[Session], found)
    channel = app.tenant.channels.get(wanted.channel) if wanted.channel else None
    if channel is not None:
        return cast(Sequence[Session], list(chain(*[lane.writes for lane in channel.lanes])))
    return cast(Sequence[Session], list(sessions.values()))


def _passes(session: Session, wanted: ConnectionFilter) -> bool:
    if wanted.ip and session.ip != wanted.ip:
        return False
    if (
        wanted.protocol
        and session.wire.name != wanted.protocol
        and not (wanted.protocol == "mqtt" and session.wire.name == "mqtt5")
    ):
        return False
    if wanted.channel and wanted.channel not in session.subscriptions and wanted.channel not in (session.filters or ()):
        return False
    if wanted.behind and not cast(ListedOutlet, session.outlet).unsent:
        return False
    return not wanted.user or _is_user(session, wanted.user)


def _is_user(session: Session, user: str) -> bool:
    """Returns whether a client is signed in as a user, or is a user's connection on a presence channel."""
    if session.user is not None and session.user.id == user:
        return True
    return any(one.member is not None and one.member.user_id == user for one in session.subscriptions.values())


def _channels(session: Session) -> Iterator[str]:
    return chain(session.subscriptions, session.filters or ())


def _row(one: ListedConnection, node: str) -> dict[str, object]:
    row = msgspec.structs.asdict(one) | {"worker": node}
    del row["after"]
    return row


def _id(session: Session) -> str:
    return session.id
