"""Runs state machines of hypothesis: for some seconds, or with `MODEL_SECONDS` for as long as the developer wants."""

import os
import time
from itertools import count

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("SEED", "1"))
PHASES = [phase for phase in Phase if phase is not Phase.shrink or "MODEL_UNSHRUNK" not in os.environ]
TIMEOUT_SECONDS = 180 + 10 * SECONDS
"""the time limit of a test that calls `run`"""
SHORT = settings(
    derandomize=True,
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    phases=PHASES,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=200, stateful_step_count=80, database=None)


def run(machine: type[RuleBasedStateMachine], examples: int = 100) -> None:
    """Runs a machine: some examples; or, with `MODEL_SECONDS`, with one seed after another until this time is over."""
    if not SECONDS:
        run_state_machine_as_test(machine, settings=settings(SHORT, max_examples=examples))
        return
    end = time.monotonic() + SECONDS
    for number in count(SEED):
        print(f"{machine.__name__}: make model SEED={number} repeats this run", flush=True)
        run_state_machine_as_test(seed(number)(type(machine.__name__, (machine,), {})), settings=LONG)
        if time.monotonic() > end:
            return
