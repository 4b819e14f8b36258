"""The Lua scripts, one file in `lua/` for each. A script is an atomic step, and publishes the edges that the step causes.

All keys of a shard are in one hash slot. They begin with the base of the shard (`prefix:{number}`), the only declared key:

    BASE:schema       `SCHEMA` of the node that wrote it, the version of this layout; a node of another schema is rejected
    BASE:epoch        a word that changes when the server has lost its state
    BASE:recovering   exists during the recovery: while nodes register their entries again after a loss of the state
    BASE:gone         hash: channels, members and users that left during the recovery and are on no node, in fields like those
                      of BASE:n:NODE → when, socket, id, received, which events hooks want, info; published when recovery is over
    BASE:gone:order   list: the fields of BASE:gone, in the order in which they left
    BASE:held         hash: channels that became empty and members that left, whose hook events are held back, because most
                      return at once; in fields like those of BASE:n:NODE → when, socket, received, info
    BASE:held:order   list: the time and the field of each entry of BASE:held, oldest first
    BASE:nodes        set: the nodes that may have entries
    BASE:lease:NODE   exists while the node is alive: `new` until the node is subscribed to its topics for the first time,
                      `there` while it is subscribed, `back` from a new registration until it is subscribed again
    BASE:away         set: nodes that were alive according to other nodes, and have not registered since the state was lost
    BASE:n:NODE       hash: its entries: c/APP/CHANNEL → subscriptions, m/APP/CHANNEL\\nUSER, u/APP/USER, q/APP → connections
    BASE:i:APP        hash: channel → subscriptions
    BASE:m:APP/CHANNEL  hash: user on a presence channel → number of nodes that have it, ":", its info
    BASE:u:APP        hash: user who has signed in → number of nodes that have it
    BASE:q            hash: app → connections
    BASE:k:APP/CHANNEL  the last event of a cache channel
    BASE:claim:APP/CHANNEL  exists while no other node may publish the subscription count of the channel
    BASE:ledger       set: the ledger of a consumer (`events_consumer.py`) that stopped before it compared it with the roster
    BASE:clock        a key with a very long time to live, by whose remaining time the scripts measure time
    BASE:numbers      hash: number → node; message ids of the node end in the number
    BASE:facts        stream: hook events; over MAX_HOOK_EVENTS, the oldest are deleted
    BASE:facts:read   the last hook event that was read
    BASE:reader       the node that reads the hook events; exists while the node is alive
    BASE:term         a number that grows with each renewal of the consumer, and the name of its node; stays when the node ends
    BASE:t:APP/CHANNEL  the channel's topic

Every change contains the node's new number or state (its subscriptions, whether it has the user), never a difference. So a step
that runs again, for example after a lost reply, changes nothing.

An app's hooks may want edges at once (`a`), settled (`s`), both, or none. `w` of an event names the hooks that receive it.
Two more values of `w` are for the consumer only. `r`: a channel or member returned while its leaving edge was held back. `h`: an
earlier process had held back the leaving edge of this channel or member when it stopped.

A script is sent with those functions of `lua/helpers.lua` that it calls. The server builds the functions again at each call.
"""

import hashlib
import re
from importlib import resources

import msgspec

SCHEMA = 1
"""increase it with each change after which nodes of the previous version misread the keys or messages of this one"""
MAX_HOOK_EVENTS = 100_000
"""hook events that wait for their consumer, at most; the server deletes old ones in blocks, so it may keep some more"""
CLOCK_MS = 10**13
"""time to live of a new `BASE:clock`: three centuries"""

_FOLDER = resources.files(__package__) / "lua"


class Script(msgspec.Struct, frozen=True):
    """A script: its text, and the digest that identifies it once the server has it.

    sharded: the same script for a cluster, in which topics are sharded channels.
    """

    text: str
    sharded: str
    digest: str
    sharded_digest: str


def _helpers() -> tuple[str, dict[str, str]]:
    """Returns the first line of every script, and the helper functions by name."""
    paragraphs = [re.sub(r"(?m)^--.*\n", "", one) for one in (_FOLDER / "helpers.lua").read_text().split("\n\n")]
    found = {match[1]: one for one in paragraphs if (match := re.match(r"local function (\w+)", one))}
    return next(one for one in paragraphs if one.startswith("local base")), found


_BASE, _HELPERS = _helpers()


def _needed(text: str) -> set[str]:
    """Returns the names of the helper functions that a text calls, and of those that these call."""
    names = {name for name in _HELPERS if re.search(rf"\b{name}\(", text)}
    return names.union(*(_needed(re.sub(r"^local function \w+", "", _HELPERS[name])) for name in names))


def _script(name: str) -> Script:
    text = (_FOLDER / f"{name}.lua").read_text()
    needed = _needed(re.sub(r"(?m)^--.*\n", "", text))
    whole = "\n".join([_BASE, *(code for helper, code in _HELPERS.items() if helper in needed), text])
    words = {"MAX_HOOK_EVENTS": f"{MAX_HOOK_EVENTS}", "CLOCK": f"{CLOCK_MS}"}

    def filled(publish: str) -> str:
        return re.sub(r"\b(?:MAX_HOOK_EVENTS|CLOCK|PUBLISH)\b", lambda word: {**words, "PUBLISH": publish}[word[0]], whole)

    texts = filled("'PUBLISH'"), filled("'SPUBLISH'")
    return Script(*texts, *(hashlib.sha1(one.encode(), usedforsecurity=False).hexdigest() for one in texts))


REGISTER = _script("register")
RENEW = _script("renew")
JOIN = _script("join")
LEAVE = _script("leave")
SIGN_IN = _script("sign_in")
SIGN_OUT = _script("sign_out")
CONNECT = _script("connect")
PUBLISH_CACHED = _script("publish_cached")
CACHED = _script("cached")
EVICT_NODE = _script("evict_node")
DEFER_LEAVE = _script("defer_leave")
FLUSH_DEFERRED = _script("flush_deferred")
READ = _script("read")
HOLD = _script("hold")
LAST_OUT = _script("last_out")
TAKE = _script("take")
READ_IF_EPOCH = _script("read_if_epoch")

SCRIPTS = (
    REGISTER,
    RENEW,
    JOIN,
    LEAVE,
    SIGN_IN,
    SIGN_OUT,
    CONNECT,
    PUBLISH_CACHED,
    CACHED,
    EVICT_NODE,
    DEFER_LEAVE,
    FLUSH_DEFERRED,
    READ,
    HOLD,
    LAST_OUT,
    TAKE,
    READ_IF_EPOCH,
)
