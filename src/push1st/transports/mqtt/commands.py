"""The event of a message or a will of an MQTT client, within the limits of the app. Pure."""

from push1st.brokers.sessions import SavedWill
from push1st.channels import RESERVED
from push1st.config.model import AppConfig
from push1st.config.mqtt import Mqtt
from push1st.errors import Refused
from push1st.messages import Publish
from push1st.protocols.mqtt.packets import PublishPacket, ReasonCode
from push1st.protocols.mqtt.payload import data_of
from push1st.protocols.mqtt.topics import SYS, channel_of


def command_of(message: PublishPacket | SavedWill, config: AppConfig, settings: Mqtt) -> Publish:
    """Returns the event of a message. Raises Refused for an event that is not valid."""
    limits, event = config.limits, message.event
    if len(message.payload) > limits.payload:
        raise Refused(413, f"the payload has {len(message.payload)} bytes, the limit is {limits.payload}")
    if event is None:
        event = settings.event
    elif not 0 < len(event) <= limits.event_name or event.startswith(RESERVED):
        code = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        raise Refused(code, f"an event name has 1 to {limits.event_name} characters, and does not begin with pusher:")
    return Publish(channel_of(message.topic), event, data_of(message.payload), ttl=message.expiry or 0)


def is_bridge_state(topic: str) -> bool:
    """Returns whether a bridge of mosquitto publishes its state to the topic, at its start and as its will.

    The server accepts such messages, since a bridge could not connect otherwise, and drops them.
    """
    return topic.startswith(f"{SYS}broker/connection/") and topic.endswith("/state")
