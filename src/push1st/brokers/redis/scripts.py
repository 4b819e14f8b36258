"""Loads the Lua scripts from `lua/`. A script runs as one atomic step, and publishes the edges that this step causes.
An edge: a channel, a member or a signed-in user enters the cluster with its first connection, or leaves with its last connection.

All keys of a shard are in one hash slot. Every key begins with the base of the shard (`prefix:{number}`). Commands
pass only this base in `KEYS`.

    BASE:schema       the version of this layout: `SCHEMA` of the node that set this key; nodes with another schema are rejected.
    BASE:epoch        a word that identifies the server's state; after a loss of this state, a node sets a new word.
    BASE:recovering   exists during the recovery, in which nodes register their entries again after a loss of the state.
    BASE:gone         hash of leaves that are deferred until the end of the recovery: the field that BASE:n:NODE has for the
                      channel, member or user → the server's time, the socket id, the id and the time of the edge, the letters
                      of the hooks that receive the edge (see below), the user info.
    BASE:gone:order   list of the fields of BASE:gone, in the order of the leaves.
    BASE:held         hash of leaves whose hook events are held back, because most members soon return: the field that
                      BASE:n:NODE has for the channel or member → the server's time, the socket id, the time of the edge, the
                      user info.
    BASE:held:order   list of the entries of BASE:held, oldest first: the time and the field of each entry.
    BASE:nodes        set of the nodes that may have entries.
    BASE:lease:NODE   exists while the node is alive; the value is `new` before the node first subscribes to its topics, `there`
                      while the node is subscribed, `back` from a new registration until the node is subscribed again.
    BASE:away         set of nodes that other nodes reported as alive, but that had no lease; a registration removes the node.
    BASE:n:NODE       hash of the node's entries: c/APP/CHANNEL → subscriptions, q/APP → connections; m/APP/CHANNEL\\nUSER and
                      u/APP/USER have no value.
    BASE:nf:NODE      hash of the node's filters: APP/FILTER → value, as in BASE:f. Nodes of versions without filters evict the
                      node without this hash; `drop_filters.lua` then removes the filters.
    BASE:f            hash of the filters of all nodes: APP/NODE/FILTER → value (`known_filters.py`).
    BASE:i:APP        hash of an app's channels: channel → subscriptions on all nodes.
    BASE:m:APP/CHANNEL  hash of a presence channel's members: user → number of nodes with this member, ":", user info.
    BASE:u:APP        hash of signed-in users: user → number of nodes with this user.
    BASE:q            hash of apps: app → connections on all nodes.
    BASE:k:APP/CHANNEL  the retained message of a channel, or the newest event of a cache channel, whichever is newer.
    BASE:kh:APP       hash of the channels with a retained message: channel → size, and the holder for which the message counts:
                      nothing, or the letter a for an anonymous client, and its address. Cached events do not count.
    BASE:kb:APP       hash of sums of BASE:kh:APP: `bytes`, `anonymous-count`, `anonymous-bytes`, and @ADDRESS → messages.
    BASE:kn:APP       sorted set of the channels in BASE:kh:APP, by the ids of their messages.
    BASE:kx:APP       sorted set of the channels in BASE:kh:APP whose message expires, by this time on the server's clock.
    BASE:kc:APP       sorted set of the channels with a cached event, by the ids of the events; only the newest are listed.
    BASE:ka           set of the apps with retained messages.
    BASE:h:APP/CHANNEL  stream: the history of a channel. An entry is a batch of messages. The id of the entry contains the
                      offset of the last message in the batch, and the number of messages.
    BASE:hm:APP/CHANNEL  hash, the counter of a channel with a history: `e` → the channel's word, the second half of its epoch;
                      `o` → the last offset.
    BASE:l:APP/FILTER  stream: the log of a filter, or the part of the log in this shard. An entry is a batch of messages (`m`)
                      and their time in milliseconds (`t`). Ids are those of BASE:h:APP/CHANNEL. The log of a filter without
                      wildcards is in the shard of its channel; other logs have a part in each shard.
    BASE:lm:APP/FILTER  hash, the state of a log: `e` → a word that identifies the log; `o` → the last offset; `b` → the bytes;
                      `f` → the offset of the oldest message; `k` → `a` if only anonymous clients watch the log, else ``;
                      `g` → the generation of the last change; `s` → where generations begin: GENERATION:OFFSET and a space.
    BASE:lw:APP/FILTER  hash: client id → generation of the connection, for the identified clients that watch the log. A log
                      exists while a client watches it.
    BASE:lwa:APP/FILTER  hash: the same for anonymous clients.
    BASE:ls           exists for a while after a node has compared the clients in BASE:lw with the sessions (`log_sweep.py`).
    BASE:lo:APP       sorted set: log with messages → the time of its oldest message in milliseconds, or an earlier time.
    BASE:lx:APP       the number of an app's logs without wildcards in this shard.
    BASE:lb:APP       the bytes of the logs of an app in this shard.
    BASE:loa:APP, BASE:lba:APP  the same for the logs that only anonymous clients watch.
    BASE:g:APP/GROUP  hash of a group: node → number of the members that are connected to the node; `` → the number of turns.
    BASE:ge:NODE      hash of the messages of groups that a node has: APP/GROUP, a newline, id → batch with the message. An entry
                      ends when a member has acknowledged the message (`groups.py`). Other messages of a group are in its log.
    BASE:gb           hash: app → bytes of these entries.
    BASE:gi           the last id of such an entry.
    BASE:gen          the run id of the server process that has this state, and the generation, the first half of all epochs.
    BASE:o:APP/LENGTH:KEYCHANNEL  the result of a publish with the idempotency key KEY, which has LENGTH characters: number of
                      subscriptions, epoch, offset, message id.
    BASE:no:ID        exists for ten seconds after a message was refused because of a bound, so that no copy of it is sent.
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
    BASE:s:APP/CLIENT  hash, the session of an MQTT client: `o` → owner; `a` → address of an anonymous client; `g` → generation of
                      the last connection; `n` → the connection's node, or '' if the session is absent; `e` → milliseconds for
                      which the session outlives its connection; `d` → milliseconds of the will's delay; `b` → bytes; `m` →
                      number of messages in BASE:sf; `c` → 1 if the stored state is a copy, which a connected client may have
                      changed. Of an absent session: `u`, `q` → when the session ends and its will is due; `x` → 1 if the
                      session has ended because of a bound; `y` → 1 if a node publishes the will. Of a claim, until the
                      connection has accepted the session: `t` → the claim's word; `r` → its reply: 1 if the session is resumed,
                      1 if the node confirms the end of the earlier session, generation and owner of the earlier connection. Of
                      a resumed session, until the resumption is complete: `v` → 1; `f`, `j`, `l` → `e`, will and `d` of the
                      new connection. One minute after the end of a session, only `g` is left. A session that ends because a
                      claim begins another one has the name APP/CLIENT, a zero byte and `g`, until its end is confirmed.
    BASE:ss:APP/CLIENT  the stored session without messages. BASE:sp: its progress. BASE:sf: its deliveries with messages.
                      BASE:sw: its will.
    BASE:sn           set of the nodes that may have sessions. BASE:sn:NODE: set of the sessions (APP/CLIENT) with a connection.
    BASE:sd           sorted set: absent session (APP/CLIENT) → when it ends or its will is due.
    BASE:sa:APP       sorted set: absent client → since when. BASE:sy:APP: the anonymous ones. BASE:sy:APP/ADDRESS: of an address.
    BASE:sb           hash: app → bytes of its absent sessions; APP/a → those of its anonymous clients.
    BASE:sg           the last generation. BASE:sg0: the first generation of this state.
    BASE:wall         a key that ends at `WALL_MS`; the scripts compute the server's time from the remaining time to live.
    BASE:t:APP/CHANNEL  the topic of a channel.
    BASE:t:/#filters  the topic of all nodes, for the changes of BASE:f and for requests to all nodes.

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

from push1st.brokers.retained import ANONYMOUS_PART, bounds_of
from push1st.brokers.sessions import MAX_APP_BYTES, MAX_LOG_BYTES

SCHEMA = 1
"""the version of keys and messages; increase it with each change that nodes of the previous version would misread.
Histories did not increase it, because they have their own keys and messages. Nodes of earlier builds do not deliver the messages
of channels with a history, so an operator enables histories when all nodes have a build with histories."""
MAX_HOOK_EVENTS = 100_000
"""the maximum number of hook events that wait for the consumer; the server deletes only whole blocks, so a few more may wait"""
WALL_MS = 10**14
"""the time at which `BASE:wall` ends, in milliseconds since 1970: in the year 5138"""
CLOCK_MS = 10**13
"""the time to live of a new `BASE:clock` in milliseconds: three centuries"""
ENTRY_BYTES = 64
"""the number of bytes that count for an entry of a log, in addition to its messages"""
MAX_REPLY_BYTES = 1 << 20
"""the number of bytes of due sessions after which a call returns no further ones"""
PENDING = "{'v', 'f', 'j', 'l', 't', 'r'}"
"""the fields of BASE:s:APP/CLIENT that exist until the connection has accepted its session"""

CLUSTER_SHARDS = 16
"""the number of shards in a cluster; all nodes must use the same number"""

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


def _words(publish: str, shards: int) -> dict[str, str]:
    """Returns the values of the words that are replaced in scripts. shards: the number of shards of the broker."""
    bounds = bounds_of(shards)
    return {
        "PUBLISH": publish,
        "CLOCK": f"{CLOCK_MS}",
        "MAX_HOOK_EVENTS": f"{MAX_HOOK_EVENTS}",
        "WALL": f"{WALL_MS}",
        "ENTRY_BYTES": f"{ENTRY_BYTES}",
        "MAX_LOG_BYTES": f"{MAX_LOG_BYTES}",
        "MAX_APP_BYTES": f"{MAX_APP_BYTES}",
        "ANONYMOUS_PART": f"{ANONYMOUS_PART}",
        "MAX_REPLY_BYTES": f"{MAX_REPLY_BYTES}",
        "PENDING": PENDING,
        "MAX_CACHED_EVENTS": f"{bounds.cached_events}",
        "MAX_RETAINED": f"{bounds.count}",
        "MAX_RETAINED_BYTES": f"{bounds.bytes}",
        "MAX_ANONYMOUS_RETAINED": f"{bounds.anonymous_count}",
        "MAX_ANONYMOUS_RETAINED_BYTES": f"{bounds.anonymous_bytes}",
        "MAX_ADDRESS_RETAINED": f"{bounds.address}",
    }


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(rf"\b(?:{'|'.join(words)})\b", lambda word: words[word[0]], text)


def _script(name: str, *, is_short: bool = False) -> Script:
    """Returns a script. is_short: whether the parts of its file that are marked with `rarely` are left out."""
    text = (_FOLDER / f"{name}.lua").read_text()
    if is_short:
        text = re.sub(r"(?ms)^--\[\[ rarely \]\]$.*?^--\[\[ end \]\]\n", "", text)
    needed = _needed(re.sub(r"(?m)^--.*\n", "", text))
    whole = "\n".join([_BASE, *(code for helper, code in _HELPERS.items() if helper in needed), text])
    texts = _filled(whole, _words("'PUBLISH'", 1)), _filled(whole, _words("'SPUBLISH'", CLUSTER_SHARDS))
    return Script(*texts, *(hashlib.sha1(one.encode(), usedforsecurity=False).hexdigest() for one in texts))


REGISTER = _script("register")
RENEW = _script("renew")
JOIN = _script("join")
LEAVE = _script("leave")
SIGN_IN = _script("sign_in")
SIGN_OUT = _script("sign_out")
CONNECT = _script("connect")
SET_FILTER = _script("set_filter")
DROP_FILTERS = _script("drop_filters")
PUBLISH_CACHED = _script("publish_cached")
APPEND = _script("append", is_short=True)
"""appends a batch to a history, or publishes it with an idempotency key"""
APPEND_ALL = _script("append")
"""also caches an event, retains a message, appends to logs, or publishes to inboxes"""
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
WATCH_LOG = _script("watch_log")
APPEND_LOGS = _script("append_logs")
UNWATCH_LOG = _script("unwatch_log")
LOG_ENDS = _script("log_ends")
READ_LOG = _script("read_log")
CLAIM_SESSION = _script("claim_session")
STORE_SESSION = _script("store_session")
STORE_PROGRESS = _script("store_progress")
SAVE_SESSION = _script("save_session")
END_SESSION = _script("end_session")
DUE_SESSIONS = _script("due_sessions")
CONFIRM_SESSIONS = _script("confirm_sessions")
ABANDON_SESSIONS = _script("abandon_sessions")
EXPIRE_LOGS = _script("expire_logs")
GIVE_TO_GROUP = _script("give_to_group")
PASS_ENTRIES = _script("pass_entries")
END_ENTRIES = _script("end_entries")
TAKE_ENTRIES = _script("take_entries")
READ_RETAINED = _script("read_retained")
COUNT_RETAINED = _script("count_retained")
DROP_RETAINED = _script("drop_retained")

SCRIPTS = (
    REGISTER,
    RENEW,
    JOIN,
    LEAVE,
    SIGN_IN,
    SIGN_OUT,
    CONNECT,
    SET_FILTER,
    DROP_FILTERS,
    PUBLISH_CACHED,
    APPEND,
    APPEND_ALL,
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
    CLAIM_SESSION,
    STORE_SESSION,
    STORE_PROGRESS,
    SAVE_SESSION,
    END_SESSION,
    DUE_SESSIONS,
    CONFIRM_SESSIONS,
    ABANDON_SESSIONS,
    APPEND_LOGS,
    WATCH_LOG,
    UNWATCH_LOG,
    LOG_ENDS,
    READ_LOG,
    EXPIRE_LOGS,
    GIVE_TO_GROUP,
    PASS_ENTRIES,
    END_ENTRIES,
    TAKE_ENTRIES,
    READ_RETAINED,
    COUNT_RETAINED,
    DROP_RETAINED,
)
