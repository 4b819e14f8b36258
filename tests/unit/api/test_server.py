"""Calls about the server itself: health, readiness, metrics."""

import platform

import pytest
from prometheus_client.parser import text_string_to_metric_families

import push1st
from push1st.brokers.history import REASONS
from push1st.messages import Request, Subscribe


@pytest.mark.parametrize("path", ["/health", "/health/", "/ready", "/ready/"])
@pytest.mark.parametrize("trusted", [True, False])
def test_health_and_readiness_need_no_trust(caller, path, trusted):
    caller.trusted = trusted
    assert caller.get(path)[0] == 200


def test_a_server_that_drains_is_alive_and_not_ready(caller):
    caller.world.node.draining = True
    assert caller.get("/health")[0] == 200
    status, answer = caller.get("/ready")
    assert status == 503
    assert "draining" in answer["error"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_health_readiness_and_metrics_are_read_only(caller, path, method):
    response = caller.respond(Request(method, path, "", b"", "", 0))
    assert (response.status, response.headers) == (405, b"Allow: GET\r\n")


def test_metrics_are_for_trusted_callers(caller):
    caller.trusted = False
    status, answer = caller.get("/metrics")
    assert status == 403
    assert answer["error"].endswith(": it is far away")


def test_metrics_are_prometheus_text(caller):
    session, _ = caller.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    caller.event()
    caller.world.metrics.requests[200] += 2
    caller.world.metrics.refusals['an "odd" reason'] += 1
    response = caller.respond(Request("GET", "/metrics", "", b"", "", 0))
    assert response.content_type.startswith(b"text/plain")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }
    assert samples["push1st_events_in_total", "api"] == 1
    assert samples["push1st_messages_out_total",] == 1
    assert samples["push1st_api_requests_total", "200"] == 2
    assert samples["push1st_refusals_total", 'an "odd" reason'] == 1
    assert samples["push1st_app_connections", "app-test"] == 1
    assert samples["push1st_app_channels", "app-test"] == 1
    assert samples["push1st_app_subscriptions", "app-test"] == 1
    assert samples["push1st_pending_bytes",] > 0
    assert all(name.startswith("push1st_") for name, *_ in samples)


def test_the_version_that_runs_is_a_metric(caller):
    text = caller.respond(Request("GET", "/metrics", "", b"", "", 0)).body.decode()
    python = platform.python_version()
    assert f'push1st_build_info{{python="{python}",version="{push1st.__version__}"}} 1.0' in text


@pytest.mark.parametrize(
    ("series", "label"),
    [
        ("connections", "pusher-xhr"),
        ("connections_opened_total", "websocket"),
        ("events_in_total", "api"),
        ("events_in_total", "pusher"),
        ("api_requests_total", "500"),
        ("refusals_total", "AuthError"),
        ("refusals_total", "4004"),
        ("cut_offs_total", "slow"),
        *(("resumes_total", result) for result in ("recovered", *REASONS)),
    ],
)
def test_usual_labels_are_listed_before_their_first_count(caller, series, label):
    body = caller.respond(Request("GET", "/metrics", "", b"", "", 0)).body.decode()
    (line,) = (line for line in body.splitlines() if line.startswith(f"push1st_{series}{{") and f'"{label}"' in line)
    assert line.endswith(" 0.0")


def test_metrics_show_history_and_recovery(caller):
    count = caller.world.metrics
    count.resumes.update(("recovered", "recovered", "trimmed"))
    count.replayed_messages, count.history_bytes, count.history_channels, count.history_evicted = 1, 2, 3, 4
    count.gaps_healed, count.gaps_reported, count.pages, count.acknowledgements, count.idempotent_repeats = 5, 6, 7, 8, 9
    lines = caller.respond(Request("GET", "/metrics", "", b"", "", 0)).body.decode().splitlines()
    for line in (
        'push1st_resumes_total{result="recovered"} 2.0',
        'push1st_resumes_total{result="trimmed"} 1.0',
        'push1st_resumes_total{result="unknown"} 0.0',
        "push1st_replayed_messages_total 1.0",
        "push1st_history_bytes 2.0",
        "push1st_history_channels 3.0",
        "push1st_history_evicted_total 4.0",
        "push1st_gaps_healed_total 5.0",
        "push1st_gaps_reported_total 6.0",
        "push1st_pages 7.0",
        "push1st_acknowledgements_total 8.0",
        "push1st_idempotent_repeats_total 9.0",
    ):
        assert line in lines
    gauges = {"history_bytes", "history_channels", "pages"}
    assert {name for name in gauges if f"# TYPE push1st_{name} gauge" in lines} == gauges


def test_metrics_hold_no_secret(caller):
    response = caller.respond(Request("GET", "/metrics", "", b"", "", 0))
    assert b"secret" not in response.body
