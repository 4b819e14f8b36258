"""States of a server for tests, and the reports of workers."""

from typing import Any

from push1st.config.model import AppConfig, Config
from push1st.status import (
    AppFigures,
    BrokerStatus,
    CertificateStatus,
    ListenerSummary,
    ServerFacts,
    ServerStatus,
    WorkerFigures,
    WorkerStatus,
    assembled,
)

NOW = 1_800_000_000.0
CONFIG = Config(apps=(AppConfig(id="shop", key="k", secret="canary-secret"), AppConfig(id="news", key="n", secret="")))


def worker(
    number: int = 0, apps: dict[str, AppFigures] | None = None, broker: BrokerStatus | None = None, **fields: Any
) -> WorkerStatus:
    given: dict[str, Any] = {
        "pid": 100 + number,
        "node": f"node{number}",
        "version": "1",
        "uptime": 60.0,
        "ready": True,
        "draining": False,
        "cpu_seconds": 1.0,
        "rss": 50_000_000,
        "fds": 20,
        "fds_most": 1024,
        "loop_lag": 0.001,
        "connections": {"pusher": 2},
        "counters": {"events_in": 5},
        "pending_bytes": 0,
        "away_seconds": 1.5,
        "unconfirmed": 1,
    }
    certificate = CertificateStatus("server", "/tls.pem", NOW + 10.5 * 86_400)
    return WorkerStatus(WorkerFigures(worker=number, **given | fields), apps or {}, broker, [certificate])


def status(*reports: WorkerStatus, missing: tuple[int, ...] = (), config: Config = CONFIG) -> ServerStatus:
    facts = ServerFacts(NOW, "server.yml", 99, 3600.0, False, [ListenerSummary("server", "ws://*:6001", False)], None)
    return assembled(config, facts, reports, missing)
