"""A state machine that drives pages on the memory broker through random publishes, acknowledgements, cuts and resumptions.

A client answers pings when it takes them. Its connection ends in one of four ways: the server notices the end at once; the client
vanishes, and the server does not notice; the server closes, and the client answers the close frame; or this answer is lost. The
checker of `tests/support/recovery.py` finds each missed message. The machine itself finds needless notifications: a page that has
acknowledged its messages must recover as long as everything later is kept, and its window is not over.

Time is that of a virtual event loop, so nothing sleeps.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Coroutine
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from push1st.config.history import HistoryBounds
from push1st.core import resuming
from push1st.core.session import Session
from push1st.messages import Options, Ping, Pong, Resumed, Subscribe, Subscribed, Unsubscribe
from tests.support.loop import Clock, LoopTurns, done
from tests.support.node import APP, World, app_config
from tests.support.recovery import Answer, Joined, Log, Lost, Received, Sent, check
from tests.support.resume_model import (
    CHANNELS,
    CLIENTS,
    EVENT_SECONDS,
    KEPT_BYTES,
    LINES,
    MAX_KEPT,
    MAX_REPLAYED,
    REPLAYED_BYTES,
    RESUME,
    SECTIONS,
    Histories,
    line,
    parsed,
)

ZOMBIE_SECONDS = 15
"""the seconds of a new connection after which a connection whose client has vanished has no effect any more"""
RETURN_SECONDS = 25
"""the seconds after its return in which a client must subscribe again"""
LATE_SECONDS = 35
"""the seconds after which a channel to which a returned client did not subscribe again is `unknown`"""
WINDOW_SECONDS = 290
"""the seconds for which a page may be away"""
CLOSE_SECONDS = 5
"""the seconds for which the server waits for the answer to its close frame"""
ROUNDS = 5
"""the seconds after which a client that answers all pings has acknowledged everything"""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock_of_test = clock

    def time(self) -> float:
        return self._clock_of_test.monotonic()

    def step(self, coroutine: Coroutine[Any, Any, None] | None = None) -> None:
        """Runs a coroutine, and all callbacks that are due then."""

        async def run() -> None:
            if coroutine is not None:
                await coroutine
            for _ in range(30):
                await asyncio.sleep(0)

        self.run_until_complete(run())


class Connection:
    """One connection of a page, and the outlet of its session. client: None if the client has vanished."""

    def __init__(self, client: "Page") -> None:
        machine = client.machine
        world = machine.world
        self.client: Page | None = client
        self.machine = machine
        self.opened = world.clock.seconds
        self.name = client.name
        self.answered: set[str] = set()
        """the channels whose subscription on this connection was answered"""
        self.has_zombies = any(one.name == client.name for one in machine.vanished)
        if self.opened > client.gone_at + WINDOW_SECONDS:
            client.acknowledged = {channel: [] for channel in CHANNELS}
        self.frames: deque[list[Any]] = deque()
        self.closed_at: float | None = None
        self.has_expired = False
        """whether the positions that the connection inherited may have expired"""
        self.page = world.node.pages.connection(client.name, "192.0.2.1")
        self.session = Session(world.node, world.app, self, LINES, self.write, "192.0.2.1", resumption=self.page)
        self.page.begin(self.session)

    # The outlet

    def write(self, data: bytes) -> None:
        self.frames.extend(parsed(data))

    def send(self, reply: Any) -> None:
        match reply:
            case Subscribed(channel):
                frame = line("subscribed", channel)
            case Resumed(channel, reason, replayed, repeats, position):
                self._check(channel, reason)
                frame = line("resumed", channel, reason, replayed, repeats, str(position))
            case Ping():
                frame = line("ping", "")
            case _:
                return
        self.machine.world.fanout.direct(self.session, frame)

    def _check(self, channel: str, reason: str | None) -> None:
        """Finds a needless notification."""
        if reason in ("shared", "no-history"):
            self.machine.faults.append(f"{reason} on {channel}")
        was_answered = channel in self.answered
        self.answered.add(channel)
        if self.client is not None:
            if reason is None and not was_answered and self.machine.world.clock.seconds > self.opened + LATE_SECONDS:
                self.machine.faults.append(f"{self.name} on {channel} recovers from a position that has expired")
            must = self.machine.must_recover(self.client, self, channel)
            if reason is not None and must:
                self.machine.faults.append(f"{self.client.name} on {channel}: {reason}, though {must}")
            if reason is not None:
                self.client.acknowledged[channel] = []

    def has_room(self, size: int) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame, as the transport of WebSockets does."""
        if self.closed_at is None:
            self.closed_at = self.machine.world.clock.seconds
            self.machine.world.fanout.flush_subscriber(self.session)
            self.page.closing(code)
            self.session.expire()
            self.frames.append(["close", "", code])

    def fail(self) -> None:
        self.machine.faults.append(traceback.format_exc())

    @property
    def is_alone(self) -> bool:
        """Whether earlier connections have no effect any more."""
        return not self.has_zombies or self.machine.world.clock.seconds > self.opened + ZOMBIE_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether the server has waited long enough for the client's close frame."""
        return self.closed_at is not None and self.machine.world.clock.seconds >= self.closed_at + CLOSE_SECONDS

    # The client's side

    def end(self) -> None:
        """Ends the connection; both sides notice it."""
        self.session.expire()
        self.page.finish()


class Page:
    """A client that keeps its page name for all connections."""

    def __init__(self, name: str, machine: "PageMachine") -> None:
        self.name = name
        self.machine = machine
        self.connection: Connection | None = None
        self.wanted: set[str] = set()
        """the channels to which the client subscribes on each connection"""
        self.logs: list[Log] = []
        """the logs of all subscriptions; a subscription after an `Unsubscribe` has a log of its own"""
        self.log: dict[str, Log] = {}
        self.positions: dict[str, str] = {}
        """channel → the position of the last message that the client has taken"""
        self.acknowledged: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        """channel → the positions from which the server may resume the channel; empty if it need not know any"""
        self.left_beside_zombies: set[str] = set()
        """the channels that the client left while the record of a dead connection still had a position of the channel"""
        self.gone_at = 0.0

    def subscribe(self, channel: str) -> None:
        assert self.connection is not None
        if channel not in self.wanted:
            self.wanted.add(channel)
            self.log[channel] = Log(self.name, [channel], has_position=channel in self.left_beside_zombies)
            self.logs.append(self.log[channel])
        self.connection.session.handle(Subscribe(channel))

    def leave(self, channel: str) -> None:
        assert self.connection is not None
        self.connection.session.handle(Unsubscribe(channel))
        self.wanted.discard(channel)
        if not self.connection.is_alone:
            self.left_beside_zombies.add(channel)
        self.log.pop(channel)
        self.acknowledged[channel] = []
        self.positions.pop(channel, None)
        self.connection.answered.discard(channel)

    def lose(self) -> None:
        """Forgets the connection, and the frames that are on their way."""
        connection, self.connection = self.connection, None
        assert connection is not None
        self.gone_at = self.machine.world.clock.seconds
        if self.gone_at > connection.opened + RETURN_SECONDS:
            for channel in CHANNELS:
                if channel not in connection.answered:
                    self.acknowledged[channel] = []
        for log in self.log.values():
            log.entries.append(Lost(self.machine.tick()))

    def take(self, most: int) -> None:
        """Takes frames that are on their way."""
        connection = self.connection
        while connection is not None and connection.frames and most:
            most -= 1
            kind, channel, *rest = connection.frames.popleft()
            if kind == "ping":
                connection.session.handle(Pong())
            elif kind == "close":
                self.lose()
                connection.page.finish(lambda: None, rest[0])
                self.is_exact(connection)
                return
            elif channel in self.log:
                self._take(self.log[channel], kind, channel, rest)

    def take_ping(self) -> None:
        """Takes all frames up to the next ping."""
        if self.connection is not None:
            kinds = [kind for kind, *_ in self.connection.frames]
            self.take(kinds.index("ping") + 1 if "ping" in kinds else 0)

    def _take(self, log: Log, kind: str, channel: str, rest: list[Any]) -> None:
        at = self.machine.tick()
        if kind == "subscribed":
            log.entries.append(Joined(at, channel))
            return
        if not log.entries:
            return  # an event of an earlier subscription
        if kind == "resumed":
            reason, replayed, repeats, position = rest
            log.entries.append(Answer(at, channel, reason, replayed, repeats, position))
            if reason is not None or not replayed:
                self.positions[channel] = position
        else:
            seq, position = rest
            log.entries.append(Received(at, channel, seq, position))
            self.positions[channel] = position

    def is_exact(self, connection: Connection) -> None:
        """Stores that the server knows the client's positions."""
        for channel in connection.answered & self.positions.keys():
            position = self.positions[channel]
            known = self.acknowledged[channel]
            if connection.is_alone:
                known.clear()
            elif not known:
                continue  # the connection that vanished may have a position of another epoch
            known.append(position)


clients = st.integers(0, CLIENTS - 1)
channels = st.sampled_from(CHANNELS)


class PageMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        resume = RESUME
        self.world = World(app_config(history=SECTIONS, resume=resume), turns=LoopTurns())
        self.loop = VirtualLoop(self.world.clock)
        self.world.history._bounds = HistoryBounds(bytes=MAX_KEPT * KEPT_BYTES)
        self.world.node.max_replay_bytes = MAX_REPLAYED * REPLAYED_BYTES
        self.model = Histories(lambda: self.world.clock.seconds, self._has_subscribers)
        self.pages = [Page(f"page-{number}-0123456789", self) for number in range(CLIENTS)]
        self.vanished: list[Connection] = []
        self.faults: list[str] = []
        self.numbers = count(1)
        self.times = count(1)
        self.published: list[Sent] = []
        self.epochs: dict[int, str] = {}
        """epoch of the model → epoch of the broker"""

    def tick(self) -> float:
        """Returns the time of an entry in a log. Each entry has a time of its own."""
        return next(self.times)

    def _has_subscribers(self, channel: str) -> bool:
        return self.world.node.local_roster.channel(APP, channel) is not None

    def must_recover(self, page: Page, connection: Connection, channel: str) -> str:
        """Returns why a channel must recover that is about to be answered; "" if it need not."""
        history = self.world.app.history
        assert history is not None
        section = history(channel)
        assert section is not None
        kept = self.model.find(channel, section)
        found = self.world.history._kept.get((APP, channel)) or self.world.history._idle[APP, channel]
        assert (self.epochs.setdefault(kept.epoch, found.epoch), len(kept.seqs)) == (found.epoch, found.last)
        now, last = self.world.clock.seconds, len(kept.seqs)
        if not page.acknowledged[channel]:
            return ""
        if now > connection.opened + RETURN_SECONDS:
            return ""
        for position in page.acknowledged[channel]:
            epoch, _, digits = position.partition(":")
            offset = int(digits)
            if epoch != self.epochs[kept.epoch] or last - offset > MAX_REPLAYED or (offset < kept.first and offset != last):
                return ""
        return f"{page.acknowledged[channel]} is acknowledged, and all is kept from {kept.first} to {last}"

    def _second(self) -> None:
        self.world.clock.advance(1)
        for _ in range(2):
            self.world.history.tick()
        self.model.expire()
        self.loop.step(self.world.node.tick())
        for connection in self.vanished:
            if not connection.has_expired and self.world.clock.seconds > connection.opened + RETURN_SECONDS:
                self._expire(connection)
        for connection in [one for one in self.vanished if one.is_over]:
            self.vanished.remove(connection)
            self._run(connection.page.finish)

    def _expire(self, connection: Connection) -> None:
        """Drops inherited positions that have expired, even if the client has vanished and the server still considers the
        connection open.
        """
        connection.has_expired = True
        (page,) = [one for one in self.pages if one.name == connection.name]
        if page.connection is None:
            for channel in page.acknowledged.keys() - connection.answered:
                page.acknowledged[channel] = []

    @invariant()
    def has_no_fault(self) -> None:
        assert self.faults == [], "\n".join(self.faults)

    # Rules

    @rule(channel=channels, batch=st.integers(1, 4), excluded=st.none() | clients, is_short=st.booleans())
    def publish(self, channel: str, batch: int, excluded: int | None, is_short: bool) -> None:
        page = None if excluded is None else self.pages[excluded]
        if page is None or page.connection is None or not page.connection.answered:
            page = None  # a connection that was never subscribed leaves no record of its id
        exclude = "" if page is None or page.connection is None else page.connection.session.id
        history = self.world.app.history
        assert history is not None
        section = history(channel)
        assert section is not None

        async def publish() -> None:
            for _ in range(batch):
                seq, began = next(self.numbers), self.tick()
                epoch, _ = self.model.append(channel, section, seq)
                options = Options(EVENT_SECONDS) if is_short else Options()
                self.world.publish(channel, b"%06d" % seq, exclude=exclude, options=options)
                self.published.append(
                    Sent(channel, seq, began, self.tick(), exclude="" if page is None else page.name, is_optional=is_short)
                )
                self.epochs.setdefault(epoch, self.world.history._kept[APP, channel].epoch)

        self.loop.step(publish())

    @rule(client=clients, channel=channels)
    def join(self, client: int, channel: str) -> None:
        page = self.pages[client]
        if page.connection is not None and channel not in page.wanted:
            self._run(lambda: page.subscribe(channel))

    @rule(client=clients, channel=channels)
    def leave(self, client: int, channel: str) -> None:
        page = self.pages[client]
        if page.connection is not None and channel in page.connection.session.subscriptions:
            if any(kind in ("subscribed", "resumed") and name == channel for kind, name, *_ in page.connection.frames):
                self._run(lambda: page.take(-1))  # the client cannot tell the answers to two subscriptions apart
            if page.connection is not None:
                self._run(lambda: page.leave(channel))

    def _run(self, function: Any) -> None:
        async def run() -> None:
            function()

        self.loop.step(run())

    @rule(client=clients, most=st.integers(1, 8))
    def take(self, client: int, most: int) -> None:
        self._run(lambda: self.pages[client].take(most))

    @rule(client=clients)
    def cut(self, client: int) -> None:
        """Ends a connection; the server notices it."""
        connection = self.pages[client].connection
        if connection is not None:
            self.pages[client].lose()
            self._run(connection.end)

    @rule(client=clients)
    def vanish(self, client: int) -> None:
        """Ends a connection; the server does not notice it."""
        page, connection = self.pages[client], self.pages[client].connection
        if connection is not None:
            page.lose()
            connection.client = None
            self.vanished.append(connection)

    @rule(client=clients, is_answered=st.booleans())
    def close(self, client: int, is_answered: bool) -> None:
        """Lets the server close a connection; the client takes everything, and answers."""
        page, connection = self.pages[client], self.pages[client].connection
        if connection is None:
            return
        self._run(lambda: connection.close(4200, "going away"))
        if is_answered:
            self._run(lambda: page.take(-1))
        else:
            page.lose()
            self._run(connection.page.finish)

    @rule(client=clients, channel=channels)
    def connect_partly(self, client: int, channel: str) -> None:
        """Connects the client again; it subscribes to one channel only, and to the others later (`subscribe`)."""
        page = self.pages[client]
        if page.connection is None:

            def connect() -> None:
                page.connection = Connection(page)
                if channel in page.wanted:
                    page.subscribe(channel)

            self._run(connect)

    @rule(client=clients)
    def subscribe(self, client: int) -> None:
        """Lets a client subscribe to all channels on which it was."""
        page = self.pages[client]

        def subscribe() -> None:
            for channel in CHANNELS:
                if page.connection is not None and channel in page.wanted - page.connection.session.subscriptions.keys():
                    page.subscribe(channel)

        for _ in range(3):
            self._second()  # the first subscription of the connection may wait for an earlier connection
        self._run(subscribe)

    @rule(client=clients)
    def keep_alive(self, client: int) -> None:
        """Sends a ping that requests no acknowledgement."""
        connection = self.pages[client].connection
        if connection is not None and not connection.session.closed:
            self._run(lambda: resuming.ping(connection.session))

    @rule(client=clients)
    def connect(self, client: int) -> None:
        """Connects the client again; it subscribes to all channels on which it was."""
        page = self.pages[client]
        if page.connection is None:

            def connect() -> None:
                page.connection = Connection(page)
                for channel in CHANNELS:
                    if channel in page.wanted:
                        page.subscribe(channel)

            self._run(connect)

    @rule(client=clients)
    def acknowledge(self, client: int) -> None:
        """Lets a client take all its frames for some seconds."""
        page = self.pages[client]
        for _ in range(ROUNDS):
            self._run(lambda: page.take(-1))
            self._second()
        self._run(lambda: page.take(-1))
        if page.connection is not None:
            page.is_exact(page.connection)

    @rule(
        client=clients,
        channel=channels,
        own=st.integers(0, 2),
        missed=st.integers(1, 7),
        are_short=st.booleans(),
        ends=st.sampled_from("cvoa"),
        is_cut_again=st.booleans(),
    )
    def miss(self, client: int, channel: str, own: int, missed: int, are_short: bool, ends: str, is_cut_again: bool) -> None:
        """Lets a client that has acknowledged all messages miss some of them. own: the number of messages that exclude it."""
        self.connect(client)
        self.join(client, channel)
        self.acknowledge(client)
        if own:
            self.publish(channel, own, client, False)
        if ends in "cv":
            (self.cut if ends == "c" else self.vanish)(client)
        else:
            self.close(client, ends == "a")
        self.publish(channel, missed, None, are_short)
        self.connect(client)
        if is_cut_again:
            self.cut(client)
            self.connect(client)

    @rule(
        client=clients,
        channel=channels,
        before=st.integers(0, 2),
        after=st.integers(1, 3),
        pings=st.integers(1, 2),
        is_kept_alive=st.booleans(),
    )
    def answer_late(self, client: int, channel: str, before: int, after: int, pings: int, is_kept_alive: bool) -> None:
        """Lets a client answer pings, and lose the messages that the server sent after these pings."""
        self.connect(client)
        self.join(client, channel)
        self.acknowledge(client)
        if is_kept_alive:
            self.keep_alive(client)
        if before:
            self.publish(channel, before, None, False)
        for _ in range(3):
            self._second()
        self.publish(channel, after, None, False)
        page = self.pages[client]
        for _ in range(pings):
            self._run(page.take_ping)
        self._run(lambda: self.world.fanout.flush_subscriber(page.connection.session) if page.connection else None)
        self.cut(client)
        self.connect(client)

    @rule(client=clients, channel=channels, other=channels, missed=st.integers(0, 3), seconds=st.sampled_from((0, 40)))
    def return_partly(self, client: int, channel: str, other: str, missed: int, seconds: int) -> None:
        """Lets a client return with one of its channels only, and then return again, or subscribe to the others late."""
        self.connect(client)
        for name in (channel, other):
            self.join(client, name)
        self.acknowledge(client)
        self.cut(client)
        if missed:
            self.publish(channel, missed, None, False)
        self.connect_partly(client, other)
        if seconds:
            self.advance(seconds)
            self.subscribe(client)
        else:
            self.cut(client)
            self.connect(client)

    @rule(client=clients, channel=channels)
    def leave_and_return(self, client: int, channel: str) -> None:
        """Lets a client leave a channel before it answers a ping, and subscribe to the channel again on its next connection."""
        self.connect(client)
        self.join(client, channel)
        self.acknowledge(client)
        self.publish(channel, 1, None, False)
        for _ in range(3):
            self._second()
        self.leave(client, channel)
        self._run(lambda: self.pages[client].take(-1))
        self._second()
        self.cut(client)
        self.publish(channel, 1, None, False)
        self.connect(client)
        self.join(client, channel)

    @rule(seconds=st.sampled_from((1, 1, 2, 5, 15, 40)))
    def advance(self, seconds: int) -> None:
        for _ in range(seconds):
            self._second()

    @rule(seconds=st.sampled_from((100, 400)))
    def pause(self, seconds: int) -> None:
        """Lets much time pass while no client is connected."""
        for number in range(CLIENTS):
            self.cut(number)
        for connection in self.vanished:
            self._run(connection.end)
        self.vanished.clear()
        self.world.clock.advance(seconds)
        for _ in range(3):
            self._second()

    @rule(channel=channels)
    def clear(self, channel: str) -> None:
        done(self.world.history.clear(APP, channel))
        self.model.clear(channel)

    @rule()
    def settle(self) -> None:
        """Lets all clients connect and take everything, and checks the logs."""
        for number in range(CLIENTS):
            self.connect(number)
        for _ in range(3):
            for page in self.pages:
                self._run(lambda p=page: p.take(-1))
            self._second()
        for number in range(CLIENTS):  # the server may have closed a connection
            self.connect(number)
            self.subscribe(number)
        for _ in range(3):
            for page in self.pages:
                self._run(lambda p=page: p.take(-1))
            self._second()
        assert self.world.failures == []
        self.has_no_fault()
        for page in self.pages:
            for channel, log in page.log.items():
                told = log.answers(channel)
                reasons = {reason: told.count(reason) for reason in told if reason is not None}
                check(log, self.published, recovered=told.count(None), reasons=reasons, repeat_seconds=1e9)

    def teardown(self) -> None:
        try:
            self.settle()
            for page in self.pages:
                if page.connection is not None:
                    self._run(page.connection.end)
            for connection in self.vanished:
                self._run(connection.end)
            self.loop.step()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.step()
            self.loop.close()
