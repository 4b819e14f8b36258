"""Certificates that are renewed while the server runs."""

import os
import shutil
import time
from pathlib import Path

import pytest
import structlog.testing

from push1st.config.addresses import Listen
from push1st.config.model import Config, ServerConfig, Ssl
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.errors import ConfigError
from push1st.metrics import Metrics
from push1st.process.certificates import CHECK_SECONDS, Certificates
from push1st.process.tls import facts_of, self_signed
from push1st.transports.tls import Decryption
from tests.support.certificates import Authority


class Site:
    """A listener whose certificate is a link, as certbot makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.key, self.cert = folder / "privkey.pem", folder / "fullchain.pem"
        self.metrics = Metrics()
        self.certificates = Certificates(
            self.metrics, Decryption(lambda: None, lambda _: None), lambda: None, lambda _: None, time.time_ns
        )
        self.config = Config(server=ServerConfig(ssl=Ssl(True, str(self.key), str(self.cert))))
        self.issue()
        self.certificates.open(self.config)

    def issue(self, days: int = 10) -> None:
        """Issues a certificate, and lets the links lead to it."""
        cert, key = self.authority.issue("shop.example", days=days)
        self.link(self.cert, cert)
        self.link(self.key, key)

    def link(self, link: Path, file: Path) -> None:
        new = self.folder / "new"
        new.symlink_to(file)
        new.replace(link)

    @property
    def keys(self) -> object:
        return self.certificates.contexts["server"].keys

    @property
    def days(self) -> float:
        return round((self.metrics.certificates["server"] - time.time()) / 86_400)

    def tick(self, seconds: int = CHECK_SECONDS + 1) -> list[str]:
        """Lets seconds pass; returns the events in the log."""
        with structlog.testing.capture_logs() as logged:
            for _ in range(seconds):
                self.certificates.tick()
        return [line["event"] for line in logged]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_files_that_stay_are_not_loaded_again(site: Site) -> None:
    keys = site.keys
    assert site.tick(10 * CHECK_SECONDS) == []
    assert site.keys is keys
    assert site.certificates.prepare(site.config) == {}


def test_renewed_files_are_used_within_a_minute(site: Site) -> None:
    before, context = site.keys, site.certificates.contexts["server"]
    assert site.days == 10
    site.issue(days=90)
    assert site.tick() == ["certificate renewed"]
    assert site.keys is not before
    assert site.certificates.contexts["server"] is context
    assert site.days == 90
    assert site.metrics.reloads.results == {"renewed": 1}


def test_files_that_are_written_one_after_another_cause_no_error(site: Site) -> None:
    """The comparison finds the new certificate, a second before the new key comes."""
    cert, key = site.authority.issue("shop.example", days=90)
    site.tick(CHECK_SECONDS - 1)
    site.link(site.cert, cert)
    assert site.tick(1) == []
    site.link(site.key, key)
    assert site.tick(2) == ["certificate renewed"]
    assert site.days == 90


def test_a_pair_that_does_not_fit_is_refused_once_and_the_old_one_stays(site: Site) -> None:
    before = site.keys
    cert, _ = site.authority.issue("shop.example", days=90)
    site.link(site.cert, cert)
    assert site.tick(5 * CHECK_SECONDS) == ["certificate refused, the old one stays"]
    assert (site.keys, site.days) == (before, 10)
    assert site.metrics.reloads.results == {"refused": 1}
    assert "does not belong to the certificate" in site.metrics.refused_certificates["server"]
    site.issue(days=60)
    assert site.tick() == ["certificate renewed"]
    assert site.metrics.refused_certificates == {}
    assert site.days == 60


@pytest.mark.parametrize("what", ["gone", "empty", "expired"])
def test_files_that_cannot_be_used_change_nothing(site: Site, what: str) -> None:
    before = site.keys
    if what == "gone":
        site.key.unlink()
    elif what == "empty":
        site.cert.resolve().write_text("")
    else:
        site.issue(days=-1)
    with pytest.raises(ConfigError, match=r"server\.ssl\.(key|cert): cannot use the "):
        site.certificates.prepare(site.config)
    assert site.tick(3 * CHECK_SECONDS) == ["certificate refused, the old one stays"]
    assert (site.keys, site.days) == (before, 10)


@pytest.mark.parametrize(("days", "why"), [(-1, "it expired on "), (10, "it is valid from ")], ids=["expired", "not yet valid"])
def test_server_starts_with_a_certificate_that_is_not_valid_but_a_reload_does_not_use_it(
    site: Site, days: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.issue(days=days)
    if days > 0:
        monkeypatch.setattr(site.certificates, "_wall", lambda: time.time_ns() - 5 * 86_400 * 10**9)
    with pytest.raises(ConfigError, match=rf"^server\.ssl\.cert: cannot use the certificate {site.cert} now: {why}"):
        site.certificates.open(site.config, must_be_valid=True)
    with structlog.testing.capture_logs() as logged:
        site.certificates.open(site.config)
    (line,) = logged
    assert (line["event"], line["log_level"]) == ("certificate is not valid, clients reject it", "error")
    assert line["listener"] == "server"
    assert why in line["reason"]
    site.issue(days=90)
    monkeypatch.undo()
    assert site.tick() == ["certificate renewed"]


def test_error_about_a_file_begins_with_its_place(site: Site) -> None:
    """MQTT uses the files of `server.ssl` if it has none of its own."""
    site.issue(days=-1)
    tls = site.config.server.ssl
    mqtt = Mqtt(listen=(Listen("tls", port=8883),), ssl=MqttSsl(key=tls.key, cert=tls.cert))
    server = ServerConfig(proto=frozenset({"mqtt"}), mqtt=mqtt)
    config = Config(server=server, places=(("server.ssl.cert", "server.yml:7"),))
    with pytest.raises(ConfigError, match=r"^server\.yml:7: server\.ssl\.cert: cannot use the certificate "):
        site.certificates.open(config, must_be_valid=True)


def test_refused_files_are_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate becomes valid, and no file changes."""
    site.issue(days=90)
    now = time.time_ns()
    monkeypatch.setattr(site.certificates, "_wall", lambda: now - 5 * 86_400 * 10**9)
    assert site.tick(3 * CHECK_SECONDS) == ["certificate refused, the old one stays"]
    with pytest.raises(ConfigError, match="valid from"):
        site.certificates.prepare(site.config)
    monkeypatch.setattr(site.certificates, "_wall", lambda: now)
    assert list(site.certificates.prepare(site.config)) == ["server"]
    assert site.tick() == ["certificate renewed"]
    assert site.days == 90


def test_the_same_file_with_another_content_is_found(site: Site) -> None:
    cert, key = site.authority.issue("shop.example", days=90)
    for new, link in ((cert, site.cert), (key, site.key)):
        shutil.copyfile(new, link.resolve())
        os.utime(link.resolve(), ns=(1, 1))
    assert site.tick() == ["certificate renewed"]


def test_a_reload_checks_the_files_at_once(site: Site) -> None:
    before = site.keys
    site.issue(days=90)
    prepared = site.certificates.prepare(site.config)
    assert site.keys is before, "the check changes nothing"
    (line,) = site.certificates.apply(prepared)
    assert line.startswith("server: new certificate, valid until 20")
    assert site.days == 90


def test_a_reload_may_name_other_files(site: Site) -> None:
    cert, key = site.authority.issue("shop.example", days=90)
    other = Config(server=ServerConfig(ssl=Ssl(True, str(key), str(cert))))
    site.certificates.apply(site.certificates.prepare(other))
    assert site.days == 90
    site.issue(days=30)
    assert site.tick() == [], "the former files do not count any more"


def test_names_that_the_new_certificate_lacks_are_logged(site: Site, tmp_path: Path) -> None:
    key, cert = self_signed(tmp_path)
    site.link(site.key, Path(key))
    site.link(site.cert, Path(cert))
    assert site.tick() == ["certificate renewed"]
    site.issue()
    assert site.tick() == ["the new certificate lacks names", "certificate renewed"]


def test_an_encrypted_key_is_refused_without_a_question(site: Site) -> None:
    """A question on the terminal would stop all clients."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(site.key.read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")
    )
    site.key.resolve().write_bytes(encrypted)
    with pytest.raises(ConfigError, match="it is encrypted, and its password was not entered"):
        site.certificates.prepare(site.config)


def test_a_self_signed_certificate_stays_over_reloads() -> None:
    certificates = Certificates(Metrics(), Decryption(lambda: None, lambda _: None), lambda: None, lambda _: None)
    config = Config(server=ServerConfig(ssl=Ssl(True)))
    with structlog.testing.capture_logs():
        certificates.open(config)
    keys = certificates.contexts["server"].keys
    assert certificates.prepare(config) == {}
    certificates.tick()
    assert certificates.contexts["server"].keys is keys


def test_a_file_without_certificate_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert facts_of(str(tmp_path / "empty")) is None
    assert facts_of(str(tmp_path / "nowhere")) is None
