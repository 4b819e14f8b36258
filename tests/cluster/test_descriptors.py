"""Workers whose clients use all descriptors: each worker keeps the descriptors that it needs to reconnect to its broker."""

import contextlib
import resource

import pytest

from tests.cluster.machine import by_worker, engine, exists, figure, kill, workers
from tests.support.descriptors import LOGGED, crowd
from tests.support.process import ServerProcess, wait_until

FILES = 200


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit is Linux'")
def test_workers_without_free_descriptors_connect_to_the_next_engine(own: ServerProcess, stack: contextlib.ExitStack) -> None:
    for pid in workers(own).values():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    told = crowd(own, 2 * FILES + 50, stack)
    assert set(told) == {0, 4100}
    assert by_worker(own, "push1st_refusals_total").keys() == {0, 1}
    before = engine(own)
    kill(before)
    wait_until(lambda: not exists(before) and own.output.count("engine ready") == 2, "another engine is there")
    event = {"name": "e", "channels": ["c"], "data": "1"}
    wait_until(lambda: own.post("/apps/app-test/events", event).status == 200, "it is published again")
    assert figure(own, "push1st_workers") == 2
    assert own.output.count(LOGGED) == 2  # one a worker
