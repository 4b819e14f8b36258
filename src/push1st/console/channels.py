"""The endpoints for channels: the occupied channels of an app, in pages, and one channel with its members and subscriptions."""

from collections.abc import Sequence

import msgspec

from push1st.brokers import CachedEvent, ChannelPage, Occupancy
from push1st.brokers.listing import MAX_EXAMINED
from push1st.brokers.local_lists import LocalLists
from push1st.channels import kind_of, wide_name_error
from push1st.console.cursors import NO_CURSOR, shown_data
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.core.app import App
from push1st.errors import Refused
from push1st.messages import Member

MAX_LIMIT = 200
MAX_CURSOR = 1024
MAX_MEMBERS = 200
KINDS = {
    "public": "",
    "private": "private-",
    "presence": "presence-",
    "encrypted": "private-encrypted-",
    "cache": "",
    "protected": "protected-",
}
"""the values of the parameter `kind`, each with the beginning of all names of this kind"""
LOCAL = "local "
"""the beginning of a cursor for the channels of this worker, which are shown while the broker is away"""


class ChannelRequest(msgspec.Struct, array_like=True):
    """A request for the number of subscriptions of a channel on each worker."""

    app: str
    channel: str


_request = msgspec.msgpack.Decoder(ChannelRequest).decode
_count = msgspec.msgpack.Decoder(int).decode
_encode = msgspec.msgpack.encode


class ChannelState(msgspec.Struct, frozen=True):
    """The state of a channel on all workers. members: at most `MAX_MEMBERS` of the members."""

    subscriptions: int
    users: int = 0
    members: Sequence[Member] = ()
    cached: CachedEvent | None = None


class ChannelList:
    """The channels of an app."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._node = context.node
        self._local = LocalLists(context.node.local_roster)
        self._node.local_roster.keep_names()  # now, while there are few channels or none
        self.endpoints = (
            ConsoleEndpoint("GET", r"apps/([^/]+)/channels", self._listing),
            ConsoleEndpoint("GET", r"apps/([^/]+)/channels/([^/]+)", self._one),
        )
        context.wire.serve("channel", self._own_subscriptions)

    def _own_subscriptions(self, data: bytes) -> bytes:
        request = _request(data)
        return _encode(self._node.local_roster.subscriptions(request.app, request.channel))

    def _app(self, call: ConsoleCall) -> App:
        id = call.args[0]
        config = self._node.apps.by_id(id)
        if config is None:
            raise Refused(404, f"there is no app {id[:64]!r}")
        return self._node.app(config)

    async def _listing(self, call: ConsoleCall) -> object:
        id, limit, after = self._app(call).config.id, max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after", MAX_CURSOR)
        prefix, kind = call.text("prefix"), call.text("kind")
        if kind and kind not in KINDS:
            raise Refused(400, f"kind must be one of {', '.join(KINDS)}")
        beginning = KINDS.get(kind, "")
        page, away = ChannelPage((), "", 0), ""
        if prefix.startswith(beginning) or beginning.startswith(prefix):
            page, away = await self._page(id, max(prefix, beginning, key=len), kind, after, limit)
        return {
            "channels": [_shown(one, bool(away)) for one in page.channels],
            "next": page.next or None,
            "complete": not page.next or len(page.channels) >= limit or page.examined < MAX_EXAMINED,
            "examined": page.examined,
            "away": away,
        }

    async def _page(self, app: str, prefix: str, kind: str, after: str, limit: int) -> tuple[ChannelPage, str]:
        """Returns a page and the broker's error. While the broker is away, the page has the channels of this worker only."""

        def accepts(name: str) -> bool:
            return name[0] != "#" and (not kind or _is_kind(name, kind))

        away = self._context.wire.peers().away
        try:
            if not away and not after.startswith(LOCAL):
                try:
                    return await self._node.channel_lists.some(app, prefix, accepts, after, limit), ""
                except Refused as refused:
                    away = refused.text
            own = after.removeprefix(LOCAL) if after.startswith(LOCAL) else ""
            page = await self._local.some(app, prefix, accepts, own, limit)
        except ValueError:
            raise Refused(400, NO_CURSOR) from None
        return msgspec.structs.replace(page, next=LOCAL + page.next if page.next else ""), away

    async def _one(self, call: ConsoleCall) -> object:
        app, name = self._app(call), call.args[1]
        if name.startswith("#"):
            raise Refused(400, "channel names that begin with # are reserved")
        if wrong := wide_name_error(name):
            raise Refused(400, wrong)
        replies = await self._context.wire.request("channel", _encode(ChannelRequest(app.config.id, name)))
        workers = sorted(((count, worker) for worker, count in replies.decoded(_count)), reverse=True)
        away, state = replies.away or self._context.wire.peers().away, ChannelState(sum(count for count, _ in workers))
        try:
            if not away:
                state = await self._state(app, name)
        except Refused as refused:
            away = refused.text
        kind, cached = kind_of(name), state.cached
        return {
            "name": name,
            "kind": _kind(name),
            "subscriptions": state.subscriptions,
            "users": state.users if kind.presence and not away else None,
            "members": [_member(one) for one in state.members] if kind.presence and not away else None,
            "cache": None if cached is None else _cached(cached),
            "by_worker": [{"worker": worker, "subscriptions": count} for count, worker in workers if count],
            "missing": replies.missing,
            "away": away,
        }

    async def _state(self, app: App, name: str) -> ChannelState:
        """Reads the state of a channel. Raises Refused(503)."""
        occupancy = await self._node.channel(app, name)
        members = await self._node.channel_lists.some_members(app.config.id, name, MAX_MEMBERS) if kind_of(name).presence else ()
        cached = await self._node.cached(app, name)
        if occupancy is None:
            return ChannelState(0, cached=cached)
        return ChannelState(occupancy.subscriptions, occupancy.users, members, cached)


def _is_kind(name: str, kind: str) -> bool:
    found = kind_of(name)
    return found.cache if kind == "cache" else found.encrypted if kind == "encrypted" else found.type == kind


def _kind(name: str) -> str:
    """Returns the words for a channel's kind, such as `private encrypted cache`."""
    kind = kind_of(name)
    return " ".join(word for word, has in ((kind.type, True), ("encrypted", kind.encrypted), ("cache", kind.cache)) if has)


def _shown(one: Occupancy, is_part: bool) -> dict[str, object]:
    """Returns a channel. is_part: whether one worker alone answers, without the members of other workers."""
    return {
        "name": one.channel,
        "kind": _kind(one.channel),
        "subscriptions": one.subscriptions,
        "users": one.users if kind_of(one.channel).presence and not is_part else None,
    }


def _member(member: Member) -> dict[str, object]:
    return {"user_id": member.user_id, "user_info": msgspec.Raw(member.info or b"null")}


def _cached(cached: CachedEvent) -> dict[str, object]:
    message = cached.message
    return {"event": message.event, "ttl": cached.ttl, "bytes": len(message.data), **shown_data(message.data)}
