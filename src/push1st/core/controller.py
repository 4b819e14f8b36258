"""Requests and messages between the workers that share a broker.

A worker can request the sessions on a channel, and the number of connections that a message reaches, from all workers. A
component of a worker can also handle a topic of its own: it answers requests and receives messages that other workers send to
this topic.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from push1st.brokers import Broker
from push1st.core.app import App
from push1st.eager import resolve, spawn
from push1st.errors import Refused
from push1st.messages import API, NODE_MESSAGE, Message, Options

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


class TopicHandler(msgspec.Struct, frozen=True):
    """A component of this worker that handles a topic of its own.

    on_request: returns the reply to a request of another worker. on_message: receives a message from another worker.
    """

    on_request: Callable[[bytes], bytes]
    on_message: Callable[[bytes], None]


class Controller:
    """Sends requests and messages to other workers, and replies to theirs.

    live: the apps in use on this worker, by id. stamp: returns the id and the time of a message.
    """

    __slots__ = ("_broker", "_handlers", "_live", "_stamp")

    def __init__(self, live: Mapping[str, App], stamp: Callable[[], tuple[int, int]]) -> None:
        self._live = live
        self._stamp = stamp
        self._broker: Broker
        self._handlers: dict[tuple[str, str], TopicHandler] = {}

    def open(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""
        return self._broker.shared

    async def listed(self, app: App, channel: str) -> list[SessionInfo]:
        """Returns the connections subscribed to a channel, on all workers that reply in time."""
        replies = await self._broker.request(app.config.id, channel, SESSIONS)
        return [one for reply in replies for one in _listed.decode(reply)]

    async def reach(self, app: App, channel: str, exclude: str, options: Options) -> int:
        """Returns the number of subscribers that a message with a target or an exclusion reaches. Each worker counts its own."""
        message = Message(app.config.id, channel, "", b"", 0, 0, API, exclude, delivery=options.delivery, target=options.session)
        replies = await self._broker.request(app.config.id, channel, REACH + msgspec.msgpack.encode(message))
        return sum(map(int, replies))

    def reply(self, app: str, channel: str, request: bytes) -> bytes:
        """Returns this worker's reply to a request about a channel or topic of an app; b"" if it has none."""
        live = self._live.get(app)
        handler = self._handlers.get((app, channel))
        if handler is not None:
            return handler.on_request(request)
        if request.startswith(REACH):
            return b"0" if live is None else b"%d" % live.tenant.reach(_message.decode(request[len(REACH) :]))
        if request != SESSIONS:  # the topic had a handler here, which has ended
            return b""
        found = [] if live is None else live.sessions(channel)
        return msgspec.msgpack.encode([SessionInfo(client.id, client.ip) for client in found])

    async def handle_topic(self, app: App, topic: str, handler: TopicHandler) -> None:
        """Passes requests and messages on a topic to a handler. Returns when the broker has confirmed it. Raises Refused(503)."""
        self._handlers[app.config.id, topic] = handler
        try:
            await self._broker.subscribe(app.config.id, topic)
        except Refused:
            await self.release_topic(app, topic)
            raise

    async def release_topic(self, app: App, topic: str) -> None:
        """Ends the handling of a topic. Does nothing if this worker has no handler for it."""
        if self._handlers.pop((app.config.id, topic), None) is not None:
            await self._broker.unsubscribe(app.config.id, topic)

    async def request(self, app: App, topic: str, request: bytes) -> Sequence[bytes]:
        """Returns the replies of the handlers of a topic, as far as they come in time. Raises Refused(503)."""
        return [reply for reply in await self._broker.request(app.config.id, topic, request) if reply]

    def send_to_topic(self, app: App, topic: str, data: bytes, lost: Callable[[], object]) -> None:
        """Sends a message to the handler of a topic on another worker. Messages of one turn arrive in their order.

        lost: called if the broker is away, or has not confirmed the message.
        """
        spawn(self._send(Message(app.config.id, topic, NODE_MESSAGE, data, *self._stamp()), lost))

    async def _send(self, message: Message, lost: Callable[[], object]) -> None:
        try:
            await resolve(self._broker.publish(message))
        except Refused:
            lost()

    def on_message(self, message: Message) -> None:
        """Passes a message to the handler of its topic on this worker, if there is one."""
        handler = self._handlers.get((message.app, message.channel))
        if handler is not None:
            handler.on_message(message.data)
