"""Stores the records of pages (`brokers/pages.py`) on the server. The name of a page determines the shard of its records."""

from collections.abc import Collection
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers.pages import (
    FORGOTTEN_SECONDS,
    MAX_PAGE_BYTES,
    MAX_RECORDS,
    PageBounds,
    PageRecord,
    decode_record,
    encode_record,
)
from push1st.brokers.redis.scripts import FORGET_PAGE, REMEMBER_PAGE
from push1st.brokers.redis.shards import Shards

TIME_DIGITS = 13
"""the number of digits before an encoded record, which contain the time of the record in milliseconds"""

log = logs.get("push1st.broker")


class RedisPages:
    """Implements the port `Pages`."""

    __slots__ = ("_shards",)

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def remember(
        self, app: str, page: str, socket_id: str, record: PageRecord, bounds: PageBounds, merged: Collection[str] = ()
    ) -> bool:
        shard, count = self._shards.of(app, page), len(self._shards.all)
        command = shard.keys.command(
            REMEMBER_PAGE,
            app,
            page,
            socket_id,
            b"%0*d" % (TIME_DIGITS, record.written) + encode_record(record),
            "1" if record.is_closed else "0",
            bounds.seconds * 1000,
            -(-bounds.pages // count),
            bounds.address,
            -(-bounds.of_address // count),
            MAX_RECORDS,
            MAX_PAGE_BYTES,
            *merged,
        )
        return bool(await shard.connection.call(*command))

    async def recall(self, app: str, page: str) -> dict[str, PageRecord]:
        shard = self._shards.of(app, page)
        fields: Any = await shard.connection.call("HGETALL", shard.keys.key("r", f"{app}/{page}"))
        if not isinstance(fields, dict):
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        records: dict[str, PageRecord] = {}
        for socket_id, data in fields.items():
            try:
                records[socket_id.decode()] = decode_record(data[TIME_DIGITS:])
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:  # another version of push1st stored it
                log.error("the record of a page cannot be decoded", app=app, reason=str(exc))
        return records

    async def forget(self, app: str, page: str, socket_ids: Collection[str]) -> None:
        shard = self._shards.of(app, page)
        milliseconds = FORGOTTEN_SECONDS * 1000
        await shard.connection.call(*shard.keys.command(FORGET_PAGE, app, page, milliseconds, *socket_ids))
