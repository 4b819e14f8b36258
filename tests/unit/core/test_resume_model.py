"""Clients that resume never miss a message without a notification, whatever happens in between.

`make model` runs the same state machines for minutes, with other seeds, and prints the seed of each run.
"""

import pytest

from tests.support.model_runs import TIMEOUT_SECONDS, run
from tests.support.resume_model import ResumeMachine
from tests.support.resume_pages_model import PageMachine


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_clients_that_resume_by_position_never_miss_a_message_without_a_notification() -> None:
    run(ResumeMachine)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_pages_never_miss_a_message_without_a_notification() -> None:
    run(PageMachine)
