"""When facts are handed on, and when they are another node's by now."""

import asyncio
from typing import Any

import pytest

from push1st.brokers.redis.facts import NOWHERE, Reader
from push1st.brokers.redis.wire import encode_fact
from push1st.brokerurl import parse
from push1st.messages import Fact

FACT = Fact("occupied", "app", "c", 1)
READ = [{b"s": [[b"5-1", [b"fact", encode_fact(FACT)]]]}]


class Link:
    """Answers commands by their names, in order; writes them down when they go out."""

    def __init__(self, happened: list[Any], *leases: int) -> None:
        self.happened = happened
        self.answers: dict[str, list[Any]] = {"XREAD": list(READ), "READ": list(leases)}

    def call(self, *command: Any) -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.answers[command[0]].pop(0))
        self.happened.append(command[-1] if command[0] == "READ" else command[0])
        return future

    def flush(self) -> None:
        self.happened.append("flush")


async def read(seconds: float, *leases: int) -> tuple[bool, list[Any], bytes]:
    """Whether to go on, what happened, and the place at last."""
    happened: list[Any] = []
    reader = Reader(parse("redis://localhost"), "0", "node", "s", ("READ",), seconds, NOWHERE, False, happened.append)
    await reader.stop()
    return await reader._more(Link(happened, *leases)), happened, reader.place  # type: ignore[arg-type]


async def test_a_place_is_noted_in_the_turn_in_which_facts_are_handed_on() -> None:
    assert await read(10, 1, 1) == (True, ["XREAD", NOWHERE, FACT, b"5-1", "flush"], b"5-1")


@pytest.mark.parametrize(("seconds", "lease"), [(10, 0), (0, 1)], ids=["another node has the lease", "it has run out since"])
async def test_what_another_node_reads_is_not_handed_on(seconds: float, lease: int) -> None:
    assert await read(seconds, lease) == (False, ["XREAD", NOWHERE], NOWHERE)


async def test_a_reader_that_finds_its_lease_gone_with_its_note_ends() -> None:
    assert await read(10, 1, 0) == (False, ["XREAD", NOWHERE, FACT, b"5-1", "flush"], b"5-1")
