"""Names and kinds of channels. The kind of a channel follows from its name, and decides which clients may subscribe and publish.

Each kind's prefix ends with a dash, so `cachefoo` is not a cache channel (Pusher protocol, section 11). Names follow one
of two rules. Pusher's rule applies to Pusher clients and signed API calls. A wider rule applies to raw WebSockets, MQTT and
unsigned API calls (Push1st API, section 7).
"""

import re
from collections.abc import Collection, Container
from typing import Literal

import msgspec

type_names = ("public", "private", "presence", "protected")
Type = Literal["public", "private", "presence", "protected"]

PUSHER_NAME = re.compile(r"#?[A-Za-z0-9_\-=@,.;]+\Z")
PLAIN = re.compile(r"[ -~]{1,255}\Z")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}\Z")
"""the rule for user ids, which allows more than Pusher's rule: also ids such as `auth0|1`, and email addresses with a `+`"""
MAX_WIDE_NAME_BYTES = 255
RESERVED = ("pusher:", "pusher_internal:")
"""the prefixes of event names that only the server may use (Pusher protocol, section 9)"""


class Kind(msgspec.Struct, frozen=True, gc=False):
    """The kind of a channel, which follows from the channel's prefix. `type`: the kind's name in the configuration."""

    type: Type
    encrypted: bool = False
    cache: bool = False

    @property
    def presence(self) -> bool:
        return self.type == "presence"

    @property
    def needs_auth(self) -> bool:
        return self.type != "public"


PUBLIC = Kind("public")
_PREFIXES: tuple[tuple[str, Kind], ...] = (
    ("private-encrypted-cache-", Kind("private", encrypted=True, cache=True)),
    ("private-encrypted-", Kind("private", encrypted=True)),
    ("private-cache-", Kind("private", cache=True)),
    ("private-", Kind("private")),
    ("presence-cache-", Kind("presence", cache=True)),
    ("presence-", Kind("presence")),
    ("protected-", Kind("protected")),
    ("cache-", Kind("public", cache=True)),
)
_STARTS = tuple(prefix for prefix, _ in _PREFIXES)


def kind_of(name: str) -> Kind:
    """Returns the kind of the channel `name`."""
    if not name.startswith(_STARTS):
        return PUBLIC
    for prefix, kind in _PREFIXES:
        if name.startswith(prefix):
            return kind
    return PUBLIC


def covers(types: Container[str], kind: Kind) -> bool:
    """Whether a configured list of channel types allows a kind of channel. The type `private` also allows `protected`."""
    return kind.type in types or (kind.type == "protected" and "private" in types)


def pusher_name_error(name: str, limit: int = 164) -> str | None:
    """Returns why Pusher's rule rejects a name (Pusher protocol, section 8); None if the rule allows the name.

    `limit`: the maximum number of characters.
    """
    if not name:
        return "a channel name is empty"
    if len(name) > limit:
        return f"channel name is {len(name)} characters long, the limit is {limit}"
    if not PUSHER_NAME.match(name):
        return f"channel name {name[:80]!r} has characters outside A-Za-z0-9_-=@,.;"
    return None


def wide_name_error(name: str) -> str | None:
    """Returns why the rule for raw WebSockets, MQTT and unsigned calls rejects a name; None if the rule allows the name."""
    if PLAIN.match(name):
        return None
    if not name:
        return "a channel name is empty"
    size = len(name) if name.isascii() else len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_WIDE_NAME_BYTES:
        return f"channel name is {size} bytes long, the limit is {MAX_WIDE_NAME_BYTES}"
    if CONTROL.search(name):
        return f"channel name {name[:80]!r} has control characters"
    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
        return f"channel name {name[:80]!r} is not valid UTF-8"
    return None


def subscription_note(app: str, types: Collection[str], name: str, limit: int = 164) -> str:
    """Returns why no client, or no Pusher client, can subscribe to a channel; "" if all clients can subscribe.

    app: the app's id. types: the kinds of channels that the app permits. limit: see `pusher_name_error`.
    """
    if name.startswith("#"):  # the channel of a user: a client subscribes when it signs in
        return ""
    kind = kind_of(name)
    if not covers(types, kind):
        return f"nobody can subscribe to {name}: app {app} has no {kind.type} channels, only {', '.join(sorted(types))}"
    error = pusher_name_error(name, limit)
    return f"Pusher clients cannot subscribe to {name}: {error}" if error else ""


def user_id_error(id: str) -> str | None:
    """Returns why a user id is not allowed; None if the id is allowed."""
    if USER_ID.match(id):
        return None
    return f"user id {id[:80]!r} must have 1 to 128 characters, and no control characters"
