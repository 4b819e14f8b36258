"""The tap of a worker, which shows operators what happens on the worker while they watch.

`Node.tap` is None while nobody watches, so an event then costs one test. The tap has no part in deliveries: a published event
passes it once, on the worker that publishes the event. Each watch has a filter, which is applied here, at the source. A watch is
a lease: it ends `WATCH_SECONDS` after its last renewal.

A watch takes about `MAX_RATE` events a second. Further events are only counted, before anything is built or encoded for them.
The events that a watch has taken wait for `TICK_SECONDS` at most, and are encoded together.

This module is pure: the clock is an argument, and the owner of the tap sends the batches.
"""

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from push1st.clock import Clock
from push1st.core.app import App, Client, client_id_of, prefix_of, user_of
from push1st.errors import Refused
from push1st.hooks import Attempt, Decision
from push1st.hooks.events import Question
from push1st.hooks.formats import matcher
from push1st.jsontext import decode
from push1st.messages import API, Member

MAX_WATCHES = 4
"""the maximum number of watches of a worker"""
WATCH_SECONDS = 30.0
RENEW_SECONDS = 10.0
"""the time between two renewals of a watch"""
TICK_SECONDS = 0.25
"""the time between two batches of a watch with few events"""
MAX_BATCH = 500
"""the maximum number of events in a batch; a watch with so many events sends a batch immediately"""
MAX_BATCH_BYTES = 262_144
"""the number of bytes of data with which a watch sends a batch immediately"""
MAX_RATE = 2000
"""the number of events a second that a watch takes; after a second without events, it may take so many in one moment"""
MAX_DATA = 2048
"""the maximum number of bytes of data that an event shows"""
MAX_REASON = 1000
"""the maximum number of characters of a reason"""
CUT_OFF = frozenset(("connection closed", "TLS handshake failed"))
"""the texts that `Refusals` logs if a worker ends a connection; the other texts are about rejections"""
_BASE64_HEAD, _BASE64_TAIL = b'{"base64":"', b'"}'
"""the form of data that is not text (`protocols/mqtt/payload.py`)"""
_MAX_BASE64 = MAX_DATA // 3 * 4
_EXCHANGED = str.maketrans("/.", "./")

TapKind = Literal[
    "connected",
    "disconnected",
    "subscribed",
    "unsubscribed",
    "refused",
    "published",
    "client-event",
    "signed-in",
    "cut-off",
    "webhook-delivered",
    "webhook-failed",
    "asked",
]
"""the kinds of events"""
Text = Annotated[str, msgspec.Meta(max_length=1024)]
_string = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode


class TapFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The events that a watch takes. An empty value selects all events.

    what: the kinds of the events.
    channel: the beginning of the channel's name; with `*`, a pattern for the whole name.
    socket: a socket id, the client id of an MQTT client, or a session prefix.
    data: whether the events contain the published data.
    """

    app: Text = ""
    what: tuple[TapKind, ...] = ()
    channel: Text = ""
    socket: Text = ""
    user: Text = ""
    ip: Text = ""
    data: bool = False


class TapEvent(msgspec.Struct, omit_defaults=True, gc=False):
    """An event of the inspector (docs/console.md describes the fields). Fields without a value are not encoded."""

    at: float
    what: TapKind
    worker: str
    app: str = ""
    socket: str = ""
    client_id: str = ""
    channel: str = ""
    event: str = ""
    user: str = ""
    ip: str = ""
    protocol: str = ""
    request: str = ""
    endpoint: str = ""
    events: int = 0
    attempt: int = 0
    size: int = 0
    code: int = 0
    reason: str = ""
    remedy: str = ""
    link: str = ""
    ms: float | None = None
    data: str | None = None
    encoding: str = ""
    cut: bool = False


class TapBatch(msgspec.Struct):
    """A message to a watcher. dropped: the numbers of the events that were only counted, by kind."""

    events: list[TapEvent]
    dropped: dict[str, int]


class Answered(msgspec.Struct, frozen=True):
    """An error as the client received it. code: 0 if the client received no code. link: the section in docs/errors.md."""

    code: int
    remedy: str = ""
    link: str = ""


class Watch:
    """A lease on the events of a worker. until: the time at which the watch ends, in seconds on `Clock.monotonic`."""

    __slots__ = (
        "app",
        "dropped",
        "dropped_client_events",
        "dropped_published",
        "events",
        "filter",
        "has_any",
        "has_channel",
        "id",
        "is_of_client",
        "kinds",
        "room",
        "size",
        "until",
        "wants_client_events",
        "wants_published",
    )

    def __init__(self, id: str, filter: TapFilter, until: float) -> None:
        self.id = id
        self.filter = filter
        self.until = until
        self.kinds = frozenset(filter.what)
        self.room = MAX_RATE
        """the number of events that the watch may take at this moment"""
        self.events: list[TapEvent] = []
        self.size = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_published = self.dropped_client_events = 0
        """numbers like those in `dropped`, which are faster to count; `batch` adds them to `dropped`"""
        self.app = filter.app
        self.has_channel = matcher((filter.channel,)) if filter.channel else None
        self.is_of_client = bool(filter.socket or filter.user or filter.ip)
        self.has_any = not (filter.channel or self.is_of_client)
        """whether the watch wants each event of its kinds in its app"""
        self.wants_published = not self.kinds or "published" in self.kinds
        self.wants_client_events = not self.kinds or "client-event" in self.kinds

    def wants(self, what: TapKind, app: str, channel: str) -> bool:
        filter = self.filter
        if self.kinds and what not in self.kinds:
            return False
        if filter.app and app != filter.app and (app or what not in ("refused", "cut-off")):
            return False  # a rejection without a valid app may concern each app
        return self.has_channel is None or self.has_channel(channel) is not None

    def wants_client(self, socket: str, user: str, ip: str, client_id: str = "") -> bool:
        filter = self.filter
        has_id = not filter.socket or filter.socket in (socket, client_id, prefix_of(socket))
        return has_id and filter.user in ("", user) and filter.ip in ("", ip)

    def take(self, what: TapKind) -> bool:
        """Returns whether the watch takes a further event; counts an event that it does not take."""
        if self.room > 0:
            self.room -= 1
            return True
        self.dropped[what] += 1
        return False

    @property
    def has_batch(self) -> bool:
        return bool(self.events or self.dropped or self.dropped_published or self.dropped_client_events)

    def batch(self) -> bytes:
        """Returns the waiting events and counts as JSON, and removes them; b"" if there are none."""
        if self.dropped_published or self.dropped_client_events:
            self.dropped += Counter({"published": self.dropped_published, "client-event": self.dropped_client_events})
            self.dropped_published = self.dropped_client_events = 0
        if not self.events and not self.dropped:
            return b""
        text = _encode(TapBatch(self.events, self.dropped))
        self.events, self.dropped, self.size = [], Counter(), 0
        return text


class Tap:
    """The watches of a worker. It implements `hooks.HookTap` and `refusals.RefusalTap`.

    worker: the name of the worker's node.
    used: the apps of the worker by id.
    answered: a function that takes the protocol of the client (or ""), the log's text, the code and the message of an error, and
    returns the error as the client received it.
    send: a function that sends the next batch of a watch.
    """

    def __init__(
        self,
        worker: str,
        clock: Clock,
        used: Mapping[str, App],
        answered: Callable[[str, str, int, str], Answered],
        send: Callable[[Watch], None],
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._used = used
        self._answered = answered
        self._send = send
        self.watches: tuple[Watch, ...] = ()
        self.counts_only = False
        """whether each watch only counts published events until the next tick; `Node.publish` then counts them, without a call"""
        self.passed: defaultdict[App, list[int]] = defaultdict(lambda: [0, 0])
        """the numbers of clients' events and of the API's events that `Node.publish` has counted, for each app"""

    # Watches

    def watch(self, id: str, filter: TapFilter) -> None:
        """Begins or renews a watch. Raises Refused if the worker has `MAX_WATCHES` other watches."""
        until = self._clock.monotonic() + WATCH_SECONDS
        for one in self.watches:
            if one.id == id:
                one.until = until
                return
        self.check_room()
        self._share_counts()
        self.watches = (*self.watches, Watch(id, filter, until))

    def check_room(self) -> None:
        """Raises Refused if the worker has `MAX_WATCHES` watches."""
        if len(self.watches) >= MAX_WATCHES:
            raise Refused(429, f"{MAX_WATCHES} inspectors are watching, which is the limit: close one")

    def unwatch(self, id: str) -> None:
        self._share_counts()
        self.watches = tuple([one for one in self.watches if one.id != id])

    def _share_counts(self) -> None:
        """Adds the events that `Node.publish` has counted to the counts of the watches that want them."""
        for app, (of_clients, published) in self.passed.items():
            for one in self.watches:
                if one.app in ("", app.config.id):
                    one.dropped_published += published * one.wants_published
                    one.dropped_client_events += of_clients * one.wants_client_events
        self.passed.clear()
        self.counts_only = False

    def tick(self) -> None:
        """Sends the waiting events, and ends the watches whose lease has expired. Called each `TICK_SECONDS`."""
        self._share_counts()
        now = self._clock.monotonic()
        if any(one.until <= now for one in self.watches):
            self.watches = tuple([one for one in self.watches if one.until > now])
        for one in self.watches:
            one.room = min(MAX_RATE, one.room + int(MAX_RATE * TICK_SECONDS))
            if one.has_batch:
                self._send(one)

    # Clients

    def connected(self, app: App, client: Client) -> None:
        self._show("connected", app.config.id, "", client)

    def disconnected(self, app: App, client: Client, code: int, seconds: float) -> None:
        """Shows the end of a connection. code: the close code, or the reason code of MQTT. seconds: its duration."""
        self._show("disconnected", app.config.id, "", client, code=int(code), ms=_milliseconds(seconds))

    def subscribed(self, app: App, client: Client, channel: str, member: Member | None = None) -> None:
        self._show("subscribed", app.config.id, channel, client, "" if member is None else member.user_id)

    def unsubscribed(self, app: App, client: Client, channel: str, member: Member | None = None) -> None:
        self._show("unsubscribed", app.config.id, channel, client, "" if member is None else member.user_id)

    def signed_in(self, app: App, client: Client, user_id: str) -> None:
        self._show("signed-in", app.config.id, "", client, user_id)

    def published(self, app: App, channel: str, event: str, data: bytes, sender: str, user_id: str | None) -> None:
        """Shows an event that this worker publishes. The parameters are those of `Node.publish`.

        measured: a call that only counts takes 3 % of a publish, so see `counts_only`; run `bench/watched.py` before changing.
        """
        is_client_event = sender != API
        for watch in self.watches:
            if watch.app and watch.app != app.config.id:
                continue
            if not (watch.wants_client_events if is_client_event else watch.wants_published):
                continue
            if watch.has_channel is not None and watch.has_channel(channel) is None:
                continue
            if watch.is_of_client and not self._has_sender(watch, app, sender, user_id):
                continue
            if watch.room > 0:
                watch.room -= 1
                self._add_published(watch, app, channel, event, data, sender, user_id)
                continue
            if is_client_event:
                watch.dropped_client_events += 1
            else:
                watch.dropped_published += 1
            if watch.has_any and not self.counts_only:
                self.counts_only = all(map(_only_counts, self.watches))

    def _has_sender(self, watch: Watch, app: App, sender: str, user_id: str | None) -> bool:
        client = cast(Client | None, app.tenant.sessions.get(sender))
        if client is None:
            return watch.wants_client("" if sender == API else sender, user_id or "", "")
        return watch.wants_client(sender, user_id or user_of(client), client.ip)

    def _add_published(
        self, watch: Watch, app: App, channel: str, event: str, data: bytes, sender: str, user_id: str | None
    ) -> None:
        one = TapEvent(self._clock.wall() / 1e9, "published", self._worker, app.config.id, "", "", channel, event, user_id or "")
        one.size = len(data)
        if sender != API:
            one.what, one.socket = "client-event", sender
            client = cast(Client | None, app.tenant.sessions.get(sender))
            if client is not None:
                one.client_id, one.user = client_id_of(client), user_id or user_of(client)
                one.ip, one.protocol = client.ip, client.wire.name
        if watch.filter.data:
            watch.size += _add_data(one, data)
        self._add(watch, one)

    # Rejections and hooks

    def refused(self, event: str, code: int, reason: str, where: Mapping[str, Any], mask: Callable[[Any], Any]) -> None:
        """Shows a rejection, or the end of a connection by this worker.

        event, code, reason, where: the arguments of `Refusals.log`. mask: a function that removes secrets from a value.
        """
        what: TapKind = "cut-off" if event in CUT_OFF else "refused"
        path, id = str(where.get("path") or ""), where.get("app") or ""
        if not id and "/apps/" in path:
            id = path.partition("/apps/")[2].partition("/")[0]
        app = self._used.get(id)
        socket, client_id, ip = [where.get(name) or "" for name in ("socket_id", "client_id", "ip")]
        client = None if app is None else cast(Client | None, app.tenant.sessions.get(socket))
        user, protocol = ("", "") if client is None else (user_of(client), client.wire.name)
        client_id = client_id if client is None else client_id_of(client)
        id = "" if app is None else id
        channel = where.get("channel") or str(where.get("topic") or "").translate(_EXCHANGED)
        one: TapEvent | None = None
        for watch in self.watches:
            if watch.wants(what, id, channel) and watch.wants_client(socket, user, ip, client_id) and watch.take(what):
                if one is None:
                    answered = self._answered(protocol, event, int(code), reason[:MAX_REASON])
                    one = TapEvent(
                        self._clock.wall() / 1e9,
                        what,
                        self._worker,
                        app=id,
                        socket=mask(socket),
                        client_id=mask(client_id),
                        channel=mask(channel),
                        event=event,
                        user=mask(user),
                        ip=ip,
                        protocol=protocol,
                        request=_shown(f"{where.get('method', '')} {path}".strip(), mask),
                        code=answered.code,
                        reason=_shown(reason, mask),
                        remedy=answered.remedy,
                        link=answered.link,
                    )
                self._add(watch, one)

    def attempted(self, attempt: Attempt) -> None:
        """Shows an attempt to deliver hook events."""
        what: TapKind = "webhook-failed" if attempt.error else "webhook-delivered"
        one: TapEvent | None = None
        for watch in self.watches:
            channel = next(filter(watch.has_channel, attempt.channels), "") if watch.filter.channel else ""
            if watch.wants(what, attempt.app, channel) and watch.wants_client("", "", "") and watch.take(what):
                if one is None:
                    one = TapEvent(
                        self._clock.wall() / 1e9,
                        what,
                        self._worker,
                        app=attempt.app,
                        channel=attempt.channels[0] if len(attempt.channels) == 1 else "",
                        endpoint=attempt.endpoint,
                        events=attempt.events,
                        attempt=attempt.number,
                        size=attempt.size,
                        reason=attempt.error[:MAX_REASON],
                        ms=_milliseconds(attempt.seconds),
                    )
                self._add(watch, one)

    def asked(self, question: Question, decision: Decision, seconds: float) -> None:
        """Shows a decision of an app's backend. The query, the headers, the password and the data are left out."""
        refused = decision.refused
        app, socket = self._used.get(question.app), question.socket_id
        client = None if app is None else cast(Client | None, app.tenant.sessions.get(socket))
        channel, user = getattr(question, "channel", ""), getattr(question, "user_id", None) or decision.user_id or ""
        operation = str(question.__struct_config__.tag)
        client_id, protocol = ("", "") if client is None else (client_id_of(client), client.wire.name)
        for watch in self.watches:
            is_wanted = watch.wants("asked", question.app, channel) and watch.wants_client(socket, user, question.ip)
            if is_wanted and watch.take("asked"):
                at = self._clock.wall() / 1e9
                one = TapEvent(at, "asked", self._worker, question.app, socket, client_id, channel, operation)
                one.user, one.ip, one.protocol, one.ms = user, question.ip, protocol, _milliseconds(seconds)
                if refused is not None:
                    one.code, one.reason = refused.code, refused.text[:MAX_REASON]
                self._add(watch, one)

    # Events

    def _show(self, what: TapKind, app: str, channel: str, client: Client, user: str = "", **more: Any) -> None:
        """Shows an event of a client. more: further fields."""
        user = user or user_of(client)
        one: TapEvent | None = None
        for watch in self.watches:
            if watch.wants(what, app, channel) and watch.wants_client(client.id, user, client.ip) and watch.take(what):
                if one is None:
                    at, id, protocol = self._clock.wall() / 1e9, client_id_of(client), client.wire.name
                    one = TapEvent(at, what, self._worker, app, client.id, id, channel, "", user, client.ip, protocol, **more)
                self._add(watch, one)

    def _add(self, watch: Watch, event: TapEvent) -> None:
        watch.events.append(event)
        if len(watch.events) >= MAX_BATCH or watch.size >= MAX_BATCH_BYTES:
            self._send(watch)


def read_filter(given: object) -> TapFilter:
    """Returns the filter in a request of an operator. Raises Refused(400)."""
    kinds = given.get("what") if isinstance(given, dict) else None
    if isinstance(kinds, list | tuple) and (unknown := [str(kind)[:64] for kind in kinds if kind not in get_args(TapKind)]):
        raise Refused(400, f"there is no event {unknown[0]}, the events are {', '.join(get_args(TapKind))}")
    try:
        filter = msgspec.convert(given, TapFilter)
    except msgspec.ValidationError as exc:
        raise Refused(400, f"the filter of the inspector is not valid: {exc}") from None
    try:
        if filter.ip:
            ipaddress.ip_address(filter.ip)
    except ValueError:
        raise Refused(400, f"{filter.ip[:64]} is not an IP address") from None
    return filter


def _only_counts(watch: Watch) -> bool:
    """Returns whether a watch only counts the published events that it wants, and selects them by app and kind alone."""
    return not (watch.wants_published or watch.wants_client_events) or (watch.has_any and watch.room <= 0)


def _shown(text: str, mask: Callable[[Any], Any]) -> str:
    """Returns at most `MAX_REASON` characters of a text without secrets.

    A secret that the cut would divide is masked too. If the text is longer than the part that is masked, the end of this part may
    be the beginning of a secret, and is left out; a text with many secrets is much shorter when they are masked.
    """
    masked: str = mask(text[: 3 * MAX_REASON])
    return masked[: MAX_REASON if len(text) <= 3 * MAX_REASON else min(MAX_REASON, max(len(masked) - MAX_REASON, 0))]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _add_data(event: TapEvent, data: bytes) -> int:
    """Adds published data to an event; returns the number of bytes. Long data is cut."""
    if data.startswith(_BASE64_HEAD) and data.endswith(_BASE64_TAIL):
        text = data[len(_BASE64_HEAD) : -len(_BASE64_TAIL)]
        event.data, event.encoding, event.cut = text[:_MAX_BASE64].decode(), "base64", len(text) > _MAX_BASE64
        return min(len(text), _MAX_BASE64)
    if data[:1] == b'"' and len(data) <= 4 * MAX_DATA:  # longer strings stay JSON text, because decoding them takes time
        data = decode(_string, data).encode("utf-8", "replace")
    event.data, event.cut = data[:MAX_DATA].decode("utf-8", "ignore"), len(data) > MAX_DATA
    return min(len(data), MAX_DATA)
