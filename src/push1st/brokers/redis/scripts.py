"""Loads the Lua scripts from `lua/`. A script runs as one atomic step, and publishes the edges that this step causes.
An edge: a channel, a member or a signed-in user enters the cluster with its first connection, or leaves with its last connection.

All keys of a shard are in one hash slot. Every key begins with the base of the shard (`prefix:{number}`). Commands
pass only this base in `KEYS`.

    BASE:schema       the version of this layout: `SCHEMA` of the node that set this key; nodes with another schema are rejected.
    BASE:epoch        a word that identifies the server's state; after a loss of this state, a node sets a new word.
    BASE:recovering   exists during the recovery, in which nodes register their entries again after a loss of the state.
    BASE:gone         hash of leaves that are deferred until the end of the recovery: field of a channel, member or user, as in
                      BASE:n:NODE → server's time, socket id, edge's id and time, letters of the edges for hooks, user info.
    BASE:gone:order   list of the fields of BASE:gone, in the order of the leaves.
    BASE:held         hash of leaves whose hook events are held back, because most members return at once: field of a channel or
                      member, as in BASE:n:NODE → server's time, socket id, edge's time, user info.
    BASE:held:order   list of the entries of BASE:held, oldest first: the time and the field of each entry.
    BASE:nodes        set of the nodes that may have entries.
    BASE:lease:NODE   exists while the node is alive; the value is `new` before the node first subscribes to its topics, `there`
                      while the node is subscribed, `back` from a new registration until the node is subscribed again.
    BASE:away         set of nodes that other nodes reported as alive, but that had no lease; a registration removes the node.
    BASE:n:NODE       hash of the node's entries: c/APP/CHANNEL → subscriptions, q/APP → connections; m/APP/CHANNEL\\nUSER and
                      u/APP/USER have no value.
    BASE:i:APP        hash of an app's channels: channel → subscriptions on all nodes.
    BASE:m:APP/CHANNEL  hash of a presence channel's members: user → number of nodes with this member, ":", user info.
    BASE:u:APP        hash of signed-in users: user → number of nodes with this user.
    BASE:q            hash of apps: app → connections on all nodes.
    BASE:k:APP/CHANNEL  the newest event of a cache channel.
    BASE:h:APP/CHANNEL  stream: the history of a channel. An entry is a batch of messages. The id of the entry contains the
                      offset of the last message in the batch, and the number of messages.
    BASE:hm:APP/CHANNEL  hash, the counter of a channel with a history: `e` → the channel's word, the second half of its epoch;
                      `o` → the last offset.
    BASE:gen          the run id of the server process that has this state, and the generation, the first half of all epochs.
    BASE:o:APP/LENGTH:KEYCHANNEL  the result of a publish with the idempotency key KEY, which has LENGTH characters: number of
                      subscriptions, epoch, offset, message id.
    BASE:claim:APP/CHANNEL  the only node that may publish the channel's subscription count until this claim expires.
    BASE:ledger       set: a stopped consumer's ledger that was not yet compared with the roster (`events_consumer.py`).
    BASE:clock        a key with a very long time to live; the scripts measure time by the remaining time to live.
    BASE:numbers      hash: number → node; the ids of the node's messages end in the number.
    BASE:facts        stream of hook events; when it is longer than MAX_HOOK_EVENTS, the server deletes the oldest events.
    BASE:facts:read   the id of the newest delivered hook event.
    BASE:reader       the node of the consumer, which reads the hook events; the key exists while this node is alive.
    BASE:term         a number that grows with each renewal of the consumer's lease, and the consumer's node; never deleted.
    BASE:r:APP/PAGE   hash of a page's records (`brokers/pages.py`): socket id of a connection → record.
    BASE:rf:APP/PAGE:SOCKET  exists while a connection cannot store a record, because another connection deleted its record.
    BASE:rp:APP       sorted set of the app's pages in this shard, by the time at which they expire.
    BASE:ra:APP/ADDRESS  sorted set of the pages of one address in this shard, by the time at which they expire.
    BASE:t:APP/CHANNEL  the topic of a channel.

For a change, a script takes the node's new number or state (such as its number of subscriptions), never a difference. So a script
that runs twice, for example after a lost reply, changes nothing the second time.

An app's hooks receive edges at once (`a`), settled edges (`s`: without quick leaves and returns), both, or none. The field
`w` of a hook event contains the letters of the hooks that receive the event. Two more letters in `w` are for the consumer only:
`r` (a channel or member returned while its leaving edge was held back) and `h` (an edge was still held back when a process
stopped, and is held back again).

A script contains only the functions of `lua/helpers.lua` that it calls, because the server defines these functions at each call.
"""

import hashlib
import re
from importlib import resources

import msgspec

SCHEMA = 1
"""the version of keys and messages; increase it with each change that nodes of the previous version would misread.
Histories did not increase it, because they have their own keys and messages. Nodes of earlier builds do not deliver the messages
of channels with a history, so an operator enables histories when all nodes have a build with histories."""
MAX_HOOK_EVENTS = 100_000
"""the maximum number of hook events that wait for the consumer; the server deletes only whole blocks, so a few more may wait"""
CLOCK_MS = 10**13
"""the time to live of a new `BASE:clock` in milliseconds: three centuries"""

_FOLDER = resources.files(__package__) / "lua"


class Script(msgspec.Struct, frozen=True):
    """The text of a script, and the digest of this text, by which commands call the script.

    sharded: the text of the same script for a cluster, in which topics use sharded Pub/Sub (SPUBLISH).
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
    """Returns the names of the helper functions that a script's text calls, directly or through other helper functions."""
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
APPEND = _script("append")
READ_HISTORY = _script("read_history")
RENEW_COUNTERS = _script("renew_counters")
HEAL = _script("heal")
CACHED = _script("cached")
EVICT_NODE = _script("evict_node")
DEFER_LEAVE = _script("defer_leave")
FLUSH_DEFERRED = _script("flush_deferred")
READ = _script("read")
HOLD = _script("hold")
LAST_OUT = _script("last_out")
TAKE = _script("take")
READ_IF_EPOCH = _script("read_if_epoch")
REMEMBER_PAGE = _script("remember_page")
FORGET_PAGE = _script("forget_page")

SCRIPTS = (
    REGISTER,
    RENEW,
    JOIN,
    LEAVE,
    SIGN_IN,
    SIGN_OUT,
    CONNECT,
    PUBLISH_CACHED,
    APPEND,
    READ_HISTORY,
    RENEW_COUNTERS,
    HEAL,
    CACHED,
    EVICT_NODE,
    DEFER_LEAVE,
    FLUSH_DEFERRED,
    READ,
    HOLD,
    LAST_OUT,
    TAKE,
    READ_IF_EPOCH,
    REMEMBER_PAGE,
    FORGET_PAGE,
)
