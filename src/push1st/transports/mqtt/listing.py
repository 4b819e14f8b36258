"""Lists the connected MQTT clients of a worker for operators, in pages."""

import asyncio
from collections.abc import Iterator
from itertools import chain, islice

import msgspec

from push1st.brokers.listing import chosen
from push1st.brokers.sessions import MAX_LISTED_FILTERS, Owner
from push1st.core.hub import Wire
from push1st.protocols.mqtt.own import MqttOwnWire
from push1st.protocols.mqtt.topics import filter_of
from push1st.transports.mqtt.clients import ClientConnection, MqttClients
from push1st.transports.mqtt.session import MqttSession

COUNTED_A_TURN = 10_000
"""the number of clients of all apps that are examined before other work gets its turn"""


class ConnectedClient(msgspec.Struct, frozen=True):
    """A connected client.

    after: the cursor of the clients after this one.
    age: the seconds since the broker gave the client id to the connection; 0 before.
    expiry: the seconds for which the session outlives the connection.
    filters: at most `MAX_LISTED_FILTERS` filters, each with its quality of service. count: their number.
    inflight, waiting: the numbers of messages in flight to the client, and of waiting ones.
    """

    client_id: str
    after: str
    owner: Owner
    age: float
    expiry: int
    filters: tuple[tuple[str, int], ...]
    count: int
    inflight: int
    waiting: int


class ClientPage(msgspec.Struct, frozen=True):
    """Connected clients. next: the cursor of the next page; "" after the last one. examined: the number of examined clients."""

    clients: tuple[ConnectedClient, ...]
    next: str
    examined: int


async def connected_clients(clients: MqttClients, app: str, prefix: str, after: str, most: int) -> ClientPage:
    """Returns clients of an app whose ids begin with `prefix`, at most `most`.

    after: the cursor of an earlier page; "": from the beginning. Raises ValueError if it is not a cursor.
    """
    keys = list(clients.connections)
    names: list[str] = []
    for at in range(0, len(keys), COUNTED_A_TURN):
        names += [name for one, name in keys[at : at + COUNTED_A_TURN] if one == app]
        await asyncio.sleep(0)
    found, following, examined = chosen(names, prefix, after, most)
    now = clients.context.node.clock.monotonic()
    listed: list[ConnectedClient] = []
    for name, cursor in found:
        pair = clients.connections.get((app, name))
        if pair is not None and isinstance(pair[0], MqttSession):
            listed.append(_listed(pair[0], pair[1], cursor, now))
    return ClientPage(tuple(listed), following, examined)


def _listed(session: MqttSession, connection: ClientConnection, cursor: str, now: float) -> ConnectedClient:
    inflight, waiting = connection.flow
    client = session.client
    count = len(client.subscriptions) + len(client.filters or ()) + len(session.shared or ()) + len(session.silent or ())
    return ConnectedClient(
        session.client_id,
        cursor,
        session.owner,
        now - connection.began if connection.began else 0.0,
        session.expiry,
        tuple(islice(_filters(session), MAX_LISTED_FILTERS)),
        count,
        inflight,
        waiting,
    )


def _filters(session: MqttSession) -> Iterator[tuple[str, int]]:
    client = session.client
    lanes = chain(
        ((channel, one.lane.wire) for channel, one in client.subscriptions.items()),
        ((filter, lane.wire) for filter, lane in (client.filters or {}).items()),
    )
    for name, wire in lanes:
        yield filter_of(name), _qos(wire)
    for filter, group in (session.shared or {}).items():
        yield filter, group.member(session.sending()).options.qos
    for filter in session.silent or ():
        yield filter, 0


def _qos(wire: Wire) -> int:
    return wire.qos if isinstance(wire, MqttOwnWire) else 0
