"""Each alert of deploy/prometheus/push1st.rules.yml, with series for which it fires, and with series for which no alert fires.

`promtool test rules` evaluates the rules once a minute; the tests look at the alerts that fire after 30 minutes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.docs.prometheus import ALERTS, RULES, promtool

MINUTES = 30
DAY = 86_400


class Series(NamedTuple):
    """A series of the server `a`. values: in promtool's notation; `0+5x30` begins with 0, and grows by 5 each minute."""

    name: str
    values: str


def s(metric: str, values: str, **labels: str) -> Series:
    labels = {"job": "push1st", "instance": "a", **labels}
    selector = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return Series(f"{metric}{{{selector}}}", values)


def grows(metric: str, a_minute: float, **labels: str) -> Series:
    return s(metric, f"0+{a_minute}x{MINUTES}", **labels)


def stays(metric: str, value: float, **labels: str) -> Series:
    return s(metric, f"{value}x{MINUTES}", **labels)


def once(metric: str, at: int = 25, **labels: str) -> Series:
    """Returns a counter that grows by one, in the minute `at`."""
    return s(metric, f"0x{at - 1} 1x{MINUTES - at}", **labels)


def slow(metric: str, bound: str, above: str, share: float, **labels: str) -> list[Series]:
    """Returns a histogram. share: the part of the values that is between two bounds; all other values are below both."""
    buckets = {bound: 1000 * (1 - share), above: 1000, "+Inf": 1000}
    return [grows(f"{metric}_bucket", count, le=le, **labels) for le, count in buckets.items()]


def requests(status: str, share: float) -> list[Series]:
    """Returns counters of requests, of which a part has a status."""
    return [
        grows("push1st_api_requests_total", 6000 * (1 - share), status="200"),
        grows("push1st_api_requests_total", 6000 * share, status=status),
    ]


FIRES: dict[str, list[Series]] = {
    "Push1stDown": [s("up", f"1 0x{MINUTES}")],
    "Push1stDefect": [once("push1st_cut_offs_total", reason="internal-error")],
    "Push1stErrors": [once("push1st_log_messages_total", level="error")],
    "Push1stWorkersRestart": [once("push1st_engine_restarts_total")],
    "Push1stReloadFailed": [once("push1st_reloads_total", result="failed")],
    "Push1stCertificateExpires": [
        stays("push1st_certificate_expiry_timestamp_seconds", 14 * DAY + MINUTES * 59, listener="server")
    ],
    "Push1stFull": [once("push1st_cut_offs_total", 28, reason="crowded")],
    "Push1stFilesNearLimit": [stays("process_open_fds", 81, process="worker"), stays("process_max_fds", 100, process="worker")],
    "Push1stLoopLag": slow("push1st_loop_lag_seconds", "0.1", "0.25", 0.02, worker="1"),
    "Push1stFlushDelay": slow("push1st_flush_delay_seconds", "0.25", "0.5", 0.02),
    "Push1stSlowClients": [
        grows("push1st_cut_offs_total", 66, reason="slow"),
        stays("push1st_connections", 100, protocol="pusher"),
    ],
    "Push1stCannotPublish": requests("503", 0.02),
    "Push1stRefusesBackend": requests("401", 0.11),
    "Push1stReconnects": [grows("push1st_connections_opened_total", 330), stays("push1st_connections", 100)],
    "Push1stBrokerAway": [s("push1st_broker_away_seconds_total", f"0x25 11x{MINUTES - 25}")],
    "Push1stBrokerLag": slow("push1st_broker_lag_seconds", "0.5", "1.0", 0.02),
    "Push1stGaps": [once("push1st_gaps_reported_total")],
    "Push1stNotRecovered": [
        grows("push1st_resumes_total", 88, result="recovered"),
        grows("push1st_resumes_total", 12, result="trimmed"),
    ],
    "Push1stHooksLost": [once("push1st_hook_events_total", outcome="expired")],
    "Push1stHooksStuck": [stays("push1st_hook_oldest_seconds", 241, app="shop")],
    "Push1stHooksWait": [stays("push1st_hook_events_queued", 10_001, app="shop")],
    "Push1stMqttMessagesLost": [once("push1st_mqtt_dropped_total", reason="trimmed")],
    "Push1stMqttRefused": [grows("push1st_refusals_total", 2, reason="server-busy")],
    "Push1stMqttSessions": [stays("push1st_mqtt_sessions", 80_001, state="absent")],
    "Push1stMqttRetained": [
        stays("push1st_mqtt_retained", 8_001, app="shop", worker="0"),
        stays("push1st_mqtt_retained", 0, app="shop", worker="1"),
    ],
    "Push1stMqttSameClientId": [grows("push1st_mqtt_takeovers_total", 66)],
}
"""series for which an alert fires, and no other alert"""

QUIET: dict[str, list[Series]] = {
    "Push1stDown": [s("up", "1x28 0 1"), s("up", f"0x{MINUTES}", job="other")],
    "Push1stDefect": [stays("push1st_cut_offs_total", 7, reason="internal-error"), *requests("500", 0)],
    "Push1stErrors": [
        grows("push1st_log_messages_total", 9, level="warning"),
        once("push1st_log_messages_total", 15, level="error"),
    ],
    "Push1stWorkersRestart": [stays("push1st_worker_restarts_total", 3), once("push1st_engine_restarts_total", 10)],
    "Push1stReloadFailed": [
        grows("push1st_reloads_total", 1, result="applied"),
        once("push1st_reloads_total", 10, result="refused"),
    ],
    "Push1stCertificateExpires": [
        stays("push1st_certificate_expiry_timestamp_seconds", 14 * DAY + MINUTES * 61, listener="server")
    ],
    "Push1stFull": [once("push1st_cut_offs_total", 20, reason="crowded"), grows("push1st_cut_offs_total", 9, reason="silent")],
    "Push1stFilesNearLimit": [
        *(stays("process_open_fds", 80, process="worker"), stays("process_max_fds", 100, process="worker")),
        *(stays("process_open_fds", 99, job="other"), stays("process_max_fds", 100, job="other")),
    ],
    "Push1stLoopLag": slow("push1st_loop_lag_seconds", "0.1", "0.25", 0.005),
    "Push1stFlushDelay": slow("push1st_flush_delay_seconds", "0.25", "0.5", 0.005),
    "Push1stSlowClients": [
        grows("push1st_cut_offs_total", 54, reason="slow"),
        stays("push1st_connections", 100, protocol="pusher"),
    ],
    "Push1stCannotPublish": requests("503", 0.009),
    "Push1stRefusesBackend": requests("401", 0.09),
    "Push1stReconnects": [grows("push1st_connections_opened_total", 270), stays("push1st_connections", 100)],
    "Push1stBrokerAway": [s("push1st_broker_away_seconds_total", f"0x25 7x{MINUTES - 25}")],
    "Push1stBrokerLag": slow("push1st_broker_lag_seconds", "0.5", "1.0", 0.005),
    "Push1stGaps": [grows("push1st_gaps_healed_total", 5), stays("push1st_gaps_reported_total", 5)],
    "Push1stNotRecovered": [
        grows("push1st_resumes_total", 92, result="recovered"),
        grows("push1st_resumes_total", 8, result="trimmed"),
        grows("push1st_resumes_total", 500, result="unknown"),
    ],
    "Push1stHooksLost": [
        grows("push1st_hook_events_total", 9, outcome="sent"),
        stays("push1st_hook_events_total", 3, outcome="expired"),
    ],
    "Push1stHooksStuck": [stays("push1st_hook_oldest_seconds", 239, app="shop")],
    "Push1stHooksWait": [stays("push1st_hook_events_queued", 10_000, app="shop")],
    "Push1stMqttMessagesLost": [grows("push1st_mqtt_dropped_total", 9, reason="expired")],
    "Push1stMqttRefused": [
        grows("push1st_refusals_total", 0.9, reason="server-busy"),
        grows("push1st_refusals_total", 9, reason="401"),
    ],
    "Push1stMqttSessions": [
        stays("push1st_mqtt_sessions", 80_000, state="absent", worker="0"),
        stays("push1st_mqtt_sessions", 80_000, state="absent", worker="1"),
        stays("push1st_mqtt_sessions", 90_000, state="connected"),
    ],
    "Push1stMqttRetained": [stays("push1st_mqtt_retained", 5_000, app="shop"), stays("push1st_mqtt_retained", 5_000, app="b")],
    "Push1stMqttSameClientId": [grows("push1st_mqtt_takeovers_total", 54)],
}
"""series close to those of `FIRES`, for which no alert fires"""


def check(folder: Path, scenarios: dict[str, list[Series]], expected: dict[str, list[str]]) -> None:
    """Checks which alerts fire after `MINUTES` minutes, for each scenario."""
    tests: list[dict[str, Any]] = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": one.name, "values": one.values} for one in series],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{MINUTES}m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected[name]],
                }
            ],
        }
        for name, series in scenarios.items()
    ]
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_both_scenarios() -> None:
    assert list(FIRES) == list(QUIET) == list(ALERTS)


def test_each_alert_fires_alone_for_its_series(tmp_path: Path) -> None:
    check(tmp_path, FIRES, {alert: [alert] for alert in FIRES})


def test_no_alert_fires_for_series_below_its_bounds(tmp_path: Path) -> None:
    check(tmp_path, QUIET, {alert: [] for alert in QUIET})


@pytest.mark.parametrize("alert", ["Push1stDown", "Push1stFull"])
def test_the_check_of_scenarios_finds_an_alert_that_does_not_fire(tmp_path: Path, alert: str) -> None:
    with pytest.raises(AssertionError, match=alert):
        check(tmp_path, {alert: QUIET[alert]}, {alert: [alert]})


def test_summaries_of_alerts_are_complete_sentences_with_their_values(tmp_path: Path) -> None:
    """promtool compares the text of a summary; the other summaries have the same labels and functions."""
    rule = ALERTS["Push1stCertificateExpires"]
    expected = {
        "exp_labels": {"severity": "warning", "job": "push1st", "instance": "a", "listener": "server"},
        "exp_annotations": {
            "summary": "the certificate of server on a expires in 13d 23h 59m 30s",
            "runbook": rule["annotations"]["runbook"],
        },
    }
    series = stays("push1st_certificate_expiry_timestamp_seconds", 14 * DAY + MINUTES * 60 - 30, listener="server")
    test = {
        "interval": "1m",
        "input_series": [{"series": series.name, "values": series.values}],
        "alert_rule_test": [{"eval_time": f"{MINUTES}m", "alertname": "Push1stCertificateExpires", "exp_alerts": [expected]}],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
