"""Calls about the server itself: health, readiness; metrics have a file of their own."""

import pytest

from push1st.api import SERVER
from push1st.messages import Request
from tests.support.node import app_config

READY = ("/ready", "/up", "/accept-traffic")


@pytest.mark.parametrize("path", ["/health", "/health/", "/ready/", *READY])
@pytest.mark.parametrize("trusted", [True, False])
def test_health_and_readiness_need_no_trust(caller, path, trusted):
    caller.trusted = trusted
    assert caller.get(path)[0] == 200


@pytest.mark.parametrize("path", READY)
def test_a_server_that_drains_is_alive_and_not_ready(caller, path):
    caller.world.node.draining = True
    assert caller.get("/health")[0] == 200
    status, answer = caller.get(path)
    assert status == 503
    assert "draining" in answer["error"]


@pytest.mark.parametrize("path", SERVER)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_paths_about_the_server_are_read_only(caller, path, method):
    response = caller.respond(Request(method, path, "", b"", "", 0))
    assert (response.status, response.headers) == (405, b"Allow: GET\r\n")


def test_a_call_signed_by_a_retired_secret_is_rejected(calling):
    caller = calling(app_config(secret="new", older_secrets=("secret",)))
    assert caller.event(key=True)[0] == 200
    caller.world.node.configure(app_config(secret="new"))
    status, answer = caller.event(key=True)
    assert (status, "auth_signature is wrong" in answer["error"]) == (401, True)
