"""EndQueue connections: in small groups, with pauses, and only those that are still open."""

from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from push1st.core.ending import MAX_ENDED, MAX_EXAMINED, EndQueue
from push1st.eager import spawn
from tests.support.loop import turns


class Ends(EndQueue):
    """Ends clients, and stores how many had ended at each pause."""

    def __init__(self) -> None:
        super().__init__(self._pause_here)
        self.ended: list[Any] = []
        self.at_pauses: list[int] = []

    async def end_all(self, clients: list[Any]) -> None:
        await self.end(clients, self._end)

    def _end(self, client: Any) -> bool:
        if client.stays:
            return False
        if client.fails:
            raise ValueError
        self.ended.append(client)
        return True

    async def _pause_here(self) -> None:
        self.at_pauses.append(len(self.ended))


def clients(count: int, closed: bool = False, stays: bool = False, fails: bool = False) -> list[Any]:
    return [SimpleNamespace(closed=closed, stays=stays, fails=fails) for _ in range(count)]


async def test_fifty_connections_end_between_two_pauses():
    ends = Ends()
    await ends.end_all(clients(MAX_ENDED * 2 + 1))
    assert ends.at_pauses == [50, 100]
    assert len(ends.ended) == 101


async def test_few_connections_end_at_once():
    ends = Ends()
    await ends.end_all(clients(MAX_ENDED))
    assert (len(ends.ended), ends.at_pauses) == (50, [])


async def test_a_client_that_has_ended_meanwhile_is_left_out():
    ends = Ends()
    await ends.end_all(clients(2, closed=True) + clients(1))
    assert len(ends.ended) == 1


async def test_many_connections_that_stay_are_examined_in_groups():
    ends = Ends()
    await ends.end_all(clients(1) + clients(MAX_EXAMINED * 2, stays=True))
    assert ends.at_pauses == [1]


async def test_connections_end_in_a_later_turn():
    ends = Ends()
    spawn(ends.end_all(clients(1)))
    assert not ends.ended
    await turns()
    assert len(ends.ended) == 1


async def test_all_apps_of_a_worker_share_the_pauses():
    ends = Ends()
    for _ in range(51):
        spawn(ends.end_all(clients(2)))
    await turns(200)
    assert (len(ends.ended), ends.at_pauses) == (102, [50, 100])


async def test_a_connection_that_fails_to_end_does_not_stop_the_others():
    ends = Ends()
    with capture_logs() as logged:
        await ends.end_all(clients(1) + clients(1, fails=True) + clients(1))
    assert len(ends.ended) == 2
    assert [(line["event"], line["log_level"]) for line in logged] == [("internal error", "error")]
