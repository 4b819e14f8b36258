"""Topics that need rights of all kinds, filters that match them, and backends that decide about them."""

from tests.support.paho import PahoClient
from tests.support.process import ServerProcess

FILTERS = ("#", "+", "+/+", "+/1", "private-orders/+", "private-orders/#", "presence-room/+", "vip/+")
TOPICS = (
    "open",
    "open/1",
    "orders/1",
    "vip/1",
    "private-orders",
    "private-orders/1",
    "private-orders/1/2",
    "private-other/1",
    "private-encrypted-orders/1",
    "private-cache-orders/1",
    "presence-room/1",
    "protected-room/1",
)
PUBLIC = {"open", "open/1", "orders/1", "vip/1"}
MODULE = """
from push1st.hooks.events import Connecting

def decide(question):
    if isinstance(question, Connecting):
        return question.password != "wrong"
    return not question.channel.startswith("private-")

def orders(question):
    return question.channel.startswith(("private-orders", "vip"))
"""


def token(server: ServerProcess, app: str, *channels: str) -> str:
    answer = server.post(f"/apps/{app}/token/access", {"origin": "*", "channel": list(channels), "ttl": 0})
    assert answer.status == 200, answer
    return answer.body.decode()


def received(server: ServerProcess, client: PahoClient, app: str = "app-test") -> set[str]:
    """Publishes to all topics with the API; returns the topics of the messages that a client receives."""
    for topic in (*TOPICS, "end/1"):
        body = {"name": "e", "channels": [topic.replace("/", ".")], "data": "secret"}
        assert server.post(f"/apps/{app}/events", body).status == 200
    found = set()
    while (topic := client.expect()[0]) != "end/1":
        found.add(topic)
    return found
