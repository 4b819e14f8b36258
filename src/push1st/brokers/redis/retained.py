"""The encoded form of retained messages and cached events, and the arguments with which `lua/append.lua` retains a message. Pure.

The data of a channel's retained message are in the key of the channel's cached event, so each replaces the other. Other keys list
the names of the channels, and contain the sums for the bounds (`scripts.py`).

The server's clock determines when a message expires, because the clocks of workers differ. The publisher sends the remaining time
of a message, and a reader gets the time that still remains. So a message expires at the same moment for all workers.
"""

from typing import cast

import msgspec

from push1st.brokers.redis.resp import Argument
from push1st.brokers.retained import NO_DATA, Bound, Retain, expires, size_of
from push1st.brokers.sessions import storable
from push1st.messages import Message, MqttMessage

MILLISECOND = 1_000_000
RETAIN_ARGUMENTS = 4
"""the number of arguments of `retain_arguments`"""
LIMIT = "LIMIT"
"""the first word of the error reply to a message that would exceed a bound"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MqttMessage).decode
_PLAIN_FIELDS = len(Message.__struct_fields__)


def encode_stored(message: Message) -> bytes:
    """Encodes a message with the fields of MQTT, and without its position in a history."""
    if message.mqtt is None:
        return _encode(message if type(message) is Message else msgspec.structs.astuple(message)[:_PLAIN_FIELDS])
    return _encode(storable(message))


def decode_stored(data: bytes, left: int, now: int) -> Message:
    """Decodes a message. Raises msgspec.DecodeError.

    left: the milliseconds until the message expires, on the server's clock; -1: never.
    now: the wall clock of this worker in nanoseconds.
    """
    message = _decode(data)
    fields = message.mqtt
    if fields is None:
        return Message(*msgspec.structs.astuple(message)[:_PLAIN_FIELDS])
    if not fields.expires or left < 0:
        return message
    return msgspec.structs.replace(message, mqtt=msgspec.structs.replace(fields, expires=now + left * MILLISECOND))


def exceeded_bound(reply: Exception) -> Bound | None:
    """Returns the bound in an error reply of `lua/append.lua`; None for other errors."""
    first, _, bound = str(reply).partition(" ")
    return cast("Bound", bound) if first == LIMIT else None


def retain_arguments(message: Message, retain: Retain) -> tuple[Argument, ...]:
    """Returns the arguments of `lua/append.lua` that retain a message, or remove the retained message of its channel."""
    until = expires(message)
    milliseconds = -((message.received - until) // MILLISECOND) if until else 0  # rounded up
    if message.data == NO_DATA or (until and milliseconds <= 0):
        return "", -1, 0, ""
    holder = f"a{retain.address}" if retain.is_anonymous else ""
    return encode_stored(message), milliseconds, size_of(message), holder
