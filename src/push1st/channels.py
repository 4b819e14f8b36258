"""Channel names and kinds: what a name says about who may subscribe and publish.

A kind is told by exact prefixes, longest first, each with its dash (Pusher protocol, section 11: `cachefoo` is not a
cache channel). Two rules bind names: Pusher's for Pusher clients and signed API calls, and a wider one for raw
WebSockets, MQTT and unsigned calls (Push1st API, section 7).
"""

import re
from collections.abc import Container
from typing import Literal

import msgspec

type_names = ("public", "private", "presence", "protected")
Type = Literal["public", "private", "presence", "protected"]

PUSHER_NAME = re.compile(r"#?[A-Za-z0-9_\-=@,.;]+\Z")
PLAIN = re.compile(r"[ -~]{1,255}\Z")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}\Z")
"""Wider than Pusher's rule, which is that of channel names: real ones are `auth0|1`, or addresses with a `+`."""
WIDE_NAME_BYTES = 255
RESERVED = ("pusher:", "pusher_internal:")
"""how the names of events begin that only the server may send (Pusher protocol, section 9)"""


class Kind(msgspec.Struct, frozen=True, gc=False):
    """What a channel's prefix says about it. `type` is Push1st's word for it."""

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
    """The kind of the channel `name`."""
    if not name.startswith(_STARTS):
        return PUBLIC
    for prefix, kind in _PREFIXES:
        if name.startswith(prefix):
            return kind
    return PUBLIC


def covers(types: Container[str], kind: Kind) -> bool:
    """Whether a list of channel types in the configuration contains a kind of channel: `private` covers `protected`."""
    return kind.type in types or (kind.type == "protected" and "private" in types)


def pusher_name_error(name: str, most: int = 164) -> str | None:
    """What is wrong with `name` under Pusher's rule (protocol, section 8), or None. `most` counts characters."""
    if not name:
        return "a channel name is empty"
    if len(name) > most:
        return f"channel name is {len(name)} characters long, the limit is {most}"
    if not PUSHER_NAME.match(name):
        return f"channel name {name[:80]!r} has characters outside A-Za-z0-9_-=@,.;"
    return None


def wide_name_error(name: str) -> str | None:
    """What is wrong with `name` under the rule for raw WebSocket, MQTT and unsigned calls, or None."""
    if PLAIN.match(name):
        return None
    if not name:
        return "a channel name is empty"
    size = len(name) if name.isascii() else len(name.encode("utf-8", "surrogatepass"))
    if size > WIDE_NAME_BYTES:
        return f"channel name is {size} bytes long, the limit is {WIDE_NAME_BYTES}"
    if CONTROL.search(name):
        return f"channel name {name[:80]!r} has control characters"
    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
        return f"channel name {name[:80]!r} is not valid UTF-8"
    return None


def user_id_error(id: str) -> str | None:
    """What is wrong with the id of a user, or None."""
    if USER_ID.match(id):
        return None
    return f"user id {id[:80]!r} must have 1 to 128 characters, and no control characters"
