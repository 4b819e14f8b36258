"""Decodes and applies the input of an MQTT client in slices, and waits for the packets that cannot be applied at once.

While a packet waits for the app's backend, for a subscription, or for the client's rate, the connection reads nothing. The
connection keeps the packets of its last read. Several messages may wait for the broker at once. `connection` applies the packets.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain

from push1st.eager import MaybeAwaitable, Suspended, run_eagerly, spawn
from push1st.errors import Disconnect
from push1st.protocols.mqtt.flow import FlowViolation
from push1st.protocols.mqtt.incoming import Arrival
from push1st.protocols.mqtt.packets import MQTT_5, ClientPacket, PublishPacket, ReasonCode
from push1st.transports.lost import LOST
from push1st.transports.mqtt import publishing, reasons
from push1st.transports.mqtt.output import MqttOutput
from push1st.transports.mqtt.session import MqttSession
from push1st.transports.turn import SLICE_SECONDS

RATE_SECONDS = 0.1
"""seconds for which the server does not read from a client that publishes faster than `server.mqtt.publishes`"""
PIECE = 4096
"""maximum bytes in one call of the decoder"""
ROUND = 16
"""number of packets after which a slice reads the clock, if no piece ends before"""


class MqttInput(MqttOutput):
    """The input of a connection."""

    __slots__ = ()

    def _apply(self, packet: ClientPacket) -> None:
        """Applies a packet."""
        raise NotImplementedError

    # Slices

    @property
    def is_new(self) -> bool:
        """See `turn.Connection`."""
        return self._session is None

    def process(self, data: bytes) -> bool:
        """Applies a slice of the client's packets (`turn.Connection`)."""
        context = self._context
        context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._packets = None
            self._discard(len(data))
            return False
        packets, self._packets, waits = self._joined(data), None, self._waits
        if waits:
            self._packets = packets
            self._transport.pause_reading()
            return False
        try:
            if self._slice(packets):
                return True
        except Disconnect as end:
            self.close(end.code, end.reason)
        except FlowViolation as broken:
            context.node.metrics.refusals[reasons.label(broken.reason)] += 1
            self._end(broken.reason, broken.text)
        except Exception:
            self.fail()
        if self._closing or self._waits:
            return False
        if self._eof:
            self._ended_by_client()
        elif self._transport is LOST:
            self._release()
        return False

    def _slice(self, packets: Iterator[ClientPacket]) -> bool:
        """Applies packets until one of them waits, or until the time of a slice is over. Returns whether packets remain."""
        context = self._context
        left, until, remain = ROUND, 0.0, False
        for packet in packets:
            self._apply(packet)
            if self._closing:
                return False
            if self._owes and not self._waits:
                self._throttle()
            if self._waits:
                self._packets = packets
                self._transport.pause_reading()
                break
            left -= 1
            if not left or self._is_piece_over:
                left, self._is_piece_over = ROUND, False
                now = context.turn.clock()
                if not until:
                    until = now + SLICE_SECONDS
                elif now > until:
                    self._packets, remain = packets, True
                    break
        if self._session is not None:
            self._session.answer()
        return remain

    def _joined(self, data: bytes) -> Iterator[ClientPacket]:
        """Returns the packets of the earlier input and of `data`, which are decoded one piece at a time."""
        if self._packets is None:
            return iter(self._decoder.feed(data)) if len(data) <= PIECE else self._decode(data)
        return chain(self._packets, self._decode(data)) if data else self._packets

    def _decode(self, data: bytes) -> Iterator[ClientPacket]:
        for at in range(0, len(data), PIECE):
            self._is_piece_over = True  # a packet with many properties takes long, although it is only one packet
            yield from self._decoder.feed(data[at : at + PIECE])

    def keep(self, data: bytes) -> None:
        """Stores input for a later slice (`turn.Connection`)."""
        self._context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._discard(len(data))
        else:
            self._packets = self._joined(data) if self._packets is not None else self._decode(data)

    def hold_reading(self, hold: bool) -> None:
        """Stops or resumes reading from the socket (`turn.Connection`)."""
        if hold:
            self._transport.pause_reading()
        elif not self._has_input and not self._transport.is_closing():
            self._transport.resume_reading()

    def _go_on(self) -> None:
        """Applies further packets, because no packet waits any more."""
        if self._closing:
            return
        if self._owes:
            self._throttle()
            return
        self._waits = False
        self._seen = self._context.sweep.now
        self._context.turn.resume(self)

    def _throttle(self) -> None:
        """Waits, because the client publishes too fast."""
        self._waits = True
        asyncio.get_running_loop().call_later(RATE_SECONDS, self._pay)

    def _pay(self) -> None:
        self._owes = self._bucket is not None and not self._bucket.take(self._context.node.clock.monotonic())
        self._go_on()

    # Packets that may wait

    def _follow(self, result: MaybeAwaitable[ReasonCode | None]) -> bool:
        """Waits if a packet needs an answer of the broker or of the app's backend. Returns whether the packet waits."""
        if not isinstance(result, ReasonCode) and result is not None:
            rest = run_eagerly(result)
            if isinstance(rest, Suspended):
                self._waits = True
                spawn(self._finish(rest))
                return True
        return False

    async def _finish(self, rest: Suspended[ReasonCode | None]) -> None:
        try:
            await rest
        except Disconnect as end:
            self.close(end.code, end.reason)
        except Exception:
            self.fail()
        self._go_on()

    def _publish(self, session: MqttSession, packet: PublishPacket) -> None:
        """Publishes a message of the client, and confirms it when the broker has confirmed it."""
        arrival = None
        if packet.qos:
            arrival = session.receiving().arrive(packet)
            if arrival is None:
                return
        result = publishing.publish(session, packet)
        if isinstance(result, ReasonCode):
            self._published(session, arrival, result)
            return
        rest = run_eagerly(result.rest)
        if not isinstance(rest, Suspended):
            self._published(session, arrival, rest)
            return
        # Clients of MQTT 5.0 obey a Receive Maximum, so only their messages with QoS 0 are limited here.
        is_limited = not packet.qos or session.version != MQTT_5
        self._pending += is_limited
        self._is_full = not result.for_backend and self._pending >= self._clients.settings.inflight
        self._waits = result.for_backend or self._is_full
        if arrival is not None:
            session.receiving().begin(arrival)
        spawn(self._confirm(session, arrival, rest, is_limited, result.for_backend))

    async def _confirm(
        self,
        session: MqttSession,
        arrival: Arrival | None,
        rest: Suspended[ReasonCode],
        is_limited: bool,
        for_backend: bool,
    ) -> None:
        """Waits until a message is published. `is_limited`: whether the message counts in `_pending`."""
        try:
            self._published(session, arrival, await rest)
            if self._session is session:
                session.answer()
        except Exception:
            self.fail()
        if arrival is not None:
            session.receiving().end(arrival)
        self._pending -= is_limited
        if for_backend or (self._is_full and is_limited):
            self._is_full = False
            self._go_on()

    def _published(self, session: MqttSession, arrival: Arrival | None, reason: ReasonCode) -> None:
        """Confirms a message with QoS 1 or 2, unless the broker is away."""
        if arrival is None:
            return
        if reason == ReasonCode.SERVER_BUSY:  # without an acknowledgement, the client sends the message again after CONNECT
            self._end(reason, "the broker is away")
        else:
            session.receiving().confirm(arrival, reason)
            if arrival.qos == 2:
                session.clients.progress.mark(session)
