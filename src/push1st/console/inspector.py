"""The inspector: shows operators what happens on all workers (operations, section A6).

An operator watches through the console of one worker. This worker sends the watch to all workers every `RENEW_SECONDS`, so a
worker that starts later gets the watch too. Each worker has a tap while it has watches, and sends batches of events to the worker
of the operator, which forwards them without decoding them. If the operator stops the watch or closes the tab, the watch ends
immediately; if the operator's worker is lost, the watch ends on the other workers after `WATCH_SECONDS`. If the operator's
network or browser is too slow for the events, the worker of the operator only counts the events of whole batches, so that the
socket stays open.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from push1st.console.endpoints import ConsoleContext, ConsoleEndpoint
from push1st.console.live import LiveSocket
from push1st.console.remedies import Remedies
from push1st.core.tap import MAX_BATCH, MAX_BATCH_BYTES, RENEW_SECONDS, TICK_SECONDS, Tap, TapFilter, Watch, read_filter
from push1st.errors import Refused

FIRST_RENEWAL_SECONDS = 1.0
"""the time until the first renewal of a watch; a worker that has just started may not know all other workers yet"""
MAX_UNSENT = 262_144
"""the number of unsent bytes of a socket above which further batches are only counted"""
BEGIN = "inspect"
END = "inspect-end"
EVENTS = "inspected"
ERROR = b'{"error"'
"""the beginning of a refusal in place of a batch; a socket that is behind gets it too"""


class WatchOrder(msgspec.Struct, frozen=True):
    """The message that begins or renews a watch. node: the worker that gets the events."""

    id: str
    node: str
    filter: TapFilter


class KindOnly(msgspec.Struct, frozen=True):
    """The part of an event (`tap.TapEvent`) that is counted."""

    what: str


class BatchKinds(msgspec.Struct, frozen=True):
    """The part of a batch (`tap.TapBatch`) that is counted."""

    events: list[KindOnly] = []
    dropped: dict[str, int] = {}


_kinds = msgspec.json.Decoder(BatchKinds)
_order = msgspec.json.Decoder(WatchOrder)
_encode = msgspec.json.Encoder().encode


class Inspector:
    """The part `inspector` of the live channel (`live.Watchable`)."""

    name = "inspector"
    endpoints: Sequence[ConsoleEndpoint] = ()

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._taps = TapOwner(context, self._send_events)
        self._own: dict[LiveSocket, WatchOrder] = {}
        """the watches of this worker's operators"""
        self._missed: dict[LiveSocket, Counter[str]] = {}
        """the counts of the events that sockets with too many unsent bytes have missed"""
        self._count = 0
        self._confirmed = _encode({"events": [], "dropped": {}, "worker": context.worker})
        self._renew_at: asyncio.TimerHandle | None = None
        context.wire.handle(BEGIN, self._begin)
        context.wire.handle(END, self._end)
        context.wire.handle(EVENTS, self._pass_on)

    # The operators of this worker

    def watch(self, socket: LiveSocket, request: Mapping[str, Any]) -> None:
        """Begins a watch of a socket; a further watch of the socket replaces the earlier one. Raises Refused."""
        filter = read_filter(request.get("filter") or {})
        if filter.app and self._context.node.apps.by_id(filter.app) is None:
            raise Refused(404, f"there is no app {filter.app[:64]!r}")
        self.unwatch(socket)
        for other in [one for one in self._own if one.closed]:
            self.unwatch(other)
        self._taps.check_room()
        self._count += 1
        order = self._own[socket] = WatchOrder(f"{self._context.name}-{self._count}", self._context.name, filter)
        socket.send(self._confirmed)
        self._context.wire.send(BEGIN, _encode(order))
        self._renew_later(FIRST_RENEWAL_SECONDS)

    def unwatch(self, socket: LiveSocket) -> None:
        """Ends the watch of a socket, if it has one."""
        self._missed.pop(socket, None)
        order = self._own.pop(socket, None)
        if order is not None:
            self._context.wire.send(END, order.id.encode())

    def _renew_later(self, seconds: float) -> None:
        """Renews all watches after some seconds. The time doubles with each renewal up to `RENEW_SECONDS`."""
        if self._renew_at is not None:
            self._renew_at.cancel()
        self._renew_at = asyncio.get_running_loop().call_later(seconds, self._renew, min(2 * seconds, RENEW_SECONDS))

    def _renew(self, next_seconds: float) -> None:
        self._renew_at = None
        for socket, order in list(self._own.items()):
            if socket.closed:
                self.unwatch(socket)
            else:
                self._send_missed(socket)
                self._context.wire.send(BEGIN, _encode(order))
        if self._own:
            self._renew_later(next_seconds)

    def _pass_on(self, data: bytes) -> None:
        """Passes a batch of a worker to the operator, or counts it; the batch follows the id of the watch."""
        id, _, text = data.partition(b"\n")
        for socket, order in self._own.items():
            if order.id.encode() == id:
                if socket.closed:
                    self.unwatch(socket)
                elif socket.unsent > MAX_UNSENT and not text.startswith(ERROR):
                    batch, missed = _kinds.decode(text), self._missed.setdefault(socket, Counter())
                    missed.update(batch.dropped)
                    missed.update(event.what for event in batch.events)
                else:
                    self._send_missed(socket)
                    socket.send(text)
                return

    def _send_missed(self, socket: LiveSocket) -> None:
        """Sends the counts of the events that a socket has missed, if the browser reads again."""
        if socket in self._missed and socket.unsent <= MAX_UNSENT:
            socket.send(_encode({"events": [], "dropped": self._missed.pop(socket)}))

    # The tap of this worker

    def _begin(self, data: bytes) -> None:
        order = _order.decode(data)
        try:
            self._taps.watch(order)
        except Refused as refused:
            self._send(order.node, order.id, _encode({"error": refused.text}))

    def _end(self, data: bytes) -> None:
        self._taps.unwatch(data.decode())

    def _send_events(self, node: str, watch: Watch) -> None:
        """Sends the next batch of a watch. If this fails, its events wait for the next batch, or are counted if it is full."""
        events, dropped, size = watch.events, watch.dropped, watch.size
        text = watch.batch()
        if text and not self._send(node, watch.id, text):
            if len(events) < MAX_BATCH and size < MAX_BATCH_BYTES:
                watch.events, watch.dropped, watch.size = events, dropped, size
            else:
                watch.dropped = dropped + Counter(one.what for one in events)

    def _send(self, node: str, id: str, text: bytes) -> int:
        return self._context.wire.send(EVENTS, b"%b\n%b" % (id.encode(), text), node)


class TapOwner:
    """Gives the node of this worker a tap while the worker has watches.

    send: a function that sends the next batch of a watch to a node.
    """

    def __init__(self, context: ConsoleContext, send: Callable[[str, Watch], None]) -> None:
        self._context = context
        self._send = send
        self._tap: Tap | None = None
        self._nodes: dict[str, str] = {}
        """the node that gets the events, by the id of the watch"""
        self._remedies = Remedies()  # takes 15 ms, so it is not made while clients wait
        self._tick_at: asyncio.TimerHandle | None = None

    def check_room(self) -> None:
        """Raises Refused if this worker has `MAX_WATCHES` watches."""
        if self._tap is not None:
            self._tap.check_room()

    def watch(self, order: WatchOrder) -> None:
        """Begins or renews a watch. Raises Refused if this worker has `MAX_WATCHES` other watches."""
        tap = self._tap or self._open()
        tap.watch(order.id, order.filter)
        self._nodes[order.id] = order.node
        if self._tick_at is None:
            self._tick_later()

    def unwatch(self, id: str) -> None:
        if self._tap is not None:
            self._tap.unwatch(id)
            self._close_unwatched(self._tap)

    def _open(self) -> Tap:
        node = self._context.node
        tap = self._tap = Tap(self._context.name, node.clock, node.used, self._remedies.answered, self._send_batch)
        secrets = (secret for app in self._context.config().apps for secret in app.secrets)
        node.refusals.watch(tap, secrets)
        node.tap = node.signins.tap = node.hooks.tap = tap
        return tap

    def _close_unwatched(self, tap: Tap) -> None:
        """Removes the tap if no watch is left."""
        left = {one.id for one in tap.watches}
        self._nodes = {id: node for id, node in self._nodes.items() if id in left}
        if not left:
            node = self._context.node
            node.refusals.watch(None, ())
            node.tap = node.signins.tap = node.hooks.tap = self._tap = None
            if self._tick_at is not None:
                self._tick_at.cancel()
                self._tick_at = None

    def _send_batch(self, watch: Watch) -> None:
        self._send(self._nodes[watch.id], watch)

    def _tick_later(self) -> None:
        self._tick_at = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self._tap is not None:
            self._tick_later()
            self._tap.tick()
            self._close_unwatched(self._tap)
