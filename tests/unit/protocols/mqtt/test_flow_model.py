"""Messages with QoS 1 arrive at least once, and messages with QoS 2 exactly once, whatever happens in between.

`make model` runs the same state machines for minutes, with other seeds, and prints the seed of each run.
"""

import pytest

from tests.support.model_runs import TIMEOUT_SECONDS, run
from tests.support.mqtt_checkpoint_model import CheckpointMachine
from tests.support.mqtt_incoming_model import IncomingMachine
from tests.support.mqtt_outgoing_model import OutgoingMachine


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_messages_to_clients_arrive_in_order_unless_a_counter_shows_their_loss() -> None:
    run(OutgoingMachine, examples=400)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_messages_from_clients_are_published_in_order_and_acknowledged_after_the_confirmation() -> None:
    run(IncomingMachine, examples=400)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_session_moves_to_a_position_when_no_earlier_message_needs_a_delivery() -> None:
    run(CheckpointMachine, examples=400)
