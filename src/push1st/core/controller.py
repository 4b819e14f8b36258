"""Requests and messages between the workers that share a broker.

A worker can request three values from all workers: the number of an app's connections, the list of sessions on a channel, and how
many connections a message would reach. A component of a worker can also register a handler for requests and messages
that other workers send to a topic.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from push1st.brokers import ALL_WORKERS, Broker, Peers
from push1st.core.app import App
from push1st.eager import resolve, spawn
from push1st.errors import Refused
from push1st.messages import API, NODE_MESSAGE, Message, Options

SESSIONS = b"sessions"
"""the request for the list of sessions on a channel"""
CONNECTIONS = b"connections "
"""the beginning of a request for the number of an app's connections; the app's id follows"""
WITHOUT_CONSOLE = b"without console"
"""the request for the names of the nodes that have no console"""
REACH = b"reach"
"""the beginning of a request for the number of connections that a message would reach; the encoded message follows"""


class SessionInfo(msgspec.Struct, frozen=True, array_like=True):
    """A connection, on any worker, that is subscribed to a channel."""

    id: str
    ip: str


_listed = msgspec.msgpack.Decoder(list[SessionInfo])
_message = msgspec.msgpack.Decoder(Message)


class TopicHandler(msgspec.Struct, frozen=True):
    """The functions of this worker that handle requests and messages on one topic.

    `on_request`: a function that returns the reply to a request of another worker.
    `on_message`: a function that receives a message from another worker.
    """

    on_request: Callable[[bytes], bytes]
    on_message: Callable[[bytes], None]


class HandledTopic:
    """A topic with a handler on this worker.

    The worker needs the subscription to the topic while a call of `handle_topic` waits for the broker, or `is_handled` is true.


    `subscribing`: the number of calls of `handle_topic` that wait for the broker.
    `is_handled`: whether the broker has confirmed a call of `handle_topic`, and `release_topic` was not called later.
    """

    __slots__ = ("handler", "is_handled", "subscribing")

    def __init__(self, handler: TopicHandler) -> None:
        self.handler = handler
        self.subscribing = 0
        self.is_handled = False


class Controller:
    """Sends requests and messages to other workers, and answers the requests of other workers.

    `live`: the apps that have been used on this worker, by app id.
    `stamp`: a function that returns the id and the time of a new message.
    """

    __slots__ = ("_broker", "_live", "_stamp", "_topics", "own_without_console")

    def __init__(self, live: Mapping[str, App], stamp: Callable[[], tuple[int, int]]) -> None:
        self._live = live
        self._stamp = stamp
        self._broker: Broker
        self._topics: dict[tuple[str, str], HandledTopic] = {}
        self.own_without_console = b""
        """the name of this node if the node has no console; b"" if the node has a console, or has not started the console yet"""

    def open(self, broker: Broker) -> None:
        self._broker = broker

    @property
    def shared(self) -> bool:
        """Whether other workers can use the same broker as this worker; the memory broker has only one worker."""
        return self._broker.shared

    def peers(self) -> Peers:
        """Returns the other living nodes, and why the broker is away (`Broker.peers`)."""
        return self._broker.peers()

    async def listed(self, app: App, channel: str) -> list[SessionInfo]:
        """Returns the connections subscribed to a channel, on all workers that reply in time."""
        replies = await self._broker.request(app.config.id, channel, SESSIONS)
        return [one for reply in replies for one in _listed.decode(reply)]

    async def connections(self, app: App) -> int:
        """Returns the number of an app's connections, on all workers that reply in time. Raises Refused(503)."""
        replies = await self._broker.request("", ALL_WORKERS, CONNECTIONS + app.config.id.encode())
        return sum(map(int, filter(None, replies)))  # a worker of an older version replies with b""

    async def without_console(self) -> list[str]:
        """Returns the names of the nodes that reply in time that they have no console. Raises Refused(503)."""
        replies = await self._broker.request("", ALL_WORKERS, WITHOUT_CONSOLE)
        return [reply.decode() for reply in replies if reply]  # a worker of an older version replies with b""

    async def reach(self, app: App, channel: str, exclude: str, options: Options) -> int:
        """Returns the number of subscribers that a message with these options would reach, on all workers that reply in time."""
        message = Message(app.config.id, channel, "", b"", 0, 0, API, exclude, delivery=options.delivery, target=options.session)
        replies = await self._broker.request(app.config.id, channel, REACH + msgspec.msgpack.encode(message))
        return sum(map(int, replies))

    def reply(self, app: str, channel: str, request: bytes) -> bytes:
        """Returns this worker's reply to a request about a channel or topic of an app; b"" if the worker has no reply.

        A request to all workers has the app "".
        """
        if not app:
            if request == WITHOUT_CONSOLE:
                return self.own_without_console
            if not request.startswith(CONNECTIONS):
                return b""
            live = self._live.get(request.removeprefix(CONNECTIONS).decode())
            return b"0" if live is None else b"%d" % len(live.tenant.sessions)
        live = self._live.get(app)
        topic = self._topics.get((app, channel))
        if topic is not None:
            return topic.handler.on_request(request)
        if request.startswith(REACH):
            return b"0" if live is None else b"%d" % live.tenant.reach(_message.decode(request[len(REACH) :]))
        if request != SESSIONS:  # the request is for a handler that this worker has removed
            return b""
        found = [] if live is None else live.sessions(channel)
        return msgspec.msgpack.encode([SessionInfo(client.id, client.ip) for client in found])

    async def handle_topic(self, app: App, topic: str, handler: TopicHandler) -> None:
        """Registers the handler of a topic. Returns after the broker has confirmed the subscription. Raises Refused(503).

        Several calls for one topic can wait at the same time. The handler of the latest call replaces the earlier handler. If the
        broker confirms at least one of these calls, this worker stays subscribed to the topic.
        """
        handled = self._topics.get((app.config.id, topic))
        if handled is None:
            handled = self._topics[app.config.id, topic] = HandledTopic(handler)
        handled.handler = handler
        handled.subscribing += 1
        try:
            await self._broker.subscribe(app.config.id, topic)
            handled.is_handled = True
        finally:
            handled.subscribing -= 1
            await self._unsubscribe_unused(app, topic, handled)

    async def release_topic(self, app: App, topic: str) -> None:
        """Removes the handler of a topic, unless a call of `handle_topic` for this topic waits for the broker.

        Does nothing if the topic has no handler on this worker.
        """
        handled = self._topics.get((app.config.id, topic))
        if handled is not None:
            handled.is_handled = False
            await self._unsubscribe_unused(app, topic, handled)

    async def _unsubscribe_unused(self, app: App, topic: str, handled: HandledTopic) -> None:
        if not handled.is_handled and not handled.subscribing:
            del self._topics[app.config.id, topic]
            await self._broker.unsubscribe(app.config.id, topic)

    async def request(self, app: App, topic: str, request: bytes) -> Sequence[bytes]:
        """Sends a request to the handlers of a topic; returns the replies that arrive in time. Raises Refused(503)."""
        return [reply for reply in await self._broker.request(app.config.id, topic, request) if reply]

    def send_to_topic(self, app: App, topic: str, data: bytes, lost: Callable[[], object]) -> None:
        """Sends a message to a topic's handler on another worker. Messages sent in one turn of the loop arrive in order.

        `lost`: a function that is called if the broker is away, or does not confirm the message.
        """
        spawn(self._send(Message(app.config.id, topic, NODE_MESSAGE, data, *self._stamp()), lost))

    async def _send(self, message: Message, lost: Callable[[], object]) -> None:
        try:
            await resolve(self._broker.publish(message))
        except Refused:
            lost()

    def on_message(self, message: Message) -> None:
        """Passes a message to the handler of the message's topic, if this worker has such a handler."""
        topic = self._topics.get((message.app, message.channel))
        if topic is not None:
            topic.handler.on_message(message.data)
