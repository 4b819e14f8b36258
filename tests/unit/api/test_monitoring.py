"""The API of the addresses of `metrics.listen`, and the token of `metrics.token`."""

import asyncio
import json

import pytest

from push1st.api import SERVER, Api
from push1st.api.monitoring import MAX_SCRAPES, MetricsApi
from push1st.config.model import Config, MetricsConfig
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import Request, Response

TOKEN = "a-token-of-a-scraper"
RIGHT = f"Bearer {TOKEN}"


def answered(
    api: Api | MetricsApi, path: str, authorization: str | None = None, distrust: str = "", method: str = "GET"
) -> Response:
    """Serves a request; answers a rejection, as a connection does."""
    headers = {} if authorization is None else {b"authorization": authorization.encode()}

    async def serve() -> Response:
        return await resolve(api.serve(Request(method, path, "", b"", distrust, 0, None, headers)))

    try:
        response: Response = asyncio.run(serve())
    except Refused as refused:
        return Response(refused.code, json.dumps({"error": refused.text}).encode())
    return response


def with_token(token: str) -> Config:
    return Config(metrics=MetricsConfig(token=token))


@pytest.fixture
def listener(caller):
    """Makes the API of `metrics.listen` for a token."""
    return lambda token="": MetricsApi(caller.world.node, with_token(token))


@pytest.fixture
def api(caller):
    """Makes the API of all other addresses for a token."""
    return lambda token="": Api(caller.world.node, with_token(token))


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/health", "/ready", "/up", "/accept-traffic"])
def test_an_address_for_metrics_serves_metrics_health_and_readiness(listener, path):
    assert answered(listener(), path).status == 200


@pytest.mark.parametrize("path", ["/", "/apps/app-test/events", "/apps/app-test/channels", "/app/app-key", "/metrics/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_address_for_metrics_serves_no_other_path(listener, path, method):
    answer = answered(listener(TOKEN), path, RIGHT, method=method)
    assert answer.status == 404
    assert b"metrics.listen serves only" in answer.body


@pytest.mark.parametrize("path", ["/metrics", "/health", "/ready"])
def test_an_address_for_metrics_is_read_only(listener, path):
    answer = answered(listener(), path, method="POST")
    assert (answer.status, answer.headers) == (405, b"Allow: GET\r\n")


def test_an_untrusted_caller_of_an_address_for_metrics_gets_no_metrics(listener):
    answer = answered(listener(), "/metrics", distrust="it has an Origin header")
    assert answer.status == 403
    assert b"it has an Origin header" in answer.body
    assert answered(listener(), "/ready", distrust="it has an Origin header").status == 200


def test_callers_without_a_token_cannot_keep_the_workers_busy_with_scrapes(listener):
    api = listener()
    statuses = [answered(api, "/metrics").status for _ in range(MAX_SCRAPES + 1)]
    assert statuses == [200] * MAX_SCRAPES + [429]
    assert answered(api, "/health").status == 200
    with_a_token = listener(TOKEN)
    assert {answered(with_a_token, "/metrics", RIGHT).status for _ in range(MAX_SCRAPES + 1)} == {200}


WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Basic {TOKEN}",
    TOKEN,
    f"{RIGHT}, {RIGHT}",
    "Bearer ж",
]


@pytest.mark.parametrize("authorization", WRONG)
def test_with_a_token_an_address_for_metrics_rejects_callers_without_it(listener, authorization):
    answer = answered(listener(TOKEN), "/metrics", authorization)
    assert answer.status == 401
    assert b"Authorization: Bearer" in answer.body
    assert TOKEN.encode() not in answer.body
    assert answered(listener(TOKEN), "/health", authorization).status == 200


@pytest.mark.parametrize("authorization", [RIGHT, f"bearer {TOKEN}", f"BEARER  {TOKEN}"])
@pytest.mark.parametrize("distrust", ["", "its Host may be a web page's"])
def test_the_token_opens_the_metrics_on_every_address_that_gets_it(listener, api, authorization, distrust):
    for one in (listener(TOKEN), api(TOKEN)):
        assert answered(one, "/metrics", authorization, distrust).status == 200


@pytest.mark.parametrize("authorization", WRONG)
def test_a_wrong_token_changes_nothing_on_the_address_of_the_api(api, authorization):
    assert answered(api(TOKEN), "/metrics", authorization).status == 200
    assert answered(api(TOKEN), "/metrics", authorization, "it is far away").status == 403


def test_without_a_configured_token_no_token_opens_the_metrics(api):
    for authorization in ("Bearer ", "Bearer", RIGHT):
        assert answered(api(""), "/metrics", authorization, "it is far away").status == 403


def test_the_token_opens_nothing_but_the_metrics(api):
    assert answered(api(TOKEN), "/apps/app-test/channels", RIGHT, "it is far away").status == 401
    for path in SERVER.keys() - {"/metrics"}:
        without = answered(api(TOKEN), path, None, "it is far away").status
        assert answered(api(TOKEN), path, RIGHT, "it is far away").status == without
    assert answered(api(TOKEN), "/openapi.json", RIGHT, "it is far away").status == 403
    assert answered(api(TOKEN), "/status", RIGHT, "it is far away").status == 403
