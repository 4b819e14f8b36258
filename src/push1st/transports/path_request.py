"""Reads the requests of clients that name their channels in the path: raw WebSocket clients and event-stream clients.

The path after the protocol's base is `KEY/CHANNEL/CHANNEL/…`. The query may have these parameters:

- `token`: an access token, for channels that are not public;
- `since`: the client's positions in the order of the channels in the path, with commas between them, and `-` for no position;
- `rewind`: the latest messages that the client requests: a number of messages, or an age such as `30s`;
- `positions=1`: the client requests the positions of the messages.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from push1st import auth
from push1st.core.app import App
from push1st.core.rights import Claimant, may_subscribe
from push1st.errors import Refused
from push1st.messages import ClientRequest, SignedInUser, Subscribe
from push1st.positions import parse_list
from push1st.transports.admission import params
from push1st.transports.context import EdgeContext

MAX_REWIND = 100
"""the maximum number of messages that a client may request with `rewind`"""
MAX_REWIND_SECONDS = 2_592_000
"""the maximum age of messages that a client may request with `rewind`: the longest time for which messages are kept"""
NO_CHANNEL = "no channel to subscribe to: they need an access token, or their names are not valid"

_REWIND = re.compile(r"([1-9][0-9]{0,6})(s?)\Z", re.ASCII)


class Applicant(msgspec.Struct, frozen=True, gc=False):
    """A client whose session has not begun (`rights.Claimant`). `claims`: the rights in its access token."""

    claims: auth.Claims | None
    id: str = ""
    push: frozenset[str] = frozenset()
    lenient: bool = False
    user: SignedInUser | None = None


class PathRequest(msgspec.Struct, frozen=True, gc=False):
    """The request of a client.

    key: the app key.
    channels: the names of the channels, in the order of the path. A name may occur twice.
    query: the parameters of the query.
    """

    key: str
    channels: tuple[str, ...]
    query: Mapping[str, str]

    @property
    def resumes(self) -> bool:
        """Whether the client requests positions or earlier messages."""
        query = self.query
        return bool(query.get("since") or query.get("rewind") or query.get("positions"))

    def subscriptions(self, permitted: Iterable[str], since: str) -> list[Subscribe]:
        """Returns the commands that subscribe the client to the channels in `permitted`. Raises Refused for an invalid query.

        since: the client's positions, for all channels of the path.
        """
        if self.query.get("positions", "1") not in ("1", ""):
            raise Refused(400, "positions is 1, or is not in the query")
        rewind, seconds = _rewind(self.query.get("rewind", ""))
        positions = dict(zip(reversed(self.channels), reversed(parse_list(since, len(self.channels))), strict=True))
        return [Subscribe(name, since=positions[name], rewind=rewind, rewind_seconds=seconds) for name in permitted]


def parse(tail: str, query: str) -> PathRequest:
    """Parses a request. Raises Refused(400).

    tail: the part of the path after the base.
    """
    try:
        key, *channels = (unquote_to_bytes(part).decode() for part in tail.split("/"))
    except UnicodeDecodeError:
        raise Refused(400, "the path is not UTF-8") from None
    return PathRequest(key, tuple(filter(None, channels)), params(query, plus="+"))


def _rewind(text: str) -> tuple[int, int]:
    """Returns the number and the maximum age in seconds of the messages that a client requests; 0 stands for no number or age."""
    if not text:
        return 0, 0
    found = _REWIND.match(text)
    if found is not None:
        number = int(found[1])
        if found[2] and number <= MAX_REWIND_SECONDS:
            return 0, number
        if not found[2] and number <= MAX_REWIND:
            return number, 0
    raise Refused(400, f"rewind is a number of messages from 1 to {MAX_REWIND}, or an age of messages such as 30s")


def permitted(client: Claimant, app: App, channels: Iterable[str]) -> list[str]:
    """Returns the channels to which a client may subscribe, without duplicates."""
    decides: Callable[[str], object] | None = app.backend_decides.get("subscribe")
    return [name for name in dict.fromkeys(channels) if may_subscribe(client, app.config, name, decides)]


def claims(context: EdgeContext, app: App, client: ClientRequest, ip: str, token: str) -> auth.Claims | None:
    """Returns the rights in a client's access token; None if the client has no valid token.

    token: the access token in the query; "" if the query has no token.
    """
    scheme, _, bearer = (client.authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        token = bearer.strip()
    elif not token and not bearer:  # `Authorization` may be a token without `Bearer`
        token = scheme
    if not token or not app.config.secret:
        return None
    node = context.node
    where = {"app": app.config.id, "origin": client.origin, "ip": ip}
    try:
        found = auth.check_access_token(app.config.secrets, app.config.id, token, node.clock.wall() // 1_000_000_000)
    except Refused as refused:
        node.metrics.refusals["access-token"] += 1
        app.counts.refusals += 1
        node.refusals.log("access token refused", 401, refused.text, **where)
        return None
    if found.allows_origin(client.origin):
        return found
    node.refusals.log("access token refused", 401, "the access token is for another origin", **where)
    return None
