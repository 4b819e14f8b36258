"""Retained messages of clients of paho-mqtt."""

from typing import Any

from tests.support.paho import PahoClient
from tests.support.process import DEADLINE


def retain(publisher: PahoClient, topic: str, payload: bytes = b"1", qos: int = 1, **more: Any) -> None:
    publisher.publish(topic, payload, qos=qos, retain=True, **more)
    publisher.until_acknowledged()


def expect(client: PahoClient) -> tuple[str, bytes, bool, int]:
    """Returns the topic, the payload, RETAIN and the QoS of the next message."""
    message = client.messages.get(timeout=DEADLINE)
    return message.topic, bytes(message.payload), message.retain, message.qos


def expect_nothing_before(client: PahoClient, publisher: PahoClient, topic: str) -> None:
    """Asserts that the next message of a client is a live message of a topic to which the client is subscribed."""
    publisher.publish(topic, b"end")
    assert expect(client)[:3] == (topic, b"end", False)
