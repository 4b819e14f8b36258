"""Encodes and decodes the sessions of MQTT clients in the form in which the server stores them. Pure.

A session is stored in several values: the session without messages, its progress (`SavedProgress`), its deliveries with messages,
and its will. `restored` combines them.
"""

from typing import Any, cast

import msgspec

from push1st import logs
from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import (
    MAX_ABSENT,
    MAX_ADDRESS_ABSENT,
    MAX_APP_BYTES,
    Owner,
    SavedFlow,
    SavedProgress,
    SavedSession,
    SavedWill,
)

SESSION_BYTES = 500
"""the number of bytes that count for a session in addition to its encoded state"""
LOGGED_BYTES = 1000
"""the number of bytes that count for a filter in a log: the state of the log, and the client that watches the log"""
NAMES_OF_CLIENT = 5
"""the number of keys and values that contain the client id"""

encode = msgspec.msgpack.Encoder().encode
_session = msgspec.msgpack.Decoder(SavedSession)
_progress = msgspec.msgpack.Decoder(SavedProgress)
_flow = msgspec.msgpack.Decoder(SavedFlow)
_will = msgspec.msgpack.Decoder(SavedWill)

log = logs.get("push1st.broker")


def limits(shards: int) -> str:
    """Returns `bounds_of` in `lua/helpers.lua`: the bounds for one of `shards` shards.

    The names of clients determine their shards, so a shard may have more than its part of an app's sessions.
    """
    part = shards if shards == 1 else shards // 2
    most = MAX_ABSENT, MAX_ABSENT // ANONYMOUS_PART, MAX_ADDRESS_ABSENT, MAX_APP_BYTES, MAX_APP_BYTES // ANONYMOUS_PART
    return " ".join(str(-(-one // part)) for one in most)


def owner_word(owner: Owner) -> str:
    return f"{owner.kind}/{owner.name}"


def owner_of(word: bytes) -> Owner:
    kind, _, name = word.decode().partition("/")
    return Owner(cast(Any, kind), name)


def without_messages(flow: SavedFlow) -> SavedFlow:
    """Returns the deliveries in the form of `SavedProgress.flow`."""
    inflight = tuple([(packet_id, None) for packet_id, one in flow.inflight if one is None or one.qos == 2])
    return SavedFlow(flow.next_id, inflight, (), flow.received)


def restored(session: SavedSession, progress: SavedProgress | None, flow: SavedFlow | None) -> SavedSession:
    """Returns a session with its latest stored state.

    progress: the progress after `session` was stored. flow: the deliveries of the last call of `save`, with their messages.
    """
    latest = session.flow
    if progress is not None:
        latest, cursors = progress.flow, progress.cursors
        subscriptions = tuple(
            [msgspec.structs.replace(one, cursor=cursors.get(one.filter, one.cursor)) for one in session.subscriptions]
        )
        session = msgspec.structs.replace(session, subscriptions=subscriptions)
    if flow is not None:
        ids = {packet_id for packet_id, _ in flow.inflight}
        inflight = flow.inflight + tuple([one for one in latest.inflight if one[0] not in ids])
        latest = msgspec.structs.replace(latest, inflight=inflight, waiting=flow.waiting)
    return msgspec.structs.replace(session, flow=latest, will=None)


def will_fields(will: SavedWill | None) -> tuple[bytes, int]:
    """Returns the encoded will, and its delay in milliseconds."""
    return (b"", 0) if will is None else (encode(will), will.delay * 1000)


def bytes_of(client_id: str, owner: str, session: SavedSession, data: bytes, will: bytes) -> int:
    """Returns the number of bytes that count for a session, without messages. owner: `owner_word`. data: the encoded session."""
    names = NAMES_OF_CLIENT * len(client_id) + len(owner)
    return SESSION_BYTES + names + len(data) + len(will) + LOGGED_BYTES * len(session.watched)


def decoded_session(app: str, client_id: str, session: bytes, progress: bytes, flow: bytes) -> SavedSession | None:
    """Returns a stored session; None if it is empty, or if this version cannot decode it."""
    if not session:
        return None
    try:
        return restored(
            _session.decode(session),
            _progress.decode(progress) if progress else None,
            _flow.decode(flow) if flow else None,
        )
    except msgspec.DecodeError as exc:  # another version of push1st stored it
        log.error("the session of a client cannot be decoded", app=app, client_id=client_id[:64], reason=str(exc))
        return None


def decoded_will(app: str, client_id: str, will: bytes) -> SavedWill | None:
    if not will:
        return None
    try:
        return _will.decode(will)
    except msgspec.DecodeError as exc:  # another version of push1st stored it
        log.error("the will of a client cannot be decoded", app=app, client_id=client_id[:64], reason=str(exc))
        return None
