"""The hooks with which schemathesis calls the API. `test_openapi.py` starts schemathesis with this module.

The variables of the environment: SIGNED: whether each call has Pusher's signature. ANSWERS: a file that gets a line for each
answer, with its operation and its status.
"""

import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
import schemathesis

from tests.support.signing import signed_query

CHANNELS = {"history": ("chat-7",), "users": ("presence-room",)}
"""by the end of a path: channels that have what the path returns"""
ALL_CHANNELS = ("my-channel", "presence-room", "private-cache-last", "chat-7")
"""the channels that the server of the test uses"""


class Signature(requests.auth.AuthBase):
    """Signs a request that is ready to be sent."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        address = urlsplit(str(request.url))
        body = request.body or b""
        if isinstance(body, str):
            body = request.body = body.encode()
        assert isinstance(body, bytes)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        signed = signed_query(str(request.method), address.path, body, query, "app-key", "secret", time.time())
        request.url = address._replace(query=signed).geturl()
        return request


@schemathesis.hook
def before_call(_context: Any, case: Any, arguments: dict[str, Any]) -> None:
    """Replaces most apps by the app of the test, and many channels by channels with subscribers or a history."""
    parameters = case.path_parameters
    drawn = sum(str(parameters).encode())
    if "app_id" in parameters and drawn % 8:
        parameters["app_id"] = "app-test"
    if "channel" in parameters and (drawn % 3 or parameters["channel"] in ALL_CHANNELS):
        names = CHANNELS.get(case.operation.path.rpartition("/")[2], ALL_CHANNELS)
        parameters["channel"] = names[drawn % len(names)]
    if os.environ.get("SIGNED"):
        arguments["auth"] = Signature()


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    with Path(os.environ["ANSWERS"]).open("a") as answers:
        answers.write(f"{case.operation.label} {response.status_code}\n")
