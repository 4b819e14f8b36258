"""The failures that a client can cause."""

import pickle

import pytest

from push1st.errors import Disconnect, Refused


def test_a_refusal_reads_as_its_code_and_text():
    refused = Refused(401, "auth_key is missing")
    assert (refused.code, refused.text, str(refused)) == (401, "auth_key is missing", "401: auth_key is missing")


def test_a_disconnect_reads_as_its_code_and_reason():
    disconnect = Disconnect(4009, "Connection is unauthorized")
    assert (disconnect.code, disconnect.reason, str(disconnect)) == (
        4009,
        "Connection is unauthorized",
        "4009: Connection is unauthorized",
    )


@pytest.mark.parametrize("failure", [Refused(400, "x"), Disconnect(4200, "y")])
def test_a_failure_can_be_sent_to_another_process(failure):
    assert vars(pickle.loads(pickle.dumps(failure))) == vars(failure)  # noqa: S301 - our own bytes
