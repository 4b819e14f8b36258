"""The values that `Outgoing` and `Incoming` share. These two classes deliver the messages of one session (§4.3 of MQTT 5.0).

`Outgoing` contains the messages to the client, and `Incoming` the packet ids of the client's own messages. Both objects belong to
a session, and not to a connection. The owner of the session calls `attach` when a connection begins, and `detach` when the
connection ends. A session needs an `Outgoing` from its first subscription with QoS 1 or 2. It needs an `Incoming` from its first
PUBLISH with QoS 1 or 2.

These modules contain no bytes, no clock and no sockets. The owner encodes the results of the methods, in the same order. One call
handles all messages of a turn, or all acknowledgements of a read.

Citations: [MQTT-4.3.3-4] is a statement of MQTT 5.0, which the server obeys in all versions.
"""

from typing import Final, Generic, Protocol, TypeVar

import msgspec

from push1st.protocols.mqtt.packets import ReasonCode


class FlowViolation(Exception):
    """The client has broken the protocol, so the server ends the connection. The session continues.

    `text`: the mistake, for the log.
    """

    def __init__(self, reason: ReasonCode, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason
        self.text = text


class Sendable(Protocol):
    """A message to clients. No session changes a message, so sessions may share it.

    `size`: the number of bytes that count for the message while the message waits.
    `expires`: the time at which the message expires, on the wall clock in nanoseconds; 0: never.
    """

    @property
    def qos(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def expires(self) -> int: ...


Item = TypeVar("Item", bound=Sendable)


class Release:
    """Replaces a message with QoS 2 after its PUBREC: the server has sent PUBREL, and does not need the message any more."""

    __slots__ = ()
    qos: Final = 2


RELEASE = Release()

SentMessage = tuple[int, Item, bool]
"""A message to send: packet id, message, DUP. The packet id is 0 with QoS 0."""

Sent = tuple[int, Item | Release, bool]
"""A message or a PUBREL to send. With `RELEASE` the packet is a PUBREL without DUP."""


class FlowBounds(msgspec.Struct, frozen=True):
    """The bounds of every session.

    `inflight`: the maximum number of messages with QoS 1 and 2 without a final acknowledgement, for each direction.
    `queue`: the maximum number of waiting messages. `queue_size`: the maximum number of bytes of the waiting messages.
    """

    inflight: int
    queue: int
    queue_size: int


class FlowCounts:
    """Counters, which all sessions share.

    `expired`: messages that expired while they waited.
    `queue_full`: waiting messages that were dropped because too many messages waited.
    `resent`: packets that were sent again on a new connection.
    `too_large`: messages that were dropped because their packet is larger than the client permits.
    `forgotten`: packet ids of clients' messages that were dropped because too many ids were kept (`Incoming`).
    """

    __slots__ = ("expired", "forgotten", "queue_full", "resent", "too_large")

    def __init__(self) -> None:
        self.expired = 0
        self.queue_full = 0
        self.too_large = 0
        self.resent = 0
        self.forgotten = 0


class FlowState(msgspec.Struct, Generic[Item], frozen=True):
    """The part of a session that another worker needs to continue the deliveries (§4.1 of MQTT 5.0).

    `next_id`: the packet id for the next message.
    `inflight`: the packet id and the message of each delivery that has begun, in order; None after PUBREL was sent.
    `waiting`: the messages that were not sent yet, in order.
    `received`: the packet id and the content of each message of the client with QoS 2 that the client has not released
    (`Incoming.publish`).
    """

    next_id: int = 1
    inflight: tuple[tuple[int, Item | None], ...] = ()
    waiting: tuple[Item, ...] = ()
    received: tuple[tuple[int, int], ...] = ()
