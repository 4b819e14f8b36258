"""The metrics of a worker, as a scrape reads them."""

import gzip
import platform
import time
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import push1st
from push1st import logs
from push1st.api.metrics import ADDED, OPENMETRICS, TEXT, Sums, collected, sums
from push1st.brokers.history import REASONS
from push1st.brokers.retained import Retain
from push1st.eager import resolve
from push1st.messages import Message, Request, Response, Subscribe
from tests.support.node import app_config

OPEN = b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5,*/*;q=0.1"
"""the header Accept of Prometheus 2.42"""


async def scrape(caller: Any, **headers: bytes) -> Response:
    """Reads the metrics. headers: the headers of the request, with `_` in place of `-`."""
    given = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    response: Response = await resolve(caller.api.serve(Request("GET", "/metrics", "", b"", "", 0, None, given)))
    return response


async def values(caller: Any) -> dict[tuple[str, ...], float]:
    """Returns the value of each series by its name without the prefix, and its labels."""
    return {
        (sample.name.removeprefix("push1st_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families((await scrape(caller)).body.decode())
        for sample in family.samples
    }


def test_metrics_are_for_trusted_callers(caller):
    caller.trusted = False
    status, answer = caller.get("/metrics")
    assert status == 403
    assert answer["error"].endswith(": it is far away")


async def test_metrics_are_prometheus_text(caller):
    session, _ = caller.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    caller.event()
    caller.world.metrics.requests[200] += 2
    caller.world.metrics.refusals['an "odd" reason'] += 1
    response = await scrape(caller)
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
    assert all(name.startswith(("push1st_", "process_")) for name, *_ in samples)


async def test_the_version_that_runs_is_a_metric(caller):
    text = (await scrape(caller)).body.decode()
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
async def test_usual_labels_are_listed_before_their_first_count(caller, series, label):
    body = (await scrape(caller)).body.decode()
    (line,) = (line for line in body.splitlines() if line.startswith(f"push1st_{series}{{") and f'"{label}"' in line)
    assert line.endswith(" 0.0")


async def test_metrics_show_history_and_recovery(caller):
    count = caller.world.metrics
    count.resumes.update(("recovered", "recovered", "trimmed"))
    count.replayed_messages, count.history_bytes, count.history_channels, count.history_evicted = 1, 2, 3, 4
    count.gaps_healed, count.gaps_reported, count.pages, count.acknowledgements, count.idempotent_repeats = 5, 6, 7, 8, 9
    lines = (await scrape(caller)).body.decode().splitlines()
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


async def test_metrics_show_the_number_of_retained_messages(caller):
    message = Message("app-test", "c", "e", b"1", 1, 1)
    caller.world.memory.retained.retain(message, Retain())
    lines = (await scrape(caller)).body.decode().splitlines()
    assert 'push1st_mqtt_retained{app="app-test"} 1.0' in lines


async def test_metrics_hold_no_secret(calling):
    caller = calling(app_config(secret="canary-new", older_secrets=("canary-old",)))
    assert b"canary" not in (await scrape(caller)).body


async def test_metrics_count_the_uses_of_each_of_several_secrets(calling):
    caller = calling(app_config(secret="new", older_secrets=("secret",)))
    assert caller.event(key=True)[0] == caller.get("channels", key=True)[0] == 200
    found = await values(caller)
    assert (found["secret_used_total", "app-test", "0"], found["secret_used_total", "app-test", "1"]) == (0, 2)
    caller.world.node.max_metric_apps = 0
    assert (await values(caller))["secret_used_total", "other", "1"] == 2


async def test_an_app_with_one_secret_has_no_counter_of_uses(caller):
    caller.event(key=True)
    assert b"push1st_secret_used_total{" not in (await scrape(caller)).body


# Formats


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        (OPEN, True),
        (b"text/plain", False),
        (b"*/*", False),
        (b"", False),
        (b"text/plain;version=new", False),
        (b'application/openmetrics-text;version="1.0.0"', False),
    ],
)
async def test_accept_decides_about_the_format(caller, accept, is_openmetrics):
    response = await scrape(caller, accept=accept)
    assert response.content_type == (OPENMETRICS if is_openmetrics else TEXT)
    assert response.body.endswith(b"# EOF\n") == is_openmetrics


async def test_both_formats_have_the_same_series_of_push1st(caller):
    def names(families: Any) -> set[tuple[str, ...]]:
        return {(sample.name, *sample.labels.values()) for family in families for sample in family.samples}

    text = (await scrape(caller)).body.decode()
    open_text = (await scrape(caller, accept=OPEN)).body.decode()
    assert names(text_string_to_metric_families(text)) == names(openmetrics(open_text))


async def test_a_scrape_may_be_compressed(caller):
    response = await scrape(caller, accept_encoding=b"gzip, deflate")
    assert response.headers == b"Content-Encoding: gzip\r\nVary: Accept, Accept-Encoding\r\n"
    assert b"push1st_connections" in gzip.decompress(response.body)
    assert b"Content-Encoding" not in (await scrape(caller, accept_encoding=b"identity")).headers


# The number of series


def apps(count: int) -> list[Any]:
    return [app_config(id=f"app-{number}", key=f"key-{number}") for number in range(count)]


async def test_the_number_of_series_is_bounded(calling):
    """Every type of series counts, those of MQTT and of the history too: a budget of 500 series, and of 13 more for each app."""
    caller = calling(*apps(250))
    for config in caller.world.apps:
        caller.world.node.app(config)
    few = len(await values(caller))
    caller.world.node.max_metric_apps = 0
    none = len(await values(caller))
    assert none <= 500 + 13
    assert few - none <= 200 * 13


async def test_apps_after_the_first_200_count_as_other_in_every_series(calling):
    caller = calling(*apps(205))
    node = caller.world.node
    for config in reversed(caller.world.apps):
        node.app(config).counts.refusals += 1
        caller.world.memory.retained.retain(Message(config.id, "c", "e", b"1", 1, 1), Retain())
    caller.world.hooks.queues = {config.id: 2 for config in caller.world.apps}
    found = await values(caller)
    shown = {labels[0] for name, *labels in found if name == "app_refusals_total"}
    assert shown == {"app-0", "other"} | {f"app-{number}" for number in range(6, 205)}
    by_app: dict[str, set[str]] = {}
    for name, *labels in found:
        for label in labels:
            if label.startswith("app-"):
                by_app.setdefault(name, set()).add(label)
    assert {"mqtt_retained", "hook_events_queued", "app_connections", "app_bytes_out_total"} <= by_app.keys()
    assert all(labels <= shown for labels in by_app.values())
    assert (found["app_refusals_total", "other"], found["mqtt_retained", "other"], found["hook_events_queued", "other"]) == (
        5,
        5,
        10,
    )


# Series


async def test_the_process_is_measured(caller):
    found = await values(caller)
    assert found["process_resident_memory_bytes", "worker"] > 1 << 20
    assert found["process_cpu_seconds_total", "worker"] > 0
    assert 0 < found["process_open_fds", "worker"] < found["process_max_fds", "worker"]
    assert found["process_start_time_seconds", "worker"] > 1e9


async def test_lines_of_the_log_are_counted(caller):
    before = (await values(caller))["log_messages_total", "error"]
    logs.messages["error"] += 1
    assert (await values(caller))["log_messages_total", "error"] == before + 1


async def test_an_app_has_its_own_counters(caller):
    session, _ = caller.world.session(push=frozenset())
    session.handle(Subscribe("c"))
    await caller.world.node.tick()
    caller.event()
    caller.world.turns.drain()
    found = await values(caller)
    assert found["app_events_in_total", "app-test"] == 1
    assert found["app_messages_out_total", "app-test"] == 1
    assert found["app_bytes_out_total", "app-test"] == found["bytes_out_total",] > 0
    assert (found["subscribes_total", "public"], found["unsubscribes_total", "public"]) == (1, 0)
    assert found["flush_delay_seconds_count",] == 1
    session.expire()
    assert (await values(caller))["unsubscribes_total", "public"] == 1


def added(node: Any) -> tuple[Sums, list[float]]:
    """Returns the sums of all apps, and the CPU time of each turn of the event loop in seconds."""
    turns: list[float] = []
    adding = sums(node)
    while True:
        start = time.thread_time()
        try:
            adding.send(None)
        except StopIteration as end:
            return end.value, [*turns, time.thread_time() - start]
        turns.append(time.thread_time() - start)


async def test_a_scrape_holds_the_event_loop_for_a_few_milliseconds(calling):
    """Only the collection of the figures runs on the event loop, in turns; the text is written in a thread."""
    caller = calling(*apps(200))
    node = caller.world.node
    for config in caller.world.apps:
        node.app(config)
    for number in range(10_000):
        node.metrics.of(f"more-{number}").events_in["api"] += 1
    longest = []
    for _ in range(5):
        found, turns = added(node)
        assert len(turns) == 10_200 // ADDED + 1
        assert found.events_in["api"] == found.by_app["events_in"]["other"] == 10_000
        start = time.thread_time()
        collected(node, found)
        longest.append(max(*turns, time.thread_time() - start))
    assert min(longest) < 0.01
