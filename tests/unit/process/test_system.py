"""Random numbers and deferred calls of a worker."""

import asyncio

import pytest

from push1st.process.system import DeferTwoTurns, Random
from tests.support.loop import turns


@pytest.mark.parametrize("count", [1, 7, 8, 60, 128])
def test_random_number_has_at_most_so_many_bits(count: int) -> None:
    random = Random()
    numbers = [random.bits(count) for _ in range(200)]
    assert max(numbers) < 1 << count
    assert max(numbers).bit_length() > count - 8
    assert len(set(numbers)) > 1


def test_random_bytes_are_read_again_when_they_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def urandom(size: int) -> bytes:
        reads.append(size)
        return bytes(range(256)) * (size // 256)

    monkeypatch.setattr("os.urandom", urandom)
    random = Random()
    numbers = [random.bits(8) for _ in range(Random.BYTES + 1)]
    assert reads == [Random.BYTES, Random.BYTES]
    assert numbers[:3] == [0, 1, 2]
    assert numbers[-1] == 0


async def test_deferred_call_runs_after_two_turns() -> None:
    called: list[str] = []
    defer = DeferTwoTurns(asyncio.get_running_loop())
    defer.call_soon(lambda: called.append("deferred"))
    await turns(1)
    assert called == []
    await turns(1)
    assert called == ["deferred"]
