"""The dashboard, the alerts and the recording rules of deploy/: the programs of Prometheus and a live server check them."""

import importlib.util
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.machine import machine
from tests.docs.pages import ROOT
from tests.docs.prometheus import ALERTS, RULES, SOKETI, Prometheus, promtool, rules
from tests.support.process import ServerProcess, free_ports, program, push1st, running, wait_until
from tests.support.pusher_socket import pusher_socket

DASHBOARD = ROOT / "deploy" / "grafana" / "push1st.json"
PAGE = ROOT / "docs" / "howto-operate.md"

NAME = re.compile(r"\b(?:push1st|process)_\w+")
SELECTOR = re.compile(r"((?:push1st|process)_\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
TOKEN = "a-token-of-the-prometheus-of-this-test"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Returns all expressions of the dashboard and of the rules, by their places."""
    found = {f"{panel['title']} {query['refId']}": query["expr"] for panel in panels() for query in panel["targets"]}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = (
                variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rpartition(",")[0]
            )
    for file in (RULES, SOKETI):
        found |= {f"{file.name} {number}": rule["expr"] for number, rule in enumerate(rules(file))}
    return found


# The files


def test_the_dashboard_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD.with_name("dashboard.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert DASHBOARD.read_text() == module.text(), "run: python deploy/grafana/dashboard.py"


def test_panels_have_titles_and_places_of_their_own() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in everything)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels())


def test_each_expression_of_the_dashboard_selects_by_the_variables() -> None:
    for place, expr in expressions().items():
        if place.startswith((RULES.name, SOKETI.name)) or place == "job":
            continue
        for metric in NAME.findall(expr):
            selectors = [body for name, body in SELECTOR.findall(expr) if name == metric]
            assert selectors, f"{place}: {metric} is selected by nothing"
            assert all('job=~"$job"' in body for body in selectors), place
            assert all('app=~"$app"' in body for body in selectors if re.match("push1st_app_", metric) and place != "app"), place


@pytest.mark.parametrize("file", [RULES, SOKETI], ids=lambda file: file.name)
def test_prometheus_accepts_the_rules(file: Path) -> None:
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(rules(file))} rules found" in done.stdout


def test_prometheus_accepts_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    found = [
        {"record": f"panel_{number}", "expr": expr.replace("$__rate_interval", "5m"), "labels": {"place": place}}
        for number, (place, expr) in enumerate(expressions().items())
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": found}]}))
    done = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert done.returncode == 0, done.stderr


def test_page_has_a_section_for_each_alert_and_no_other() -> None:
    text = PAGE.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    titles = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert titles == list(ALERTS), "in the order of the rules"
    for section in re.split(r"^### \w+$", text, flags=re.MULTILINE)[1:]:
        assert "**Meaning.**" in section
        assert "**What to do.**" in section


def test_each_alert_links_to_its_section_and_has_a_summary_and_a_severity() -> None:
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/howto-operate.md#{name.lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


# The metrics of a live server


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Runs a server with two workers and all features, after some use and a reload."""
    mqtt, nothing = free_ports(2)
    proto = ["pusher", "websocket", "sse", "mqtt"]
    config = {"server": {"proto": proto, "mqtt": {"listen": f"tls://127.0.0.1:{mqtt}"}}}
    webhooks = [{"url": f"http://127.0.0.1:{nothing}/"}]
    app = {"key": "hooked-key", "secret": "hooked-secret", "webhooks": webhooks, "history": [{"filter": "chat-"}]}
    with machine(2, config, {"hooked": app}) as server:
        push1st("reload", "-c", str(server.folder / "server.yml"))
        with pusher_socket(server, "hooked-key") as client:
            client.subscribe("chat-1")
            answer = server.post("/apps/hooked/events", {"name": "e", "channels": ["chat-1"], "data": "1"})
            assert answer.status == 200
            client.expect("e", "chat-1")
            yield server


def series(server: ServerProcess) -> dict[str, list[Mapping[str, str]]]:
    """Returns the labels of each series of the server, by the name of the metric."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def fits(labels: Mapping[str, str], matchers: Iterable[tuple[str, str, str]]) -> bool:
    """Returns whether a series has the labels of a selector. Prometheus adds the labels job and instance."""
    return all(
        name in ("job", "instance")
        or (name in labels and (re.fullmatch(value, labels[name]) is not None) is operator.startswith("="))
        for name, operator, value in matchers
    )


def alternatives(body: str) -> Iterator[tuple[tuple[str, str, str], ...]]:
    """Returns the matchers of a selector, once for each combination of the words that a regular expression lists."""
    matchers = [matcher for matcher in MATCHER.findall(body) if "$" not in matcher[2]]
    yield from itertools.product(
        *(
            [
                (name, operator, word.replace("\\\\", "\\") if "~" in operator else re.escape(word))
                for word in (value.split("|") if operator == "=~" else [value])
            ]
            for name, operator, value in matchers
        )
    )


def missing(found: Mapping[str, list[Mapping[str, str]]]) -> list[str]:
    """Returns the metrics and selectors of all expressions to which no series of the server belongs."""
    result = []
    for place, expr in expressions().items():
        result += [f"{place}: {metric}" for metric in NAME.findall(expr) if metric not in found]
        for metric, body in SELECTOR.findall(expr):
            for matchers in alternatives(body):
                if metric in found and not any(fits(one, matchers) for one in found[metric]):
                    result.append(f"{place}: {metric}{{{matchers}}}")
    return result


def labels_used(expr: str) -> list[str]:
    return [name for group in re.findall(r"\b(?:by|without) ?\(([^)]*)\)", expr) for name in re.split(r",\s*", group)]


def test_each_metric_of_the_dashboard_and_the_rules_exists(server: ServerProcess) -> None:
    assert missing(series(server)) == []


def test_each_label_of_the_dashboard_and_the_rules_exists(server: ServerProcess) -> None:
    known = {"job", "instance", "le", "worker", *(name for those in series(server).values() for one in those for name in one)}
    assert [f"{place}: {name}" for place, expr in expressions().items() for name in labels_used(expr) if name not in known] == []


def test_rules_for_soketi_keep_apps_and_convert_seconds_to_milliseconds(tmp_path: Path) -> None:
    labels = 'job="push1st", instance="a", worker="0"'
    series = {
        "push1st_app_messages_out_total": (f'{labels}, app="shop"', 7),
        "push1st_events_in_total": (f'{labels}, source="pusher"', 3),
        "push1st_broker_seconds_sum": (f'{labels}, step="ask"', 0.25),
        "push1st_broker_seconds_bucket": (f'{labels}, step="ask", le="1.0"', 4),
    }
    expected = {
        'sum by (app_id) (soketi_ws_messages_sent_total{app_id="shop"})': ('{app_id="shop"}', 7),
        "soketi_ws_messages_received_total": (f"soketi_ws_messages_received_total{{{labels}}}", 3),
        "soketi_horizontal_adapter_resolve_time_sum": (f"soketi_horizontal_adapter_resolve_time_sum{{{labels}}}", 250),
        "soketi_horizontal_adapter_resolve_time_bucket": (
            f'soketi_horizontal_adapter_resolve_time_bucket{{{labels}, le="1000"}}',
            4,
        ),
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": f"{name}{{{body}}}", "values": f"{value}x5"} for name, (body, value) in series.items()],
        "promql_expr_test": [
            {"expr": expr, "eval_time": "5m", "exp_samples": [{"labels": body, "value": value}]}
            for expr, (body, value) in expected.items()
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(SOKETI)], "evaluation_interval": "1m", "tests": [test]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


# A real Prometheus


def test_a_prometheus_scrapes_the_address_for_metrics_and_the_api_with_a_token(tmp_path: Path) -> None:
    program("prometheus")
    (port,) = free_ports(1)
    config = {"metrics": {"listen": f"tcp://127.0.0.1:{port}"}}
    closed = {"metrics": {"token": TOKEN}, "api": {"trust": ["192.0.2.1"]}}
    with machine(2, config) as first, running(closed) as second:
        jobs: list[dict[str, Any]] = [
            {"job_name": "push1st", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
            {
                "job_name": "push1st-token",
                "authorization": {"credentials": TOKEN},
                "static_configs": [{"targets": [f"127.0.0.1:{second.api_port}"]}],
            },
            {"job_name": "push1st-wrong", "static_configs": [{"targets": [f"127.0.0.1:{second.api_port}"]}]},
        ]
        prometheus = Prometheus(tmp_path, jobs)
        try:
            with pusher_socket(first) as client:
                client.subscribe("c")
                scraped = "count_over_time(up[1m]) >= 10"
                wait_until(lambda: len(prometheus.query(scraped)) == 3, "Prometheus has scraped each server 10 times", 60)
            assert prometheus.query("min_over_time(up[1m])") == {"push1st": 1, "push1st-token": 1, "push1st-wrong": 0}
            states = [(rule["name"], rule["health"], rule.get("lastError")) for rule in prometheus.rules()]
            assert len(states) == len(rules(RULES)) + len(rules(SOKETI))
            assert [state for state in states if state[1] != "ok"] == []
            assert prometheus.query('sum by (job) (max_over_time(soketi_connected{app_id="app-test"}[1m]))')["push1st"] >= 1
        finally:
            prometheus.close()
