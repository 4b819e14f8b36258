"""Messages and bounds for the tests of `Outgoing` and `Incoming`."""

import msgspec

from push1st.protocols.mqtt.flow import FlowBounds


class Note(msgspec.Struct, frozen=True):
    """A message to clients (`flow.Sendable`)."""

    text: str
    qos: int = 1
    size: int = 10
    expires: int = 0


BOUNDS = FlowBounds(inflight=3, queue=4, queue_size=100)
NOW = 1_000
