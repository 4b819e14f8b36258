"""The endpoints for MQTT: the sessions of connected and of absent clients, and the retained messages, which operators delete."""

import msgspec

from push1st.brokers.listing import FIRST
from push1st.brokers.retained import expires
from push1st.brokers.sessions import AbsentSession, Owner
from push1st.console.cursors import (
    BEGIN,
    MAX_CURSOR,
    NO_CURSOR,
    cursor_of,
    joined_page,
    places_of,
    places_to_read,
    shown_data,
)
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.console.wire import Replies
from push1st.errors import Refused
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.payload import payload_of
from push1st.protocols.mqtt.topics import channel_of, exchange, filter_of
from push1st.transports.mqtt.listing import ClientPage, ConnectedClient, connected_clients

MAX_LIMIT = 200
MAX_NAME = 1024
"""the maximum number of bytes of the beginning of a client id or topic"""
STATES = ("", "connected", "absent")
ABSENT = ""
"""the name of the list of absent sessions in a cursor; other lists have the names of the workers' nodes"""


class ClientsRequest(msgspec.Struct, array_like=True):
    """A request for connected clients. places: the places of the nodes; a node without one replies with an empty page."""

    app: str
    prefix: str
    places: dict[str, str]
    limit: int


_request = msgspec.msgpack.Decoder(ClientsRequest).decode
_page = msgspec.msgpack.Decoder(ClientPage).decode
_encode = msgspec.msgpack.encode


class MqttLists:
    """The MQTT sessions and the retained messages of an app."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._node = context.node
        self.endpoints = (
            ConsoleEndpoint("GET", r"apps/([^/]+)/mqtt/sessions", self._sessions),
            ConsoleEndpoint("GET", r"apps/([^/]+)/mqtt/retained", self._retained),
            ConsoleEndpoint("DELETE", r"apps/([^/]+)/mqtt/retained", self._delete),
        )
        context.wire.serve("mqtt-clients", self._own_clients)

    def _app(self, call: ConsoleCall) -> str:
        app = call.args[0]
        if self._node.apps.by_id(app) is None:
            raise Refused(404, f"there is no app {app[:64]!r}")
        return app

    # Sessions

    async def _own_clients(self, data: bytes) -> bytes:
        request, clients = _request(data), self._context.clients
        place = request.places.get(self._context.name, "")
        if clients is None or not place:
            return _encode(ClientPage((), "", 0))
        try:
            page = await connected_clients(clients, request.app, request.prefix, place, request.limit)
        except ValueError:  # the cursor was changed
            page = ClientPage((), "", 0)
        return _encode(page)

    async def _sessions(self, call: ConsoleCall) -> object:
        app, limit, after = self._app(call), max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after", MAX_CURSOR)
        prefix, state = call.text("client", MAX_NAME), call.text("state")
        if state not in STATES:
            raise Refused(400, "state must be connected or absent")
        cursor = places_of(after) if after else BEGIN
        sessions: list[dict[str, object]] = []
        following: dict[str, str] = {}
        examined, replies = 0, Replies([], [], "")
        if state != "absent" and (not after or cursor.keys() - {ABSENT}):
            wire, now = self._context.wire, self._node.clock.wall() / 1e9
            places = places_to_read(cursor, (self._context.name, *wire.consoles()))
            replies = await wire.request("mqtt-clients", _encode(ClientsRequest(app, prefix, places, limit)))
            pages = dict(replies.decoded(_page))
            examined = sum(page.examined for page in pages.values())
            listed = {node: (page.clients, page.next) for node, page in pages.items()}
            rows, following = joined_page(cursor, places, listed, replies.missing, limit)
            sessions = [_connected(one, node, now) for node, one in rows]
        away = replies.away or self._context.wire.peers().away
        if state != "connected" and not away and (not after or ABSENT in cursor) and self._node.sessions is not None:
            place = cursor.get(ABSENT, FIRST)
            if len(sessions) < limit:
                try:
                    absent = await self._node.sessions.absent(app, prefix, "" if place == FIRST else place, limit - len(sessions))
                except ValueError:
                    raise Refused(400, NO_CURSOR) from None
                except Refused as refused:
                    away = refused.text
                else:
                    examined += absent.examined
                    sessions += map(_absent, absent.sessions)
                    if absent.next:
                        following[ABSENT] = absent.next
            else:
                following[ABSENT] = place
        return {
            "sessions": sessions,
            "next": cursor_of(following),
            "complete": not following or len(sessions) >= limit,
            "examined": examined,
            "missing": replies.missing,
            "away": away,
        }

    # Retained messages

    async def _retained(self, call: ConsoleCall) -> object:
        app, limit, after = self._app(call), max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after", MAX_CURSOR)
        prefix, with_data = exchange(call.text("prefix", MAX_NAME)), call.flag("data")
        self._context.require_broker()
        try:
            page = await self._node.retained.listed(app, prefix, after, limit)
        except ValueError:
            raise Refused(400, NO_CURSOR) from None
        return {
            "retained": [_message(one, with_data) for one in page.messages],
            "next": page.next or None,
            "complete": not page.next or len(page.messages) >= limit,
            "examined": page.examined,
            "away": "",
        }

    async def _delete(self, call: ConsoleCall) -> object:
        app, topic = self._app(call), call.text("topic", MAX_NAME)
        is_deleted = bool(topic) and await self._node.retained.drop(app, channel_of(topic))
        self._context.action(call, "delete-retained", app, topic)
        if not is_deleted:
            raise Refused(404, f"there is no retained message at {topic[:200]!r}")
        return {"deleted": True}


def _owner(owner: Owner) -> str:
    return owner.kind if owner.kind in ("anonymous", "token") else f"{owner.kind} {owner.name}"


def _connected(one: ConnectedClient, node: str, now: float) -> dict[str, object]:
    return {
        "client": one.client_id,
        "owner": _owner(one.owner),
        "state": "connected",
        "since": now - one.age,
        "expires": None,
        "expiry": one.expiry,
        "filters": [{"filter": filter, "qos": qos} for filter, qos in one.filters],
        "filter_count": one.count,
        "waiting": one.waiting,
        "inflight": one.inflight,
        "worker": node,
    }


def _absent(one: AbsentSession) -> dict[str, object]:
    return {
        "client": one.client_id,
        "owner": _owner(one.owner),
        "state": "absent",
        "since": one.since,
        "expires": one.until,
        "expiry": one.expiry,
        "filters": [{"filter": filter_of(filter), "qos": qos} for filter, qos in one.filters],
        "filter_count": one.count,
        "waiting": one.waiting,
        "inflight": None,
        "worker": "",
    }


def _message(message: Message, with_data: bool) -> dict[str, object]:
    payload = payload_of(message.data)
    shown: dict[str, object] = {
        "topic": filter_of(message.channel),
        "qos": qos_of(message),
        "bytes": len(payload),
        "expires": expires(message) / 1e9 or None,
        "cached": message.mqtt is None,
    }
    return shown | shown_data(payload) if with_data else shown
