"""The history of the channels of a shard: the part of the history that new subscribers get, and the reads of the API.

An epoch of a channel is the generation of the server's state and the word of the channel's counter. The generation belongs to one
run of the server process (`lua/register.lua`). A replica or a restarted server may lack the last messages, and would give their
offsets to other messages. So a new run has a new generation, and no earlier position of a client is valid.

The entries of a stream are batches of messages. The id of an entry is the offset of the batch's last message, and the number of
messages. So a position needs no index, and the history is trimmed by offsets.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers.history import NO_MESSAGES, READ_COUNTER_SECONDS, HistoryPage, KeptRun, Replay, ReplayRequest, page, replay
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import Argument, RespConnection
from push1st.brokers.redis.scripts import READ_HISTORY
from push1st.brokers.redis.wire import decode_kept
from push1st.errors import Refused
from push1st.messages import KeptMessage
from push1st.positions import Position, word

MAX_PAGE_BYTES = 4 << 20
"""the number of bytes of messages after which one read for the API ends"""
NO_RUN_ID = "the broker does not permit the command INFO, which the history needs: give the broker's user +info"

log = logs.get("push1st.broker")


class HistoryState(msgspec.Struct, frozen=True):
    """The state of a channel's history at the time of a script.

    first: the offset of the oldest kept message; one more than `last` if no message is kept.
    run: the kept messages that the script returned.
    """

    epoch: str
    last: int
    first: int
    run: KeptRun

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.last)


class ShardHistory:
    """See the module.

    wall: a function that returns the wall clock's time in nanoseconds.
    generation: the generation of the server's state; "" before the node is registered, or without a run id.
    """

    def __init__(self, keys: Keys, connection: ShardConnection, wall: Callable[[], int]) -> None:
        self._keys = keys
        self._connection = connection
        self._wall = wall
        self._words = count(secrets.randbits(32))
        self._is_reported = False
        self._run_id = ""
        self.generation = ""

    def new_word(self) -> str:
        """Returns a new word for the epoch of a channel that has no counter yet. This node does not use the word again."""
        return word(next(self._words))

    def proposed_generation(self, run_id: str) -> str:
        """Returns the generation that `lua/register.lua` stores if the keys have none for this run of the server.

        If the server only lost its keys, the generation stays. So all nodes that are connected to the server use the same one.
        """
        return self.generation if run_id == self._run_id and self.generation else word(secrets.randbits(32))

    def registered(self, run_id: str, generation: str) -> None:
        """Stores the generation that `lua/register.lua` returned."""
        self._run_id, self.generation = run_id, generation

    @property
    def stored_generation(self) -> str:
        """The value of `BASE:gen` for this run of the server and this generation; "" without a generation."""
        return f"{self._run_id} {self.generation}" if self._run_id and self.generation else ""

    def check(self) -> None:
        """Raises Refused(503) if the node is registered but knows no generation."""
        if not self.generation and self._connection.registered_on is not None:
            if not self._is_reported:
                self._is_reported = True
                log.error("the broker refused", reason=NO_RUN_ID)
            raise Refused(503, NO_RUN_ID)

    # New subscribers

    def join_argument(self, requests: Sequence[ReplayRequest | None]) -> str:
        """Returns the argument of `lua/join.lua` that describes the requests of the subscribers in one step."""
        made = [one for one in requests if one is not None]
        if not made:
            return ""
        milliseconds = max(one.counter_seconds for one in made) * 1000
        rewind, most_bytes = max(one.rewind for one in made), max(one.max_bytes for one in made)
        wanted = {str(one.since) for one in made if one.since is not None}
        return " ".join((f"{self.generation} {self.new_word()} {milliseconds} {rewind} {most_bytes}", *sorted(wanted)))

    def decoder(self) -> Callable[[Any], HistoryState]:
        """Returns a function that decodes the reply of a script that gets the current generation."""
        return partial(_decode, self.generation)

    def replay(self, state: HistoryState, request: ReplayRequest) -> Replay:
        return replay(request, state.epoch, state.last, state.run, self._wall(), state.first)

    # The API

    async def read(self, app: str, channel: str, since: Position | None, limit: int, reverse: bool) -> HistoryPage:
        """See `History.read`. Raises Refused(503)."""

        async def attempt(resp: RespConnection) -> HistoryState:
            self.check()
            epoch, offset = ("", 0) if since is None else (since.epoch, since.offset)
            arguments: tuple[Argument, ...] = (app, channel, self.generation, self.new_word(), READ_COUNTER_SECONDS * 1000)
            arguments += epoch, offset, limit, MAX_PAGE_BYTES, "1" if reverse else "0"
            decode = self.decoder()
            return decode(await resp.call(*self._keys.command(READ_HISTORY, *arguments)))

        state: HistoryState = await self._connection.until_done(attempt)
        return page(state.epoch, state.last, state.run.messages, since, limit, reverse, self._wall(), state.first)

    async def clear(self, app: str, channel: str) -> None:
        """See `History.clear`. Raises Refused(503)."""
        name = f"{app}/{channel}"
        await self._connection.call("DEL", self._keys.key("hm", name), self._keys.key("h", name))


def _decode(generation: str, reply: Any) -> HistoryState:
    """Decodes the reply of a script. Entries that this node cannot decode count as trimmed: no retry would decode them."""
    word, last, first, entries = reply
    epoch = generation + word.decode()
    messages: list[KeptMessage] = []
    try:
        for id, data in sorted(zip(*[iter(entries)] * 2, strict=True), key=_last_of):
            offset, _, n = id.partition(b"-")
            messages += decode_kept(data, int(offset) - int(n) + 1, epoch)
    except ValueError as exc:  # another version of push1st wrote it, or somebody by hand
        log.error("a history of the broker cannot be decoded", reason=str(exc))
        return HistoryState(epoch, last, last + 1, NO_MESSAGES)
    return HistoryState(epoch, last, first, KeptRun(messages) if messages else NO_MESSAGES)


def _last_of(entry: tuple[bytes, bytes]) -> int:
    return int(entry[0].partition(b"-")[0])
