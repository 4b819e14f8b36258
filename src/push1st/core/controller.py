"""Requests and messages between the workers that share a broker.

A worker can request the sessions on a channel, and the number of connections that a message reaches, from all workers. A
component of a worker can also handle a topic of its own: it answers requests and receives messages that other workers send to
this topic.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from push1st.brokers import Broker
from push1st.core.app import App
from push1st.eager import spawn, wait
from push1st.errors import Refused
from push1st.messages import API, TOLD, Message, Options

SESSIONS = b"sessions"
"""requests the sessions on a channel"""
REACH = b"reach"
"""requests the number of connections that a message reaches; the message follows"""


class SessionInfo(msgspec.Struct, frozen=True, array_like=True):
    """A connection on a channel, on any worker."""

    id: str
    ip: str


_listed = msgspec.msgpack.Decoder(list[SessionInfo])
_message = msgspec.msgpack.Decoder(Message)


class Listener(msgspec.Struct, frozen=True):
    """What this worker does on a topic of its own: answers a question, hears what is told."""

    answer: Callable[[bytes], bytes]
    hear: Callable[[bytes], None]


class Controller:
    """See the module. live: the apps in use on this worker, by id. stamp: returns the id and the time of a message."""

    __slots__ = ("_broker", "_listeners", "_live", "_stamp")

    def __init__(self, live: Mapping[str, App], stamp: Callable[[], tuple[int, int]]) -> None:
        self._live = live
        self._stamp = stamp
        self._broker: Broker
        self._listeners: dict[tuple[str, str], Listener] = {}

    def open(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""
        return self._broker.shared

    async def listed(self, app: App, channel: str) -> list[SessionInfo]:
        """Returns the connections subscribed to a channel, on all workers that answer in time."""
        answers = await self._broker.ask(app.config.id, channel, SESSIONS)
        return [one for answer in answers for one in _listed.decode(answer)]

    async def reach(self, app: App, channel: str, exclude: str, options: Options) -> int:
        """Returns how many subscribers a message reaches that is not for all of them. Only their workers can count them."""
        message = Message(app.config.id, channel, "", b"", 0, 0, API, exclude, delivery=options.delivery, target=options.session)
        answers = await self._broker.ask(app.config.id, channel, REACH + msgspec.msgpack.encode(message))
        return sum(map(int, answers))

    def answer(self, app: str, channel: str, question: bytes) -> bytes:
        """What another worker asks."""
        live = self._live.get(app)
        listener = self._listeners.get((app, channel))
        if listener is not None:
            return listener.answer(question)
        if question.startswith(REACH):
            return b"0" if live is None else b"%d" % live.tenant.reach(_message.decode(question[len(REACH) :]))
        if question != SESSIONS:  # the listener that the question is for has ended
            return b""
        found = [] if live is None else live.sessions(channel)
        return msgspec.msgpack.encode([SessionInfo(client.id, client.ip) for client in found])

    async def listen(self, app: App, topic: str, listener: Listener) -> None:
        """Answers what is asked on a topic, and hears what is told there, from here on. Raises Refused(503)."""
        self._listeners[app.config.id, topic] = listener
        try:
            await self._broker.subscribe(app.config.id, topic)
        except Refused:
            await self.unlisten(app, topic)
            raise

    async def unlisten(self, app: App, topic: str) -> None:
        if self._listeners.pop((app.config.id, topic), None) is not None:
            await self._broker.unsubscribe(app.config.id, topic)

    async def ask(self, app: App, topic: str, question: bytes) -> Sequence[bytes]:
        """The answers of those who listen on a topic. Raises Refused(503)."""
        return [answer for answer in await self._broker.ask(app.config.id, topic, question) if answer]

    def tell(self, app: App, topic: str, data: bytes, lost: Callable[[], object]) -> None:
        """Says something to who listens on a topic; what is said in one turn comes in this order.

        lost: called when the broker is away, or has not confirmed it.
        """
        spawn(self._tell(Message(app.config.id, topic, TOLD, data, *self._stamp()), lost))

    async def _tell(self, message: Message, lost: Callable[[], object]) -> None:
        try:
            await wait(self._broker.publish(message))
        except Refused:
            lost()

    def hear(self, message: Message) -> None:
        """Passes a message to the listener of its topic on this worker, if there is one."""
        listener = self._listeners.get((message.app, message.channel))
        if listener is not None:
            listener.hear(message.data)
