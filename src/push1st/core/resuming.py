"""Sends a new subscriber the messages of a channel since the subscriber's earlier position.

A client resumes in one of two ways. A raw or event-stream client sends the position itself (`ByPosition`). For a Pusher client
whose URL names a page, the server has stored the position (`pages.PageConnection`). A session that resumes in one of these ways
has a `Resumption`.

After each `Subscribed`, such a session receives a `Resumed`, and then the replayed messages, before all live messages.
"""

from collections.abc import Container
from typing import Protocol

from push1st.brokers import Joined
from push1st.brokers.history import IDLE_COUNTER_SECONDS, Reason, Replay, ReplayRequest, is_expired
from push1st.channels import Kind
from push1st.core.app import App, Client, Outlet
from push1st.core.histories import rewind_of
from push1st.core.node import Node
from push1st.messages import Ping, Resumed, Subscribe
from push1st.positions import Position

CHARGED_BYTES = 16_384
"""the number of replayed bytes for which the client is charged once (`Session.charge`)"""

RESUMED_BYTES = 1024
"""the maximum number of bytes that the client receives with `Resumed`, in addition to the replay"""


class Resumption(Protocol):
    """The way in which a session resumes its channels.

    excluded: earlier ids of the client's connection; messages that exclude one of these ids are not replayed.
    """

    @property
    def excluded(self) -> Container[str]: ...

    async def prepare(self) -> None:
        """Reads the positions that the server has stored for the client. Called before each subscription to a channel with a
        history. Raises Refused(503).
        """

    def since(self, command: Subscribe) -> Position | None:
        """Returns the position after which the client needs the messages of a channel; None if no position is known."""

    def reason(self, channel: str, reason: Reason | None) -> Reason | None:
        """Returns why the channel cannot be resumed; None if it can. `reason`: the broker's answer."""

    def subscribed(self, channel: str, request: ReplayRequest | None, reason: Reason | None) -> bool:
        """Stores that the client is subscribed, and has received the replay if `reason` is None.

        Returns whether the replay may contain messages that the client has received before.
        """

    def unsubscribed(self, channel: str) -> None:
        """Stores that the client has left a channel."""

    def pinged(self) -> None:
        """Stores that the server sends a message `pusher:ping`."""

    def ponged(self) -> None:
        """Handles a message `pusher:pong`."""

    def ended(self) -> None:
        """Handles the end of the session."""


class Resuming(Client, Protocol):
    """The properties and methods of a session that this module uses."""

    resumption: Resumption | None

    @property
    def node(self) -> Node: ...
    @property
    def app(self) -> App: ...
    @property
    def outlet(self) -> Outlet: ...

    def charge(self) -> None: ...


class ByPosition:
    """The resumption of a client that sends its positions. The replay contains the client's own messages too."""

    __slots__ = ()
    excluded: Container[str] = ()

    async def prepare(self) -> None: ...

    def since(self, command: Subscribe) -> Position | None:
        return command.since

    def reason(self, channel: str, reason: Reason | None) -> Reason | None:
        return reason

    def subscribed(self, channel: str, request: ReplayRequest | None, reason: Reason | None) -> bool:
        return False

    def unsubscribed(self, channel: str) -> None: ...
    def pinged(self) -> None: ...
    def ponged(self) -> None: ...
    def ended(self) -> None: ...


BY_POSITION = ByPosition()


def ping(session: Resuming) -> None:
    """Sends a message `pusher:ping` to a silent client."""
    if session.resumption is not None:
        session.resumption.pinged()
    session.outlet.send(Ping())


def ponged(session: Resuming) -> None:
    """Handles a message `pusher:pong`."""
    session.charge()
    if session.resumption is not None:
        session.resumption.ponged()


def ended(session: Resuming) -> None:
    """Handles the end of a session."""
    if (resumption := session.resumption) is not None:
        session.resumption = None  # a page refers to the session; a cycle would keep both until the garbage collector runs
        resumption.ended()


async def replay_request(session: Resuming, command: Subscribe) -> ReplayRequest | None:
    """Returns the request for a new subscription; None if the channel keeps no history. Raises Refused(503)."""
    app, channel = session.app, command.channel
    section = None if app.history is None else app.history(channel)
    if section is None:
        return None
    counter = max(section.ttl, app.config.resume.seconds) + IDLE_COUNTER_SECONDS
    largest = session.node.max_replay_bytes
    resumption = session.resumption
    if resumption is None:
        return ReplayRequest(section, largest, counter_seconds=counter)
    await resumption.prepare()
    rewind = command.rewind or (rewind_of(section, channel) if command.rewind_seconds else 0)
    return ReplayRequest(
        section,
        largest,
        resumption.since(command),
        min(rewind, rewind_of(section, channel)),
        command.rewind_seconds,
        counter,
    )


def send_earlier(session: Resuming, kind: Kind, channel: str, request: ReplayRequest | None, joined: Joined) -> None:
    """Sends a new subscriber all frames that come between `Subscribed` and the live messages."""
    node, resumption = session.node, session.resumption
    recovered, replay = False, b""
    if resumption is not None:
        recovered, replay = _resume(session, resumption, channel, request, joined.replay)
    if kind.cache and not recovered and not (replay and _replays_cached(joined)):
        session.outlet.send(node.replay(session.app, session, channel, joined.cached))
    if replay:
        node.fanout.direct(session, replay)
    if channel.startswith("#"):
        node.signins.deliver_held(session.app, session, joined.replay.position if recovered and joined.replay else None)
    for _ in range(len(replay) // CHARGED_BYTES):  # last, because this may disconnect the client
        session.charge()


def _replays_cached(joined: Joined) -> bool:
    """Returns whether the replayed messages include the cached event of a cache channel."""
    cached, replay = joined.cached, joined.replay
    return cached is not None and replay is not None and any(one.id == cached.message.id for one in replay.messages)


def _resume(
    session: Resuming, resumption: Resumption, channel: str, request: ReplayRequest | None, replay: Replay | None
) -> tuple[bool, bytes]:
    """Sends `Resumed`. Returns whether the client gets all messages since its position, and the frames of the replay."""
    metrics = session.node.metrics
    reason: Reason | None = "no-history"
    frames: list[bytes] = []
    skipped = 0
    if replay is not None:
        reason = resumption.reason(channel, replay.reason)
        if reason == replay.reason:
            frames = _frames(session, resumption, replay)
            skipped = len(replay.messages) - len(frames) if frames else 0
            size = sum(map(len, frames))
            if reason is None:
                if not _fits(session, size):
                    frames, reason = [], "too-large"
            else:
                while not _fits(session, size):  # a rewind may be shorter, as in `brokers.history.replay`
                    size -= len(frames.pop(0))
    repeats = resumption.subscribed(channel, request, reason) and bool(frames) and reason is None
    position = None if replay is None else replay.position
    session.outlet.send(Resumed(channel, reason, len(frames), repeats, position, skipped))
    metrics.resumes[reason or "recovered"] += 1
    metrics.replayed_messages += len(frames)
    return reason is None, b"".join(frames)


def _fits(session: Resuming, size: int) -> bool:
    """Returns whether the client may receive a replay of `size` bytes, and stay below `server.outbox`."""
    if not size:
        return True
    if size > session.node.max_replay_bytes:
        return False
    # The fan-out writes the frames that it holds for the client, such as replays of other channels, so that they use room too.
    session.node.fanout.flush_subscriber(session)
    return session.outlet.has_room(size + RESUMED_BYTES)


def _frames(session: Resuming, resumption: Resumption, replay: Replay) -> list[bytes]:
    """Returns the frames of the replayed messages. All subscribers that share a run and a wire share the encoded frames."""
    run, wire, now = replay.run, session.wire, session.node.clock.wall()
    frames = run.frames.get(wire)
    if frames is None:
        frames = run.frames[wire] = [wire.message(one, now) for one in run.messages]
    excluded = resumption.excluded
    return [
        frame
        for message, frame in zip(replay.messages, frames[replay.start :], strict=True)
        if not is_expired(message, now) and not (message.exclude and (message.exclude in excluded or message.target in excluded))
    ]
