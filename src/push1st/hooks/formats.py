"""The bodies of deliveries in Pusher's and in Push1st's format, and the hook events that each endpoint wants.

This module is pure. The module encodes an event once for all endpoints of the same format. The Pusher protocol, section 9,
contains the names of Pusher's events; the Push1st API, section 8, contains the names of Push1st's triggers.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from push1st.config.model import AppConfig, Authorize, Hook, Webhook
from push1st.hooks import Format, Target
from push1st.jsontext import as_string, encode
from push1st.messages import HookEvent, HookEventKind

EVENTS: dict[Format, dict[HookEventKind, str]] = {
    "pusher": {
        "occupied": "channel_occupied",
        "vacated": "channel_vacated",
        "member-added": "member_added",
        "member-removed": "member_removed",
        "client-event": "client_event",
        "cache-missed": "cache_miss",
        "counted": "subscription_count",
    },
    "push1st": {
        "occupied": "register",
        "vacated": "unregister",
        "joined": "join",
        "left": "leave",
        "client-event": "push",
    },
}
OPPOSITES: dict[HookEventKind, HookEventKind] = {
    "occupied": "vacated",
    "vacated": "occupied",
    "member-added": "member-removed",
    "member-removed": "member-added",
}
STATES = frozenset(
    name for names in EVENTS.values() for kind, name in names.items() if kind in {*OPPOSITES, "joined", "left", "counted"}
)
"""the names of events that report a state, which later events change"""
CONCURRENCY = 10
"""the default number of simultaneous deliveries to an HTTP endpoint"""


class Wanted(msgspec.Struct, frozen=True):
    """An endpoint, as the configuration of an app defines it.

    kinds: the kinds of hook events that the endpoint wants.
    filter: a function that matches the names of the channels whose events the endpoint wants.
    """

    target: Target
    format: Format
    kinds: frozenset[HookEventKind]
    filter: Callable[[str], object]
    batch: int
    concurrency: int


def wanted(app: AppConfig, folder: str) -> tuple[Wanted, ...]:
    """Returns the endpoints of an app's `hook` and `webhooks`. Relative paths of the endpoints start at `folder`."""
    return tuple(_wanted(app, one, folder, signed) for one, signed in _webhooks(app) if one.url)


def kinds(app: AppConfig) -> frozenset[HookEventKind]:
    """Returns the kinds of hook events that endpoints of the app want. Adds the opposite of each edge: `debounce` needs both."""
    found = frozenset[HookEventKind]().union(*(_kinds(one) for one, _ in _webhooks(app)))
    return found | {OPPOSITES[kind] for kind in found & OPPOSITES.keys()}


def edges(app: AppConfig) -> str:
    """Returns letters for the edges that endpoints want: "a" for immediate edges (Push1st), "s" for debounced edges (Pusher)."""
    letters: dict[Format, str] = {"push1st": "a", "pusher": "s"}
    formats = {one.format for one, _ in _webhooks(app) if _kinds(one) & OPPOSITES.keys()}
    return "".join(letter for format, letter in letters.items() if format in formats)


def set_edges(hooked: dict[str, str], app: AppConfig) -> None:
    """Stores the result of `edges` for an app in the table `hooked`. An app whose endpoints want no edges is not in the table."""
    hooked.pop(app.id, None)
    if app.enable and (wanted := edges(app)):
        hooked[app.id] = wanted


def _webhooks(app: AppConfig) -> Iterable[tuple[Webhook, bool]]:
    """Yields the app's webhooks, and whether each webhook is signed. Each URL of Push1st's `hook` counts as a webhook."""
    hook = app.hook or Hook()
    if hook.trigger:
        yield from ((Webhook(url=url, format="push1st", events=tuple(hook.trigger)), hook.sign) for url in hook.endpoint)
    yield from ((one, True) for one in app.webhooks)


def _kinds(webhook: Webhook) -> frozenset[HookEventKind]:
    names = EVENTS[webhook.format]
    return frozenset(kind for kind, name in names.items() if not webhook.events or name in webhook.events)


def _wanted(app: AppConfig, webhook: Webhook, folder: str, signed: bool) -> Wanted:
    ours = not webhook.url.startswith("http")
    concurrency = webhook.concurrency or (1 if ours else CONCURRENCY)
    return Wanted(
        target(app, webhook, folder, concurrency, signed),
        webhook.format,
        _kinds(webhook),
        matcher(webhook.filter),
        webhook.batch,
        concurrency,
    )


def target(app: AppConfig, one: Webhook | Authorize, folder: str, processes: int, signed: bool = True) -> Target:
    return Target(app.id, one.url, app.key, app.secret if signed else "", one.headers, one.timeout, processes, folder)


def fingerprint(wanted: Wanted) -> str:
    """Returns a hash of an endpoint. Saved events and dead letters contain this hash, since the URL may contain a password."""
    target = wanted.target
    return hashlib.sha256(f"{target.app}\n{target.url}\n{wanted.format}".encode()).hexdigest()[:32]


def matcher(filters: Sequence[str]) -> Callable[[str], object]:
    """Returns a function that matches the names of channels against filters.

    A filter without `*` matches the beginning of a name. A filter with `*` matches the whole name; `*` stands for any text.
    """
    if not filters:
        return lambda _: True
    return re.compile("|".join(map(_expression, filters)), re.DOTALL).match


def _expression(filter: str) -> str:
    """Returns a filter as a regular expression that matches in linear time.

    For a text between two stars, the expression tries only the text's first occurrence in the name. If the rest of the filter
    matches after a later occurrence, it also matches after the first: the second star matches the characters in between. So the
    group for such a text is atomic (`(?>…)`) and does not backtrack. With a plain `.*`, each star would multiply the time by the
    length of the name.
    """
    first, *more = map(re.escape, filter.split("*"))
    if not more:
        return first
    return first + "".join(f"(?>.*?{part})" for part in more[:-1]) + f".*{more[-1]}\\Z"


# Pusher's format


def pusher_event(hook_event: HookEvent) -> bytes:
    """Encodes a hook event as an item of the list `events` in the body."""
    text = b'{"name":"%b","channel":%b' % (EVENTS["pusher"][hook_event.kind].encode(), encode(hook_event.channel))
    match hook_event.kind:
        case "client-event":
            text += b',"event":%b,"data":%b' % (encode(hook_event.event), as_string(hook_event.data))
            text += b',"socket_id":%b' % encode(hook_event.socket_id)
        case "counted":
            text += b',"subscription_count":%d' % hook_event.count
    if hook_event.user_id is not None and hook_event.kind in ("client-event", "member-added", "member-removed"):
        text += b',"user_id":' + encode(hook_event.user_id)
    return text + b"}"


def pusher_body(events: Sequence[bytes], time_ms: int) -> bytes:
    """Returns a body with several events. `time_ms` is the wall-clock time in milliseconds."""
    return b'{"time_ms":%d,"events":[%b]}' % (time_ms, b",".join(events))


# Push1st's format


def push1st_event(hook_event: HookEvent) -> bytes:
    """Encodes a hook event as the whole body of a delivery."""
    data = b"null"
    if hook_event.kind == "client-event":
        data = _message(hook_event)
    elif hook_event.user_id is not None:
        data = b'{"user-id":%b,"user-info":%b}' % (encode(hook_event.user_id), hook_event.user_info)
    trigger = EVENTS["push1st"][hook_event.kind].encode()
    session = "" if hook_event.kind in ("occupied", "vacated") else hook_event.socket_id
    head = b'{"event":"%b","app":%b,"channel":%b' % (trigger, encode(hook_event.app), encode(hook_event.channel))
    return head + b',"session":%b,"data":%b}' % (encode(session), encode(data.decode()))


def _message(hook_event: HookEvent) -> bytes:
    """Returns the value of `data` for the trigger `push`: the client's message, with ids and times."""
    return (
        b'{"event":%b,"channel":%b,"data":%b,"#msg-id":%d,"#msg-from":%b,"#msg-arrival":%d,"#msg-delivery":"%b",'
        b'"#msg-expired":%d%b}'
    ) % (
        encode(hook_event.event),
        encode(hook_event.channel),
        hook_event.data,
        hook_event.id,
        encode(hook_event.socket_id),
        hook_event.at,
        hook_event.delivery.encode(),
        hook_event.expires,
        hook_event.given,
    )


ENCODERS: dict[Format, Callable[[HookEvent], bytes]] = {"pusher": pusher_event, "push1st": push1st_event}


def body(format: Format, events: Sequence[bytes], time_ms: int) -> bytes:
    return pusher_body(events, time_ms) if format == "pusher" else events[0]
