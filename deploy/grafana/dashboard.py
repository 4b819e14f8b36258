"""Writes deploy/grafana/push1st.json from the table of panels below: `python deploy/grafana/dashboard.py`.

`--check` only checks whether the file is up to date. Grafana imports the file: Dashboards, New, Import. The expressions select
the series by the variables of the dashboard: `$job`, `$instance` and `$app`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("push1st.json")
WIDTH = 24
"""the number of columns of a dashboard in Grafana"""
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WHERE = 'job=~"$job", instance=~"$instance"'
APP = WHERE + ', app=~"$app"'


class Panel(NamedTuple):
    """A panel. `queries`: expressions, each with the text of its legend. `note`: the text behind the panel's icon."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    note: str = ""
    width: int = 8
    kind: str = "timeseries"


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Returns the expression for the sum of a counter's rates. `by`: the labels that remain. `more`: further selectors."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{WHERE}{more}}}[$__rate_interval]))"


def total(metric: str, by: str = "", more: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{WHERE}{more}}})"


def quantile(share: float, metric: str, by: str = "", more: str = "") -> str:
    """Returns the expression for a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le' if by else 'le', more)})"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple((quantile(share, metric), f"{share:.0%}") for share in (0.5, 0.9, 0.99))


def by_app(metric: str, function: str = "total") -> tuple[tuple[str, str], ...]:
    """Returns the query for a metric of the chosen apps, with a series for each of the 20 largest."""
    inner = f"{metric}{{{APP}}}"
    inner = f"rate({inner}[$__rate_interval])" if function == "rate" else inner
    return ((f"topk(20, {'max' if function == 'max' else 'sum'} by (app) ({inner}))", "{{app}}"),)


def stat(title: str, unit: str, expr: str, note: str = "", width: int = 4) -> Panel:
    return Panel(title, unit, ((expr, ""),), note, width, "stat")


ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        stat("Servers", "short", f"count(count by (instance) (push1st_build_info{{{WHERE}}}))"),
        stat("Connections", "short", total("push1st_connections")),
        stat("Events published", "ops", rate("push1st_events_in_total")),
        stat("Messages sent", "ops", rate("push1st_messages_out_total")),
        stat("Requests answered with 5xx", "ops", rate("push1st_api_requests_total", more=', status=~"5.."')),
        stat(
            "Alerts",
            "short",
            'count(ALERTS{alertname=~"Push1st.*", alertstate="firing"}) or vector(0)',
            "The alerts of deploy/prometheus/push1st.rules.yml that fire now.",
        ),
        Panel("Connections by protocol", "short", ((total("push1st_connections", "protocol"), "{{protocol}}"),)),
        Panel("New connections", "ops", ((rate("push1st_connections_opened_total", "protocol"), "{{protocol}}"),)),
        Panel(
            "Closed connections by code",
            "ops",
            ((f"topk(10, {rate('push1st_closed_total', 'code')})", "{{code}}"),),
            "docs/errors.md lists the codes. 4200: the server stopped or was reloaded.",
        ),
        Panel("Events published, by source", "ops", ((rate("push1st_events_in_total", "source"), "{{source}}"),)),
        Panel("Messages sent, by server", "ops", ((rate("push1st_messages_out_total", "instance"), "{{instance}}"),)),
        Panel("Traffic", "Bps", ((rate("push1st_bytes_in_total"), "in"), (rate("push1st_bytes_out_total"), "out"))),
        Panel("HTTP requests by status", "reqps", ((rate("push1st_api_requests_total", "status"), "{{status}}"),)),
        Panel(
            "Rejected requests and commands",
            "ops",
            ((f"topk(10, {rate('push1st_refusals_total', 'reason')})", "{{reason}}"),),
            "docs/metrics.md lists the reasons.",
        ),
        Panel(
            "Connections that the server ended",
            "ops",
            ((f"topk(10, {rate('push1st_cut_offs_total', 'reason')})", "{{reason}}"),),
            "docs/metrics.md lists the reasons, and what to do.",
        ),
    ),
    "Latency": (
        Panel("API requests", "s", quantiles("push1st_api_request_seconds")),
        Panel(
            "API requests by endpoint, 99 %", "s", ((quantile(0.99, "push1st_api_request_seconds", "endpoint"), "{{endpoint}}"),)
        ),
        Panel(
            "Delivery inside a worker",
            "s",
            quantiles("push1st_flush_delay_seconds"),
            "From the arrival of a flush's oldest message to the last write. This delay grows first when a worker is saturated.",
        ),
        Panel(
            "Lateness of the event loop, 99 %",
            "s",
            ((quantile(0.99, "push1st_loop_lag_seconds", "instance, worker"), "{{instance}} {{worker}}"),),
            "A worker without enough CPU time is late.",
        ),
        Panel(
            "Clients that read slowly",
            "short",
            ((total("push1st_behind_connections"), "connections"),),
            "Connections with data that the client has not read yet.",
        ),
        Panel(
            "Waiting data",
            "bytes",
            ((total("push1st_behind_bytes"), "for slow clients"), (total("push1st_pending_bytes"), "for the next flush")),
        ),
        Panel("Parts of long flushes that wait", "short", ((total("push1st_pending_slices", "instance"), "{{instance}}"),)),
        Panel(
            "Duration of connections",
            "s",
            quantiles("push1st_connection_seconds"),
            "Many connections that end after 60 or 100 seconds show the timeout of a proxy.",
        ),
        Panel(
            "Subscriptions",
            "ops",
            (
                (rate("push1st_subscribes_total", "type"), "subscribe {{type}}"),
                (rate("push1st_unsubscribes_total", "type"), "unsubscribe {{type}}"),
            ),
        ),
    ),
    "Apps": (
        Panel("Connections", "short", by_app("push1st_app_connections")),
        Panel("Channels", "short", by_app("push1st_app_channels")),
        Panel("Subscriptions", "short", by_app("push1st_app_subscriptions")),
        Panel("Events published", "ops", by_app("push1st_app_events_in_total", "rate")),
        Panel("Messages sent", "ops", by_app("push1st_app_messages_out_total", "rate")),
        Panel("Bytes sent", "Bps", by_app("push1st_app_bytes_out_total", "rate")),
        Panel("Rejected requests and commands", "ops", by_app("push1st_app_refusals_total", "rate")),
        Panel("Publishes that repeated an idempotency key", "ops", ((rate("push1st_idempotent_repeats_total"), "repeats"),)),
        Panel(
            "Acknowledgements of pages",
            "ops",
            ((rate("push1st_acknowledgements_total"), "acknowledgements"), (total("push1st_pages"), "open pages")),
        ),
    ),
    "Broker and histories": (
        Panel(
            "Time through the broker",
            "s",
            quantiles("push1st_broker_lag_seconds"),
            "The time contains the difference between the clocks of two machines.",
        ),
        Panel("Steps of the broker, 99 %", "s", ((quantile(0.99, "push1st_broker_seconds", "step"), "{{step}}"),)),
        Panel(
            "Seconds without a broker",
            "s",
            ((f"max by (instance) (increase(push1st_broker_away_seconds_total{{{WHERE}}}[$__rate_interval]))", "{{instance}}"),),
        ),
        Panel("Messages that the broker did not confirm", "ops", ((rate("push1st_broker_unconfirmed_total"), "messages"),)),
        Panel(
            "Gaps",
            "ops",
            ((rate("push1st_gaps_healed_total"), "healed"), (rate("push1st_gaps_reported_total"), "reported to clients")),
        ),
        Panel("Clients that resume, by result", "ops", ((rate("push1st_resumes_total", "result"), "{{result}}"),)),
        Panel("Kept messages sent", "ops", ((rate("push1st_replayed_messages_total"), "messages"),)),
        Panel(
            "Histories of the memory broker",
            "bytes",
            ((total("push1st_history_bytes", "instance"), "{{instance}}"),),
            "Always zero with another broker.",
        ),
        Panel(
            "Channels with a history",
            "short",
            ((total("push1st_history_channels"), "channels"), (rate("push1st_history_evicted_total"), "dropped a second")),
        ),
    ),
    "Hooks": (
        Panel("Events by outcome", "ops", ((rate("push1st_hook_events_total", "outcome"), "{{outcome}}"),)),
        Panel("Attempts by result", "ops", ((rate("push1st_hook_attempts_total", "result"), "{{result}}"),)),
        Panel("Duration of an attempt", "s", quantiles("push1st_hook_delivery_seconds")),
        Panel("Waiting events", "short", by_app("push1st_hook_events_queued")),
        Panel(
            "Age of the oldest waiting event",
            "s",
            by_app("push1st_hook_oldest_seconds", "max"),
            "The server drops an event after five minutes.",
        ),
        Panel("Decisions of the apps' backends", "ops", ((rate("push1st_asked_total", "answer"), "{{answer}}"),)),
    ),
    "MQTT": (
        Panel(
            "Sessions",
            "short",
            (
                (total("push1st_mqtt_sessions", more=', state="connected"'), "connected"),
                (f'max(push1st_mqtt_sessions{{{WHERE}, state="absent"}})', "absent"),
            ),
        ),
        Panel(
            "Messages not acknowledged",
            "short",
            ((total("push1st_mqtt_inflight"), "sent"), (total("push1st_mqtt_queued"), "waiting")),
        ),
        Panel("Dropped messages", "ops", ((rate("push1st_mqtt_dropped_total", "reason"), "{{reason}}"),)),
        Panel("Retained messages", "short", by_app("push1st_mqtt_retained")),
        Panel("Packets sent again", "ops", ((rate("push1st_mqtt_resent_total"), "packets"),)),
        Panel("Connections replaced by their client id", "ops", ((rate("push1st_mqtt_takeovers_total"), "connections"),)),
    ),
    "Processes": (
        Panel("CPU", "percentunit", ((rate("process_cpu_seconds_total", "instance, process"), "{{instance}} {{process}}"),)),
        Panel("Memory", "bytes", ((total("process_resident_memory_bytes", "instance, process"), "{{instance}} {{process}}"),)),
        Panel(
            "File descriptors in use",
            "percentunit",
            ((f"max by (instance) (process_open_fds{{{WHERE}}} / process_max_fds{{{WHERE}}})", "{{instance}}"),),
            "Each connection needs one.",
        ),
        Panel("Running time", "s", ((f"time() - min by (instance) (process_start_time_seconds{{{WHERE}}})", "{{instance}}"),)),
        Panel(
            "Workers",
            "short",
            (
                (total("push1st_workers", "instance"), "{{instance}}"),
                (f"sum(increase(push1st_worker_restarts_total{{{WHERE}}}[$__rate_interval]))", "restarted workers"),
                (f"sum(increase(push1st_engine_restarts_total{{{WHERE}}}[$__rate_interval]))", "restarted engines"),
            ),
        ),
        Panel(
            "Reloads",
            "short",
            ((f"sum by (result) (increase(push1st_reloads_total{{{WHERE}}}[$__rate_interval]))", "{{result}}"),),
        ),
        Panel(
            "Time since the last reload",
            "s",
            ((f"time() - max by (instance) (push1st_last_reload_success_timestamp_seconds{{{WHERE}}})", "{{instance}}"),),
        ),
        Panel(
            "Time until certificates expire",
            "s",
            (
                (
                    f"min by (instance, listener) (push1st_certificate_expiry_timestamp_seconds{{{WHERE}}}) - time()",
                    "{{instance}} {{listener}}",
                ),
            ),
        ),
        Panel("Log lines by level", "ops", ((rate("push1st_log_messages_total", "level"), "{{level}}"),)),
        Panel(
            "Versions",
            "short",
            ((f"count by (version, python) (push1st_build_info{{{WHERE}}})", "{{version}}, Python {{python}}"),),
            "The number of workers that run each version.",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    return {
        "uid": "push1st",
        "title": "Push1st",
        "tags": ["push1st"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("job", "Job", "label_values(push1st_build_info, job)"),
                _variable("instance", "Server", 'label_values(push1st_build_info{job=~"$job"}, instance)'),
                _variable("app", "App", f"label_values(push1st_app_connections{{{WHERE}}}, app)"),
            ]
        },
        "panels": list(_panels()),
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Yields the panels of all rows from left to right, with their places."""
    id = y = 0
    for title, panels in ROWS.items():
        id += 1
        yield {"id": id, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(0, y, WIDTH, 1)}
        x, y = 0, y + 1
        height = HEIGHT
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
            id += 1
            yield _panel(panel, id) | {"gridPos": _place(x, y, panel.width, height)}
            x += panel.width
        y += height


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, id: int) -> dict[str, Any]:
    lines = {"drawStyle": "line", "fillOpacity": 10, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"}
    return {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": lines if panel.kind != "stat" else {}},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto"}
            for number, (expr, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if FILE.exists() and FILE.read_text() == text() else f"{FILE} is out of date: run python {sys.argv[0]}")
    FILE.write_text(text())
