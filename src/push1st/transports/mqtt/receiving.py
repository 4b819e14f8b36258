"""The messages with QoS 1 and 2 of one MQTT client, and their acknowledgements.

A session has an `MqttReceiver` from the first such message of its client.
"""

import asyncio
from zlib import crc32

from push1st.brokers.sessions import SavedFlow
from push1st.core.session import Session
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.flow import FlowState
from push1st.protocols.mqtt.incoming import Arrival, Incoming
from push1st.protocols.mqtt.own import OwnMessage
from push1st.protocols.mqtt.packets import MQTT_5, PublishPacket, ReasonCode
from push1st.transports.mqtt.clients import MqttClients

ERRORS = ReasonCode.UNSPECIFIED_ERROR
"""the first reason code of a rejection"""


class MqttReceiver:
    """The messages of the client of one connection. version: the protocol level of the client."""

    __slots__ = ("_client", "_clients", "_confirmed", "_incoming", "_publishing", "_version")

    def __init__(self, clients: MqttClients, client: Session, version: int) -> None:
        self._clients = clients
        self._client = client
        self._version = version
        self._incoming = Incoming(clients.bounds, clients.counts, version == MQTT_5)
        self._publishing = 0
        """the number of messages with QoS 2 that the broker has neither confirmed nor rejected"""
        self._confirmed: asyncio.Future[None] | None = None
        """ends when there are no such messages"""

    def arrive(self, packet: PublishPacket) -> Arrival | None:
        """Accepts a message. Returns None for the repetition of an earlier message. Raises FlowViolation."""
        incoming = self._incoming
        if incoming.is_full:
            self.answer()
        # All workers must compute the same checksum of a message.
        content = crc32(packet.payload, crc32(packet.topic.encode())) if packet.qos == 2 else 0
        return incoming.publish(packet.packet_id, packet.qos, packet.dup, content)

    def confirm(self, arrival: Arrival, reason: ReasonCode) -> None:
        """Completes the publication of a message. `answer` sends the acknowledgement.

        In MQTT 3.1 and 3.1.1 a rejected message is acknowledged, because these versions have no negative acknowledgement
        [MQTT3-3.3.5-2]. A disconnected client would only repeat the message.
        """
        if self._version != MQTT_5 or (arrival.qos == 2 and reason < ERRORS):
            reason = ReasonCode.SUCCESS
        self._incoming.confirm(arrival, reason)

    def begin(self, arrival: Arrival) -> None:
        """Counts a message for which the broker has to be awaited; later calls `end`."""
        self._publishing += arrival.qos == 2

    def end(self, arrival: Arrival) -> None:
        """Ends `begin`. The message is confirmed, or its result is unknown."""
        self._publishing -= arrival.qos == 2
        if not self._publishing and self._confirmed is not None:
            self._confirmed.set_result(None)
            self._confirmed = None

    async def published(self) -> None:
        """Returns when the broker has confirmed or rejected the messages with QoS 2, so that `save` contains their packet ids."""
        if self._publishing:
            if self._confirmed is None:
                self._confirmed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._confirmed)

    def restore(self, flow: SavedFlow, crashed: bool) -> None:
        """Continues with the packet ids of an earlier connection. crashed: see `Claimed`."""
        clients = self._clients
        state: FlowState[OwnMessage] = FlowState(received=flow.received)
        self._incoming = Incoming.restore(state, clients.bounds, clients.counts, crashed)
        self._incoming.has_window = self._version == MQTT_5

    def save(self) -> tuple[tuple[int, int], ...]:
        """Returns the packet ids that the client has not released (`FlowState.received`)."""
        return self._incoming.save()

    def answer(self) -> None:
        """Sends the acknowledgements that are due: PUBRECs before the client's own copies of its messages, PUBACKs after them."""
        answers = self._incoming.answers()
        if not answers:
            return
        fanout = self._client.node.fanout
        first: list[bytes] = []
        later: list[bytes] = []
        for packet_id, qos, reason in answers:
            code = ReasonCode(reason)
            if qos == 1:
                later.append(encode.acknowledgement(encode.PUBACK, packet_id, code))
            else:
                first.append(encode.acknowledgement(encode.PUBREC, packet_id, code))
        if first:
            fanout.direct(self._client, b"".join(first), is_ahead=True)
        if later:
            fanout.direct(self._client, b"".join(later))

    def release(self, packet_ids: tuple[int, ...]) -> bool:
        """Answers PUBRELs [MQTT-4.3.3-11]. Returns false if the client has no messages with these packet ids."""
        before = self._incoming.held
        self._incoming.pubrel(packet_ids)
        self._client.node.fanout.direct(self._client, encode.acknowledgements(encode.PUBCOMP, packet_ids))
        return self._incoming.held < before
