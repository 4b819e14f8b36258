"""Lets the session apply the packets of an MQTT client. `input` reads the packets, `output` ends the connection.

The first byte of a connection must be that of a CONNECT. The decoder checks the size of a packet before it keeps the bytes
(`protocols/mqtt/decode.py`).
"""

import asyncio
import secrets
from typing import cast

import msgspec

from push1st.errors import Disconnect, LimitReached, Refused
from push1st.limits import Bucket
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.flow import FlowViolation
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    ClientPacket,
    ConnackPacket,
    ConnectPacket,
    DisconnectPacket,
    PingreqPacket,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
    SubscribePacket,
    UnsubscribePacket,
    Violation,
)
from push1st.transports.lost import LOST, detach, is_ended, unread
from push1st.transports.mqtt import publishing, reasons, resuming, subscribing
from push1st.transports.mqtt.identity import ConnectRefused, MqttIdentity, MqttPeer, app_id, common_name, identify
from push1st.transports.mqtt.input import MqttInput
from push1st.transports.mqtt.output import CONNECT_SECONDS, count_refusal, rejection
from push1st.transports.mqtt.session import MqttSession
from push1st.transports.places import Crowded

SEARCH_STEPS = 100
"""the cost of a search through the filters with wildcards (`Filters.cost`) that counts as another publish of the client"""


class MqttConnection(MqttInput):
    """A connection of a client, which owns the socket."""

    __slots__ = ()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        # uvloop's classes do not inherit `asyncio.Transport`
        self.begin(cast(asyncio.Transport, transport), peer[0] if isinstance(peer, tuple) else "")

    def begin(self, transport: asyncio.Transport, ip: str) -> None:
        """Begins a connection over TCP, TLS or a Unix socket. ip: the address of the client; "" on a Unix socket."""
        self._transport = transport
        context = self._context
        whitelist = self._clients.settings.whitelist
        if whitelist and ip and not whitelist.contains(ip):
            context.node.metrics.cut_offs["whitelist"] += 1
            context.node.refusals.log("connection closed", 403, "this address is not in server.mqtt.whitelist", ip=ip)
            self._turn_away()
            return
        crowded: Crowded = "server"
        room = context.descriptors.room(lambda: _descriptor(transport), len(context.open), False)
        if room == "serve":
            crowded = "address"
            address = context.shared_address(ip)
            room = context.addresses.enter(address)
            self.address = address if room != "none" else ""
        if room == "none":
            context.refuse_crowded(crowded, ip)
            self._turn_away()
            return
        certificate = transport.get_extra_info("peercert")
        name = common_name(certificate) if certificate else None
        self._expect_connect(MqttPeer(ip, None if room == "serve" else crowded, certificate=name))

    def _turn_away(self) -> None:
        """Ends the connection at once, and discards input that arrives until its end."""
        self._closing = True
        self._linger = 1
        self._transport.abort()

    def _expect_connect(self, peer: MqttPeer) -> None:
        """Waits for the CONNECT of the client."""
        context = self._context
        self._peer = peer
        self._transport.set_write_buffer_limits(high=context.config.server.outbox)
        context.open.add(self)
        context.sweep.watch(self, context.sweep.now + CONNECT_SECONDS + 1)

    def data_received(self, data: bytes) -> None:
        self._context.arrived(self, data)

    def eof_received(self) -> bool:
        """Handles the end of the client's input. The connection ends after all packets are applied."""
        self._context.turn.catch_up()
        if self._closing or (not self._has_input and self._context.ends.add(self)):
            return False
        self._eof = True
        is_secure = self._transport.get_extra_info("sslcontext") is not None
        if is_secure:  # uvloop closes a TLS connection at the end of its input
            self._outlive()
        return not is_secure

    def connection_lost(self, exc: Exception | None) -> None:
        detach(self._transport)
        turn = self._context.turn
        turn.catch_up()
        if self._transport is LOST:
            return
        if not self._closing and turn.keeps_lost():
            if data := unread(self._transport):
                self.keep(data)
            if self._has_input:
                self._outlive()
                if not self._waits:
                    turn.resume(self)
                return
        self._lose()

    @property
    def has_place(self) -> bool:
        """See `ClientConnection`."""
        return self._session is not None and self._session.has_place

    # Packets

    def _apply(self, packet: ClientPacket) -> None:
        self._seen = self._context.sweep.now
        session = self._session
        if session is None:
            self._begin(packet)
            return
        # measured: the order of these tests saves 0.2 µs for a PUBACK; run `python bench/mqtt_deliver.py` before changing
        if type(packet) is PublishPacket:
            if self._bucket is not None and not self._bucket.take(self._context.node.clock.monotonic()):
                self._owes = True
            filters = session.client.node.filters or session.client.app.filters
            cost = 0 if filters is None else filters.cost
            self._publish(session, packet)
            if filters is not None and filters.cost > cost and self._bucket is not None:
                self._bucket.charge(self._context.node.clock.monotonic(), (filters.cost - cost) / SEARCH_STEPS)
            return
        if session.receiver is not None:
            session.receiver.answer()  # acknowledgements have the order of the client's packets
        if type(packet) is PubackPacket:
            session.acknowledge(packet)
            return
        match packet:
            case PubcompPacket() | PubrecPacket():
                session.acknowledge(packet)
            case PubrelPacket():
                session.release(packet)
            case PingreqPacket():
                session.ping()
            case SubscribePacket():
                self._is_piece_over = True  # a packet with many filters takes long, although it is only one packet
                self._follow(subscribing.subscribe(session, packet))
            case UnsubscribePacket():
                self._is_piece_over = True
                self._follow(subscribing.unsubscribe(session, packet))
            case DisconnectPacket():
                self._disconnected(session, packet)
            case _:
                assert isinstance(packet, Violation)
                self._violated(packet)

    def _disconnected(self, session: MqttSession, packet: DisconnectPacket) -> None:
        """Handles DISCONNECT. Raises FlowViolation."""
        if packet.session_expiry is not None:
            if packet.session_expiry and not session.expiry:  # §3.14.2.2.2
                raise FlowViolation(ReasonCode.PROTOCOL_ERROR, "DISCONNECT prolongs a session that ends with the connection")
            if session.lasting is not None:
                session.lasting.expiry = min(packet.session_expiry, self._clients.settings.session_expiry)
        self._ended_by_client(packet.reason)  # [MQTT-3.14.4-3]

    def _begin(self, packet: ClientPacket) -> None:
        """Handles the first packet [MQTT-3.1.0-1]."""
        if isinstance(packet, ConnectPacket):
            self._connect(packet)
        else:
            assert isinstance(packet, Violation)
            self._violated(packet)

    def _violated(self, packet: Violation) -> None:
        node = self._context.node
        node.metrics.refusals[reasons.label(packet.reason)] += 1
        if self._session is not None:
            node.fanout.flush_subscriber(self._session.client)
        self._leave(packet.reason, packet.text)
        self._close(packet.answer)

    # Connecting

    def _connect(self, packet: ConnectPacket) -> None:
        context, peer = self._context, self._peer
        assert peer is not None
        if context.turn.has_crowd and is_ended(self._transport):  # a late CONNECT would take over the client's next connection
            if self._transport is LOST:
                self._release()
            else:
                self._turn_away()
            return
        try:
            identity = identify(context, packet, peer)
            client_id = packet.client_id or f"auto-{secrets.token_urlsafe(16)}"
            session = MqttSession(self._clients, identity, self, self._transport.write, peer.ip, client_id, packet)
        except ConnectRefused as refused:
            self._refuse(packet, peer, refused.reason, refused.text)
            return
        except Disconnect as end:
            self._refuse(packet, peer, reasons.of_connect(end.code), end.reason)
            return
        self._session, self._packet = session, packet
        session.client.connect(identity.request, lambda: self._admit(session, identity, packet))
        if not self._is_admitted and not self._closing:
            self._waits = True

    def _admit(self, session: MqttSession, identity: MqttIdentity, packet: ConnectPacket) -> None:
        """Accepts the client, after the app's backend has accepted it."""
        if not self._follow(self._open(session, identity, packet)) and self._waits:
            self._go_on()

    async def _open(self, session: MqttSession, identity: MqttIdentity, packet: ConnectPacket) -> None:
        """Accepts the client [MQTT-3.1.4-5], unless another client uses its client id or its will is not permitted."""
        client, settings = session.client, self._clients.settings
        if packet.will is not None and not publishing.may_publish(session, packet.will.topic):
            self._end(ReasonCode.NOT_AUTHORIZED, "the topic of the will is not permitted")
            return
        longest, keep_alive, lowered = settings.activity_timeout, packet.keep_alive, None
        if packet.version == MQTT_5 and not 0 < keep_alive <= longest:
            keep_alive = lowered = longest  # [MQTT-3.1.2-21]
        expiry = resuming.expiry_of(session, packet)
        connack = ConnackPacket(
            topic_alias_maximum=settings.topic_aliases,
            session_expiry=None if expiry == packet.session_expiry else expiry,
            assigned_client_id=None if packet.client_id else session.client_id,  # [MQTT-3.2.2-16]
            server_keep_alive=lowered,
            maximum_packet_size=settings.max_payload,
            receive_maximum=settings.inflight,
        )
        frame = encode.connack(connack, packet.version)
        if 0 < session.max_size < len(frame):  # [MQTT-3.1.2-24]
            self._packet = None
            self._end(ReasonCode.PACKET_TOO_LARGE, "the maximum packet size is shorter than CONNACK")
            return
        session.owner = identity.owner(client.user)
        await self._clients.pace(client.app.config.id, session.client_id)
        if self._transport is LOST and self._clients.is_connected(client.app.config.id, session.client_id):
            self._release()  # the client has connected again during the wait
        if self._closing:
            return
        app = client.app.config.id
        replaces = self._clients.has_place(app, session.client_id)
        if not self._clients.claim(app, session, self):
            self._end(ReasonCode.NOT_AUTHORIZED, "another client uses this client id")
            return
        session.has_place |= replaces
        await client.node.admit(client.app, client, replaces=replaces)
        session.has_place = True
        await self._clients.saved(app, session.client_id)  # by an earlier connection
        if self._session is not session:
            return
        try:
            await resuming.claim(session, packet.clean, expiry)
        except Refused as refused:
            self._end(_claim_reason(refused), refused.text)
            return
        if self._session is not session:
            return
        self.began = client.node.clock.monotonic()
        if client.node.tap is not None:
            client.node.tap.connected(client.app, client)  # before `restore`, which shows the subscriptions of the session
        is_resumed = session.lasting is not None and session.lasting.resumed is not None
        if is_resumed:
            try:
                await resuming.restore(session)
            except Refused as refused:
                self._end(ReasonCode.SERVER_UNAVAILABLE, refused.text)
                return
            if self._session is not session:
                return
        if session.lasting is not None:
            session.lasting.accept(expiry)
        if is_resumed:  # [MQTT-3.2.2-3]
            frame = encode.connack(msgspec.structs.replace(connack, session_present=True), packet.version)
        self._is_admitted, self._packet, self._peer = True, None, None
        self._context.node.metrics.opened[client.wire.name] += 1
        if settings.publishes:
            self._bucket = Bucket(settings.publishes, self._context.node.clock.monotonic())
        if keep_alive:
            self._keep_alive = 1.5 * keep_alive
        session.send(frame)
        self._watch(self._context.sweep.now)
        if is_resumed:
            await self._resume(session)

    async def _resume(self, session: MqttSession) -> None:
        """Continues the deliveries of the client's session."""
        try:
            is_valid = await resuming.resume(session)
        except Refused as refused:
            self._end(ReasonCode.SERVER_BUSY, refused.text)
            return
        if not is_valid:
            self.take_over()

    def lose(self) -> None:
        """See `ClientConnection`."""
        self._end(ReasonCode.SERVER_BUSY, "messages may be missing after the loss of the broker")

    def _refuse(self, packet: ConnectPacket, peer: MqttPeer, reason: ReasonCode, text: str) -> None:
        """Rejects the client with CONNACK."""
        count_refusal(self._context, reason, text, app_id(self._context, packet, peer), packet.client_id, peer.ip)
        self._close(rejection(packet, reason, text))


def _descriptor(transport: asyncio.Transport) -> int:
    """Returns the number of a connection's file descriptor; 0 if the transport has no socket."""
    socket = transport.get_extra_info("socket")
    return 0 if socket is None else socket.fileno()


def _claim_reason(refused: Refused) -> ReasonCode:
    """Returns the reason code of CONNACK for a session that the broker does not give to the client."""
    if isinstance(refused, LimitReached):
        return ReasonCode.QUOTA_EXCEEDED
    return ReasonCode.SERVER_UNAVAILABLE if refused.code == 503 else ReasonCode.NOT_AUTHORIZED
