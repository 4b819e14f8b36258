"""Reads the sessions of absent MQTT clients on the server in pages.

A session may have many subscriptions. So a page first reads the sizes of its sessions, and then only small ones.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from push1st.brokers.redis.listing import ListedName, names_in
from push1st.brokers.redis.session_state import decoded_session, owner_of
from push1st.brokers.redis.shards import Shards
from push1st.brokers.sessions import MAX_LISTED_FILTERS, AbsentPage, AbsentSession

MAX_SESSION_BYTES = 64 << 10
"""the maximum number of bytes of a stored session whose filters are listed"""
MAX_BYTES = 1 << 20
"""the maximum number of bytes of the sessions that one page reads"""
_FIELDS = ("o", "n", "e", "u", "m", "x")
"""the fields of BASE:s:APP/CLIENT that a page reads"""


async def absent_sessions(shards: Shards, app: str, prefix: str, after: str, most: int) -> AbsentPage:
    """See `Sessions.absent`."""
    sets = [(shard, shard.keys.key("sa", app)) for shard in shards.all]
    found, following, examined = await names_in(sets, prefix, after, most)
    states = await asyncio.gather(*(_state(app, one) for one in found))
    left, small = MAX_BYTES, list[bool]()
    for _, size in states:
        small.append(size <= MAX_SESSION_BYTES and size <= left)
        left -= size if small[-1] else 0
    reads = [_stored(app, one) if is_small else _none() for one, is_small in zip(found, small, strict=True)]
    stored = await asyncio.gather(*reads)
    listed = [_listed(app, one, state, data) for one, (state, _), data in zip(found, states, stored, strict=True)]
    return AbsentPage(tuple([one for one in listed if one is not None]), following, examined)


async def _state(app: str, one: ListedName) -> tuple[Sequence[Any], int]:
    """Returns the fields of a session, and the number of bytes of its stored state."""
    connection, keys, name = one.shard.connection, one.shard.keys, f"{app}/{one.name}"
    state, size = await asyncio.gather(
        connection.call("HMGET", keys.key("s", name), *_FIELDS), connection.call("STRLEN", keys.key("ss", name))
    )
    return state, int(size)


async def _stored(app: str, one: ListedName) -> bytes:
    found: bytes | None = await one.shard.connection.call("GET", one.shard.keys.key("ss", f"{app}/{one.name}"))
    return found or b""


async def _none() -> bytes:
    return b""


def _listed(app: str, one: ListedName, state: Sequence[Any], data: bytes) -> AbsentSession | None:
    """Returns a session; None if the client has returned, or the session has ended."""
    owner, node, expiry, until, waiting, early = state
    if owner is None or node != b"" or until is None or early:
        return None
    session = decoded_session(app, one.name, data, b"", b"")
    subscriptions = () if session is None else session.subscriptions
    return AbsentSession(
        one.name,
        owner_of(owner),
        one.score / 1000,
        int(until) / 1000,
        int(expiry) // 1000,
        tuple([(each.filter, each.qos) for each in subscriptions[:MAX_LISTED_FILTERS]]),
        None if session is None else len(subscriptions),
        int(waiting or 0),
    )
