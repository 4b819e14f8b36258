"""The text of `push1st status`."""

import msgspec
import pytest

from push1st.cli.statustext import MAX_APPS, MAX_SETTINGS, duration, lines
from push1st.config.model import AppConfig, Config
from push1st.config.settings import Setting
from push1st.status import AppFigures, BrokerServer, BrokerStatus, CertificateStatus, ReloadStatus
from tests.support.server_status import CONFIG, NOW, status, worker


def test_the_text_of_a_server_names_its_parts() -> None:
    engine = BrokerStatus(True, "", 2, [BrokerServer("9.1.0", "master", 0.0012)])
    reports = [worker(0, {"shop": AppFigures(3, 2, 4, 10, 20, 1)}, engine), worker(1, broker=engine, loop_lag=0.25)]
    found = msgspec.structs.replace(status(*reports), reload=ReloadStatus(NOW - 7200, ()), warnings=("server.yml:3: a note",))
    text = "\n".join(lines(found))
    for words in (
        "  ready  up 1 h  pid 99  server.yml",
        "  server on ws://*:6001",
        "connections by protocol: pusher 4",
        "250.0 ms",
        "set, 13 bytes",
        "broker: embedded engine; connected; 9.1.0 master, round trip 1.2 ms; 2 nodes, away 3 s, unconfirmed 2",
        "certificate of server: 10 days left (/tls.pem)",
        "last reload: 2 h ago: good",
        "warning: server.yml:3: a note",
    ):
        assert words in text
    assert len(text.splitlines()) <= 24


def test_refused_files_of_a_certificate_are_shown() -> None:
    refusing = worker()
    refusing.certificates[:] = [CertificateStatus("server", "/tls.pem", NOW, "it expired")]
    assert "    the newest files are refused: it expired" in lines(status(refusing))


def test_value_is_written_as_in_a_configuration_file() -> None:
    settings = [Setting("server.ssl.enable", True, "server.yml:1"), Setting("server.workers", 1, "server.yml:2")]
    text = list(lines(msgspec.structs.replace(status(worker()), settings=settings)))
    assert [line.split() for line in text if "server.yml:" in line] == [
        ["server.ssl.enable", "true", "server.yml:1"],
        ["server.workers", "1", "server.yml:2"],
    ]


def test_a_worker_without_an_answer_is_shown_as_such() -> None:
    text = "\n".join(lines(status(worker(), missing=(3,))))
    assert "NOT READY" in text
    assert [line.split() for line in text.splitlines() if "does not answer" in line] == [["3", "-", "-", "does", "not", "answer"]]


def test_the_text_stays_short_with_many_apps_and_keys() -> None:
    apps = tuple(AppConfig(id=f"a{number}", key=f"k{number}", secret="") for number in range(50))
    found = status(worker(0, {"a49": AppFigures(7)}), config=Config(apps=apps))
    found = msgspec.structs.replace(found, settings=[Setting(f"key{number}", number, "server.yml:1") for number in range(40)])
    text = "\n".join(lines(found))
    assert "  a49  7 " in text
    assert f"and {50 - MAX_APPS} more apps" in text
    assert f"and {40 - MAX_SETTINGS} more keys; all keys: push1st status --json" in text


def test_a_broker_that_is_away_is_named_with_the_reason() -> None:
    config = msgspec.structs.replace(CONFIG, broker="redis://host/0")
    text = "\n".join(lines(status(worker(0, broker=BrokerStatus(False, "connection refused", 1, [])), config=config)))
    assert "broker: server host:6379, without a password, database 0, prefix push1st; AWAY: connection refused; 1 nodes" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (200_000, "2 d")]
)
def test_a_duration_is_rounded_down(seconds: float, text: str) -> None:
    assert duration(seconds) == text
