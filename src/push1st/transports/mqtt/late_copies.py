"""Late copies: live messages that arrive at an MQTT client after a retained message of the same or a later publish.

A shared broker may return a retained message before the live copy for a filter with wildcards arrives. The delay is at most
`LATE_SECONDS`: the publisher's worker may not have known the filter at the time of the publish. The client must not receive a
message twice, and at the end the client must have the last value of the topic, if one worker has published all of the messages.
"""

from collections.abc import Collection, Sequence

from push1st.messages import Message
from push1st.protocols.mqtt.own import OwnMessage
from push1st.protocols.mqtt.shared import GroupMessage
from push1st.transports.mqtt.session import MqttSession

LATE_SECONDS = 2.0
"""the seconds for which the copy of a retained message may be late: a publisher waits at most this time for the broker"""
WORKER_IDS = 1024
"""the ids of two messages have the same remainder modulo this number if the same worker published both messages"""


class LateCopies:
    """The channels of a client whose retained messages were sent, and whose late copies may arrive."""

    __slots__ = ("_sent", "_session")

    def __init__(self, session: MqttSession) -> None:
        self._session = session
        self._sent: dict[str, tuple[int, bool]] = {}
        """channel → the id of the retained message, and whether the client also gets late copies of earlier messages"""

    def __bool__(self) -> bool:
        """Returns whether late copies may arrive."""
        return bool(self._sent)

    def sent(self, message: Message, new: Collection[str]) -> None:
        """Adds a retained message that is sent now.

        new: the filters, written as channel names, that the same SUBACK grants, and that the client did not have before; no
            filters if the message was read after SUBACK. If no other filter of the client can match, then all messages that the
            retained message has replaced were published before the subscription. So the client does not receive them.
        """
        client = self._session.client
        gets_earlier = not new or message.channel in client.subscriptions or any(one not in new for one in client.filters or ())
        self._sent[message.channel] = message.id, gets_earlier

    def has(self, live: OwnMessage) -> bool:
        """Returns whether a live message is a late copy that the client does not get. A message of a group is never one.

        A message that was published before the retained message may arrive after it. If the client receives this older message,
        it also receives the copy of the retained message. The copy arrives after the older message if one worker has published
        both messages.
        """
        message = live.message
        id, gets_earlier = self._sent.get(message.channel, (0, False))
        is_of_same_worker = (message.id - id) % WORKER_IDS == 0
        if not id or isinstance(live, GroupMessage) or (message.id > id and not is_of_same_worker):
            return False
        if message.id < id and is_of_same_worker and not gets_earlier:
            return True
        del self._sent[message.channel]
        return message.id == id

    def removed(self, held: Sequence[OwnMessage], retained: Message) -> list[OwnMessage]:
        """Returns the held messages without the late copies that are older than a retained message, which is sent now."""
        channel, id = retained.channel, retained.id
        return [one for one in held if one.message.channel != channel or one.message.id >= id or not self.has(one)]


def live_copies(held: Sequence[OwnMessage]) -> dict[str, set[int]]:
    """Returns the ids of the held messages by channel, without the messages of groups."""
    found: dict[str, set[int]] = {}
    for one in held:
        if not isinstance(one, GroupMessage):
            found.setdefault(one.message.channel, set()).add(one.message.id)
    return found
