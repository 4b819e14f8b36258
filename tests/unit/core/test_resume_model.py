"""Clients that resume never miss a message without a notification, whatever happens in between.

`make model` runs the same state machines for minutes, with other seeds, and prints the seed of each run.
"""

import os
import time
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.support.resume_model import ResumeMachine
from tests.support.resume_pages_model import PageMachine

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("SEED", "1"))
PHASES = [phase for phase in Phase if phase is not Phase.shrink or "MODEL_UNSHRUNK" not in os.environ]
SHORT = settings(
    derandomize=True,
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    phases=PHASES,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=200, stateful_step_count=80, database=None)


def run(machine: type[RuleBasedStateMachine]) -> None:
    """Runs a machine: a short time; or, with `MODEL_SECONDS`, with one seed after another until this time is over."""
    if not SECONDS:
        run_state_machine_as_test(machine, settings=SHORT)
        return
    end = time.monotonic() + SECONDS
    for number in count(SEED):
        print(f"{machine.__name__}: make model SEED={number} repeats this run", flush=True)
        run_state_machine_as_test(seed(number)(type(machine.__name__, (machine,), {})), settings=LONG)
        if time.monotonic() > end:
            return


@pytest.mark.timeout(60 + 10 * SECONDS)
def test_clients_that_resume_by_position_never_miss_a_message_without_a_notification() -> None:
    run(ResumeMachine)


@pytest.mark.timeout(60 + 10 * SECONDS)
def test_pages_never_miss_a_message_without_a_notification() -> None:
    run(PageMachine)
