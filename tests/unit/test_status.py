"""The state of a server, made from the reports of its workers."""

import msgspec

from push1st.config.model import AppConfig, Config, Webhook
from push1st.config.settings import MAX_APPS
from push1st.status import (
    AppFigures,
    BrokerServer,
    BrokerStatus,
    CertificateStatus,
    ReloadStatus,
    ServerFacts,
    ServerStatus,
    assembled,
)
from tests.support.server_status import CONFIG, NOW, status, worker


def test_figures_of_all_workers_are_added() -> None:
    shop = {"shop": AppFigures(3, 2, 4, 10, 20, 1)}
    found = status(worker(1, shop), worker(0, shop, connections={"mqtt": 1}))
    assert [one.worker for one in found.workers] == [0, 1]
    assert found.connections == {"pusher": 2, "mqtt": 1}
    assert found.counters == {"events_in": 10}
    one, two = found.apps
    assert (one.id, one.connections, one.channels, one.subscriptions) == ("shop", 6, 4, 8)
    assert (one.events_in, one.messages_out, one.refusals, one.secrets) == (20, 40, 2, [13])
    assert (two.id, two.connections, two.secrets) == ("news", 0, [])


def test_subscriptions_that_one_worker_has_not_counted_are_not_known() -> None:
    found = status(worker(0, {"shop": AppFigures(1, 1, 1)}), worker(1, {"shop": AppFigures(1, 1, None)}))
    assert found.apps[0].subscriptions is None


def test_a_server_is_ready_if_all_workers_answer_and_accept_clients() -> None:
    assert status(worker(), worker(1)).ready
    assert not status(worker(), worker(1, ready=False)).ready
    assert not status().ready
    starting = ServerFacts(NOW, "", 99, 1.0, True, [], None)
    assert not assembled(CONFIG, starting, [worker()], ()).ready
    found = status(worker(), missing=(3, 1))
    assert (found.ready, found.complete, found.unanswered) == (False, False, [1, 3])


def test_only_the_first_apps_are_listed_and_the_answer_says_so() -> None:
    apps = tuple(AppConfig(id=f"a{number}", key=f"k{number}", secret="s") for number in range(MAX_APPS + 1))
    found = status(worker(), config=Config(apps=apps))
    assert (len(found.apps), found.apps_total, found.complete) == (MAX_APPS, MAX_APPS + 1, False)
    assert status(worker(), config=Config(apps=apps[:-1])).complete


def test_the_days_of_a_certificate_are_whole_and_a_listener_is_listed_once() -> None:
    (found,) = status(worker(), worker(1)).certificates
    assert (found.listener, found.file, found.days) == ("server", "/tls.pem", 10)
    expired = worker()
    expired.certificates[:] = [CertificateStatus("api", "/a.pem", NOW - 1)]
    assert status(expired).certificates[0].days == -1


def test_refused_files_of_one_worker_are_shown() -> None:
    refusing = worker()
    refusing.certificates[:] = [CertificateStatus("server", "/tls.pem", NOW, "no")]
    (found,) = status(refusing, worker(1)).certificates
    assert found.refused == "no"


def test_the_broker_of_one_worker_is_its_memory() -> None:
    found = status(worker()).broker
    assert (found.kind, found.connected, found.nodes, found.servers) == ("memory", True, 1, [])


def test_the_embedded_engine_has_no_url() -> None:
    engine = BrokerStatus(True, "", 2, [BrokerServer("9.1", "master", 0.001)])
    found = status(worker(0, broker=engine), worker(1, broker=engine)).broker
    assert (found.kind, found.url, found.nodes) == ("embedded", "", 2)


def test_the_broker_is_connected_if_it_is_for_all_workers_and_its_url_has_no_password() -> None:
    config = msgspec.structs.replace(CONFIG, broker="redis://me:canary@host/0")
    good = BrokerStatus(True, "", 4, [BrokerServer("9.1", "master", 0.001)])
    bad = BrokerStatus(False, "no answer", 1, [])
    found = status(worker(0, broker=good), worker(1, broker=bad), config=config).broker
    assert (found.kind, found.connected, found.reason, found.nodes) == ("shared", False, "no answer", 4)
    assert (found.away_seconds, found.unconfirmed) == (3.0, 2)
    assert found.url.startswith("server host:6379, user me, with a password")


def test_no_secret_is_in_the_answer() -> None:
    app = AppConfig(
        id="shop",
        key="k",
        secret="canary-1",
        webhooks=(Webhook(url="https://u:canary-2@h/", headers=(("Authorization", "canary-3"),)),),
    )
    config = Config(
        apps=(app,),
        broker="redis://u:canary-4@host/0",
        places=tuple((f"apps/shop/{key}", "apps.yml:1") for key in ("secret", "webhooks")),
    )
    text = msgspec.json.encode(status(worker(), config=config)).decode()
    assert '"set, 8 bytes"' in text
    assert "canary" not in text


def test_a_state_survives_its_encoding() -> None:
    found = status(worker(0, {"shop": AppFigures(1)}))
    found = msgspec.structs.replace(found, reload=ReloadStatus(NOW, ("a problem",)))
    assert msgspec.json.decode(msgspec.json.encode(found), type=ServerStatus) == found
